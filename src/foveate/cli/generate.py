"""`foveate generate`: an answer with vision tokens dropped, and what that saved."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import tyro

from foveate.cli.checks import check_input, check_methods
from foveate.cli.options import BudgetOptions, Files, Flag, ModelOptions, OutputOptions, VideoOptions
from foveate.cli.outputs import check_targets
from foveate.cli.usage import UsageError

__all__ = ["Generate"]


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
      foveate generate cat.jpg --prompt "Describe it." --method v2drop/llava-1.5-7b/64 --full --json
      foveate generate clip.mp4 --prompt "What happens?" --frames 32 --model llava-hf/llava-onevision-qwen2-7b-ov-hf
    """

    files: Files = ()
    """picture and video files, in the order in which the model sees them"""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """the question"""
    method: Annotated[str, tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = "v2drop"
    """a method, preset, tuned record or chain, with settings: "visiondrop+v2drop:metric=l1;keep=0.5,0.3,0"
    (list: foveate methods)"""
    full: Flag = False
    """also run the model without dropping: its answer, and the ratio of times"""
    pairs: Annotated[int, tyro.conf.arg(metavar="N")] = 10
    """with --full: timed pairs, after a warm-up"""
    models: Annotated[ModelOptions, tyro.conf.arg(name="model")] = field(default_factory=ModelOptions)
    budgets: Annotated[BudgetOptions, tyro.conf.arg(name="budget")] = field(default_factory=BudgetOptions)
    videos: Annotated[VideoOptions, tyro.conf.arg(name="video")] = field(default_factory=VideoOptions)
    outputs: Annotated[OutputOptions, tyro.conf.arg(name="output")] = field(default_factory=OutputOptions)

    def run(self) -> None:
        """Answer, print, and write what was asked for."""
        if self.pairs < 2:
            raise UsageError(f"--pairs {self.pairs}: an interval needs two or more.")
        check_targets(self.outputs)
        check_methods([self.method], self.budgets)
        check_input(self.files, self.prompt, self.models, self.videos)
        # Only now anything slow is imported: --help and refusals stay quick.
        from foveate.cli.screen import busy

        with busy("Starting torch"):
            from rich.table import Table
            from rich.text import Text

            from foveate.cli import report
            from foveate.cli.asking import ask
            from foveate.cli.finish import finish
            from foveate.cli.prompt import fitting
            from foveate.cli.race import race
            from foveate.cli.setup import set_up

        setup = set_up(self.files, self.prompt, [self.method], self.models, self.budgets, self.videos)
        method = setup.methods[self.method]
        with busy(f"Answering with {self.method}"), fitting(setup.loaded, setup.inputs):
            whole = setup.cost(None)
            answer = ask(setup.loaded, setup.inputs, method, self.models.max_new_tokens)
        trace = answer.trace
        cost = setup.cost(method, trace)
        asked = setup.asked[self.method]
        values: dict[str, Any] = setup.to_dict() | report.outcome(self.method, method, answer, cost, whole, asked)
        rows = [("Question", setup.prompt), (f"With {self.method}", answer.text)]
        times: list[tuple[str, str]] = []
        if self.full:
            with busy("Answering without dropping"):
                full = ask(setup.loaded, setup.inputs, None, self.models.max_new_tokens)
            found = race(setup.loaded, setup.inputs, setup.methods, len(full.tokens), self.pairs)
            same = report.agreement(answer, full)
            values["full"] = {"answer": full.text, "token_ids": full.tokens, "kv_bytes": full.kv_bytes}
            values |= {"agreement": same, "time": report.race_values(found)}
            rows[1:] = [("Full model", full.text), (f"With {self.method}", report.with_agreement(answer, same))]
            times = report.race_lines(self.method, found)
        rows += [
            ("Retention", report.budget_line(trace, setup.depth)),
            *report.unmet_lines(values),
            ("Stages", report.stages_line(trace)),
            *report.clip_lines(setup.clips, trace, alone=len(setup.media) == 1),
            ("FLOPs", report.flops_line(cost, whole)),
            ("KV cache", report.kv_line(answer)),
            *times,
        ]
        if self.outputs.figure is not None:
            values["figure"] = str(self.outputs.figure)
            rows.append(("Picture", str(self.outputs.figure)))
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for label, text in rows:
            table.add_row(Text(label), Text(text))
        finish(values, table, lambda: trace.show(setup.shown), self.outputs)
