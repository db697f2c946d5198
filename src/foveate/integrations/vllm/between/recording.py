"""Between the layers: attention backends that remember of which batch their metadata was built."""

import functools
from dataclasses import dataclass
from typing import Any

from vllm.v1.attention.backends.utils import subclass_attention_backend

__all__ = ["Built", "built_of", "recording"]

NAME = "foveate_built"


@dataclass(frozen=True, slots=True)
class Built:
    """How the metadata of a step was built.

    Attributes:
        builder: Of the layers' attention backend.
        common: What every backend is told of a batch (vLLM's `CommonAttentionMetadata`).
    """

    builder: Any
    common: Any


@functools.cache
def recording(backend: type) -> type:
    """The same attention backend, whose metadata tells what it was built of; one class for all layers of a kind."""

    class Recording(backend.get_builder_cls()):  # type: ignore[misc]
        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
            metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
            setattr(metadata, NAME, Built(self, common_attn_metadata))
            return metadata

    changed: type = subclass_attention_backend("Foveate", backend, Recording)
    return changed


def built_of(metadata: Any) -> Built:
    """What a step's metadata was built of."""
    built: Built = getattr(metadata, NAME)
    return built
