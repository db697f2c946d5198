"""`foveate compare`: the full model and several methods side by side on one question."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from foveate.cli.options import BudgetOptions, Files, ModelOptions, OutputOptions, VideoOptions
from foveate.cli.outputs import check_targets
from foveate.cli.usage import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image
    from rich.table import Table

    from foveate.cli.race import Race

__all__ = ["Compare"]


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Ask one question of the full model and of several methods, side by side.

    A row each: the answer, how far it agrees with the full model's token by token, the retention, and the
    ratio of times; with --figure one picture of what every method kept. One question is an illustration,
    no measure of quality.

    Examples:
      foveate compare
      foveate compare cat.jpg --prompt "What is it doing?" --method v2drop --method random --budget 192
      foveate compare cat.jpg --prompt "Read the sign." --figure kept.png --out result.json
    """

    files: Files = ()
    """picture and video files, in the order in which the model sees them"""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """the question"""
    method: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = ()
    """a method, preset, tuned record or chain, with settings: "visiondrop+v2drop:metric=l1;keep=0.5,0.3,0"
    (default: every method that takes a budget; list: foveate methods)"""
    pairs: Annotated[int, tyro.conf.arg(metavar="N")] = 10
    """timed rounds, after a warm-up"""
    models: Annotated[ModelOptions, tyro.conf.arg(name="model")] = field(default_factory=ModelOptions)
    budgets: Annotated[BudgetOptions, tyro.conf.arg(name="budget")] = field(default_factory=BudgetOptions)
    videos: Annotated[VideoOptions, tyro.conf.arg(name="video")] = field(default_factory=VideoOptions)
    outputs: Annotated[OutputOptions, tyro.conf.arg(name="output")] = field(default_factory=OutputOptions)

    def run(self) -> None:
        """Answer with each, print the table, and write what was asked for."""
        if self.pairs < 2:
            raise UsageError(f"--pairs {self.pairs}: an interval needs two or more.")
        check_targets(self.outputs)
        # Only now anything slow is imported: --help and refusals stay quick.
        from foveate.cli.screen import busy

        with busy("Starting torch"):
            from rich.console import Group
            from rich.text import Text

            from foveate.cli import report
            from foveate.cli.asking import ask
            from foveate.cli.finish import finish
            from foveate.cli.prompt import fitting
            from foveate.cli.race import race
            from foveate.cli.setup import set_up
            from foveate.methods.grammar import read
            from foveate.registry import methods
            from foveate.viz import draw_comparison

        names = self.method or tuple(name for name in methods() if not read(name).settled)
        every = not self.method
        setup = set_up(self.files, self.prompt, names, self.models, self.budgets, self.videos, every=every)
        with busy("Answering without dropping"), fitting(setup.loaded, setup.inputs):
            whole = setup.cost(None)
            full = ask(setup.loaded, setup.inputs, None, self.models.max_new_tokens)
        answers = {}
        for name, method in setup.methods.items():
            with busy(f"Answering with {name}"):
                answers[name] = ask(setup.loaded, setup.inputs, method, self.models.max_new_tokens)
        found = race(setup.loaded, setup.inputs, setup.methods, len(full.tokens), self.pairs)
        outcomes = [
            report.outcome(
                name,
                setup.methods[name],
                answer,
                setup.cost(setup.methods[name], answer.trace),
                whole,
                setup.asked[name],
            )
            | {"agreement": report.agreement(answer, full)}
            for name, answer in answers.items()
        ]
        values = setup.to_dict() | {
            "full": {"answer": full.text, "token_ids": full.tokens, "kv_bytes": full.kv_bytes},
            "methods": outcomes,
            "infeasible": [{"name": name, "reason": reason} for name, reason in setup.infeasible.items()],
            "time": report.race_values(found),
        }
        footnotes = [Text(f"Time ratio to the full model's: {report.race_note(found)}."), Text(CONTROL)]
        if any(row["met"] is False for row in outcomes):
            footnotes.append(Text(UNMET))
        footnotes += [Text(f"  {row['name']}: {said}.") for row in outcomes if (said := report.unmet(row)) is not None]

        def draw() -> "Image":
            prefills = [(f"{name}: {answer.text}", answer.trace.latest) for name, answer in answers.items()]
            return draw_comparison(prefills, setup.shown, f"{setup.prompt}  Full model: {full.text}")

        if self.outputs.figure is not None:
            values["figure"] = str(self.outputs.figure)
            footnotes.append(Text(f"Picture: {self.outputs.figure}"))
        table = _table(setup.prompt, full.text, outcomes, found)
        for name, reason in setup.infeasible.items():
            table.add_row(Text(name), Text(f"infeasible: {reason}"))
        finish(values, Group(table, *footnotes), draw, self.outputs)


CONTROL = "In the full model's row it is timed against itself: what noise alone does here."
UNMET = "* The budget is not met:"


def _table(prompt: str, answer: str, outcomes: "list[dict[str, Any]]", found: "Race") -> "Table":
    """A row for the full model and one a method."""
    from rich.table import Column, Table
    from rich.text import Text

    from foveate.cli.report import agreement_words, interval

    table = Table(
        Column(no_wrap=True), "Answer", "Agreement", "Retention", "Decoder FLOPs", "Time ratio", title=Text(prompt)
    )
    table.add_row("full model", Text(answer), "", "100.0%", "100.0%", interval(found.control, "\n"))
    for row in outcomes:
        table.add_row(
            Text(row["name"]),
            Text(row["answer"]),
            agreement_words(row["agreement"]),
            f"{row['retention']:.1%}{'*' if row['met'] is False else ''}",
            f"{1 - row['saved']['prefill_flops']:.1%}",
            interval(found.ratios[row["name"]], "\n"),
        )
    return table
