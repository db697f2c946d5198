"""What `generate`, `compare` and `tune` do before the first answer: read the files, load the model, solve schedules."""

import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate import embedded
from foveate._version import __version__
from foveate.ask.answer import Answer
from foveate.ask.generation import Generation
from foveate.ask.loading import device_of, is_folder
from foveate.ask.loading import load as load_model
from foveate.ask.media import read_media
from foveate.ask.pictures import Picture
from foveate.ask.prompt import Prompt
from foveate.ask.vlm import VLM
from foveate.cli.checks import check_budget, check_settings
from foveate.cli.options import BudgetOptions, MediaOptions, ModelOptions
from foveate.cli.screen import busy, note
from foveate.cli.usage import UsageError
from foveate.contract.method import Method
from foveate.contract.naming import kinds_of, parse, settings_of, spending
from foveate.errors import BudgetError, SettingError, UnsupportedError
from foveate.video import Clip

__all__ = ["Setup", "device_named", "load", "named", "read_files", "set_up"]


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything ready for a question.

    Attributes:
        vlm: The model.
        prompt: The question as the model gets it.
        named: What each --method says, by its text.
        methods: Of those that can meet the budget, with it.
        infeasible: Why a method cannot meet the budget, by its text.
    """

    vlm: VLM
    prompt: Prompt
    named: dict[str, Method]
    methods: dict[str, Method]
    infeasible: dict[str, str]

    def answer(self, name: str, generation: Generation) -> Answer:
        """What the model says while this method drops."""
        return self.vlm.answer(self.prompt, self.methods[name], generation=generation)

    def to_dict(self) -> dict[str, Any]:
        """The input as plain values."""
        return {"foveate": __version__} | self.prompt.to_dict()


def set_up(
    files: Sequence[Path],
    question: str | None,
    names: Sequence[str],
    models: ModelOptions,
    budgets: BudgetOptions,
    options: MediaOptions,
    *,
    every: bool = False,
    unsolved: Collection[str] = (),
) -> Setup:
    """Read the files, load the model and give each method the budget, which this very input can meet.

    Args:
        every: Whether a method that cannot meet the budget is only noted, as long as another can.
        unsolved: Names whose schedule is left as it is: controls, which run at the schedule of others.

    Raises:
        FoveateError: Of the kind that fits, cheapest checks first.
    """
    chosen = named(names, budgets)
    if not files:
        files, question = [embedded.picture()], question or embedded.QUESTION
    media = read_files(files, options)
    vlm = load(models)
    with busy("Preparing the pictures"):
        prompt = vlm.prepare(media, question, frames=options.frames, fps=options.fps, fit=options.fit)
    tell(prompt.notes)
    methods: dict[str, Method] = {}
    infeasible: dict[str, str] = {}
    for name, method in chosen.items():
        if name in unsolved:
            continue
        try:
            solved = vlm.solve(spending(method, budgets.budget, budgets.retention), prompt.vision_tokens)
        except BudgetError as error:
            infeasible[name] = str(error)
            if not every or len(infeasible) == len(names) - len(unsolved):
                raise
            continue
        assert solved is not None  # a picture has vision tokens
        methods[name] = solved
    tell_default(chosen.values(), budgets)
    return Setup(vlm, prompt, chosen, methods, infeasible)


def tell(notes: Sequence[str]) -> None:
    """Print what the user should know."""
    for text in notes:
        note(text)


def read_files(files: Sequence[Path], options: MediaOptions) -> list[Picture | Clip]:
    """Read pictures and videos, before any model is loaded.

    Raises:
        InputError: If a file cannot be read.
        UsageError: If flags for videos do not fit the file.
        UnsupportedError: If there is a video and no PyAV.
    """
    try:
        with busy("Reading the files"):
            return read_media(files, options.frames, options.fps)
    except SettingError as error:
        raise UsageError(f"--frames and --fps: {error}") from error


# -- models ---------------------------------------------------------------------------------------------------


def load(options: ModelOptions) -> VLM:
    """Load the model that the flags name, and show on stderr that it takes a moment.

    Raises:
        UsageError: If the device does not exist here.
        InputError: If there is no such model, it has no safetensors, or it needs code of its own.
        UnsupportedError: If no family serves it.
    """
    device = device_named(options.device)
    with _shown(options.model):
        return load_model(options.model, device=device, dtype=options.dtype, attention=options.attention)


def device_named(name: str) -> Any:
    """The torch device that --device names.

    Raises:
        UsageError: If it does not exist here.
    """
    try:
        return device_of(name)
    except UnsupportedError as error:
        raise UsageError(f"--device {name} is not available here. Use auto, cpu, or one that torch sees.") from error


@contextmanager
def _shown(name: str) -> Iterator[None]:
    """Show on stderr that a model is loading: the hub's own bars where it may be downloaded, else a line."""
    if is_folder(name):
        with busy(f"Loading {name}"):
            yield
        return
    if sys.stderr.isatty():
        note(f"looking for {name} in the cache and on the hub")
    yield


# -- methods --------------------------------------------------------------------------------------------------


def named(names: Sequence[str], options: BudgetOptions) -> dict[str, Method]:
    """What each name of a command line says, with its `--set` and `--seed`; before any model is loaded.

    Where several methods run, each takes the settings that it has.

    Raises:
        FoveateError: If flags contradict each other, a setting is unknown or of the wrong type, or there is no such
            method, preset or file.
    """
    check_budget(names, options)
    kinds = {name: kinds_of(name) for name in names}
    settings = {name: [setting for kind in of for setting in settings_of(kind)] for name, of in kinds.items()}
    schedules = {setting for of in kinds.values() for kind in of for setting in kind.schedule}
    check_settings(settings, schedules, options)
    methods = {name: _with_flags(name, settings[name], options) for name in names}
    has_budget = options.budget is not None or options.retention is not None
    if has_budget and methods and not any(method.open for method in methods.values()):
        raise UsageError(
            f"{', '.join(methods)} brings its own budget, as presets, tuned records and schedules do, or takes none: "
            "leave --budget and --retention out, or name a method."
        )
    return methods


def _with_flags(name: str, settings: Collection[str], options: BudgetOptions) -> Method:
    """A method with those of the settings on the command line that it has."""
    pairs = [pair for pair in options.settings if pair.partition("=")[0].strip() in settings or "=" not in pair[1:]]
    seed = [f"seed={options.seed}"] if options.seed is not None and "seed" in settings else []
    try:
        return parse(name, [*pairs, *seed])
    except SettingError as error:
        if not pairs:
            raise
        raise UsageError(f"--set {' --set '.join(pairs)}: {error}") from error


def tell_default(methods: Iterable[Method], options: BudgetOptions) -> None:
    """Say which budget open methods get where none is given."""
    if options.budget is None and options.retention is None and any(method.open for method in methods):
        note("no budget is given: --retention 1/3")
