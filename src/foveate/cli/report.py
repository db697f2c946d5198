"""What `generate` and `compare` say about a run: as plain values for JSON, as lines for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.bench.timing import Ratio
from foveate.cli.asking import Answer
from foveate.cli.race import Race
from foveate.cost import Cost
from foveate.engine.trace import Trace
from foveate.methods.base import Method
from foveate.video import Clip

__all__ = [
    "agreement",
    "agreement_words",
    "budget_line",
    "clip_lines",
    "flops_line",
    "interval",
    "kv_line",
    "outcome",
    "race_lines",
    "race_note",
    "race_values",
    "stages_line",
    "unmet",
    "unmet_lines",
    "with_agreement",
]


NEAR = 0.02
"""How far what is spent may lie from what was asked for, as a share of it, for a budget to be met."""


def outcome(
    name: str, method: Method, answer: Answer, cost: Cost, whole: Cost, asked: float | None = None
) -> dict[str, Any]:
    """One method's run as plain values; `asked` is the retention that was asked for, if one was."""
    spent = answer.trace.retention[0]
    return {
        "name": name,
        "setting": method.to_dict(),
        "answer": answer.text,
        "token_ids": answer.tokens,
        "retention": spent,
        "asked": asked,
        "spent": spent,
        "met": None if asked is None else abs(spent - asked) <= NEAR * asked,
        "mean_tokens": answer.trace.tokens[0],
        "trace": answer.trace.to_dict(),
        "cost": cost.to_dict(),
        "saved": {
            "prefill_flops": 1 - (cost.prefill_flops + cost.scoring_flops) / whole.prefill_flops,
            "total_flops": 1 - cost.total_flops / whole.total_flops,
            "kv_bytes": 1 - answer.kv_bytes / answer.kv_bytes_whole,
        },
        "kv_bytes": answer.kv_bytes,
        "kv_bytes_whole": answer.kv_bytes_whole,
    }


def unmet(values: Mapping[str, Any]) -> str | None:
    """What became of a budget that was not met, of an `outcome`; None where it was, or where none was asked for."""
    if values["met"] is not False:
        return None
    return f"{values['asked']:.1%} was asked for, {values['spent']:.1%} is spent"


def unmet_lines(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same as a labelled line, if there is one."""
    said = unmet(values)
    return [] if said is None else [("Budget", f"not met: {said}")]


def agreement(answer: Answer, full: Answer) -> dict[str, Any]:
    """How far an answer goes with the full model's, token by token."""
    pairs = zip(answer.tokens, full.tokens, strict=False)
    same = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(answer.tokens), len(full.tokens)))
    return {"identical": answer.tokens == full.tokens, "same_leading_tokens": same, "full_tokens": len(full.tokens)}


def agreement_words(same: dict[str, Any]) -> str:
    """An agreement in words."""
    if same["identical"]:
        return "the same"
    return f"first {same['same_leading_tokens']} of {same['full_tokens']} tokens"


def with_agreement(answer: Answer, same: dict[str, Any]) -> str:
    """An answer and how far it agrees with the full model's."""
    return f"{answer.text}   ({'the same' if same['identical'] else 'differs: ' + agreement_words(same)})"


def race_values(found: Race) -> dict[str, Any]:
    """The times as plain values."""
    return {
        "ratio_to_full": {name: ratio.to_dict() for name, ratio in found.ratios.items()},
        "control": found.control.to_dict(),
        "new_tokens": found.new_tokens,
    }


def budget_line(trace: Trace, layers: int) -> str:
    """The retention in words."""
    return (
        f"{trace.retention[0]:.1%} of the vision tokens: {trace.tokens[0]:.1f} of {trace.vision_tokens[0]}, "
        f"mean over {layers} decoder layers"
    )


def stages_line(trace: Trace) -> str:
    """Where tokens left, in words."""
    where = {"tower": "in the vision tower", "projector": "behind the projector", "kv": "before decoding"}
    steps = [
        f"{where.get(stage.where, f'before layer {stage.layer}')}: {stage.before[0]} to {stage.after[0]}"
        for stage in trace.stages
    ]
    return "; ".join(steps) or "nothing left"


def clip_lines(clips: Sequence[Clip], trace: Trace, *, alone: bool) -> list[tuple[str, str]]:
    """Which frames of each video the model saw; and where a video is all there is, how much of what stays is late."""
    lines = [
        ("Frames", f"{len(clip)} of {clip.path}, from {clip.seconds[0]:.2f} to {clip.seconds[-1]:.2f} s")
        for clip in clips
    ]
    if clips and alone:
        shares = [
            f"{late:.0%} {stage.place}"
            for stage, counts in zip(trace.stages, trace.kept_by_frame(), strict=False)
            if (late := _late(counts)) is not None
        ]
        lines += [("Late frames", f"the second half of the video has {', '.join(shares)}")] if shares else []
    return lines


def _late(counts: Sequence[int]) -> float | None:
    """The share of tokens in the second half of the frames, half of the middle one among them; None without any."""
    if len(counts) < 2 or not sum(counts):
        return None
    half = len(counts) // 2
    middle = counts[half] / 2 if len(counts) % 2 else 0.0
    return (middle + sum(counts[-half:])) / sum(counts)


def flops_line(cost: Cost, whole: Cost) -> str:
    """What the arithmetic saves, counted."""
    decoder = cost.prefill_flops + cost.scoring_flops
    return (
        f"{1 - decoder / whole.prefill_flops:.1%} saved in the decoder's prefill "
        f"({_flops(decoder)} of {_flops(whole.prefill_flops)}); "
        f"{1 - cost.total_flops / whole.total_flops:.1%} from the pixels to the first token (counted)"
    )


def kv_line(answer: Answer) -> str:
    """What the cache saves, measured."""
    held, whole = answer.kv_bytes, answer.kv_bytes_whole
    return f"{1 - held / whole:.1%} saved: {held / 2**20:.2f} of {whole / 2**20:.2f} MiB (measured after the answer)"


def race_lines(name: str, found: Race) -> list[tuple[str, str]]:
    """The time ratio and its control as labelled lines."""
    return [
        ("Time ratio", f"{interval(found.ratios[name])} of the full model's time; {race_note(found)}"),
        ("", f"{interval(found.control)} for the full model against itself: what noise alone does here"),
    ]


def race_note(found: Race) -> str:
    """What was timed and how often."""
    return (
        f"{found.control.rounds} interleaved pairs, vision encoder, prefill and {found.new_tokens} tokens, "
        "median and 95 % interval"
    )


def interval(ratio: Ratio, between: str = " ") -> str:
    """A ratio and its interval: `0.71 [0.69-0.74]`."""
    return f"{ratio.median:.2f}{between}[{ratio.low:.2f}–{ratio.high:.2f}]"


def _flops(count: float) -> str:
    """A count of operations with its prefix: 8177382850560 -> 8.18 TFLOP."""
    prefixes = ("", "k", "M", "G", "T", "P")
    step = 0
    while count >= 1000 and step < len(prefixes) - 1:
        count, step = count / 1000, step + 1
    return f"{count:.3g} {prefixes[step]}FLOP"
