"""What a command checks before torch is imported: names, settings, files and models. Nothing here may import torch.

Names and settings are looked up in the index (`foveate._index`). Where it does not hold, as with methods of other
packages, these checks let everything pass, and the command finds the same errors later.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate import _index, embedded
from foveate._files import check_readable, is_video
from foveate._folders import check_folder, folder_of
from foveate._spelling import (
    Written,
    members_in,
    no_method,
    no_preset,
    no_setting,
    pair_of,
    settings_in,
    written,
)
from foveate._upstream import shown
from foveate.cli.options import EMBEDDED, BudgetOptions, MediaOptions, ModelOptions
from foveate.cli.usage import UsageError, check_most
from foveate.errors import InputError, SettingError

__all__ = [
    "check_budget",
    "check_input",
    "check_methods",
    "check_model",
    "check_model_name",
    "check_settings",
    "check_shape",
]

SHAPES = Path(__file__).parents[1] / "bench" / "shapes.json"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


# -- files and models -----------------------------------------------------------------------------------------


def check_input(files: Sequence[Path], prompt: str | None, models: ModelOptions, media: MediaOptions) -> None:
    """Refuse a question that cannot be asked: no file, no prompt, files that cannot be read, no such model.

    Raises:
        UsageError: If a file or the prompt is missing, or a number of frames or tokens leaves its range.
        InputError: If a file cannot be read, or there is no such model.
    """
    if not files and models.model != EMBEDDED:
        raise UsageError("Which picture? Name image or video files; only the embedded model brings one of its own.")
    if files and prompt is None:
        raise UsageError('What is the question? Give it with --prompt "…".')
    if media.frames is not None and media.frames < 1:
        raise UsageError(f"--frames {media.frames}: 1 or more.")
    if media.fps is not None and not media.fps > 0:
        raise UsageError(f"--fps {media.fps:g}: a rate is above 0.")
    asked = media.frames is not None or media.fps is not None
    if asked and not any(is_video(path, frames_asked=True) for path in files):
        raise UsageError(
            "--frames and --fps are for videos, and no file named is one: "
            "their names end in .mp4, .mkv, .webm or the like."
        )
    for path in files:
        check_readable(path)
    check_model(models)


def check_model(models: ModelOptions) -> None:
    """Refuse a model that cannot be loaded, as far as its folder shows it.

    Raises:
        UsageError: If an answer would have no token, or more than anybody means.
        InputError: If there is no such folder, a file of it is damaged or has no place there, or the name can be no
            hub id.
    """
    if models.max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens {models.max_new_tokens}: an answer has at least one token.")
    check_most(max_new_tokens=models.max_new_tokens)
    check_model_name(models.model)


def check_model_name(name: str) -> None:
    """Refuse a name that is neither a folder with a model nor a hub id.

    Raises:
        InputError: If that is so.
    """
    if name in embedded.NAMES:
        return
    folder = folder_of(name)
    if folder is not None:
        check_folder(name, folder)
        if not (folder / "config.json").is_file():
            raise InputError(
                f"Model '{shown(name)}' cannot be loaded: the folder has no config.json. "
                "Give a hub id or a local folder with a config, a processor and safetensors weights."
            )
    elif not HUB_ID.fullmatch(name):
        raise InputError(
            f"Model '{shown(name)}' is no folder here, and no hub id: that is written OWNER/NAME. "
            "Families: foveate models."
        )


def check_shape(name: str) -> None:
    """Refuse what is neither a shape of `foveate bench` nor a model.

    Raises:
        InputError: If that is so.
    """
    shapes = json.loads(SHAPES.read_text(encoding="utf-8"))
    if name in shapes:
        return
    try:
        check_model_name(name)
    except InputError as error:
        raise InputError(f"{error} Shapes: foveate bench --shapes.") from error


# -- methods and their settings -------------------------------------------------------------------------------


def check_methods(names: Sequence[str], options: BudgetOptions | None = None) -> None:
    """Refuse methods, presets, method files and settings that there are not, as reading them later would.

    Args:
        names: What --method says; nothing stands for every method that takes a budget.
        options: The flags beside it.

    Raises:
        FoveateError: Of the kind that fits.
    """
    options = options or BudgetOptions()
    check_budget(names, options)
    index = _index.stored()
    if index is None:
        return
    methods = {method["name"]: method for method in index["methods"]}
    presets = {preset["name"]: preset["setting"] for preset in index["presets"]}
    if not names:
        names = [name for name, method in methods.items() if method["takes_budget"]]
    settings: dict[str, set[str]] = {}
    schedules: set[str] = set()
    for name in names:
        settings[name] = set()
        for member in _members(name, methods, presets):
            settings[name] |= set(methods[member]["settings"])
            schedules |= set(methods[member]["schedule"])
    check_settings(settings, schedules, options)


def _members(text: str, methods: Mapping[str, Any], presets: Mapping[str, Any]) -> list[str]:
    """The methods of a text, each by its name, after looking at their settings' names."""
    members: list[str] = []
    for part in written(text):
        if part.is_file:
            kinds = [member.name for member in members_in(settings_in(part.name))]
        elif part.is_preset:
            if part.name not in presets:
                raise no_preset(part.name, presets)
            kinds = [member.name for member in members_in(presets[part.name])]
        else:
            kinds = [part.name]
        for name in kinds:
            if name not in methods:
                raise no_method(name, methods)
        if len(kinds) == 1:  # settings of a file with a chain are left to those who make one of it
            _check_pairs(part, kinds[0], methods[kinds[0]]["settings"])
        members += kinds
    return members


def _check_pairs(part: Written, method: str, settings: Collection[str]) -> None:
    """Refuse settings of a text that its method has not, or that come twice."""
    if part.values is not None:
        for key in sorted(part.values):
            if key not in settings:
                raise no_setting(method, key, settings)
    seen: set[str] = set()
    for pair in part.pairs:
        key, _ = pair_of(pair)
        if key not in settings:
            raise no_setting(method, key, settings)
        if key in seen:
            raise SettingError(f"{key} is given twice.")
        seen.add(key)


def check_budget(names: Sequence[str], options: BudgetOptions) -> None:
    """Refuse a budget that cannot be meant, and a method that is named twice.

    Raises:
        UsageError: If there is one.
    """
    if options.budget is not None and options.retention is not None:
        raise UsageError("--budget and --retention say the same thing; give one of them.")
    for flag, value in (("--budget", options.budget), ("--retention", options.retention)):
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"{flag} {value:g}: a budget lies above 0.")
    if options.retention is not None and options.retention > 1:
        raise UsageError(f"--retention {options.retention:g}: a share lies in (0, 1]. For a token count use --budget.")
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise UsageError(f"--method {twice[0]} is named twice.")


def check_settings(settings: Mapping[str, Collection[str]], schedules: Collection[str], options: BudgetOptions) -> None:
    """Refuse settings that no method has, and a schedule beside a budget.

    Args:
        settings: The settings that each --method has.
        schedules: Those of them that say how many tokens stay.
        options: The flags.

    Raises:
        UsageError: If there are such settings, or a seed where nothing is drawn.
    """
    every_setting = sorted({name for names in settings.values() for name in names})
    has_budget = options.budget is not None or options.retention is not None
    for key in (pair.partition("=")[0].strip() for pair in options.settings):
        if key and key not in every_setting:
            raise UsageError(
                f"--set {key}: no such setting of {', '.join(settings)}. There are: {', '.join(every_setting)}."
            )
        if has_budget and key in {*schedules, "tokens", "retention"}:
            raise UsageError(f"--set {key}=… is a schedule already: leave --budget and --retention out.")
    if options.seed is not None and "seed" not in every_setting:
        raise UsageError(f"--seed: {', '.join(settings)} drops nothing at random. Leave --seed out.")
