"""Generic: a model whose family nobody has written yet, if its decoder and its placeholders are of the usual kind.

It knows where tokens enter and which layers they go through, and nothing of the pictures: not where a token looks, nor
what the tower makes of it. It is asked for by name and never found by `model_type`.
"""

import inspect
import warnings
from typing import Any, ClassVar

from torch import Tensor, nn

from foveate._transformers import CACHE_NAMES
from foveate.errors import UnsupportedError
from foveate.families.base import Family, core_of
from foveate.families.tiles import run_lengths

__all__ = ["Generic", "lacking"]

KNOWN = {
    "hidden_states", "attention_mask", "position_ids", "position_embeddings", *CACHE_NAMES, "use_cache",
    "cache_position", "output_attentions", "kwargs",
}  # fmt: skip
"""What a decoder layer of the usual kind is called with."""


class Generic(Family):
    """A core with a `language_model` whose layers take `position_embeddings`, a `get_placeholder_mask` and features.

    Positions are never numbered anew: whether they are one running number is not known.

    Raises:
        UnsupportedError: If the model is not of that kind; the message says what it lacks.
    """

    model_type: ClassVar[str] = "generic"
    renumbers: ClassVar[bool] = False
    tiled: ClassVar[bool] = True
    decoders: ClassVar[frozenset[str]] = frozenset()
    encode_projected = encode_smaller = Family.encode  # all refused: that would take knowing the pictures
    needs_all_patches: ClassVar[str | None] = "a model without a family does not say how it cuts pictures into patches"

    def __init__(self, model: Any) -> None:
        config = getattr(model, "config", None)
        kind = getattr(config, "model_type", None)
        if reasons := lacking(model):
            raise UnsupportedError(
                f"The generic adapter cannot serve {kind!r} ({type(model).__name__}): {'; '.join(reasons)}. "
                "Write a family for it: docs/guides/new-family.md."
            )
        super().__init__(model)
        warnings.warn(
            f"{type(model).__name__} ({kind!r}) runs with foveate's generic adapter, which was never tested on this "
            "model and does not know its pictures. Prove it first: "
            "foveate.testing.check(model, inputs, family='generic'), as `foveate check MODEL` does for other models.",
            UserWarning,
            stacklevel=4,
        )

    def image_lengths(self, mask: Tensor, ids: Tensor | None) -> list[list[int]]:
        """A picture is a run of placeholders, whatever pieces its features come in."""
        return run_lengths(mask)


def lacking(model: Any) -> list[str]:
    """What the generic adapter needs and a model does not have; empty where it can serve it."""
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return ["it is an encoder-decoder: its decoder has no vision tokens"]
    core: Any = None
    if isinstance(model, nn.Module):
        core = core_of(model, Family.decoder, Family.mergers)
    if core is None:
        return ["it has no module with a language_model and a get_placeholder_mask"]
    reasons = []
    if not hasattr(core, "get_image_features") and not hasattr(core, "get_video_features"):
        reasons.append(f"its {type(core).__name__} has no get_image_features")
    layers = getattr(core.language_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return [*reasons, f"its {type(core.language_model).__name__} has no layers"]
    asked = inspect.signature(core.get_placeholder_mask).parameters
    if not {"image_features", "video_features"} & set(asked):
        reasons.append("its get_placeholder_mask takes no image_features")
    # Layers are mostly alike: each reason once, in order.
    reasons += dict.fromkeys(reason for layer in layers for reason in _odd(layer))
    parameters = inspect.signature(core.language_model.forward).parameters
    if more := [name for name in parameters if "deepstack" in name]:
        reasons.append(f"its decoder gets {', '.join(more)}")
    return reasons


def _odd(layer: nn.Module) -> list[str]:
    """What is unusual about a decoder layer."""
    name = type(layer).__name__
    parameters = set(inspect.signature(layer.forward).parameters)
    reasons = []
    if "position_embeddings" not in parameters:
        reasons.append(f"its {name} takes no position_embeddings")
    if more := sorted(parameters - KNOWN):
        reasons.append(f"its {name} takes {', '.join(more)}")
    missing = [part for part in ("self_attn", "input_layernorm") if not hasattr(layer, part)]
    return reasons + [f"its {name} has no {part}" for part in missing]
