"""`foveate compare`: one question to the full model and to several methods, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from foveate.cli.checks import check_input, check_methods
from foveate.cli.options import Files, FlopsOptions, MaybeFile, PairCount, TableOptions
from foveate.cli.outputs import check_targets, write_outputs
from foveate.cli.screen import busy
from foveate.plain.flags import MediaOptions, ModelOptions
from foveate.plain.version import __version__

if TYPE_CHECKING:
    from foveate.ask.answer import Answer
    from foveate.bench.timing import Ratio
    from foveate.cli.setup import Setup
    from foveate.plain.table import Table

METHODS = ("v2drop", "divprune", "vidcom2", "averagepool", "resize", "random")
"""The default methods: they run on every family and lose little at a third of the tokens (docs/guides/choosing.md).
The last three are controls."""
SCHEDULED_CONTROLS = ("random", "uniform")
"""Controls that run once per method, with the method's schedule."""
OTHER_CONTROLS = ("averagepool", "resize")
"""Controls that run once, with their own schedule."""


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Ask the full model and several methods one question, and compare the answers.

    Prints one row per method: the answer, how many leading tokens agree with the full model's answer, the retention
    and the time ratio. With --figure, draws what every method kept in one image. One question is an illustration,
    not a measure of quality.

    Examples:
      foveate compare
      foveate compare cat.jpg --prompt "What is it doing?" --method v2drop --method random --budget 192
      foveate compare cat.jpg --prompt "Read the sign." --figure kept.png --out result.json
    """

    files: Files = ()
    """image and video files, in the order in which the model sees them"""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """the question"""
    method: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = ()
    """a method, preset, preset file or chain, with settings: "visiondrop+v2drop:metric=l1;keep=0.5,0.3,0"
    (default: v2drop, divprune, vidcom2, and the controls averagepool, resize and random; list: foveate methods)"""
    pairs: PairCount = 10
    """timed rounds, after one warm-up round"""
    figure: MaybeFile = None
    """draw the kept patches on the image, one panel per stage; for a video, one sheet per stage
    (png, jpg, webp, pdf)"""
    models: Annotated[ModelOptions, tyro.conf.arg(name="model")] = field(default_factory=ModelOptions)
    budgets: Annotated[FlopsOptions, tyro.conf.arg(name="budget")] = field(default_factory=FlopsOptions)
    media: Annotated[MediaOptions, tyro.conf.arg(name="media")] = field(default_factory=MediaOptions)
    outputs: Annotated[TableOptions, tyro.conf.arg(name="output")] = field(default_factory=TableOptions)

    def run(self) -> None:
        """Answer with each method, print the table, and write the requested files."""
        check_targets(self.outputs, self.figure)
        names = self.method or METHODS
        check_methods(names)
        check_input(self.files, self.prompt or "", self.models.model, self.media)
        # Slow imports come last, so that --help and usage errors stay fast.
        with busy("Starting torch"):
            from foveate.ask.generation import Generation
            from foveate.cli.setup import parse_methods, set_up
            from foveate.viz import draw_comparison

        compared = [name for name in names if name not in (*SCHEDULED_CONTROLS, *OTHER_CONTROLS)]
        controls = [name for name in names if name in SCHEDULED_CONTROLS and compared]
        drops = parse_methods(names, self.budgets)
        scheduled = {name: drops.pop(name) for name in controls}
        setup = set_up(self, [] if self.prompt is None else [self.prompt], drops, every=not self.method)
        generation = Generation(max_new_tokens=self.models.max_new_tokens)
        with busy("Answering without dropping"):
            full = setup.vlm.answer(setup.prompt, generation=generation)
        answers = _answers(setup, scheduled, generation)
        methods = {name: answer.method for name, answer in answers.items() if answer.method is not None}
        race = setup.race(methods, len(full.tokens), self.pairs)
        agreements = {name: _agreement(answer, full) for name, answer in answers.items()}
        values: dict[str, Any] = {
            "foveate": __version__,
            **setup.prompt.to_dict(),
            "full": {"answer": full.text, "token_ids": list(full.tokens), "kv_bytes": full.kv_bytes},
            "methods": [
                {"name": name, "agreement": agreements[name]} | answer.to_dict() for name, answer in answers.items()
            ],
            "infeasible": [{"name": name, "reason": reason} for name, reason in setup.infeasible.items()],
            "time": _times(race, len(full.tokens)),
        }
        lines = _notes(answers, race, len(full.tokens))
        if (share := self.budgets.flops) is not None:
            values["flops"] = share
            lines.append(f"Each method has the largest budget within {share:.1%} of the full model's FLOPs.")
        if self.figure is not None:
            values["figure"] = str(self.figure)
            lines.append(f"Figure: {self.figure}")
        table = _table(full, answers, agreements, race, setup.infeasible, of_all=share is not None).with_notes(lines)
        drawn = [(f"{name}: {answer.text}", answer.trace.latest) for name, answer in answers.items()]
        title = f"{setup.prompt.text}  Full model: {full.text}"
        write_outputs(
            values, table, self.outputs, [table], self.figure, lambda: draw_comparison(drawn, setup.prompt.shown, title)
        )


def _answers(setup: "Setup", controls: Mapping[str, Any], generation: Any) -> "dict[str, Answer]":
    """Answer with every method, by its name. Scheduled controls run right after each method, with its schedule."""
    from foveate.methods.random import same_schedule

    answers: dict[str, Answer] = {}
    for name in sorted(
        setup.methods, key=OTHER_CONTROLS.__contains__
    ):  # stable sort: moves the other controls to the end
        with busy(f"Answering with {name}"):
            answers[name] = setup.vlm.answer(setup.prompt, setup.methods[name], generation=generation)
        if name in OTHER_CONTROLS:
            continue
        answer = answers[name]
        assert answer.method is not None
        counts = [layer[0] for layer in answer.trace.latest.per_layer]
        for control, kind in controls.items():  # as many tokens in every layer and in the cache as the method has
            method = same_schedule(answer.method, counts, answer.vision_tokens, kind)
            with busy(f"Answering with {control} as {name}"):
                answers[f"{control} as {name}"] = setup.vlm.answer(setup.prompt, method, generation=generation)
    return answers


def _agreement(answer: "Answer", full: "Answer") -> dict[str, Any]:
    """Count the leading tokens that an answer shares with the full model's."""
    pairs = zip(answer.tokens, full.tokens, strict=False)
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    return {"identical": answer.tokens == full.tokens, "same_leading_tokens": same, "full_tokens": len(full.tokens)}


def _times(race: "Mapping[str, Ratio]", new_tokens: int) -> dict[str, Any]:
    """Return time ratios, measured with answers of `new_tokens` tokens, as plain values."""
    from foveate.bench.paired import AGAIN

    control = race[AGAIN]
    return {
        "noisy": not control.holds_one,
        "ratio_to_full": {name: ratio.to_dict() for name, ratio in race.items() if name != AGAIN},
        "control": control.to_dict(),
        "new_tokens": new_tokens,
    }


def _notes(answers: "Mapping[str, Answer]", race: "Mapping[str, Ratio]", new_tokens: int) -> list[str]:
    """Return the lines below the table."""
    from foveate.bench.paired import AGAIN
    from foveate.bench.timing import interval_words

    rounds = race[AGAIN].rounds
    what = f"{rounds} interleaved pairs, vision encoder, prefill and {new_tokens} tokens"
    lines = [f"Time ratio to the full model's: {what}, median and {interval_words(rounds)}."]
    lines.append("In the full model's row, it is timed against itself: the noise of this measurement.")
    if beside := [name for name in answers if " as " in name]:
        lines.append(f"“{beside[0]}”: as many tokens at the same layers, chosen by the control.")
    if missed := {name: answer.missed for name, answer in answers.items() if answer.missed is not None}:
        lines.append("* The budget is not met:")
        lines += [f"  {name}: {words}." for name, words in missed.items()]
    return lines


def _table(
    full: "Answer",
    answers: "Mapping[str, Answer]",
    agreements: Mapping[str, Mapping[str, Any]],
    race: "Mapping[str, Ratio]",
    infeasible: Mapping[str, str],
    of_all: bool,
) -> "Table":
    """Return the table: a row for the full model and one per method.

    Args:
        full: The full model's answer.
        answers: The methods' answers, by name.
        agreements: How far each answer agrees with the full model's.
        race: The time ratios, by name.
        infeasible: Why other methods could not meet the budget, by name.
        of_all: True counts FLOPs from the pixels on, False those of the decoder's prefill.
    """
    from foveate.bench.paired import AGAIN
    from foveate.plain.table import Column, Number, Table, number

    numbers = [Column(head, right=True) for head in ("Retention", "FLOPs" if of_all else "Decoder FLOPs", "Time ratio")]
    columns = [Column(""), Column("Answer", wrap=True), Column("Agreement"), *numbers]
    whole = number(1, ".1%")
    ratios = {}
    for name, ratio in race.items():
        text = f"{ratio.median:.2f}\n[{ratio.low:.2f}–{ratio.high:.2f}]"
        ratios[name] = Number(text, {"": ratio.median, "low": ratio.low, "high": ratio.high})
    rows: list[Sequence[str]] = [("full model", full.text, "", whole, whole, ratios[AGAIN])]
    for name, answer in answers.items():
        retention = number(answer.retention, ".1%")
        if answer.met is False:
            retention = Number(f"{retention}*", retention.values)
        saved = answer.saved.total_flops if of_all else answer.saved.prefill_flops
        flops = "not counted"
        if saved is not None:
            flops = number(1 - saved, ".1%")
        same = "the same"
        if not agreements[name]["identical"]:
            same = f"first {agreements[name]['same_leading_tokens']} of {len(full.tokens)} tokens"
        rows.append((name, answer.text, same, retention, flops, ratios[name]))
    rows += [(name, f"infeasible: {reason}") for name, reason in infeasible.items()]
    return Table(full.prompt.text, columns, rows)
