"""What `foveate eval` is asked for: its flags, and which of them go together."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from foveate.cli.options import EMBEDDED, Flag, ModelOptions, OutputOptions
from foveate.cli.usage import UsageError, check_budgets

__all__ = ["EvalOptions"]

MOST_JOBS = 4


@dataclass(frozen=True, kw_only=True)
class EvalOutputs(OutputOptions):
    """What is written, and where."""

    figure: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """draw quality against cost (png, jpg, webp, pdf)"""


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Flags of `foveate eval`."""

    tasks: Annotated[str, tyro.conf.arg(metavar="NAME,…", help_behavior_hint="")] = ""
    """embedded tasks, or benchmarks such as pope,textvqa (default: all embedded tasks)"""
    method: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = ()
    """a method, preset, tuned record or chain, with settings: "visiondrop+v2drop:metric=l1;keep=0.5,0.3,0"
    (default: v2drop, visiondrop and mustdrop; list: foveate methods)"""
    budget: Annotated[
        tyro.conf.UseAppendAction[tuple[float, ...]], tyro.conf.arg(metavar="TOKENS", help_behavior_hint="")
    ] = ()
    """mean vision tokens a decoder layer"""
    retention: Annotated[
        tyro.conf.UseAppendAction[tuple[float, ...]], tyro.conf.arg(metavar="SHARE", help_behavior_hint="")
    ] = ()
    """the same as a share in (0, 1] (default: 1/3, 2/9 and 1/9)"""
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
    protocol: Literal["own", "llava"] = "own"
    """benchmarks: the model's own chat template, or the conditions of LLaVA-1.5's papers"""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """benchmarks: samples a batch"""
    limit: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """benchmarks: documents of each, from the first on (default: all)"""
    frames: Annotated[int, tyro.conf.arg(metavar="N")] = 32
    """benchmarks: most frames of a video"""
    include: Annotated[tyro.conf.UseAppendAction[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER")] = ()
    """benchmarks: a folder with tasks of your own in lmms-eval's format"""
    models: Annotated[ModelOptions, tyro.conf.arg(name="model")] = field(default_factory=ModelOptions)
    outputs: Annotated[EvalOutputs, tyro.conf.arg(name="output")] = field(default_factory=EvalOutputs)

    def check(self) -> None:
        """Refuse flags that contradict each other, and numbers out of range."""
        check_budgets(self.method, self.budget, self.retention)
        for flag, value, least in (
            ("--questions", self.questions, 1),
            ("--draws", self.draws, 1),
            ("--jobs", self.jobs, 0),
            ("--max-new-tokens", self.models.max_new_tokens, 1),
            ("--batch-size", self.batch_size, 1),
            ("--frames", self.frames, 1),
            ("--limit", 1 if self.limit is None else self.limit, 1),
        ):
            if value < least:
                raise UsageError(f"{flag} {value}: {least} or more.")

    def stamp(self) -> dict[str, str]:
        """What sets this run apart from earlier ones, if everything is to be asked again."""
        from datetime import UTC, datetime

        return {"fresh": datetime.now(UTC).isoformat()} if self.fresh else {}

    def processes(self, device: str) -> int:
        """How many processes answer the embedded tasks."""
        if self.jobs or device != "cpu" or self.models.model != EMBEDDED:
            return self.jobs or 1
        import os

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(MOST_JOBS, cores)
