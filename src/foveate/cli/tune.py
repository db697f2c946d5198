"""`foveate tune`: a setting that meets a budget on the user's own pictures."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.text import Text

from foveate.cli.checks import check_methods, check_model
from foveate.cli.options import (
    Count,
    Images,
    MaybeShare,
    MaybeTokens,
    ModelOptions,
    Settings,
    TableOptions,
    whole,
)
from foveate.cli.outputs import JSON, check_targets
from foveate.cli.usage import UsageError
from foveate.errors import InputError
from foveate.plain.files import check_readable
from foveate.runs.samples import Bad, samples_in

if TYPE_CHECKING:
    from foveate.tune import Tuned

__all__ = ["Tune"]

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Find the best setting of a method for a budget, on your own pictures and questions, without labels.

    A small grid of settings is tried at one exact cost, for answers that stay nearest to the full model's; --search
    tries more cut layers, ratios and settings. Pictures are split: to search, to choose among the best, and to report
    with. The outcome goes to --out FILE.json, a preset file that runs with --method FILE, and says what was gained
    against the published schedule and against random. MustDrop's counts depend on the picture, so its thresholds are
    tuned.

    Examples:
      foveate tune --samples questions.jsonl --method v2drop --budget 64 --out mine.json
      foveate tune receipts/ --prompt "What is the total?" --method v2drop --retention 0.1
      foveate tune receipts/ --prompt "What is the total?" --method v2drop --budget 32 --search 100 --state mine
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
    budget: MaybeTokens = None
    """mean vision tokens per decoder layer, over the samples"""
    retention: MaybeShare = None
    """the same as a share in (0, 1]"""
    flops: MaybeShare = None
    """instead: FLOPs to the first token, as a share of the full model's"""
    kv: MaybeShare = None
    """instead: bytes of the KV cache after the prompt, likewise"""
    method: Annotated[str, tyro.conf.arg(metavar="NAME[:KEY=VALUE;…]")] = "v2drop"
    """the method or chain, one of its presets or a preset file, with settings such as "v2drop:metric=cosine";
    a setting that is given is not searched. Of mustdrop, thresholds give their ratio only"""
    settings: Settings = ()
    """a setting of the method, repeatable"""
    search: Annotated[int, whole(0)] = 0
    """settings to try beyond the small grid, as optuna suggests them; needs the extra tune"""
    task: Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = ""
    """a name for the samples, kept in the file"""
    state: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """keep what was tried in this folder; with the same one a stopped search goes on"""
    seed: int = 0
    """of the split and of the search"""
    workers: Count = 1
    """processes that try settings, each with a model of its own"""
    models: Annotated[ModelOptions, tyro.conf.arg(name="model")] = field(default_factory=ModelOptions)
    outputs: Annotated[TableOptions, tyro.conf.arg(name="output")] = field(default_factory=TableOptions)

    def run(self) -> None:
        """Tune, print, and write what was asked for."""
        asked = self._asked()
        costs = {"tokens": self.budget, "retention": self.retention, "flops": self.flops, "kv": self.kv}
        if sum(value is not None for value in costs.values()) != 1:
            raise UsageError("Give one of --budget and --retention (or of --flops and --kv).")
        check_targets(self.outputs)
        out = self.outputs.out
        if out is not None and self.state is not None and out.resolve() == self.state.resolve():
            raise UsageError(f"--out and --state both name {out}; give each its own name.")
        check_methods([self.method])
        for path, _ in asked:
            check_readable(path)
        check_model(self.models)
        from foveate.cli.screen import busy, counting, note

        with busy("Starting torch"):
            from foveate.ask.pictures import load_picture
            from foveate.ask.running import fitting
            from foveate.cli.setup import load
            from foveate.naming import given, parse
            from foveate.tune import tune

        method = parse(self.method, self.settings)
        pictures = [(load_picture(path), prompt) for path, prompt in asked]
        vlm = load(self.models)
        prompts = [vlm.prepare(picture, prompt) for picture, prompt in pictures]
        with fitting(vlm, prompts[0].inputs), counting("Tuning, in steps", None) as advance:
            tuned = tune(
                vlm,
                prompts,
                method=method,
                given=given(self.method, self.settings),
                **costs,
                search=self.search,
                task=self.task,
                seed=self.seed,
                workers=self.workers,
                max_new_tokens=self.models.max_new_tokens,
                state=self.state,
                advance=advance,
            )
        for text in tuned.notes:
            note(text)
        self._hand_out(tuned)

    def _hand_out(self, tuned: "Tuned") -> None:
        """Write the outcome where that was asked for, and print it, also where it could not be written."""
        from rich.console import Group

        from foveate.cli.outputs import finish

        values, table = tuned.to_dict(), tuned.sheet()
        lines = [json.dumps(values["method"]), f"{tuned.tried} settings tried in {tuned.seconds / 60:.1f} minutes"]
        if self.outputs.out is not None and self.outputs.out.suffix.lower() == JSON:
            lines.append(f"Preset file: {self.outputs.out}")
        finish(values, Group(table, *map(Text, lines)), self.outputs, tables=[table])

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
        if os.path.isdir(file):  # unlike Path.is_dir, no error where the name is too long
            file = file / "samples.jsonl"
            if not file.exists():
                raise InputError(
                    f"There is no {file}. Write one, with a picture and a question a line; or ask the same question "
                    f'about each picture of the folder: foveate tune {self.samples} --prompt "…".'
                )
        asked = []
        for sample in samples_in(file).read(carried=False):
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
    if not os.path.isdir(given):
        return [given]
    paths = sorted(path for path in given.iterdir() if path.suffix.lower() in ENDINGS)
    if not paths:
        raise InputError(f"{given} has no picture in it ({', '.join(ENDINGS)}).")
    return paths
