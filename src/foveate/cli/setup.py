"""Setup of `generate` and `compare`: read the files, load the model, solve the schedules."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate import embedded
from foveate.ask.loading import device_of, is_folder, load
from foveate.ask.media import read_media, read_medium
from foveate.ask.prompt import Prompt
from foveate.ask.running import method_in
from foveate.ask.second_look import AnyLook, SecondLook
from foveate.ask.vlm import VLM
from foveate.cli.options import BudgetOptions
from foveate.cli.screen import busy, counting, note
from foveate.cli.usage import UsageError
from foveate.contract.method import Method
from foveate.cost.fitting import costs_of, within_flops
from foveate.errors import BudgetError, InputError, SettingError, UnsupportedError
from foveate.naming import asked_share, is_bare, kinds_of, method_of, parse, settings_of
from foveate.plain.flags import LoadOptions
from foveate.plain.spelling import is_second_look, no_setting, pair_of
from foveate.video.wanted import FramesWanted

if TYPE_CHECKING:
    from foveate.bench.timing import Ratio


@dataclass(frozen=True, slots=True)
class Setup:
    """A loaded model with its prompts and methods.

    Attributes:
        vlm: The model.
        prompts: The prepared prompts, one per question, all about the same files.
        drops: The methods that can meet the budget, by the text of --method.
        infeasible: Why each other method cannot meet the budget, by the text of --method.
    """

    vlm: VLM
    prompts: list[Prompt]
    drops: dict[str, Method | SecondLook]
    infeasible: dict[str, str]

    @property
    def prompt(self) -> Prompt:
        """The first question."""
        return self.prompts[0]

    @property
    def methods(self) -> dict[str, Method]:
        """The methods in `drops`, without a second look."""
        return {name: method for name, method in self.drops.items() if isinstance(method, Method)}

    def race(self, methods: Mapping[str, Method], new_tokens: int, pairs: int) -> "dict[str, Ratio]":
        """Time the full model and the methods on the prompt; see `foveate.bench.paired.race`. Progress is on stderr."""
        from foveate.bench.paired import AGAIN, race

        with counting("Timing, in rounds", pairs + 1) as advance:
            times = race(self.vlm.model, self.prompt.inputs, methods, new_tokens, pairs, advance)
        if not times[AGAIN].holds_one:
            note(
                "the machine is noisy: the full model's time differs from itself. Do not trust the time ratios; "
                "use more --pairs on a quiet machine."
            )
        return times


def set_up(
    command: Any, questions: Sequence[str], drops: Mapping[str, Method | SecondLook], *, every: bool = False
) -> Setup:
    """Read the files, load the model, and check that each method can meet the budget on this input.

    Args:
        command: `Generate` or `Compare`.
        questions: The questions; if empty, the question of the embedded image.
        drops: The methods, by name.
        every: Skip methods that cannot meet the budget, unless none can.

    Raises:
        FoveateError: If the files, the model, a method or the budget cannot be used.
    """
    files, budgets, showing = command.files, command.budgets, command.media.showing
    if not files:
        files, questions = [embedded.picture()], questions or [embedded.QUESTION]
    with busy("Reading the files"):
        media = read_media(files, command.media.frames, command.media.fps)
    vlm = load_vlm(command.models)
    with busy("Preparing the pictures"):
        prompts = [vlm.prepare(media, question, **showing) for question in questions]
    tell_budgets(drops, budgets)
    note(*prompts[0].notes)
    feasible: dict[str, Method | SecondLook] = {}
    infeasible: dict[str, str] = {}
    for name, method in drops.items():
        try:
            if budgets.flops is not None and isinstance(method, Method):
                method = within_flops(method, budgets.flops, costs_of(prompts))
            method_in(vlm, method, prompts[0].vision_tokens)
        except SettingError as error:
            if budgets.flops is None and not isinstance(error, BudgetError):
                raise
            infeasible[name] = str(error)
            if not every or len(infeasible) == len(drops):
                raise
            continue
        feasible[name] = method
        if isinstance(method, Method):
            note(method.caution(asked_share(method, prompts[0].vision_tokens) or 1))
    return Setup(vlm, prompts, feasible, infeasible)


def read_each(sources: Sequence[Path | str], *, wanted: FramesWanted | None = None, **how: Any) -> dict[int, Any]:
    """Read images and videos one by one: those that can be read, by their places. A note names each of the others.

    Args:
        sources: The files.
        wanted, how: As for `foveate.ask.media.read_medium`.

    Raises:
        InputError: If none can be read.
    """
    media, failures = {}, []
    for place, source in enumerate(sources):
        try:
            media[place] = read_medium(source, wanted, **how)
        except InputError as error:
            failures.append(error)
    if failures and not media:
        raise failures[0]
    note(*(f"left out: {failure}" for failure in failures))
    return media


def load_vlm(options: LoadOptions) -> VLM:
    """Load the model that the flags name, and show progress on stderr.

    Raises:
        UsageError: If the device does not exist on this machine.
        InputError: If there is no such model, it has no safetensors, or it needs remote code.
        SettingError: If CUDA graphs are requested on a device without them.
        UnsupportedError: If no family supports the model.
    """
    device = find_device(options.device)
    # Downloads show their own progress bars.
    with busy(f"Loading {options.model}") if is_folder(options.model) else nullcontext():
        return load(options.model, **options.loading | {"device": device})


def find_device(name: str) -> Any:
    """Return the torch device that --device names.

    Raises:
        UsageError: If it does not exist on this machine.
    """
    try:
        return device_of(name)
    except UnsupportedError as error:
        raise UsageError(
            f"--device {name} is not available here. Use auto, cpu, or a device that torch finds."
        ) from error


# -- methods --------------------------------------------------------------------------------------------------


def parse_methods(names: Sequence[str], options: BudgetOptions) -> dict[str, Method]:
    """Build the method of each `--method`, with `--set`, `--seed` and the budget. Needs no model.

    Each method gets the settings that it has. The budget goes to every method that takes one. With `--flops`, all must
    take a budget; it is applied later, when the costs are known.

    Raises:
        FoveateError: If a setting is unknown or of the wrong type, there is no such method, preset or file, or a budget
            is given and no method takes it.
    """
    own = _own_settings(names, options)
    methods = {name: parse(name, own[name]) for name in names}
    takers = [name for name, method in methods.items() if method.open]
    if options.flops is not None:
        if options.has_budget:
            raise UsageError("--flops, --budget and --retention each set the budget; give one of them.")
        if closed := [name for name in names if name not in takers]:
            raise UsageError(f"--flops: {', '.join(closed)} takes no budget or has its own. Use other methods.")
        return methods
    if options.has_budget and not takers:
        raise UsageError(
            f"{', '.join(methods)} has its own budget, as presets and schedules do, or takes none. "
            "Leave --budget and --retention out, or name another method. A method of your own takes a budget if "
            "you derive it from Cuts, Once or Frames."
        )
    methods |= {name: method_of(name, options.budget, options.retention, own[name]) for name in takers}
    return methods


def parse_drop(name: str, options: BudgetOptions) -> Method | SecondLook:
    """Build what a single --method names: a method, or a second look from a file.

    Raises:
        UsageError: If a second look gets a budget, a setting or a seed.
        FoveateError: As for `parse_methods`, or if the file cannot be read or is damaged.
    """
    if not is_second_look(name):
        return parse_methods([name], options)[name]
    if options != BudgetOptions():
        raise UsageError(f"{name} has its own budget: leave --budget, --retention, --set and --seed out.")
    return SecondLook.load(name)


def _own_settings(names: Collection[str], options: BudgetOptions) -> dict[str, list[str]]:
    """Return the `--set` and `--seed` settings that apply to each method, as `key=value`.

    Raises:
        SettingError: If no method has one of them.
    """
    pairs = [*options.settings, *([] if options.seed is None else [f"seed={options.seed}"])]
    settings = {name: {setting for kind in kinds_of(name) for setting in settings_of(kind)} for name in names}
    every_setting = {setting for own in settings.values() for setting in own}
    for key, _ in map(pair_of, pairs):
        if key not in every_setting:
            raise no_setting(", ".join(names), key, every_setting)
    return {name: [pair for pair in pairs if pair_of(pair)[0] in settings[name]] for name in names}


def tell_budgets(drops: Mapping[str, AnyLook], options: BudgetOptions) -> None:
    """Print which budget the methods use that take one, if the command line gives none."""
    if options.has_budget or options.flops is not None:
        return
    methods = {name: method for name, method in drops.items() if isinstance(method, Method)}
    own = _own_settings(methods, options)
    if any(is_bare(name, [pair_of(pair)[0] for pair in own[name]]) and parse(name).open for name in methods):
        note("no budget given: using --retention 1/3")
    for name, method in methods.items():
        if method.open:
            note(f"{name} keeps as many tokens as its own settings say; set a budget with --retention")
