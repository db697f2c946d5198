"""Every private name of mlx-vlm that the package uses, what it replaces while a context is open, and its refusals."""

import hashlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import mlx.core as mx
import numpy as np

from foveate.core.patching import Patcher
from foveate.errors import SessionError, UnsupportedError
from foveate.hosts import Checks, at_columns

Array = np.ndarray[Any, Any]
CHECKS = Checks("mlx-vlm", ("0.6.10", "0.7.10"))
INSERT = ("mlx_vlm.generate.ar:BatchGenerator", "insert")
DRAFTS = ("mlx_vlm.speculative.drafters", "validate_drafter_compatibility")
PREFIXES = (("mlx_vlm.apc", "model_apc_mode"), ("mlx_vlm.apc:APCCoordinator", "__init__"))
"""mlx-vlm 0.6 does not have the second."""
STATES = tuple(f"mlx_vlm.generate.{module}:PromptCacheState" for module in ("common", "dispatch"))
"""Only mlx-vlm 0.6 has the second."""
UPDATES = tuple((state, "update") for state in STATES)
LOOKUPS = tuple((state, "find_prefix_length") for state in STATES)
FIELDS = tuple(("mlx_vlm.models.base:InputEmbeddingsFeatures", name) for name in ("position_ids", "rope_deltas"))
NAMES = (INSERT, DRAFTS, *PREFIXES, *UPDATES, *LOOKUPS, *FIELDS, ("mlx_vlm.utils", "load_model"))
"""Modules and classes, and names in them."""
PREFIX = "A prefix cache would count dropped tokens. Leave apc_manager out, or set APC_ENABLED=0."
DRAFT = "Draft models were not tried while tokens are dropped. Leave draft_model out."
ALIGNED = {
    "inputs_embeds": (1,), "attention_mask_4d": (-2, -1), "visual_pos_masks": (1,), "per_layer_inputs": (1,),
    "attention_mask": (1,), "position_ids": (-1,),
}  # fmt: skip
"""Fields of the decoder's input that have a column for each token, and the axes of these columns."""

OPEN: dict[int, Any] = {}
"""The droppers of open contexts, by the identity of the decoder."""
SEAMS = Patcher()
"""What is replaced in mlx-vlm's modules while any context is open."""


def probe(config: Any) -> None:
    """Check mlx-vlm's names, and that the tests or a check of this model passed on its version.

    Raises:
        UnsupportedError: If mlx-vlm has moved or removed any, or was not tried.
    """
    installed = version("mlx-vlm")
    absent = (PREFIXES[1],) if installed.startswith("0.6.") else (UPDATES[1], LOOKUPS[1])
    if missing := [".".join(name) for name in NAMES if name not in absent and not _has(name)]:
        raise UnsupportedError(f"mlx-vlm {installed} has no {', '.join(missing)}. Install mlx-vlm {CHECKS.tried[-1]}.")
    CHECKS.refuse(conditions(config), "foveate-mlx check MODEL")


def _has(name: tuple[str, str]) -> bool:
    with suppress(ImportError, AttributeError):
        return hasattr(resolve_name(name[0]), name[1])
    return False


def conditions(config: Any) -> list[str]:
    """Return what a check of a model depends on."""
    model = hashlib.sha256(repr(config).encode()).hexdigest()[:16]
    return [*map(version, ("mlx-vlm", "mlx", "foveate", "foveate-mlx")), config.model_type, model]


# -- the decoder's input --------------------------------------------------------------------------------------


def refuse_hidden(decoder: Any, before: Any, features: Any, inputs: Any) -> None:
    """Refuse input that the decoder gets past the features.

    Args:
        decoder: The decoder.
        before: Its `_position_ids` before the features were made.
        features: The features.
        inputs: Arguments of `get_input_embeddings`, which generators also pass to the decoder.
    """
    stored = getattr(decoder, "_position_ids", None)
    hides = hasattr(decoder, "get_rope_index") and features.position_ids is None
    if hides or (stored is not None and stored is not before):
        raise UnsupportedError("This model hides position ids in its decoder, where foveate-mlx cannot shorten them.")
    typed = [name for name in ("mm_token_type_ids", "token_type_ids") if inputs.get(name) is not None]
    if typed and "token_type_ids" in Path(inspect.getfile(type(decoder))).read_text():
        raise UnsupportedError(f"This model's decoder reads {typed[0]}, which foveate-mlx cannot shorten.")


def shortened(features: Any, vision: Array, columns: Array) -> Any:
    """Return the decoder's input at some columns.

    Args:
        features: The whole input.
        vision: Which columns are vision tokens, (samples, columns) bool.
        columns: The columns that are left, (samples, left) int64.

    Raises:
        UnsupportedError: If it has a field that is not known.
    """
    length = vision.shape[1]
    fields = {name: value for name, value in vars(features).items() if value is not None}
    for name, value in fields.items():
        if name == "rope_deltas":  # decoding counts on from the cache's length
            fields[name] = value + (length - columns.shape[1])
        elif name == "deepstack_visual_embeds":  # of each layer the vision tokens of all samples, (tokens, width)
            stays = np.zeros_like(vision)
            np.put_along_axis(stays, columns, True, axis=1)
            places = mx.array(np.flatnonzero(stays[vision]))
            fields[name] = value[:, places] if isinstance(value, mx.array) else [layer[places] for layer in value]
        elif name not in ALIGNED:
            raise UnsupportedError(f"This model gives its decoder {name}, which foveate-mlx cannot shorten.")
        for axis in ALIGNED.get(name, ()):
            if fields[name].shape[axis] == length:  # unlike a mask that is the same for all columns
                fields[name] = _at(fields[name], columns, axis % value.ndim)
    return type(features)(**fields)


def _at(value: mx.array, columns: Array, axis: int) -> mx.array:
    """Return a field at the columns left of each sample, along one of its axes."""
    batch = 1 if value.ndim == 3 and axis == 2 else 0  # M-RoPE's position ids are (3, samples, columns)
    parts = []
    for sample, own in enumerate(columns):
        row = mx.array([min(sample, value.shape[batch] - 1)])  # some fields have one row for all samples
        parts.append(at_columns(at_columns(value, row, batch), mx.array(own), axis))
    return mx.concatenate(parts, axis=batch)


# -- contexts -------------------------------------------------------------------------------------------------


@contextmanager
def attached(dropper: Any) -> Iterator[None]:
    """Let a dropper shorten what its model's `get_input_embeddings` makes, and follow it in mlx-vlm's generators."""
    decoder = id(dropper.decoder)
    if decoder in OPEN:
        raise SessionError("A context of foveate_mlx is open on this model. Exit it first.")
    if not OPEN:
        _follow()
    OPEN[decoder] = dropper
    try:
        with Patcher() as patches:
            patches.wrap(dropper.model, "get_input_embeddings", dropper.shorten)
            yield
    finally:
        del OPEN[decoder]
        if not OPEN:
            SEAMS.restore()


def _follow() -> None:
    """Replace what counts a prompt's tokens, or would reuse a cache by them."""
    # Each turn starts afresh: a cache of this context has fewer columns than its prompt has tokens, and one that began
    # before it holds all vision tokens.
    wrappers: dict[Any, Any] = dict.fromkeys(UPDATES, lambda *_: None)
    wrappers |= dict.fromkeys(LOOKUPS, lambda *_: 0)
    wrappers |= dict.fromkeys(PREFIXES, partial(_refuse, PREFIX))
    wrappers |= {INSERT: _insert, DRAFTS: partial(_refuse, DRAFT)}
    for owner, name in filter(_has, wrappers):
        SEAMS.wrap(resolve_name(owner), name, wrappers[owner, name])


def _insert(insert: Any, generator: Any, *args: Any, **kwargs: Any) -> Any:
    """Give a generator as many token ids of each prompt as it has rows. Of the vision tokens, the last ids go."""
    call = inspect.signature(insert).bind(generator, *args, **kwargs)
    dropper, options = OPEN.get(id(generator.model)), call.arguments.get("prompt_kwargs")
    if dropper is None or not options:
        return insert(generator, *args, **kwargs)
    for name, reason in (("apc_manager", PREFIX), ("draft_model", DRAFT)):
        if getattr(generator, name, None) is not None:
            raise UnsupportedError(reason)
    prompts = [np.array(prompt) for prompt in call.arguments["prompts"]]
    stays = []
    for prompt, own in zip(prompts, options, strict=True):
        rows = own.get("inputs_embeds")
        gone = 0 if rows is None else len(prompt) - rows.shape[1]
        vision = np.flatnonzero(dropper.is_vision(prompt))
        stays.append(np.delete(np.arange(len(prompt)), vision[len(vision) - gone :]))
    call.arguments["prompts"] = [prompt[own].tolist() for prompt, own in zip(prompts, stays, strict=True)]
    if (mask := call.arguments.get("attention_mask")) is not None:
        call.arguments["attention_mask"] = _at(mask, np.stack(stays), 1)
    return insert(*call.args, **call.kwargs)


def _refuse(reason: str, original: Any, *args: Any, **kwargs: Any) -> Any:
    """Refuse a call about a model that drops tokens, or about its decoder."""
    if any(id(getattr(value, "language_model", value)) in OPEN for value in args):
        raise UnsupportedError(reason)
    return original(*args, **kwargs)
