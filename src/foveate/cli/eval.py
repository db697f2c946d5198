"""`foveate eval`: what dropping costs in quality, against the full model on the same questions."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from foveate.cli.options import EMBEDDED, Flag, ModelOptions, OutputOptions
from foveate.cli.outputs import check_targets
from foveate.cli.usage import UsageError

if TYPE_CHECKING:
    from foveate.eval.cells import Cell, Contender
    from foveate.eval.summary import Summary

__all__ = ["Eval"]

BUDGETS = (1 / 3, 2 / 9, 1 / 9)  # 192, 128 and 64 of LLaVA-1.5's 576
METHODS = ("v2drop", "visiondrop", "mustdrop")
MOST_JOBS = 4


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure what methods cost in quality at several budgets.

    The same questions go to the full model and to every method at every budget: accuracy, its share of the full
    model's, agreement with its answers, KL divergence of the first answer token, the tokens truly spent and FLOPs,
    with 95 % intervals (paired bootstrap over pictures). Random (several draws), Uniform, AveragePool and Resize run
    beside them. Answers are kept as they come: an interrupted run goes on where it stopped.

    Examples:
      foveate eval                                           the embedded model on its own tasks
      foveate eval --questions 2200 --figure pareto.png --out quality.json
      foveate eval --method v2drop --method v2drop:metric=l1 --budget 192 --budget 64 --tasks "read text,count"
    """

    tasks: Annotated[str, tyro.conf.arg(metavar="NAME,…", help_behavior_hint="")] = ""
    """tasks, separated by commas (default: all embedded tasks)"""
    method: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME[:KEY=VALUE…]")] = ()
    """a method, with settings if need be, or a preset; repeatable (default: v2drop, visiondrop and mustdrop)"""
    budget: Annotated[
        tyro.conf.UseAppendAction[tuple[float, ...]], tyro.conf.arg(metavar="TOKENS", help_behavior_hint="")
    ] = ()
    """mean vision tokens a decoder layer; repeatable"""
    retention: Annotated[
        tyro.conf.UseAppendAction[tuple[float, ...]], tyro.conf.arg(metavar="SHARE", help_behavior_hint="")
    ] = ()
    """the same as a share in (0, 1]; repeatable (default: 1/3, 2/9 and 1/9)"""
    questions: Annotated[int, tyro.conf.arg(metavar="N")] = 550
    """questions in all, up to one a task and picture"""
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """which held-out pictures"""
    draws: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """seeds of methods that draw by lot"""
    no_baselines: Flag = False
    """leave the baselines out that nobody named"""
    jobs: Annotated[int, tyro.conf.arg(metavar="N", help_behavior_hint="")] = 0
    """processes (default: for the embedded model on a CPU one a core, 4 at most; else one)"""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """where answers are kept (default: foveate/eval in the user's cache folder)"""
    fresh: Flag = False
    """ask everything again, in a new file beside the old one"""
    models: Annotated[ModelOptions, tyro.conf.arg(name="model")] = field(default_factory=ModelOptions)
    outputs: Annotated[OutputOptions, tyro.conf.arg(name="output")] = field(default_factory=OutputOptions)

    def run(self) -> None:
        """Ask, summarise, print, and write what was asked for."""
        self._check()
        check_targets(self.outputs)
        # Only now anything slow is imported: --help and refusals stay quick.
        from foveate.cli.screen import busy

        with busy("Starting torch"):
            from functools import partial

            from rich.console import Group
            from rich.text import Text

            from foveate.cli import quality
            from foveate.cli.finish import finish
            from foveate.cli.loading import load
            from foveate.cli.screen import counted, note
            from foveate.eval import figure, provenance
            from foveate.eval.cells import BASELINES, Contender, with_baselines
            from foveate.eval.pictures import check_tasks, questions
            from foveate.eval.run import outstanding, run, vision_tokens
            from foveate.eval.store import Store, home
            from foveate.eval.summary import unmatched
            from foveate.registry import method

        tasks = check_tasks(tuple(name.strip() for name in self.tasks.split(",") if name.strip()))
        contenders = [quality.contender(name) for name in self.method or METHODS]
        if not self.no_baselines:
            contenders = with_baselines(contenders)
        loaded = load(self.models)
        with busy("Drawing pictures"):
            asked = questions(tasks, self.questions, self.seed)
            count = vision_tokens(loaded.model, loaded.processor, asked[0])
        budgets = self.retention or tuple(tokens / count for tokens in self.budget) or BUDGETS
        cells = self._cells(contenders, loaded.model, budgets, count)
        weights = provenance.weights(loaded.model, quality.place(self.models))
        conditions = quality.conditions(loaded, weights, self.models.max_new_tokens)
        folder = self.cache or home()
        if self.fresh:
            conditions["fresh"] = quality.now()
        store = Store(folder, conditions)

        def answer(cells: "list[Cell]", doing: str) -> "Summary":
            methods = [draw for cell in cells for draw in cell.draws]
            work = outstanding(asked, methods, store)
            left, total = sum(map(len, work)), len(asked) * (1 + len(methods))
            if left < total:
                note(f"{total - left} of {total} answers are known already, from {store.path}")
            with counted(doing, left) as progress:
                run(
                    partial(quality.pair, self.models),
                    work,
                    store,
                    max_new_tokens=self.models.max_new_tokens,
                    jobs=self._jobs(loaded.model.device.type),
                    advance=lambda done: progress.advance(progress.task_ids[0], done),
                )
            return quality.summary(asked, cells, store)

        summary = answer(cells, "Answering")
        if not self.no_baselines and (spent := unmatched(summary)):
            more = [Contender(name, method(name)) for name in BASELINES]
            cells += self._cells(more, loaded.model, tuple(spent), count)
            summary = answer(cells, "Answering, baselines at what was truly spent")
        values = {
            "what": "exact match on held-out questions about generated pictures, each paired with the full model's",
            "model": loaded.to_dict() | {"weights": weights},
            "versions": provenance.versions(),
            "commit": provenance.commit(),
            "seed": self.seed,
            "draws": self.draws,
            "max_new_tokens": self.models.max_new_tokens,
            **summary.to_dict(),
        }
        title = f"{loaded.name}: {sum(summary.counts.values())} questions about {summary.pictures} pictures"
        footnotes = [Text(line) for line in quality.footnotes(summary)]
        if self.outputs.figure is not None:
            values["figure"] = str(self.outputs.figure)
            footnotes.append(Text(f"Picture: {self.outputs.figure}"))
        shown = Group(quality.table(summary, title), quality.task_table(summary), *footnotes)
        finish(values, shown, lambda: figure.draw(summary, title), self.outputs)

    def _check(self) -> None:
        if self.budget and self.retention:
            raise UsageError("--budget and --retention say the same thing; give one of them.")
        for flag, values in (("--budget", self.budget), ("--retention", self.retention)):
            if wrong := [value for value in values if value <= 0]:
                raise UsageError(f"{flag} {wrong[0]:g}: a budget lies above 0.")
            if len(set(values)) < len(values):
                raise UsageError(f"{flag}: the same budget is named twice.")
        if wrong := [value for value in self.retention if value > 1]:
            raise UsageError(f"--retention {wrong[0]:g}: a share lies in (0, 1]. For a token count use --budget.")
        if len(set(self.method)) < len(self.method):
            raise UsageError("--method: the same name is given twice.")
        for flag, value, least in (
            ("--questions", self.questions, 1),
            ("--draws", self.draws, 1),
            ("--jobs", self.jobs, 0),
            ("--max-new-tokens", self.models.max_new_tokens, 1),
        ):
            if value < least:
                raise UsageError(f"{flag} {value}: {least} or more.")

    def _cells(self, contenders: "list[Contender]", model: Any, budgets: tuple[float, ...], count: int) -> "list[Cell]":
        if max(budgets) > 1:
            raise UsageError(f"--budget {max(self.budget):g}: the pictures have {count} vision tokens.")
        return [cell for one in contenders for cell in one.cells(model, budgets, count, range(self.draws))]

    def _jobs(self, device: str) -> int:
        if self.jobs or device != "cpu" or self.models.model != EMBEDDED:
            return self.jobs or 1
        import os

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(MOST_JOBS, cores)
