"""A look as a file: safetensors, with what belongs to it in the file's metadata."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foveate._files import check_readable, named
from foveate._version import __version__
from foveate._writing import publish
from foveate.ask.look import Look, adapters_of
from foveate.engine.packed import pack, unpack
from foveate.engine.trace import CacheRecord, PrefillRecord, Stage, Trace
from foveate.errors import InputError
from foveate.families.base import Family

__all__ = ["Stored", "fingerprint", "read", "write"]

FORMAT = "foveate prefix 1"
SAMPLES = 16
"""Values of each weight that tell models apart."""
OWN = ("_name_or_path", "_attn_implementation", "_attn_implementation_internal", "transformers_version")
"""What a config says beside what the model is."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file holds.

    Attributes:
        about: Plain values: how to ask, and what was looked at.
        tensors: By name.
        made_of: The weights; see `fingerprint`.
    """

    about: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(repr=False)
    made_of: str = ""

    def look(self, family: Family) -> Look:
        """The look, on the model's devices."""
        device = family.model.device
        inputs = {name.removeprefix("inputs."): self.tensors[name].to(device) for name in self.about["inputs"]}
        for name, (shape, dtype) in self.about["pixels"].items():
            inputs[name] = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        cache = unpack(self.tensors, self.about["layers"], family)
        return Look(self.tensors["ids"].to(device), inputs, cache, _trace_of(self.about["trace"]))


def write(path: Path, look: Look, about: Mapping[str, Any], model: Any, *, force: bool) -> None:
    """Write a look whole, or not at all.

    Raises:
        InputError: If the file exists and `force` is off, or it cannot be written.
    """
    if path.exists() and not force:
        raise InputError(f"{path} exists already. Name another file, or overwrite it with force=True.")
    tensors, layers = pack(look.cache)
    tensors["ids"] = look.ids
    inputs, pixels = [], {}
    for name, value in look.inputs.items():
        if value.is_meta:
            pixels[name] = [list(value.shape), str(value.dtype).removeprefix("torch.")]
        else:
            tensors[f"inputs.{name}"] = value
            inputs.append(f"inputs.{name}")
    about = {**about, "layers": layers, "inputs": inputs, "pixels": pixels, "trace": _values_of(look.trace)}
    ready = {name: _alone(name, tensor) for name, tensor in tensors.items()}
    said = json.dumps(about)
    metadata = {
        "format": FORMAT,
        "versions": _versions(),
        "weights": fingerprint(model),
        "about": said,
        "digest": _digest(said, ready),
    }

    def save(part: Path) -> None:
        try:
            save_file(ready, part, metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    if force:
        publish(path, save, force=True)
    else:
        published = publish(path, save, force=False)
        if published != path.resolve():  # somebody has written it meanwhile
            published.unlink()
            raise InputError(f"{path} exists already. Name another file, or overwrite it with force=True.")


def read(path: Path) -> Stored:
    """What a file holds, checked against damage.

    Raises:
        InputError: If it cannot be read, is damaged, or is another version's.
    """
    check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_versions(path, metadata)
            # Copies: a file that is mapped into memory must not change or shrink afterwards.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise InputError(f"{named(path)} is no whole prefix of foveate: {error}. Look again, and save it.") from error
    about = metadata.get("about", "")
    if metadata.get("digest") != _digest(about, tensors):
        raise InputError(f"{named(path)} is damaged: its checksum is another. Look again, and save it.")
    try:
        values = json.loads(about)
        if not isinstance(values, dict):
            raise ValueError("its metadata are no mapping")
    except ValueError as error:
        raise InputError(f"{named(path)} is damaged: {error}. Look again, and save it.") from error
    return Stored(values, tensors, metadata.get("weights", ""))


def _alone(name: str, tensor: Tensor) -> Tensor:
    """The tensor on the CPU, in memory of its own: columns may be views of other layers', keys and values are not."""
    whole = tensor.detach().cpu().contiguous()
    return whole if name.endswith((".keys", ".values")) else whole.clone()


def _versions() -> str:
    return f"foveate {__version__}, transformers {transformers.__version__}"


def _check_versions(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format", "").rpartition(" ")[0] != FORMAT.rpartition(" ")[0]:
        raise InputError(f"{named(path)} is no prefix of foveate. Give a file that Prefix.save wrote.")
    written = metadata.get("versions")
    if metadata["format"] != FORMAT or written != _versions():
        raise InputError(
            f"{named(path)} was written by {written}; here is {_versions()}, whose caches may differ. Look again, and "
            "save it."
        )


def _digest(about: str, tensors: Mapping[str, Tensor]) -> str:
    """A checksum of everything."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint(model: Any) -> str:
    """A name for a model's config, dtype, active adapters and weights: some values of each. Other weights have another,
    as good as ever.

    The same for a model on another device, from another folder, or with another attention kernel.
    """
    digest = hashlib.sha256(json.dumps(_plain(model.config.to_dict()), sort_keys=True, default=str).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        if weight.numel() and not weight.is_meta:
            places = torch.linspace(0, weight.numel() - 1, SAMPLES, dtype=torch.float64).long()
            values = weight.detach().reshape(-1)[places.to(weight.device)]
            digest.update(values.cpu().contiguous().view(torch.uint8).numpy().data)
    for adapters in adapters_of(model):
        digest.update(adapters.encode())
    return digest.hexdigest()


def _plain(values: Any) -> Any:
    """A config's values without what is not the model's."""
    if not isinstance(values, dict):
        return values
    return {name: _plain(value) for name, value in values.items() if name not in OWN}


# -- the trace ----------------------------------------------------------------------------------------------------


def _values_of(trace: Trace) -> dict[str, Any] | None:
    """A trace as plain values; None if it is empty."""
    if not trace.history:
        return None
    record = trace.latest
    stages = []
    for stage in record.stages:
        origin = [tokens.tolist() for tokens in stage.origin]
        assign = [None if rows is None else rows.tolist() for rows in stage.assign]
        stages.append([stage.where, stage.layer, stage.before, stage.after, origin, assign])
    return {
        "depth": record.depth,
        "rows": list(record.rows),
        "vision_tokens": list(record.vision_tokens),
        "stages": stages,
        "kv_lengths": record.kv_lengths,
    }


def _trace_of(values: Mapping[str, Any] | None) -> Trace:
    """The trace of these values, without the pictures."""
    trace = Trace()
    if values is None:
        return trace
    stages = []
    for where, layer, before, after, origin, assign in values["stages"]:
        rows = [None if tokens is None else torch.tensor(tokens, dtype=torch.int64) for tokens in assign]
        origins = [torch.tensor(tokens, dtype=torch.int64) for tokens in origin]
        stages.append(Stage(where, layer, tuple(before), tuple(after), origins, rows))
    slots: dict[int, Callable[[], list[int]]] = {
        layer: partial(list, lengths) for layer, lengths in enumerate(values["kv_lengths"])
    }
    dead = (0,) * len(values["rows"])
    record = PrefillRecord(values["depth"], tuple(values["rows"]), tuple(values["vision_tokens"]), stages=stages)
    record.cache = CacheRecord(slots=slots, dead=dead)
    trace.add(record)
    return trace
