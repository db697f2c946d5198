"""`foveate eval`: what dropping costs in quality, against the full model on the same questions."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from foveate.cli.checks import check_methods, check_model
from foveate.cli.options import Count, Flag, MaybeCount, MethodsOptions, ModelOptions, TableOptions, whole
from foveate.cli.outputs import check_targets, finish
from foveate.cli.screen import OnScreen, busy
from foveate.cli.usage import BAD_ROWS, DONE, UsageError
from foveate.errors import UnknownNameError, UnsupportedError
from foveate.plain.spelling import nearest
from foveate.runs.samples import samples_in

if TYPE_CHECKING:
    from foveate.eval.plan import Plan
    from foveate.eval.quality import Quality

FOR_QUESTIONS = ("questions", "seed", "samples", "prompt")
FOR_TASKS = ("questions", "seed", "tasks")
FOR_BENCHMARKS = ("protocol", "batch_size", "limit", "frames", "include")


@dataclass(frozen=True, kw_only=True)
class EvalOutputs(TableOptions):
    """What is written, and where."""

    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """draw quality against cost (png, jpg, webp, pdf)"""


@dataclass(frozen=True, kw_only=True)
class Eval(MethodsOptions):
    """Measure what methods cost in quality at several budgets.

    By default on the embedded model's own tasks; with --samples on your own pictures and questions; with --tasks on
    benchmarks, by name, through lmms-eval (extra "eval").
    The full model and every method at every budget answer the same questions. The table shows accuracy, agreement with
    the full model's answers, accuracy as a share of its own, KL divergence of the first answer token, the tokens truly
    spent and FLOPs, with 95 % intervals (paired, over pictures and their seeds), and says where an accuracy says
    nothing. Another one has every method beside the first. Random (several draws), Uniform, AveragePool and Resize run
    as baselines. Answers are saved as they come: a run that was interrupted goes on where it stopped.

    Examples:
      foveate eval                                           the embedded model on its own tasks
      foveate eval --questions 2200 --seed 0 --seed 1 --seed 2 --figure pareto.png --out quality.json
      foveate eval --samples questions.jsonl --retention 0.2  agreement with the full model; accuracy with a label each
      foveate eval --model llava-hf/llava-1.5-7b-hf --tasks pope,textvqa --method v2drop --budget 192
      foveate eval --method v2drop --method v2drop:metric=l1 --budget 192 --budget 64 --tasks "read text,count"
    """

    tasks: Annotated[str | None, tyro.conf.arg(metavar="NAME,…", help_behavior_hint="")] = None
    """embedded tasks, out of colour, shape, count, existence, quadrant, relation, read text, character, text quadrant,
    list left to right, list top to bottom; or benchmarks such as pope,textvqa (default: all embedded tasks)"""
    samples: Annotated[Path | None, tyro.conf.arg(metavar="FILE|FOLDER", help_behavior_hint="")] = None
    """your own samples: a file as foveate batch takes it (JSON lines, CSV, Parquet), such as
    {"image": file, "question": text, "label": text} a line; or a folder of pictures, with --prompt"""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """your own samples: the question, asked of every one"""
    questions: Count = 550
    """embedded tasks: questions in all, up to one a task and picture"""
    seed: Annotated[tyro.conf.UseAppendAction[tuple[int, ...]], tyro.conf.arg(metavar="N", help_behavior_hint="")] = ()
    """embedded tasks: which held-out pictures; with several, intervals are over pictures and seeds (default: 0)"""
    draws: Count = 3
    """runs of each method that drops at random, each with a seed of its own"""
    no_baselines: Flag = False
    """run only the methods given with --method"""
    workers: Annotated[int, whole(0), tyro.conf.arg(help_behavior_hint="")] = 0
    """processes, each with a model of its own; benchmarks: so many settings at a time (default: for the embedded model
    on a CPU one a core, at most 4; else 1; benchmarks: 1)"""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """where answers are saved (default: foveate/eval in the user's cache folder)"""
    protocol: Literal["own", "llava"] = "own"
    """benchmarks: the model's own chat template, or the conditions of LLaVA-1.5's papers"""
    batch_size: Count = 1
    """benchmarks: samples a batch"""
    limit: MaybeCount = None
    """benchmarks: run only the first N documents of each (default: all)"""
    frames: Count = 32
    """benchmarks: at most N frames of a video"""
    include: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER")] = ()
    """benchmarks: a folder with tasks of your own in lmms-eval's format"""
    models: Annotated[ModelOptions, tyro.conf.arg(name="model")] = field(default_factory=ModelOptions)
    outputs: Annotated[EvalOutputs, tyro.conf.arg(name="output")] = field(default_factory=EvalOutputs)

    def run(self) -> int:
        """Ask, summarise, print, and write what was asked for; the exit code."""
        self._check()
        check_targets(self.outputs)
        check_model(self.models)
        # Only now anything slow is imported: --help and refusals stay quick.
        with busy("Starting torch"):
            from rich.console import Group
            from rich.text import Text

            from foveate.eval.contenders import USUAL
            from foveate.eval.pareto import draw_all
            from foveate.eval.plan import Plan
            from foveate.eval.quality import tables_of

        plan = Plan(
            methods=self.method or USUAL,
            tokens=self.budget,
            retention=self.retention,
            draws=self.draws,
            baselines=not self.no_baselines,
            cache=self.cache,
            workers=self.workers,
            max_new_tokens=self.models.max_new_tokens,
        )
        names = self._task_names()
        if self._benchmarks(names):
            found = self._run_benchmarks(names, plan)
            values: dict[str, Any] = {"tasks": {task: quality.to_dict() for task, quality in found.items()}}
            qualities = list(found.values())
        else:
            if self.samples is not None:
                quality = self._run_samples(plan)
            else:
                quality = self._run_embedded(names, plan)
            values, qualities = quality.to_dict(), [quality]
        tables = tables_of(qualities)
        shown: list[Any] = []
        for table in tables:
            shown += [table, Text("")] if table.notes else [table]
        if self.outputs.figure is not None:
            values["figure"] = str(self.outputs.figure)
            shown.append(Text(f"Picture: {self.outputs.figure}"))
        finish(values, Group(*shown), self.outputs, lambda: draw_all(qualities), tables)
        if values.get("bad"):
            return BAD_ROWS
        return DONE

    def _check(self) -> None:
        """Refuse flags that contradict each other."""
        self.check_each_once()
        check_methods(self.method)
        if self.samples is not None:
            self._refuse(FOR_TASKS, "is for tasks, and --samples brings questions of its own. Leave it out.")
            samples_in(self.samples, question=self.prompt)
        elif self.prompt is not None:
            raise UsageError("--prompt is for --samples: name a folder or file.")
        names = self._task_names()
        if self._benchmarks(names):
            self._refuse(FOR_QUESTIONS, "is not for benchmarks, which --tasks names. Leave it out.")
            self._check_names(names)
        else:
            self._refuse(
                FOR_BENCHMARKS, "is for benchmarks, and the embedded tasks run here. Name a benchmark with --tasks."
            )

    def _refuse(self, flags: tuple[str, ...], why: str) -> None:
        """Refuse flags that would do nothing."""
        for name in flags:
            if getattr(self, name) != getattr(Eval, name):
                raise UsageError(f"--{name.replace('_', '-')} {why}")

    def _task_names(self) -> tuple[str, ...]:
        """What --tasks names; nothing without it."""
        if self.tasks is None:
            return ()
        names = tuple(name.strip() for name in self.tasks.split(",") if name.strip())
        if not names:
            raise UsageError(
                f"--tasks {self.tasks!r} names no task. Name some, such as --tasks colour,count, or leave it out for "
                "all embedded tasks."
            )
        return names

    def _benchmarks(self, names: tuple[str, ...]) -> bool:
        """Whether these are benchmarks, not embedded tasks."""
        from foveate.embedded import tasks_of

        benchmarks = [name for name in names if name not in tasks_of(self.models.model)]
        if benchmarks and len(benchmarks) < len(names):
            raise UsageError("Embedded tasks and benchmarks are run apart: name one kind with --tasks.")
        return bool(benchmarks)

    def _check_names(self, names: tuple[str, ...]) -> None:
        """Refuse names that are neither benchmarks nor, though nearly, embedded tasks.

        Only for names that are not ours is lmms-eval's index of tasks read, which takes seconds.
        """
        from foveate.embedded import TASKS
        from foveate.eval.lmms.benchmarks import BENCHMARKS, check_folders, check_installed

        near = "".join(nearest(name, TASKS) for name in names)
        try:
            check_installed()
            check_folders(self.include)
            if not set(names) <= set(BENCHMARKS):
                from foveate.eval.lmms.harness import check_names

                check_names(names, self.include)
        except UnsupportedError as error:
            if near:
                raise UnknownNameError(f"No task {', '.join(names)}.{near}") from error
            raise
        except UnknownNameError as error:
            if near:
                raise UnknownNameError(f"{error} Of the embedded tasks:{near}") from error
            raise

    def _run_embedded(self, names: tuple[str, ...], plan: "Plan") -> "Quality":
        from foveate.cli.setup import load
        from foveate.eval.evaluation import evaluate

        return evaluate(
            load(self.models),
            names,
            plan,
            count=self.questions,
            seeds=self.seed or (0,),
            listener=OnScreen(),
        )

    def _run_samples(self, plan: "Plan") -> "Quality":
        from foveate.cli.setup import load
        from foveate.eval.evaluation import evaluate_samples

        assert self.samples is not None
        return evaluate_samples(
            load(self.models),
            samples_in(self.samples, question=self.prompt),
            plan,
            listener=OnScreen(),
        )

    def _run_benchmarks(self, names: tuple[str, ...], plan: "Plan") -> "dict[str, Quality]":
        from foveate.cli.setup import load
        from foveate.eval.lmms.benchmarking import evaluate_benchmarks
        from foveate.eval.lmms.harness import check_names
        from foveate.eval.lmms.requests import Conduct

        check_names(names, self.include)
        conduct = Conduct(
            protocol=self.protocol,
            batch_size=self.batch_size,
            most_frames=self.frames,
            limit=self.limit,
            include=self.include,
        )
        return evaluate_benchmarks(load(self.models), names, plan, conduct=conduct, listener=OnScreen())
