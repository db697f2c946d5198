"""`foveate eval`: what dropping costs in quality, against the full model on the same questions."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Group
from rich.text import Text

from foveate.cli.checks import check_methods, check_model
from foveate.cli.options import MaybeFile, MethodsOptions, Shares, TableOptions, check_each_once
from foveate.cli.outputs import check_targets, finish
from foveate.cli.screen import OnScreen, busy, note
from foveate.cli.usage import BAD_ROWS, DONE, UsageError
from foveate.plain.flags import Count, Flag, GraphOptions, whole
from foveate.runs.samples import samples_in

if TYPE_CHECKING:
    from foveate.eval.quality import Quality

FOR_TASKS = ("questions", "seed", "tasks")
FOR_RUNS = ("method", "budget", "retention", "flops", "samples", "prompt", "draws", "no_baselines", "workers", "cache")


@dataclass(frozen=True, kw_only=True)
class Eval(MethodsOptions):
    """Measure what methods cost in quality at several budgets.

    By default on the embedded model's own tasks; with --samples on your own pictures and questions; with --logs it
    pairs benchmarks that lmms-eval ran with --model foveate.
    The full model and every method at every budget answer the same questions. The table shows accuracy, agreement with
    the full model's answers, accuracy as a share of its own, KL divergence of the first answer token, the tokens truly
    spent and FLOPs, with 95 % intervals (paired, over pictures), and says where an accuracy says
    nothing. Another one has every method beside the first. Random (several draws), Uniform, AveragePool and Resize run
    as baselines. Answers are saved as they come: a run that was interrupted goes on where it stopped.

    Examples:
      foveate eval                                           the embedded model on its own tasks
      foveate eval --questions 2200 --seed 0 --seed 1 --seed 2 --figure pareto.png --out quality.json
      foveate eval --samples questions.jsonl --retention 0.2  agreement with the full model; accuracy with a label each
      foveate eval --logs full/ v2drop/ random/              of lmms-eval's runs, each an --output_path
      foveate eval --method v2drop --method v2drop:metric=l1 --budget 192 --budget 64 --tasks "read text,count"
    """

    flops: Shares = ()
    """instead: FLOPs to the first token, as a share of the full model's, so that all methods cost as much"""
    tasks: Annotated[str | None, tyro.conf.arg(metavar="NAME,…", help_behavior_hint="")] = None
    """embedded tasks, out of colour, shape, count, existence, quadrant, relation, read text, character, text quadrant,
    list left to right, list top to bottom (default: all)"""
    samples: Annotated[Path | None, tyro.conf.arg(metavar="FILE|FOLDER", help_behavior_hint="")] = None
    """your own samples: a file as foveate batch takes it (JSON lines, CSV, Parquet), such as
    {"image": file, "question": text, "label": text} a line; or a folder of pictures, with --prompt"""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """your own samples: the question, asked of every one"""
    questions: Count = 550
    """embedded tasks: questions in all, up to one a task and picture"""
    seed: Annotated[tyro.conf.UseAppendAction[tuple[int, ...]], tyro.conf.arg(metavar="N", help_behavior_hint="")] = ()
    """embedded tasks: which held-out pictures; several share the questions out (default: 0)"""
    draws: Count = 3
    """runs of each method that drops at random, each with a seed of its own"""
    no_baselines: Flag = False
    """run only the methods given with --method"""
    workers: Annotated[int, whole(0), tyro.conf.arg(help_behavior_hint="")] = 0
    """processes, each with a model of its own (default: for the embedded model on a CPU one a core, at most 4;
    else 1)"""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """where answers are saved (default: foveate/eval in the user's cache folder)"""
    logs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FOLDER|FILE…", help_behavior_hint="")] = ()
    """what lmms-eval left with --model foveate --log_samples --output_path: the full model's, and then methods'"""
    include: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER")] = ()
    """logs: the folder with tasks of your own that was lmms-eval's --include_path"""
    figure: MaybeFile = None
    """draw quality against cost (png, jpg, webp, pdf)"""
    models: Annotated[GraphOptions, tyro.conf.arg(name="model")] = field(default_factory=GraphOptions)
    outputs: Annotated[TableOptions, tyro.conf.arg(name="output")] = field(default_factory=TableOptions)

    def run(self) -> int:
        """Ask, summarise, print, and write what was asked for; the exit code."""
        self._check()
        check_targets(self.outputs, self.figure)
        check_model(self.models.model)
        # Only now anything slow is imported: --help and refusals stay quick.
        with busy("Starting torch"):
            from foveate.eval.pareto import draw
            from foveate.eval.quality import tables_of
            from foveate.viz import stack

        if self.logs:
            from foveate.eval.lmms.logs import compare_logs

            of_tasks = compare_logs(self.logs, self.include)
            values: dict[str, Any] = {"tasks": {task: quality.to_dict() for task, quality in of_tasks.items()}}
            qualities = list(of_tasks.values())
        else:
            qualities = [self._evaluate()]
            values = qualities[0].to_dict()
        tables = tables_of(qualities)
        shown: list[Any] = []
        for table in tables:
            shown += [table, Text("")] if table.notes else [table]
        if self.figure is not None:
            values["figure"] = str(self.figure)
            shown.append(Text(f"Picture: {self.figure}"))
        finish(
            values,
            Group(*shown),
            self.outputs,
            tables,
            self.figure,
            lambda: stack([draw(quality) for quality in qualities]),
        )
        if values.get("bad"):
            return BAD_ROWS
        return DONE

    def _check(self) -> None:
        """Refuse flags that contradict each other."""
        check_each_once(self)
        check_methods(self.method)
        if self.logs:
            self._refuse((*FOR_TASKS, *FOR_RUNS), "is for questions that are asked here. Leave it out beside --logs.")
            if len(self.logs) < 2:
                raise UsageError("--logs pairs runs: name the full model's, and one or more of methods.")
        elif self.include:
            raise UsageError("--include is for --logs: name those.")
        if self.samples is not None:
            self._refuse(FOR_TASKS, "is for tasks, and --samples brings questions of its own. Leave it out.")
            samples_in(self.samples, question=self.prompt)
        elif self.prompt is not None:
            raise UsageError("--prompt is for --samples: name a folder or file.")

    def _refuse(self, flags: tuple[str, ...], why: str) -> None:
        """Refuse flags that would do nothing."""
        for name in flags:
            if getattr(self, name) != getattr(Eval, name):
                raise UsageError(f"--{name.replace('_', '-')} {why}")

    def _evaluate(self) -> "Quality":
        """What is asked here, of the embedded tasks or of one's own samples."""
        from foveate.cli.setup import load
        from foveate.eval.evaluation import evaluate, evaluate_samples
        from foveate.eval.plan import USUAL, Plan
        from foveate.eval.records import reservation

        plan = Plan(
            methods=self.method or USUAL,
            tokens=self.budget,
            retention=self.retention,
            flops=self.flops,
            draws=self.draws,
            baselines=not self.no_baselines,
            cache=self.cache,
            workers=self.workers,
            max_new_tokens=self.models.max_new_tokens,
        )
        names = () if self.tasks is None else tuple(name.strip() for name in self.tasks.split(","))
        with reservation(asdict(self.models), self.cache, note):
            vlm = load(self.models)
            if self.samples is not None:
                samples = samples_in(self.samples, question=self.prompt)
                return evaluate_samples(vlm, samples, plan, listener=OnScreen())
            return evaluate(vlm, names, plan, count=self.questions, seeds=self.seed or (0,), listener=OnScreen())
