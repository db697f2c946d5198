"""`foveate tune`: a setting that meets a budget on the user's own pictures."""

import dataclasses
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from foveate._files import check_readable
from foveate.cli.checks import check_methods, check_model
from foveate.cli.options import BudgetOptions, Flag, Images, ModelOptions, OutputOptions, Settings
from foveate.cli.outputs import check_targets
from foveate.cli.usage import UsageError
from foveate.errors import InputError
from foveate.runs.samples import Bad, samples_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from foveate.ask.prompt import Prompt
    from foveate.ask.vlm import VLM
    from foveate.contract.method import Method

__all__ = ["Tune"]

FEW = 64  # below so many samples the mean of thresholds is a rough one
ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Find the best setting of a method for a budget, on your own pictures and questions, without labels.

    Cut layers, ratios and the method's settings are searched at one exact cost, for answers that stay nearest to the
    full model's. Pictures are split: to search, to choose among the best, and to report with. The outcome goes to
    --out, a preset file that runs with --method FILE, and says what was gained against the published schedule and
    against random. MustDrop's counts depend on picture and question, so its thresholds are found instead.

    Examples:
      foveate tune --samples questions.jsonl --method v2drop --budget 64 --out mine.json
      foveate tune receipts/ --prompt "What is the total?" --method v2drop --retention 0.1 --minutes 10
      foveate tune receipts/*.jpg --prompt "What is the total?" --method mustdrop --retention 0.4 --out receipts.json
      foveate generate receipt.jpg --prompt "What is the total?" --method mine.json
    """

    images: Images = ()
    """picture files or folders of them, all with the same question"""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """the question"""
    samples: Annotated[Path | None, tyro.conf.arg(metavar="FILE|FOLDER", help_behavior_hint="")] = None
    """instead of pictures: a file of samples, as foveate batch takes it (JSON lines, CSV, Parquet), such as
    {"image": file, "prompt": text} a line; paths are relative to this file; of a folder, its samples.jsonl"""
    budget: Annotated[float | None, tyro.conf.arg(metavar="TOKENS", help_behavior_hint="")] = None
    """mean vision tokens per decoder layer, over the samples"""
    retention: Annotated[float | None, tyro.conf.arg(metavar="SHARE", help_behavior_hint="")] = None
    """the same as a share in (0, 1]"""
    flops: Annotated[float | None, tyro.conf.arg(metavar="SHARE", help_behavior_hint="")] = None
    """instead: FLOPs to the first token, as a share of the full model's"""
    kv: Annotated[float | None, tyro.conf.arg(metavar="SHARE", help_behavior_hint="")] = None
    """instead: bytes of the KV cache after the prompt, likewise"""
    method: Annotated[str, tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = "mustdrop"
    """the method or chain, one of its presets or a tuned file, with settings such as "v2drop:metric=cosine";
    a setting that is given is not searched. Of mustdrop, thresholds give their ratio only"""
    settings: Settings = ()
    """a setting of the method, repeatable"""
    task: Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = ""
    """a name for the samples, kept in the file"""
    minutes: Annotated[float | None, tyro.conf.arg(metavar="N", help_behavior_hint="")] = None
    """how long settings may be tried; the best so far is then taken"""
    state: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """keep what was tried in this folder; with the same one a stopped search goes on"""
    seed: int = 0
    """of the split and of the search"""
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """processes that try settings, each with a model of its own"""
    models: Annotated[ModelOptions, tyro.conf.arg(name="model")] = field(default_factory=ModelOptions)
    json: Flag = False
    """print only the outcome to stdout"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """write the outcome to a file"""
    force: Flag = False
    """overwrite an existing file"""

    def run(self) -> None:
        """Tune, print, and write what was asked for."""
        asked = self._asked()
        costs = {"tokens": self.budget, "retention": self.retention, "flops": self.flops, "kv": self.kv}
        if sum(value is not None for value in costs.values()) != 1:
            raise UsageError("Give one of --budget and --retention (or of --flops and --kv).")
        if self.minutes is not None and not self.minutes > 0:
            raise UsageError(f"--minutes {self.minutes:g}: above 0.")
        if self.workers < 1:
            raise UsageError(f"--workers {self.workers}: 1 or more.")
        check_targets(OutputOptions(out=self.out, force=self.force))
        if self.out is not None and self.state is not None and self.out.resolve() == self.state.resolve():
            raise UsageError(f"--out and --state both name {self.out}; give each its own name.")
        check_methods([self.method], BudgetOptions(settings=self.settings))
        for path, _ in asked:
            check_readable(path)
        check_model(self.models)
        from foveate.cli.screen import busy

        with busy("Starting torch"):
            from foveate.ask.pictures import load_picture
            from foveate.cli.asking import load, named
            from foveate.methods.mustdrop import MustDrop

        start = named([self.method], BudgetOptions(settings=self.settings))[self.method]
        thresholds = isinstance(start, MustDrop)
        if thresholds and (self.state is not None or self.minutes is not None or self.workers > 1):
            raise UsageError(
                "MustDrop's thresholds are found in a few passes: leave --state, --minutes, --workers out."
            )
        pictures = [(load_picture(path), prompt) for path, prompt in asked]
        vlm = load(self.models)
        prompts = [vlm.prepare(picture, prompt) for picture, prompt in pictures]
        if thresholds:
            self._thresholds(vlm, prompts, start)
        else:
            self._schedule(vlm, prompts, start, costs)

    def _schedule(
        self, vlm: "VLM", prompts: "Sequence[Prompt]", method: "Method", costs: dict[str, float | None]
    ) -> None:
        """Search a schedule and settings."""
        from foveate.ask.answering import fitting
        from foveate.cli.screen import counted, note
        from foveate.contract.naming import given
        from foveate.tune import tune
        from foveate.tune.tuned import Tuned

        seconds = None
        if self.minutes is not None:
            seconds = 60 * self.minutes
        with fitting(vlm, prompts[0].inputs), counted("Tuning, in steps", None) as progress:
            tuned = tune(
                vlm,
                prompts,
                method=method,
                given=given(self.method, self.settings),
                task=self.task,
                seconds=seconds,
                seed=self.seed,
                workers=self.workers,
                max_new_tokens=self.models.max_new_tokens,
                state=self.state,
                advance=lambda: progress.advance(progress.task_ids[0]),
                **costs,
            )
        assert isinstance(tuned, Tuned)
        for text in tuned.notes:
            note(text)
        self._hand_out(
            tuned.to_dict(),
            "Preset",
            tuned.sheet(),
            json.dumps(tuned.method.to_dict()),
            f"{tuned.tried} settings tried in {tuned.seconds / 60:.1f} minutes",
        )

    def _thresholds(self, vlm: "VLM", prompts: "Sequence[Prompt]", method: "Method") -> None:
        """Find MustDrop's thresholds."""
        from foveate.ask.answering import fitting
        from foveate.cli.screen import counted, note
        from foveate.tune import tune
        from foveate.tune.record import Record

        if len(prompts) < FEW:
            plural = "sample gives" if len(prompts) == 1 else "samples give"
            note(f"{len(prompts)} {plural} a rough mean; {FEW} or more are better.")
        inputs = [dict(prompt.inputs) for prompt in prompts]
        with fitting(vlm, inputs[0]), counted("Tuning, in steps", 12) as progress, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # told as a note
            record = tune(
                vlm.model,
                inputs,
                method=method,
                tokens=self.budget,
                retention=self.retention,
                flops=self.flops,
                kv=self.kv,
                task=self.task,
                advance=lambda: progress.advance(progress.task_ids[0]),
            )
        assert isinstance(record, Record)
        if record.note:
            note(record.note)
        record = dataclasses.replace(record, model=vlm.name)  # no path of this machine for the embedded model
        tuned = record.method.to_dict()
        target = f"{record.target:.1%} asked for"
        if not record.met:
            target += " and not met"
        self._hand_out(
            record.to_dict(),
            "Record",
            f"global_thr = {tuned['global_thr']:.6g}, individual_thr = {tuned['individual_thr']:.6g}",
            f"{record.retention:.1%} ± {record.spread:.1%} of {record.vision_tokens:.1f} vision tokens on "
            f"{record.samples} samples ({target}; {len(record.steps)} steps)",
        )

    def _hand_out(self, values: dict[str, Any], kind: str, *shown: "RenderableType") -> None:
        """Write the outcome where that was asked for, and print it, also where it could not be written."""
        from foveate.cli.outputs import write_text
        from foveate.cli.screen import as_json, show, show_json

        try:
            if self.out is not None:
                write_text(self.out, as_json(values), force=self.force)
        finally:
            if self.json:
                show_json(values)
            else:
                show(*shown)
        if self.out is not None and not self.json:
            show(f"{kind}: {self.out}")

    def _asked(self) -> list[tuple[Path, str]]:
        """(picture, question) of each sample."""
        if (self.samples is None) == (not self.images):
            raise UsageError("Name picture files with --prompt, or a file of both with --samples; one of them.")
        if self.samples is not None and self.prompt is not None:
            raise UsageError("--samples brings a question for each picture: leave --prompt out.")
        if self.samples is None:
            if self.prompt is None:
                raise UsageError('What is the question? Give it with --prompt "…".')
            return [(path, self.prompt) for given in self.images for path in _pictures(given)]
        file = self.samples
        if file.is_dir():
            file = file / "samples.jsonl"
            if not file.exists():
                raise InputError(
                    f"There is no {file}. Write one, with a picture and a question a line; or ask the same question "
                    f'about each picture of the folder: foveate tune {self.samples} --prompt "…".'
                )
        asked = []
        for sample in samples_in(file).settled().read(carried=False):
            place = f"{file}, row {sample.number} (from 0)"
            if isinstance(sample, Bad):
                raise InputError(f"{place}: {sample.reason}")
            if len(sample.media) != 1:
                raise InputError(f"{place} has {len(sample.media)} pictures; tune takes one.")
            asked.append((Path(sample.media[0]), sample.question))
        if not asked:
            raise InputError(f"{file} has no row in it.")
        return asked


def _pictures(given: Path) -> list[Path]:
    """A picture, or those of a folder by name.

    Raises:
        InputError: If a folder has none.
    """
    if not given.is_dir():
        return [given]
    paths = sorted(path for path in given.iterdir() if path.suffix.lower() in ENDINGS)
    if not paths:
        raise InputError(f"{given} has no picture in it ({', '.join(ENDINGS)}).")
    return paths
