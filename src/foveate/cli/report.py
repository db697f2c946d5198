"""What `generate` and `compare` say about an answer: lines for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.ask.answer import Answer
from foveate.bench.paired import AGAIN
from foveate.bench.timing import Ratio, interval_words
from foveate.engine.trace import Trace
from foveate.video import Clip

__all__ = [
    "agreement",
    "agreement_words",
    "flops_line",
    "interval",
    "kv_line",
    "race_note",
    "race_values",
    "spent_lines",
]

PLACES = {"tower": "in the vision tower", "projector": "behind the projector", "kv": "before decoding"}


def agreement(answer: Answer, full: Answer) -> dict[str, Any]:
    """How far an answer goes with the full model's, token by token."""
    same = 0
    for token, other in zip(answer.tokens, full.tokens, strict=False):
        if token != other:
            break
        same += 1
    return {
        "identical": answer.tokens == full.tokens,
        "same_leading_tokens": same,
        "full_tokens": len(full.tokens),
    }


def agreement_words(same: Mapping[str, Any]) -> str:
    """An agreement in words."""
    if same["identical"]:
        return "the same"
    return f"first {same['same_leading_tokens']} of {same['full_tokens']} tokens"


def spent_lines(answer: Answer) -> list[tuple[str, str]]:
    """What an answer spent and saved, each with its label."""
    spent = (
        f"{answer.retention:.1%} of the vision tokens: {answer.spent:.3g} of {answer.vision_tokens}, "
        f"mean over {answer.prompt.loaded.depth} decoder layers"
    )
    lines = [("Retention", spent)]
    if answer.missed is not None:
        lines.append(("Budget", f"not met: {answer.missed}"))
    steps = []
    for stage in answer.trace.stages:
        place = PLACES.get(stage.where, f"before layer {stage.layer}")
        steps.append(f"{place}: {stage.before[0]} to {stage.after[0]}")
    lines.append(("Stages", "; ".join(steps) or "nothing was dropped"))
    if answer.looked:
        lines.append(("Looked", f"once: {answer.looked} tokens of each prompt ran a single time"))
    lines += _clip_lines(answer.prompt.clips, answer.trace, alone=len(answer.prompt.media) == 1)
    return [*lines, ("FLOPs", flops_line(answer)), ("KV cache", kv_line(answer))]


def _clip_lines(clips: Sequence[Clip], trace: Trace, *, alone: bool) -> list[tuple[str, str]]:
    """Which frames of each video the model saw; and where a video is all there is, how much of what stays is late."""
    lines = []
    for clip in clips:
        times = f"from {clip.seconds[0]:.2f} to {clip.seconds[-1]:.2f} s"
        lines.append(("Frames", f"{len(clip)} of {clip.path}, {times}"))
    if not clips or not alone:
        return lines
    shares = []
    for stage, counts in zip(trace.stages, trace.kept_by_frame(), strict=False):
        late = _late(counts)
        if late is not None:
            shares.append(f"{late:.0%} {stage.place}")
    if shares:
        lines.append(("Late frames", f"the second half of the video has {', '.join(shares)}"))
    return lines


def _late(counts: Sequence[int]) -> float | None:
    """The share of tokens in the second half of the frames, half of the middle one among them; None without any."""
    if len(counts) < 2 or not sum(counts):
        return None
    half = len(counts) // 2
    late = float(sum(counts[-half:]))
    if len(counts) % 2:
        late += counts[half] / 2
    return late / sum(counts)


def flops_line(answer: Answer) -> str:
    """What the arithmetic saves, counted."""
    cost, saved = answer.cost, answer.saved
    decoder = _flops(cost.prefill_flops + cost.scoring_flops)
    # z: scoring that drops nothing costs a little, and that shall not read "-0.0%".
    return (
        f"{saved.prefill_flops:z.1%} saved in the decoder's prefill "
        f"({decoder} of {_flops(answer.cost_untouched.prefill_flops)}); "
        f"{saved.total_flops:z.1%} from the pixels to the first token (counted)"
    )


def kv_line(answer: Answer) -> str:
    """What the cache saves, measured."""
    held, undropped = answer.kv_bytes, answer.kv_bytes_whole
    if not undropped:
        return "the model keeps no keys and values"
    sizes = f"{held / 2**20:.3g} of {undropped / 2**20:.3g} MiB"
    return f"{answer.saved.kv_bytes:z.1%} saved: {sizes} (measured after the answer)"


def race_values(race: Mapping[str, Ratio], new_tokens: int) -> dict[str, Any]:
    """Time ratios of answers of `new_tokens` as plain values."""
    control = race[AGAIN]
    return {
        "noisy": not control.holds_one,
        "ratio_to_full": {name: ratio.to_dict() for name, ratio in race.items() if name != AGAIN},
        "control": control.to_dict(),
        "new_tokens": new_tokens,
    }


def race_note(race: Mapping[str, Ratio], new_tokens: int) -> str:
    """What was timed and how often."""
    rounds = race[AGAIN].rounds
    return (
        f"{rounds} interleaved pairs, vision encoder, prefill and {new_tokens} tokens, "
        f"median and {interval_words(rounds)}"
    )


def interval(ratio: Ratio, between: str = " ") -> str:
    """A ratio and its interval: `0.71 [0.69–0.74]`."""
    return f"{ratio.median:.2f}{between}[{ratio.low:.2f}–{ratio.high:.2f}]"


def _flops(count: float) -> str:
    """A count of operations with its prefix: 8177382850560 -> 8.18 TFLOP."""
    prefixes = ("", "k", "M", "G", "T", "P")
    step = 0
    while count >= 1000 and step < len(prefixes) - 1:
        count, step = count / 1000, step + 1
    return f"{count:.3g} {prefixes[step]}FLOP"
