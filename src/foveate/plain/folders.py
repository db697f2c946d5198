"""What a model's folder shows before anything is loaded from it. Nothing here may import torch.

transformers reads a folder trustingly: it follows an index of weights out of the folder and to pickled files, and
fails with whatever exception a damaged file leads to. So foveate looks first, and refuses by the file's name.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import InputError
from foveate.plain.upstream import brief, trim

ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
SUFFIX = ".safetensors"
WEIGHTS_OR_INDEX = (SUFFIX, ".safetensors.index.json")
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
    ADAPTER,
)
"""Files that hold a JSON object, as far as a folder has them."""

VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja")
"""Other files of a processor. They can be large, and are left to those who parse them."""

PROCESSOR = ("processor_config.json", "preprocessor_config.json")
"""Files of which a folder with a processor has one."""

TUNERS = ("LORA", "LOHA", "LOKR", "IA3")
"""PEFT's types of adapters that change layers and nothing around the model's forward."""
AROUND = ("alora_invocation_tokens", "arrow_config", "layer_replication", "megatron_config", "bias")
"""Settings of LoRA that change more than layers, or make peft import a module by name; bias trains the base's own, and
peft does not say which of them are missing."""

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
        raise InputError(f"There is no folder {trim(name)}: {reason}. Give a hub id or a local folder.") from error
    if is_path:
        raise InputError(f"There is no folder {trim(name)}. Give a hub id or a local folder that holds a model.")
    return None


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a model.

    Attributes:
        name: What the user calls the model.
        path: Where it is.
    """

    name: str
    path: Path

    def check(self) -> None:
        """Refuse a local model of which a file is damaged, not fetched, outside the folder, or no safetensors.

        Raises:
            InputError: The message names the file and says what to do.
        """
        settings = {file: self._json_object(file) for file in SETTINGS if self._has(file)}
        for file in VOCABULARY:
            if self._has(file):
                self._check_fetched(file)
        explicit = settings.get(CONFIG, {}).get("transformers_weights")
        if explicit is not None:
            self.check_weight_names(CONFIG, [explicit], WEIGHTS_OR_INDEX)
        for file in self._weight_files(explicit):
            self._check_weights(file)
        if ADAPTER in settings:
            self._check_adapter(settings[ADAPTER])

    @property
    def base(self) -> str | None:
        """The base model that a checked folder with a PEFT adapter names; None for one with a model of its own."""
        if not self._has(ADAPTER):
            return None
        return str(self._json_object(ADAPTER)["base_model_name_or_path"])

    def has_processor(self) -> bool:
        """Whether it has a processor of its own.

        Raises:
            InputError: If it has only a part of one, which would count for nothing.
        """
        if any(map(self._has, PROCESSOR)):
            return True
        for file in filter(self._has, ("tokenizer_config.json", *VOCABULARY)):
            raise self._refusal(
                f"there is {file} in its folder, and no {PROCESSOR[0]}. Save the whole processor there "
                f"(processor.save_pretrained), or remove {file} to use the base model's."
            )
        return False

    @contextmanager
    def loading_base(self, base: str) -> Iterator[None]:
        """Say of what goes wrong with an adapter's base model whose base it is, and where it was looked for."""
        try:
            yield
        except InputError as error:
            raise self._refusal(
                f"its base model, '{trim(base)}' by {ADAPTER} (a relative path begins at {Path.cwd()}), fails. {error}"
            ) from error

    def check_weight_names(self, source: str, weights: Sequence[Any], endings: str | tuple[str, ...] = SUFFIX) -> None:
        """Refuse names of weight files that are no safetensors or lead out of the model's folder.

        Args:
            source: The file that names them.
            weights: The names.
            endings: How they may end.

        Raises:
            InputError: If there is one.
        """
        for weight in weights:
            names = f"{source} names {trim(repr(weight), 80)}"
            if not isinstance(weight, str) or not weight.endswith(endings):
                raise self._refusal(f"{names}, and only safetensors are read. Take another checkpoint.")
            path = Path(weight)
            if path.is_absolute() or ".." in path.parts or not weight.isprintable() or len(weight) > LONGEST:
                raise self._refusal(
                    f"{names}, and weights must lie in the model's folder. Put the file there, and correct its name."
                )

    def check_index(self, file: str) -> list[Any]:
        """The weight files that an index names, as they are written, each once.

        Raises:
            InputError: If it is no index, or names files that are no safetensors or lead out of the model's folder.
        """
        index = self._json_object(file)
        places = index.get("weight_map")
        if not isinstance(places, dict) or not places:
            raise self._refusal(f'{file} has no "weight_map" from tensors to files. Download it again.')
        if not isinstance(index.get("metadata"), dict):
            raise self._refusal(f'{file} has no "metadata" (an object, which may be empty). Download it again.')
        files = []
        for weight in places.values():
            if weight not in files:
                files.append(weight)
        self.check_weight_names(file, files)
        return files

    def _check_adapter(self, settings: Mapping[str, Any]) -> None:
        """Refuse an adapter without a base, beside a whole model, or of a kind that is more than other layers."""
        for file in filter(self._has, (WEIGHTS, INDEX)):
            raise self._refusal(
                f"its folder has a whole model ({file}) and an adapter ({ADAPTER}). Give each its own folder."
            )
        self._check_weights(ADAPTER_WEIGHTS)
        kind = settings.get("peft_type")
        if kind not in TUNERS:
            raise self._refusal(
                f"its adapter is of type {brief(kind)}, and only {', '.join(TUNERS)} are loaded. "
                "Wrap the model with peft yourself, and use foveate.drop(model, method)."
            )
        for setting in AROUND:
            if settings.get(setting) not in (None, "none"):
                raise self._refusal(f"its {ADAPTER} sets {setting}, which is not served. Take an adapter without it.")
        base = settings.get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise self._refusal(
                f"base_model_name_or_path in {ADAPTER} must be the base model's folder or hub id; got {brief(base)}."
            )
        with self.loading_base(base):
            home = folder_of(base)
        if home is not None and ModelFolder(self.name, home)._has(ADAPTER):
            raise self._refusal(f"its base model, '{trim(base)}', is an adapter too. Merge that one into its own base.")
        revision = settings.get("revision")
        if home is None and revision not in (None, "main"):
            raise self._refusal(
                f"{ADAPTER} asks for revision {brief(revision)} of '{trim(base)}', and no revisions are loaded. "
                "Download it into a folder, and write that folder there."
            )

    def _weight_files(self, explicit: str | None) -> list[str]:
        """The files that transformers will read weights from; none where there are none, as it says itself."""
        file = explicit or WEIGHTS
        if explicit is None and not self._has(WEIGHTS):
            if not self._has(INDEX):
                return []
            file = INDEX
        if not file.endswith(".json"):
            return [file]
        self._check_inside(file)
        return self.check_index(file)

    def _check_weights(self, file: str) -> None:
        """Refuse a file of weights that is not there, not fetched, or a link to somewhere else."""
        if not self._has(file):
            raise self._refusal(f"there is no {file} in its folder. Download it again.")
        self._check_inside(file)
        self._check_fetched(file)

    def _check_inside(self, file: str) -> None:
        """Refuse a link that leaves the folder; those of the hub's cache lead from its snapshots to its blobs."""
        home, target = self.path.resolve(), (self.path / file).resolve()
        in_blobs = home.parent.name == "snapshots" and target.is_relative_to(home.parents[1] / "blobs")
        if not target.is_relative_to(home) and not in_blobs:
            raise self._refusal(
                f"{Path(file).name} is a link that leaves the model's folder, to {trim(str(target))}. Put the file "
                "itself there."
            )

    def _has(self, file: str) -> bool:
        """Whether it has this file.

        Raises:
            InputError: If something else is in its place, such as a folder or a link to nothing.
        """
        path = self.path / file
        try:
            if path.is_file():
                return True
            in_the_way = path.is_symlink() or path.exists()
        except (OSError, RuntimeError):
            in_the_way = True
        if in_the_way:
            raise self._refusal(f"{path.name} is no file. Download it again.")
        return False

    def _json_object(self, file: str) -> dict[str, Any]:
        self._check_fetched(file)
        try:
            value = json.loads((self.path / file).read_text(encoding="utf-8"))
        except OSError as error:
            raise self._refusal(f"{file} cannot be read: {error.strerror}.") from error
        except (ValueError, RecursionError) as error:
            raise self._refusal(f"{file} is not valid JSON: {trim(str(error), 80)}. Download it again.") from error
        if not isinstance(value, dict):
            raise self._refusal(
                f"{file} must hold a JSON object; got {trim(json.dumps(value), 80)}. Download it again."
            )
        return value

    def _check_fetched(self, file: str) -> None:
        """Refuse a file that is only a git-lfs pointer."""
        try:
            with (self.path / file).open("rb") as opened:
                start = opened.read(len(POINTER))
        except OSError as error:
            raise self._refusal(f"{file} cannot be read: {error.strerror}.") from error
        if start == POINTER:
            raise self._refusal(f"{file} is a git-lfs pointer, not the file itself. Fetch it: git lfs pull.")

    def _refusal(self, why: str) -> InputError:
        return InputError(f"Model '{trim(self.name)}' cannot be loaded: {why}")
