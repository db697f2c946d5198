"""What a model's folder shows before anything is loaded from it. Nothing here may import torch.

transformers reads a folder trustingly: it follows an index of weights out of the folder and to pickled files, and
fails with whatever exception a damaged file leads to. So foveate looks first, and refuses by the file's name.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from foveate._upstream import shown
from foveate.errors import InputError

__all__ = ["check_folder", "check_weight_names", "folder_of", "index_weights"]

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
WEIGHTS_OR_INDEX = (".safetensors", ".safetensors.index.json")
SETTINGS = (
    CONFIG,
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "adapter_config.json",
)
"""Files that hold a JSON object, as far as a folder has them."""

VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja")
"""Other files of a processor. They can be large, and are left to those who parse them."""

POINTER = b"version https://git-lfs"
"""How a git-lfs pointer begins: what a clone holds in a large file's place until `git lfs pull`."""

LONGEST = 200
"""Characters of a name that a message repeats."""


def folder_of(name: str) -> Path | None:
    """The local folder that a model's name stands for; None where it can only be a hub id.

    Raises:
        InputError: If the name is written like a folder and there is none.
    """
    is_path = name.startswith((".", "/", "~"))
    try:
        folder = Path(name).expanduser()
        if folder.is_dir():
            return folder
    except (OSError, ValueError, RuntimeError) as error:  # too long, not encodable, the home of nobody
        if not is_path:
            return None
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"There is no folder {shown(name)}: {reason}. Give a hub id or a local folder.") from error
    if is_path:
        raise InputError(f"There is no folder {shown(name)}. Give a hub id or a local folder that holds a model.")
    return None


def check_folder(name: str, folder: Path) -> None:
    """Refuse a local model of which a file is damaged, not fetched, outside the folder, or no safetensors.

    Args:
        name: What the user calls it.
        folder: Where it is.

    Raises:
        InputError: The message names the file and says what to do.
    """
    settings = {}
    for file in SETTINGS:
        if _is_there(name, folder / file):
            settings[file] = _json_object(name, folder / file)
    for file in VOCABULARY:
        if _is_there(name, folder / file):
            _check_fetched(name, folder / file)
    explicit = settings.get(CONFIG, {}).get("transformers_weights")
    if explicit is not None:
        check_weight_names(name, CONFIG, [explicit], WEIGHTS_OR_INDEX)
    for file in _weight_files(name, folder, explicit):
        _check_weights(name, folder, file)
    if "adapter_config.json" in settings:
        _check_weights(name, folder, "adapter_model.safetensors")
        base = settings["adapter_config.json"].get("base_model_name_or_path")
        home = folder_of(base) if isinstance(base, str) else None
        if home is not None:  # the weights below an adapter are read from there, whatever lies here
            for file in _weight_files(name, home, None):
                _check_weights(name, home, file)


def check_weight_names(
    name: str, source: str, weights: Sequence[Any], endings: tuple[str, ...] = (".safetensors",)
) -> None:
    """Refuse names of weight files that are no safetensors or lead out of the model's folder.

    Args:
        name: What the user calls the model.
        source: The file that names them.
        weights: The names.
        endings: How they may end.

    Raises:
        InputError: If there is one.
    """
    for weight in weights:
        if not isinstance(weight, str) or not weight.endswith(endings):
            raise _refusal(
                name,
                f"{source} names {shown(repr(weight), 80)}, and only safetensors are read. Take another checkpoint.",
            )
        path = Path(weight)
        if path.is_absolute() or ".." in path.parts or not weight.isprintable() or len(weight) > LONGEST:
            raise _refusal(
                name,
                f"{source} names {shown(repr(weight), 80)}, and weights must lie in the model's folder. "
                "Put the file there, and correct its name.",
            )


def index_weights(name: str, path: Path) -> list[Any]:
    """The weight files that an index names, as they are written.

    Raises:
        InputError: If it is no index.
    """
    index = _json_object(name, path)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not places:
        raise _refusal(name, f'{path.name} has no "weight_map" from tensors to files. Download it again.')
    if not isinstance(index.get("metadata"), dict):
        raise _refusal(name, f'{path.name} has no "metadata" (an object, which may be empty). Download it again.')
    files = []
    for file in places.values():
        if file not in files:
            files.append(file)
    return files


def _weight_files(name: str, folder: Path, explicit: str | None) -> Iterator[str]:
    """The files that transformers will read weights from; nothing where there are none, as it says itself."""
    file = explicit or WEIGHTS
    if explicit is None and not _is_there(name, folder / WEIGHTS):
        if not _is_there(name, folder / INDEX):
            return
        file = INDEX
    if not file.endswith(".json"):
        yield file
        return
    _check_inside(name, folder, folder / file)
    weights = index_weights(name, folder / file)
    check_weight_names(name, file, weights)
    yield from weights


def _check_weights(name: str, folder: Path, file: str) -> None:
    """Refuse a file of weights that is not there, not fetched, or a link to somewhere else."""
    if not _is_there(name, folder / file):
        raise _refusal(name, f"there is no {file} in its folder. Download it again.")
    _check_inside(name, folder, folder / file)
    _check_fetched(name, folder / file)


def _check_inside(name: str, folder: Path, path: Path) -> None:
    """Refuse a link that leaves the folder; those of the hub's cache lead from its snapshots to its blobs."""
    home = folder.resolve()
    target = path.resolve()
    if target.is_relative_to(home):
        return
    if home.parent.name == "snapshots" and target.is_relative_to(home.parents[1] / "blobs"):
        return
    raise _refusal(
        name,
        f"{path.name} is a link that leaves the model's folder, to {shown(str(target))}. Put the file itself there.",
    )


def _is_there(name: str, path: Path) -> bool:
    """Whether a folder has this file.

    Raises:
        InputError: If something else is in its place, such as a folder or a link to nothing.
    """
    try:
        if path.is_file():
            return True
        in_the_way = path.is_symlink() or path.exists()
    except (OSError, RuntimeError):
        in_the_way = True
    if in_the_way:
        raise _refusal(name, f"{path.name} is no file. Download it again.")
    return False


def _json_object(name: str, path: Path) -> dict[str, Any]:
    _check_fetched(name, path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refusal(name, f"{path.name} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise _refusal(name, f"{path.name} is not valid JSON: {shown(str(error), 80)}. Download it again.") from error
    if not isinstance(value, dict):
        raise _refusal(
            name, f"{path.name} must hold a JSON object; got {shown(json.dumps(value), 80)}. Download it again."
        )
    return value


def _check_fetched(name: str, path: Path) -> None:
    """Refuse a file that is only a git-lfs pointer."""
    try:
        with path.open("rb") as file:
            start = file.read(len(POINTER))
    except OSError as error:
        raise _refusal(name, f"{path.name} cannot be read: {error.strerror}.") from error
    if start == POINTER:
        raise _refusal(name, f"{path.name} is a git-lfs pointer, not the file itself. Fetch it: git lfs pull.")


def _refusal(name: str, why: str) -> InputError:
    return InputError(f"Model '{shown(name)}' cannot be loaded: {why}")
