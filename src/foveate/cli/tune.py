"""`foveate tune`: a setting that meets a budget on the user's own pictures."""

import dataclasses
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from foveate._files import check_readable
from foveate.cli.checks import check_methods, check_model
from foveate.cli.options import BudgetOptions, Flag, Images, ModelOptions, OutputOptions, Settings
from foveate.cli.outputs import check_targets
from foveate.cli.usage import UsageError
from foveate.errors import InputError

__all__ = ["Tune"]

FEW = 64  # below so many samples the mean is a rough one


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Find the thresholds with which MustDrop meets a budget on your own pictures.

    Its counts depend on picture and question, so thresholds are found by trying: some twelve steps, each a prefill of
    every sample. The outcome goes to --out with its provenance, and runs with --method FILE. Methods with exact
    schedules need no tuning: give generate --budget or --retention.

    Examples:
      foveate tune receipts/*.jpg --prompt "What is the total?" --retention 0.4 --out receipts.json
      foveate tune --samples questions.jsonl --budget 192 --task vizwiz --out vizwiz.json
      foveate generate receipt.jpg --prompt "What is the total?" --method receipts.json
    """

    images: Images = ()
    """picture files, one sample each, all with the same question"""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """the question"""
    samples: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """instead of pictures: one JSON object per line, {"image": file, "prompt": text};
    paths are relative to this file"""
    budget: Annotated[float | None, tyro.conf.arg(metavar="TOKENS", help_behavior_hint="")] = None
    """mean vision tokens per decoder layer, over the samples"""
    retention: Annotated[float | None, tyro.conf.arg(metavar="SHARE", help_behavior_hint="")] = None
    """the same as a share in (0, 1]"""
    method: Annotated[str, tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = "mustdrop"
    """the method to start from: mustdrop, one of its presets or a tuned record, with settings such as
    "mustdrop:merge_windows=false"; it sets α/γ and everything that is not tuned"""
    settings: Settings = ()
    """a setting of the method, repeatable; thresholds give their ratio only"""
    task: Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = ""
    """a name for the samples, kept in the record"""
    models: Annotated[ModelOptions, tyro.conf.arg(name="model")] = field(default_factory=ModelOptions)
    json: Flag = False
    """print only the record to stdout"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """write the record to a file"""
    force: Flag = False
    """overwrite an existing file"""

    def run(self) -> None:
        """Tune, print, and write what was asked for."""
        asked = self._asked()
        if (self.budget is None) == (self.retention is None):
            raise UsageError("Give one of --budget and --retention.")
        check_targets(OutputOptions(out=self.out, force=self.force))
        check_methods([self.method], BudgetOptions(settings=self.settings))
        for path, _ in asked:
            check_readable(path)
        check_model(self.models)
        from foveate.cli.screen import busy

        with busy("Starting torch"):
            from foveate.ask.answering import fitting
            from foveate.ask.pictures import load_picture
            from foveate.cli.asking import load, named
            from foveate.cli.outputs import write_text
            from foveate.cli.screen import as_json, counted, note, show, show_json
            from foveate.methods.mustdrop import MustDrop
            from foveate.tune import tune
            from foveate.tune.thresholds import default_start

        start = named([self.method], BudgetOptions(settings=self.settings))[self.method]
        (member, *others) = start.members
        if others or not issubclass(member.kind, MustDrop):
            raise UsageError(
                f"--method {self.method}: there is nothing to tune but MustDrop's thresholds. Schedules are exact: "
                "give generate --budget or --retention."
            )
        start.method()
        pictures = [(load_picture(path), prompt) for path, prompt in asked]
        vlm = load(self.models)
        prompts = [vlm.prepare(picture, prompt) for picture, prompt in pictures]
        if len(prompts) < FEW:
            plural = "sample gives" if len(prompts) == 1 else "samples give"
            note(f"{len(prompts)} {plural} a rough mean; {FEW} or more are better.")
        inputs = [dict(prompt.inputs) for prompt in prompts]
        method = dataclasses.replace(member.ready or default_start(vlm.model), **member.values)  # type: ignore[type-var]
        with fitting(vlm, inputs[0]), counted("Tuning, in steps", 12) as progress, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # told as a note
            record = tune(
                vlm.model,
                inputs,
                method=method,
                tokens=self.budget,
                retention=self.retention,
                task=self.task,
                advance=lambda: progress.advance(progress.task_ids[0]),
            )
        if record.note:
            note(record.note)
        record = dataclasses.replace(record, model=vlm.name)  # no path of this machine for the embedded model
        if self.out is not None:
            write_text(self.out, as_json(record.to_dict()), force=self.force)
        if self.json:
            return show_json(record.to_dict())
        tuned = record.method.to_dict()
        target = f"{record.target:.1%} asked for"
        if not record.met:
            target += " and not met"
        lines = [
            f"global_thr = {tuned['global_thr']:.6g}, individual_thr = {tuned['individual_thr']:.6g}",
            f"{record.retention:.1%} ± {record.spread:.1%} of {record.vision_tokens:.1f} vision tokens on "
            f"{record.samples} samples ({target}; {len(record.steps)} steps)",
        ]
        if self.out is not None:
            lines.append(f"Record: {self.out}")
        return show(*lines)

    def _asked(self) -> list[tuple[Path, str]]:
        """(picture, question) of each sample."""
        if (self.samples is None) == (not self.images):
            raise UsageError("Name picture files with --prompt, or a file of both with --samples; one of them.")
        if self.samples is not None and self.prompt is not None:
            raise UsageError("--samples brings a question for each picture: leave --prompt out.")
        if self.samples is None:
            if self.prompt is None:
                raise UsageError('What is the question? Give it with --prompt "…".')
            return [(path, self.prompt) for path in self.images]
        try:
            lines = self.samples.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise InputError(f"{self.samples} cannot be read: {error.strerror}. Check the path.") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{self.samples} is no text: {error.reason}. Write a JSON object a line.") from error
        asked = []
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                    image, prompt = row["image"], row["prompt"]
                    if not isinstance(image, str) or not isinstance(prompt, str):
                        raise TypeError("both are text")
                    asked.append((self.samples.parent / image, prompt))
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(
                        f'{self.samples}, line {number} is no {{"image": file, "prompt": text}}: {error}.'
                    ) from error
        if not asked:
            raise InputError(f"{self.samples} has no sample in it.")
        return asked
