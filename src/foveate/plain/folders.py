"""Checks of a model's folder before anything is loaded from it. Nothing here may import torch.

transformers trusts a folder: it follows an index of weights out of the folder and to pickled files, and raises
arbitrary exceptions for damaged files. foveate therefore checks the files first, and its errors name the file.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import InputError
from foveate.plain.spelling import read_json
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
"""Optional files that must hold a JSON object."""

VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja")
"""Other files of a processor. They can be large, so they are not parsed here."""

PROCESSOR = ("processor_config.json", "preprocessor_config.json")
"""A folder with a processor has one of these files."""

TUNERS = ("LORA", "LOHA", "LOKR", "IA3")
"""PEFT adapter types that change only layers, not the model's forward."""
AROUND = ("alora_invocation_tokens", "arrow_config", "layer_replication", "megatron_config", "bias")
"""LoRA settings that change more than layers, or make peft import a module by name. `bias` trains biases of the base
model, and peft does not report which ones are missing in a file."""

POINTER = b"version https://git-lfs"
"""First bytes of a git-lfs pointer, which stands in for a large file until `git lfs pull`."""

LONGEST = 200
"""Longest name of a weight file, in characters."""


def folder_of(name: str) -> Path | None:
    """Return the local folder that a model name stands for; None if it can only be a hub id.

    Raises:
        InputError: If the name is written like a path and there is no such folder.
    """
    is_path = name.startswith((".", "/", "~"))
    try:
        folder = Path(name).expanduser()
        if folder.is_dir():
            return folder
    except (OSError, ValueError, RuntimeError) as error:  # too long, not encodable, or the home of an unknown user
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
        name: The model name that the user gave.
        path: The folder.
    """

    name: str
    path: Path

    def check(self) -> None:
        """Refuse a local model with a file that is damaged, not fetched, outside the folder, or not safetensors.

        Raises:
            InputError: If there is such a file. The message names it and says what to do.
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
        """The base model named by the PEFT adapter in a checked folder; None if the folder holds a whole model."""
        if not self._has(ADAPTER):
            return None
        return str(self._json_object(ADAPTER)["base_model_name_or_path"])

    def has_processor(self) -> bool:
        """Return True if the folder has its own processor.

        Raises:
            InputError: If it has only some files of one, which would be ignored.
        """
        if any(map(self._has, PROCESSOR)):
            return True
        for file in filter(self._has, ("tokenizer_config.json", *VOCABULARY)):
            raise self._refusal(
                f"its folder has {file} but no {PROCESSOR[0]}. Save the whole processor there "
                f"(processor.save_pretrained), or remove {file} to use the base model's."
            )
        return False

    @contextmanager
    def loading_base(self, base: str) -> Iterator[None]:
        """Add to errors about an adapter's base model which adapter names it, and where it was searched."""
        try:
            yield
        except InputError as error:
            raise self._refusal(
                f"its base model, '{trim(base)}' in {ADAPTER} (relative paths start at {Path.cwd()}), fails. {error}"
            ) from error

    def check_weight_names(self, source: str, weights: Sequence[Any], endings: str | tuple[str, ...] = SUFFIX) -> None:
        """Refuse names of weight files that are not safetensors or lead out of the model's folder.

        Args:
            source: The file that contains the names.
            weights: The names.
            endings: The allowed endings.

        Raises:
            InputError: If a name is refused.
        """
        for weight in weights:
            names = f"{source} names {trim(repr(weight), 80)}"
            if not isinstance(weight, str) or not weight.endswith(endings):
                raise self._refusal(f"{names}, and only safetensors are read. Use another checkpoint.")
            path = Path(weight)
            if path.is_absolute() or ".." in path.parts or not weight.isprintable() or len(weight) > LONGEST:
                raise self._refusal(
                    f"{names}, and weights must lie in the model's folder. Put the file there, and correct its name."
                )

    def check_index(self, file: str) -> list[Any]:
        """Return the names of the weight files in an index, without duplicates.

        Raises:
            InputError: If the file is not an index, or names files that are not safetensors or lie outside the model's
                folder.
        """
        index = self._json_object(file)
        places = index.get("weight_map")
        if not isinstance(places, dict) or not places or not isinstance(index.get("metadata"), dict):
            raise self._refusal(f'{file} needs a "weight_map" to files, and "metadata", an object. Download it again.')
        self.check_weight_names(file, [*places.values()])
        return [*dict.fromkeys(places.values())]

    def _check_adapter(self, settings: Mapping[str, Any]) -> None:
        """Refuse an adapter without a base model, next to a whole model, or of a type that changes more than layers."""
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
                raise self._refusal(f"its {ADAPTER} sets {setting}, which is not supported. Use an adapter without it.")
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
                "Download it into a folder, and name that folder there."
            )

    def _weight_files(self, explicit: str | None) -> list[str]:
        """Return the files that transformers will read weights from; empty if there are none."""
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
        """Refuse a weight file that is missing, not fetched, or a link out of the folder."""
        if not self._has(file):
            raise self._refusal(f"there is no {file} in its folder. Download it again.")
        self._check_inside(file)
        self._check_fetched(file)

    def _check_inside(self, file: str) -> None:
        """Refuse a link that leaves the folder, except the links of the hub's cache from `snapshots` to `blobs`."""
        home, target = self.path.resolve(), (self.path / file).resolve()
        in_blobs = home.parent.name == "snapshots" and target.is_relative_to(home.parents[1] / "blobs")
        if not target.is_relative_to(home) and not in_blobs:
            raise self._refusal(
                f"{Path(file).name} is a link that leaves the model's folder, to {trim(str(target))}. Put the file "
                "itself into the folder."
            )

    def _has(self, file: str) -> bool:
        """Return True if the folder has this file.

        Raises:
            InputError: If the name is not a file, such as a folder or a broken link.
        """
        path = self.path / file
        try:
            if path.is_file():
                return True
            in_the_way = path.is_symlink() or path.exists()
        except (OSError, RuntimeError):
            in_the_way = True
        if in_the_way:
            raise self._refusal(f"{path.name} is not a file. Download it again.")
        return False

    def _json_object(self, file: str) -> dict[str, Any]:
        self._check_fetched(file)
        try:
            return read_json(self.path / file)
        except InputError as error:
            raise self._refusal(f"{error} Download it again.") from error

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
