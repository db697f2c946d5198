"""`foveate tune`: find the settings that fit a budget on the user's own images."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Group
from rich.text import Text

from foveate.cli.checks import check_files, check_methods, check_model, files_in, own_files
from foveate.cli.options import (
    JSON,
    Images,
    MaybeShare,
    Retentions,
    Settings,
    Shares,
    TableOptions,
    Tokens,
    check_each_once,
)
from foveate.cli.outputs import check_targets, write_outputs
from foveate.cli.screen import OnScreen, busy, note
from foveate.cli.usage import BAD_ROWS, DONE, UsageError
from foveate.errors import InputError
from foveate.plain.flags import Count, ModelOptions
from foveate.runs.samples import Bad, plain, samples_in

if TYPE_CHECKING:
    from foveate.ask.prompt import Prompt
    from foveate.ask.vlm import VLM

SCHEDULED = "v2drop"
"""The default method."""
Budgets = Annotated[tyro.conf.UseAppendAction[tuple[Tokens, ...]], tyro.conf.arg(help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Find the best settings of a method for a budget, on your own images and questions, without labels.

    Answers the questions with a small grid of settings of equal cost, and selects the one whose answers are closest to
    the full model's. Some of the images are used to select, the others to report. The preset file --out FILE.json can
    be given to --method; it records the gain over the published schedule and over random dropping. MustDrop's token
    counts depend on the image, so its thresholds are tuned. Answers are saved as they arrive, so an interrupted run can
    be resumed.

    Examples:
      foveate tune --samples questions.jsonl --method v2drop --budget 64 --out mine.json
      foveate tune receipts/ --prompt "What is the total?" --method v2drop --retention 0.1
      foveate tune receipts/*.jpg --prompt "What is the total?" --method mustdrop --retention 0.4 --out receipts.json
      foveate generate receipt.jpg --prompt "What is the total?" --method mine.json
      foveate tune --samples questions.jsonl --agreement 0.98 --out sure.json

    With --agreement, no schedule is tuned and --out is a second look. A second look answers with few tokens, and asks
    the full model again if that answer is uncertain. At least the given share of its answers are the full model's,
    with 90 % confidence.
    """

    images: Images = ()
    """image files or folders of them, all with the same question"""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """the question"""
    samples: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """instead of images: a file of samples as for foveate batch (JSON lines, CSV, Parquet)
    with rows such as {"image": file, "prompt": text}; paths are relative to this file"""
    agreement: MaybeShare = None
    """calibrate a second look: the share of answers that must be the full model's, such as 0.98.
    Needs no budget. For 0.98 it needs 114 samples, or 169 to try three budgets.
    Give --method, --budget or --retention to try only those"""
    budget: Budgets = ()
    """mean number of vision tokens per decoder layer, over the samples; repeatable with --agreement"""
    retention: Retentions = ()
    """the budget as a share in (0, 1]; repeatable with --agreement"""
    flops: Shares = ()
    """the budget as a share of the full model's FLOPs to the first token"""
    method: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = ()
    """a method or chain, with settings such as "v2drop:metric=cosine"; given settings are not tuned.
    For mustdrop, given thresholds fix only their ratio (default: v2drop; with --agreement: vidcom2, and repeatable)"""
    settings: Settings = ()
    """a setting of every method; repeatable"""
    task: Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = ""
    """name of the samples, stored in the preset file"""
    cache: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """folder where answers are saved (default: foveate/eval in the user's cache folder)"""
    seed: int = 0
    """seed of the split"""
    workers: Count = 1
    """worker processes, each with its own copy of the model"""
    models: Annotated[ModelOptions, tyro.conf.arg(name="model")] = field(default_factory=ModelOptions)
    outputs: Annotated[TableOptions, tyro.conf.arg(name="output")] = field(default_factory=TableOptions)

    def run(self) -> int:
        """Tune, print the tables, write the requested files, and return the exit code."""
        samples = self._samples()
        check_each_once(self)
        if self.agreement is None:
            self._check_schedule()
        else:
            self._check_second_look()
        check_methods(self.method)
        if self.images:
            check_files([Path(source) for source, _, _ in samples], together=False)
        check_model(self.models.model)
        with busy("Starting torch"):
            from foveate.ask.running import fitting
            from foveate.cli.setup import load_vlm, read_each

        with busy("Reading the images"):
            pictures = read_each([source for source, _, _ in samples], kind="image")
        how: dict[str, Any] = {
            "seed": self.seed,
            "workers": self.workers,
            "max_new_tokens": self.models.max_new_tokens,
            "cache": self.cache,
            "listener": OnScreen(),
        }
        vlm = load_vlm(self.models)
        prompts = [vlm.prepare(picture, samples[place][1]) for place, picture in pictures.items()]
        with fitting(vlm, prompts[0].inputs):
            if self.agreement is None:
                self._tune(vlm, prompts, how)
            else:
                tasks = [samples[place][2] or "samples" for place in pictures]
                self._agree(vlm, prompts, {**how, "tasks": tasks})
        if len(pictures) < len(samples):
            return BAD_ROWS
        return DONE

    @property
    def _budgets(self) -> list[dict[str, float]]:
        """The budgets, each as a keyword of `foveate.tune`."""
        kinds = {"tokens": self.budget, "retention": self.retention, "flops": self.flops}
        return [{kind: value} for kind, values in kinds.items() for value in values]

    def _check_schedule(self) -> None:
        """Refuse flags that contradict each other when a schedule is tuned."""
        if len(self._budgets) != 1 or len(self.method) > 1:
            raise UsageError(
                "One preset is tuned at a time: give one --method, and one budget with --budget or --retention (or "
                "--flops)."
            )
        check_targets(self.outputs)

    def _check_second_look(self) -> None:
        """Refuse flags that contradict each other when a second look is calibrated."""
        unread = [name for name in ("task", "flops") if getattr(self, name) != getattr(Tune, name)]
        if unread:
            raise UsageError(f"--agreement tunes no schedule: leave --{', --'.join(unread)} out.")
        for file in own_files(self.method):
            raise UsageError(
                f"--agreement: a second look cannot store the code of {file}. Install it as a method first."
            )
        out = self.outputs.out
        if out is not None and out.suffix.lower() != JSON:
            raise UsageError(f"--out {out}: a second look is a .json file. Name one, such as sure.json.")
        check_targets(self.outputs)

    def _tune(self, vlm: "VLM", prompts: "Sequence[Prompt]", how: dict[str, Any]) -> None:
        """Tune a schedule, print it, and write it to --out."""
        from foveate.naming import parse, settings_given
        from foveate.tuning import tune

        (name,), (budget,) = self.method or (SCHEDULED,), self._budgets
        method, stays = parse(name, self.settings), settings_given(name, self.settings)
        tuned = tune(vlm, prompts, method=method, given=stays, task=self.task, **how | budget)
        note(*tuned.notes)
        for file in own_files(self.method):
            note(f"a preset file does not store the code of {file}: append the settings below to --method {file}:")
        values, table = tuned.to_dict(), tuned.table()
        minutes = f"{tuned.tried} settings tried in {tuned.seconds / 60:.1f} minutes"
        shown = [table, Text(json.dumps(values["method"])), Text(minutes)]
        out = self.outputs.out
        if out is not None and out.suffix.lower() == JSON:
            shown.append(Text(f"Preset file: {out}"))
        write_outputs(values, Group(*shown), self.outputs, tables=[table])

    def _agree(self, vlm: "VLM", prompts: "Sequence[Prompt]", how: dict[str, Any]) -> None:
        """Calibrate a second look, print it, and write it to --out."""
        from foveate.tuning.agreeing import METHOD, agree, settings_to_try

        assert self.agreement is not None
        methods = self.method or (METHOD,)
        tried = [
            setting
            for name in methods
            for budget in self._budgets or [{}]
            for setting in settings_to_try(name, self.settings, **budget)
        ]
        may_narrow = len(methods) == 1 and not self._budgets
        sure = agree(vlm, prompts, tried, self.agreement, methods, may_narrow=may_narrow, **how)
        assert sure.promise is not None
        note(*sure.promise.notes)
        table = sure.table()
        shown = [table] if self.outputs.out is None else [table, Text(f"Second look: {self.outputs.out}")]
        write_outputs(sure.to_dict(), Group(*shown), self.outputs, tables=[table])

    def _samples(self) -> list[tuple[str, str, str]]:
        """Return (image path, question, task) of every sample; the task is empty if there is none."""
        if (self.samples is None) == (not self.images):
            raise UsageError("Give either image files with --prompt, or --samples with a file of both.")
        if self.samples is not None and self.prompt is not None:
            raise UsageError("--samples has a question for each image: leave out --prompt. Folders need no --samples.")
        if self.samples is None:
            if self.prompt is None:
                raise UsageError('The question is missing. Give it with --prompt "…".')
            return [(str(path), self.prompt, "") for place in self.images for path in files_in(place)]
        samples = []
        for sample in samples_in(self.samples).read(carried=self.agreement is not None):
            place = f"{self.samples}, row {sample.number} (from 0)"
            if isinstance(sample, Bad):
                raise InputError(f"{place}: {sample.reason}")
            if len(sample.media) != 1:
                raise InputError(f"{place} has {len(sample.media)} images; tune takes one per row.")
            samples.append((sample.media[0], sample.question, plain(sample.record, "task")))
        if not samples:
            raise InputError(f"{self.samples} has no rows.")
        return samples
