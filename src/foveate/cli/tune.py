"""`foveate tune`: find the settings that fit a budget on the user's own images."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from foveate.cli.outputs import check_target, check_targets, write_outputs
from foveate.cli.screen import OnScreen, busy, note
from foveate.cli.usage import BAD_ROWS, DONE, UsageError
from foveate.errors import InputError, SettingError, UnsupportedError
from foveate.plain.flags import Count, ModelOptions
from foveate.runs.samples import Bad, plain, samples_in

if TYPE_CHECKING:
    from foveate.ask.prompt import Prompt
    from foveate.ask.vlm import VLM
    from foveate.tuning import Tuned

SCHEDULED = "v2drop"
"""The default method."""
Budgets = Annotated[tyro.conf.UseAppendAction[tuple[Tokens, ...]], tyro.conf.arg(help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Find the best settings of a method for a budget, on your own images and questions, without labels.

    Answers the questions with a small grid of settings of equal cost, and selects the one whose answers are closest to
    the full model's. Some of the images are used to select, the others to report. The preset file --out FILE.json can
    be given to --method; it records the gain over the published schedule and over random dropping. MustDrop's token
    counts depend on the image, so its thresholds are tuned. With several methods or budgets, --out is a folder of
    preset files. Answers are saved as they arrive, so an interrupted run can be resumed.

    Examples:
      foveate tune --samples questions.jsonl --method v2drop --budget 64 --out mine.json
      foveate tune receipts/ --prompt "What is the total?" --method v2drop --retention 0.1
      foveate tune receipts/*.jpg --prompt "What is the total?" --method mustdrop --retention 0.4 --out receipts.json
      foveate tune --samples receipts --method v2drop --method visiondrop --budget 64 --budget 128 --out presets
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
    samples: Annotated[Path | None, tyro.conf.arg(metavar="FILE|FOLDER", help_behavior_hint="")] = None
    """instead of images: a file of samples as for foveate batch (JSON lines, CSV, Parquet)
    with rows such as {"image": file, "prompt": text}; paths are relative to this file.
    For a folder, its samples.jsonl is read"""
    agreement: MaybeShare = None
    """calibrate a second look: the share of answers that must be the full model's, such as 0.98.
    Needs no budget. For 0.98 it needs 114 samples, or 169 to try three budgets.
    Give --method, --budget or --retention to try only those"""
    budget: Budgets = ()
    """mean number of vision tokens per decoder layer, over the samples; repeatable"""
    retention: Retentions = ()
    """the budget as a share in (0, 1]; repeatable"""
    flops: Shares = ()
    """the budget as a share of the full model's FLOPs to the first token; repeatable"""
    method: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = ()
    """a method or chain, with settings such as "v2drop:metric=cosine"; given settings are not tuned.
    For mustdrop, given thresholds fix only their ratio (default: v2drop; with --agreement: vidcom2)"""
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
            self._check_schedules()
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
                self._hand_out(self._tune_cells(vlm, prompts, how))
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

    @property
    def _cells(self) -> list[tuple[str, dict[str, float]]]:
        """Every method at every budget."""
        return [(name, budget) for budget in self._budgets for name in self.method or (SCHEDULED,)]

    def _check_schedules(self) -> None:
        """Refuse flags that contradict each other when schedules are tuned."""
        if not self._cells:
            raise UsageError("There is no budget. Give one of --budget and --retention (or --flops).")
        folder = self._folder()
        if folder is None:
            check_targets(self.outputs)
            return
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise InputError(f"--out {folder} is a file, but several presets are tuned. Name a folder for them.")
        targets = [folder]
        if os.path.isdir(folder):
            targets = [folder / name for name in _preset_files(self._cells)]
        for target in targets:
            check_target("--out", target, self.outputs.force)

    def _folder(self) -> Path | None:
        """Return the folder for several preset files; None if --out is not a folder.

        Raises:
            UsageError: If several presets are tuned and --out is a single preset file.
        """
        out = self.outputs.out
        if out is None or len(self._cells) < 2:
            return None
        if out.suffix.lower() == JSON:
            raise UsageError(
                f"--out {out} is one preset file, but several presets are tuned. Name a folder, such as "
                f"--out {out.with_suffix('')}: each preset becomes METHOD-BUDGET.json in it."
            )
        if out.suffix and not os.path.isdir(out):  # a file of tables
            return None
        return out

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

    def _tune_cells(self, vlm: "VLM", prompts: "Sequence[Prompt]", how: dict[str, Any]) -> "dict[str, Tuned]":
        """Tune every method at every budget, and return the results by the names of their preset files.

        An infeasible budget is skipped with a note, unless nothing was tuned at all.

        Raises:
            SettingError: If no method can meet its budget, or another setting is wrong.
            UnsupportedError: If no method runs on the model.
        """
        from foveate.naming import parse, settings_given
        from foveate.tuning import tune

        tunings: dict[str, Tuned] = {}
        for (name, budget), file in zip(self._cells, _preset_files(self._cells), strict=True):
            method, stays = parse(name, self.settings), settings_given(name, self.settings)
            try:
                tunings[file] = tune(vlm, prompts, method=method, given=stays, task=self.task, **how | budget)
            except (SettingError, UnsupportedError) as error:
                if not tunings and (name, budget) == self._cells[-1]:
                    raise
                note(f"{name} at {next(iter(budget.values())):g} is infeasible: {error}")
        return tunings

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

    def _hand_out(self, tunings: "Mapping[str, Tuned]") -> None:
        """Write the preset files and print every result, even if a file cannot be written."""
        note(*dict.fromkeys(text for tuned in tunings.values() for text in tuned.notes))
        for file in own_files(self.method):
            note(f"a preset file does not store the code of {file}: append the settings below to --method {file}:")
        shown: list[Any] = []
        outputs, files = self.outputs, []
        if folder := self._folder():
            files = [folder / file for file in tunings]
            outputs = replace(outputs, out=None)
        for tuned in tunings.values():
            minutes = f"{tuned.tried} settings tried in {tuned.seconds / 60:.1f} minutes"
            shown += [tuned.table(), Text(json.dumps(tuned.to_dict()["method"])), Text(minutes)]
        try:
            for path, tuned in zip(files, tunings.values(), strict=False):
                path.parent.mkdir(exist_ok=True)
                tuned.save(path, force=outputs.force)
                shown.append(Text(f"Preset file: {path}"))
        finally:
            if outputs.out is not None and outputs.out.suffix.lower() == JSON:
                shown.append(Text(f"Preset file: {outputs.out}"))
            every = [tuned.to_dict() for tuned in tunings.values()]
            tables = [tuned.table() for tuned in tunings.values()]
            write_outputs({"tuned": every} if len(self._cells) > 1 else every[0], Group(*shown), outputs, tables=tables)

    def _samples(self) -> list[tuple[str, str, str]]:
        """Return (image path, question, task) of every sample; the task is empty if there is none."""
        if (self.samples is None) == (not self.images):
            raise UsageError("Give either image files with --prompt, or --samples with a file of both.")
        if self.samples is not None and self.prompt is not None:
            raise UsageError("--samples has a question for each image: leave --prompt out.")
        if self.samples is None:
            if self.prompt is None:
                raise UsageError('The question is missing. Give it with --prompt "…".')
            return [(str(path), self.prompt, "") for place in self.images for path in files_in(place)]
        file = self.samples
        if os.path.isdir(file):  # unlike Path.is_dir, raises no error if the name is too long
            file = file / "samples.jsonl"
            if not file.exists():
                raise InputError(
                    f"There is no {file}. Write one, with an image and a question per line, or ask the same question "
                    f'about every image of the folder: foveate tune {self.samples} --prompt "…".'
                )
        samples = []
        for sample in samples_in(file).read(carried=self.agreement is not None):
            place = f"{file}, row {sample.number} (from 0)"
            if isinstance(sample, Bad):
                raise InputError(f"{place}: {sample.reason}")
            if len(sample.media) != 1:
                raise InputError(f"{place} has {len(sample.media)} images; tune takes one per row.")
            samples.append((sample.media[0], sample.question, plain(sample.record, "task")))
        if not samples:
            raise InputError(f"{file} has no rows.")
        return samples


def _preset_files(asked: Sequence[tuple[str, Mapping[str, float]]]) -> list[str]:
    """Return the names of preset files, METHOD-BUDGET.json. Other characters than letters, digits and `._+=,` become
    hyphens."""
    names: list[str] = []
    for method, budget in asked:
        ((kind, value),) = budget.items()
        if kind in ("tokens", "retention"):
            size = f"{value:.6g}"
        else:
            size = f"{kind}-{value:.6g}"
        stem = re.sub(r"[^\w.+=,]+", "-", method.removesuffix(".json"))[:80].strip("-.")
        name, number = f"{stem}-{size}.json", 2
        while name.lower() in map(str.lower, names):
            name, number = f"{stem}-{size}-{number}.json", number + 1
        names.append(name)
    return names
