"""`foveate generate`: an answer with vision tokens dropped, and what that saved."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from foveate.cli.checks import check_input, check_methods
from foveate.cli.options import BudgetOptions, Files, Flag, MediaOptions, ModelOptions, OutputOptions
from foveate.cli.outputs import check_targets
from foveate.cli.usage import UsageError, check_most

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from foveate.ask.answer import Answer
    from foveate.ask.generation import Generation
    from foveate.ask.prompt import Prompt
    from foveate.bench.race import Race
    from foveate.cli.asking import Setup
    from foveate.contract.method import Method

__all__ = ["Generate", "timed"]


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Answer a question about pictures or a video while vision tokens are dropped.

    Prints the answer, the retention, and the FLOPs and KV-cache bytes saved; with --full also the untouched
    model's answer and a measured time ratio. Without an image, the embedded model is asked about the
    picture that comes with it.

    Examples:
      foveate generate
      foveate generate cat.jpg --prompt "What is it doing?" --model llava-hf/llava-1.5-7b-hf
      foveate generate a.png b.png --prompt "What changed?" --budget 192 --figure kept.png
      foveate generate cat.jpg -q "What is it doing?" -q "What colour is it?"
      foveate generate cat.jpg --prompt "Describe it." --method v2drop/llava-1.5-7b/64 --full --json
      foveate generate clip.mp4 --prompt "What happens?" --frames 32 --model llava-hf/llava-onevision-qwen2-7b-ov-hf
    """

    files: Files = ()
    """picture and video files, in the order the model sees them"""
    prompt: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]],
        tyro.conf.arg(aliases=("-q",), metavar="TEXT", help_behavior_hint=""),
    ] = ()
    """the question; repeatable: the pictures are looked at once, and each question is answered"""
    method: Annotated[str, tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = "v2drop"
    """a method, preset, tuned record or chain, with settings: "visiondrop+v2drop:metric=l1;keep=0.5,0.3,0"
    (list: foveate methods)"""
    full: Flag = False
    """also run the model without dropping: show its answer and the time ratio"""
    pairs: Annotated[int, tyro.conf.arg(metavar="N")] = 10
    """with --full: timed pairs, after one of warm-up"""
    show: Flag = False
    """show the kept patches in the terminal, if it has colours"""
    models: Annotated[ModelOptions, tyro.conf.arg(name="model")] = field(default_factory=ModelOptions)
    budgets: Annotated[BudgetOptions, tyro.conf.arg(name="budget")] = field(default_factory=BudgetOptions)
    media: Annotated[MediaOptions, tyro.conf.arg(name="media")] = field(default_factory=MediaOptions)
    outputs: Annotated[OutputOptions, tyro.conf.arg(name="output")] = field(default_factory=OutputOptions)

    def run(self) -> None:
        """Answer, print, and write what was asked for."""
        if self.pairs < 2:
            raise UsageError(f"--pairs {self.pairs}: an interval needs two or more.")
        check_most(pairs=self.pairs)
        if self.full and len(self.prompt) > 1:
            raise UsageError("--full compares and times one answer: give one --prompt.")
        question = self.prompt[0] if self.prompt else None
        check_targets(self.outputs)
        check_methods([self.method], self.budgets)
        check_input(self.files, question, self.models, self.media)
        # Only now anything slow is imported: --help and refusals stay quick.
        from foveate.cli.screen import busy

        with busy("Starting torch"):
            from foveate.ask.generation import Generation
            from foveate.cli import report
            from foveate.cli.asking import set_up
            from foveate.cli.outputs import finish

        setup = set_up(self.files, question, [self.method], self.models, self.budgets, self.media)
        prompt, vlm = setup.prompt, setup.vlm
        generation = Generation(max_new_tokens=self.models.max_new_tokens)
        if len(self.prompt) > 1:
            self._answer_all(setup, generation)
            return
        with busy(f"Answering with {self.method}"):
            answer = setup.answer(self.method, generation)
        values: dict[str, Any] = setup.to_dict() | {"name": self.method} | answer.to_dict()
        rows = [("Question", prompt.text), (f"With {self.method}", answer.text)]
        times: list[tuple[str, str]] = []
        if self.full:
            with busy("Answering without dropping"):
                full = vlm.answer(prompt, generation=generation)
            race = timed(prompt, setup.methods, len(full.tokens), self.pairs)
            same = report.agreement(answer, full)
            values["full"] = {"answer": full.text, "token_ids": list(full.tokens), "kv_bytes": full.kv_bytes}
            values |= {"agreement": same, "time": race.to_dict()}
            rows[1:] = [("Full model", full.text), (f"With {self.method}", report.with_agreement(answer, same))]
            times = report.race_lines(self.method, race)
        rows.append(("Retention", report.budget_line(answer)))
        if answer.missed is not None:
            rows.append(("Budget", f"not met: {answer.missed}"))
        rows += [
            ("Stages", report.stages_line(answer.trace)),
            *report.clip_lines(prompt.clips, answer.trace, alone=len(prompt.media) == 1),
            ("FLOPs", report.flops_line(answer)),
            ("KV cache", report.kv_line(answer)),
            *times,
        ]
        if self.outputs.figure is not None:
            values["figure"] = str(self.outputs.figure)
            rows.append(("Picture", str(self.outputs.figure)))
        finish(values, _lines(rows, answer, self.show), answer.show, self.outputs)

    def _answer_all(self, setup: "Setup", generation: "Generation") -> None:
        """Answer several questions, and show them all."""
        from foveate.cli.outputs import finish
        from foveate.cli.questions import answer_all, lines_of, values_of

        answers = answer_all(setup, self.prompt, self.method, generation)
        values, rows = values_of(setup, self.method, answers), lines_of(answers)
        if self.outputs.figure is not None:
            values["figure"] = str(self.outputs.figure)
            rows.append(("Picture", str(self.outputs.figure)))
        finish(values, _lines(rows, answers[0], self.show), answers[0].show, self.outputs)


def timed(prompt: "Prompt", methods: "Mapping[str, Method]", new_tokens: int, pairs: int) -> "Race":
    """The full model and methods timed on this prompt, with a bar on stderr."""
    from foveate.bench.race import race
    from foveate.cli.screen import counted, note

    with counted("Timing, in rounds", pairs + 1) as progress:
        bar = progress.task_ids[0]
        times = race(prompt.loaded.model, prompt.inputs, methods, new_tokens, pairs, lambda: progress.advance(bar))
    if times.noisy:
        note(
            "the machine is noisy: the full model's time differs from itself. Distrust time ratios; "
            "run more --pairs on a quiet machine."
        )
    return times


def _lines(rows: list[tuple[str, str]], answer: "Answer", show: bool) -> "RenderableType":
    """Labelled lines, and below them the picture, where it is wanted and the terminal can."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for label, text in rows:
        table.add_row(Text(label), Text(text))
    if not show:
        return table
    from foveate.cli.screen import preview

    return Group(table, preview(answer.show()))
