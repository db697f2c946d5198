"""`foveate eval`: measure the quality that dropping costs, against the full model on the same questions."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Group
from rich.text import Text

from foveate.cli.checks import check_methods, check_model
from foveate.cli.options import MaybeFile, MethodsOptions, Retentions, Shares, TableOptions, check_each_once
from foveate.cli.outputs import check_targets, write_outputs
from foveate.cli.screen import OnScreen, busy
from foveate.cli.usage import BAD_ROWS, DONE, UsageError
from foveate.plain.flags import Count, Flag, GraphOptions, whole
from foveate.runs.samples import samples_in

if TYPE_CHECKING:
    from foveate.eval.quality import Quality

FOR_TASKS = ("questions", "seed", "tasks")
FOR_RUNS = ("method", "budget", "retention", "flops", "samples", "prompt", "draws", "no_baselines", "workers", "cache")


@dataclass(frozen=True, kw_only=True)
class Eval(MethodsOptions):
    """Measure the quality that methods lose at several budgets.

    Asks the embedded model its own tasks; with --samples, asks about your own images; with --logs, compares benchmark
    runs of lmms-eval --model foveate.

    The full model and every method at every budget answer the same questions. The first table shows accuracy,
    agreement with the full model's answers, accuracy relative to the full model's, the KL divergence of the first
    answer token, the tokens actually used, and FLOPs, with 95 % intervals (paired, over images). It marks accuracies
    that are not informative. The second table compares every method with the first one. Random (several draws),
    Uniform, AveragePool and Resize run as baselines. Answers are saved as they arrive, so an interrupted run can be
    resumed.

    Examples:
      foveate eval                                           the embedded model on its own tasks
      foveate eval --questions 2200 --seed 0 --seed 1 --seed 2 --figure pareto.png --out quality.json
      foveate eval --samples questions.jsonl --retention 0.2  agreement, and accuracy if rows have a label
      foveate eval --logs full/ v2drop/ random/              runs of lmms-eval, each an --output_path
      foveate eval --method v2drop --method v2drop:metric=l1 --budget 192 --budget 64 --tasks "read text,count"
    """

    retention: Retentions = ()
    """the budget as a share in (0, 1]; repeatable (default for methods without settings: 1/3, 2/9 and 1/9)"""
    flops: Shares = ()
    """the budget as a share of the full model's FLOPs to the first token, so that all methods cost the same"""
    tasks: Annotated[str | None, tyro.conf.arg(metavar="NAME,…", help_behavior_hint="")] = None
    """embedded tasks to run (default: all): colour, shape, count, existence, quadrant, relation,
    read text, character, text quadrant, list left to right, list top to bottom"""
    samples: Annotated[Path | None, tyro.conf.arg(metavar="FILE|FOLDER", help_behavior_hint="")] = None
    """your own samples: a file as for foveate batch (JSON lines, CSV, Parquet) with rows such as
    {"image": file, "question": text, "label": text}; or, with --prompt, a folder of images"""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """with --samples: the question for every sample"""
    questions: Count = 550
    """embedded tasks: total number of questions, at most one per task and image"""
    seed: Annotated[tyro.conf.UseAppendAction[tuple[int, ...]], tyro.conf.arg(metavar="N", help_behavior_hint="")] = ()
    """embedded tasks: seed of the held-out images; repeatable, to split the questions among seeds (default: 0)"""
    draws: Count = 3
    """runs of each random method, each with its own seed"""
    no_baselines: Flag = False
    """run only the methods given with --method"""
    workers: Annotated[int, whole(0), tyro.conf.arg(help_behavior_hint="")] = 0
    """worker processes, each with its own copy of the model
    (default: for the embedded model on a CPU one per core, at most 4; else 1)"""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """folder where answers are saved (default: foveate/eval in the user's cache folder)"""
    logs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FOLDER|FILE…", help_behavior_hint="")] = ()
    """outputs of lmms-eval --model foveate --log_samples --output_path: first the full model's, then the methods'"""
    include: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER")] = ()
    """with --logs: the folder of your own tasks that was lmms-eval's --include_path"""
    figure: MaybeFile = None
    """draw quality against cost (png, jpg, webp, pdf)"""
    models: Annotated[GraphOptions, tyro.conf.arg(name="model")] = field(default_factory=GraphOptions)
    outputs: Annotated[TableOptions, tyro.conf.arg(name="output")] = field(default_factory=TableOptions)

    def run(self) -> int:
        """Evaluate, print the tables, write the requested files, and return the exit code."""
        self._check()
        check_targets(self.outputs, self.figure)
        check_model(self.models.model)
        # Slow imports come last, so that --help and usage errors stay fast.
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
            shown.append(Text(f"Figure: {self.figure}"))
        write_outputs(
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
            self._refuse((*FOR_TASKS, *FOR_RUNS), "does not apply to --logs. Leave one of them out.")
            if len(self.logs) < 2:
                raise UsageError("--logs compares runs: name the full model's, and one or more of methods.")
        elif self.include:
            raise UsageError("--include applies only to --logs: name the runs with --logs.")
        if self.samples is not None:
            self._refuse(FOR_TASKS, "applies only to the embedded tasks. Leave it out with --samples.")
            samples_in(self.samples, question=self.prompt)
        elif self.prompt is not None:
            raise UsageError("--prompt applies only to --samples: name a folder or file with --samples.")

    def _refuse(self, flags: tuple[str, ...], why: str) -> None:
        """Refuse each of these flags that is set, with the reason `why`."""
        for name in flags:
            if getattr(self, name) != getattr(Eval, name):
                raise UsageError(f"--{name.replace('_', '-')} {why}")

    def _evaluate(self) -> "Quality":
        """Ask the embedded tasks or the user's samples, and return the results."""
        from foveate.cli.setup import load_vlm
        from foveate.eval.evaluation import evaluate, evaluate_samples
        from foveate.eval.plan import USUAL, Plan

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
        if self.samples is not None:
            samples = samples_in(self.samples, question=self.prompt)
            return evaluate_samples(partial(load_vlm, self.models), samples, plan, listener=OnScreen())
        seeds = self.seed or (0,)
        return evaluate(load_vlm(self.models), names, plan, count=self.questions, seeds=seeds, listener=OnScreen())
