"""Between the layers: queries and keys of a vLLM decoder layer, and readers of them for stages."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

from foveate.core.patching import Patcher
from foveate.core.signals import Attention, Signal
from foveate.core.tensors import take_along
from foveate.engine.attending import RowsReader
from foveate.engine.buckets import Bucket
from foveate.engine.samples import Unit

__all__ = ["Heads", "HeadsReader", "ReaderOfEach", "heads_ahead", "heads_of"]


@dataclass(frozen=True, slots=True)
class Heads:
    """Queries and keys of a layer's rows after RoPE, for this process's share of the heads.

    Attributes:
        query: (rows, heads, head size).
        key: (rows, key heads, head size).
        scaling: Scaling of their product.
    """

    query: Tensor
    key: Tensor
    scaling: float


class _Enough(Exception):
    """Raised once queries and keys are known, to skip the rest of the attention."""


@contextmanager
def heads_of(layer: Any, see: Callable[[Heads], None]) -> Iterator[None]:
    """Call `see` with a decoder layer's queries and keys while it runs."""
    attention = layer.self_attn.attn

    def attend(original: Callable[..., Any], query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Any:
        size = attention.head_size
        heads = Heads(query.view(len(query), -1, size), key.view(len(key), -1, size), attention.impl.scale)
        see(heads)
        return original(query, key, value, *rest)

    with Patcher() as patches:
        patches.wrap(attention, "forward", attend)
        yield


def heads_ahead(layer: Any, positions: Tensor, stream: Tensor) -> Heads:
    """Compute the queries and keys that a decoder layer would have for these rows.

    Args:
        layer: The layer. It norms its input with `input_layernorm`.
        positions: (rows,) or (3, rows).
        stream: (rows, width), the residual stream.
    """
    made: list[Heads] = []

    def note(heads: Heads) -> None:
        made.append(heads)
        raise _Enough

    with suppress(_Enough), heads_of(layer, note):
        layer.self_attn(positions=positions, hidden_states=layer.input_layernorm(stream))
    return made[0]


class HeadsReader(RowsReader):
    """Reads the attention of one request's rows.

    Args:
        bucket: Only that request.
        columns: (1, rows) int64, its rows in the step, text included.
        width: Width of the residual stream.
        heads: Computes queries and keys of these rows.
    """

    def __init__(self, bucket: Bucket, columns: Tensor, width: int, heads: Callable[[], Heads]) -> None:
        super().__init__(bucket, columns, width)
        self._heads = heads

    def _queries_and_keys(self, asking: Tensor) -> tuple[Tensor, Tensor, float]:
        heads = self._heads()
        # (rows, heads, head size) -> (1, heads, rows, head size)
        query = heads.query.transpose(0, 1)[None]
        key = heads.key.transpose(0, 1)[None]
        asked = take_along(query, asking[:, None, :, None], dim=2)
        return _of_all_processes(asked), _of_all_processes(key), heads.scaling

    def _rotated_ones(self, size: int) -> Tensor:
        raise NotImplementedError  # refused by guards.refuse_stages


class ReaderOfEach:
    """Reads the attention of several alike requests, each with its own prompt.

    Args:
        readers: One reader per request.
    """

    def __init__(self, readers: Sequence[HeadsReader]) -> None:
        self._readers = readers

    def reduce(self, signals: Sequence[Attention], units: Sequence[Unit]) -> dict[Attention, Tensor]:
        """See `RowsReader.reduce`."""
        values = [reader.reduce(signals, units) for reader in self._readers]
        return {signal: torch.cat([value[signal] for value in values]) for signal in signals}

    def read(self, signal: Signal, units: Sequence[Unit]) -> Tensor:
        """See `RowsReader.read`. guards.refuse_stages refuses signals that a `HeadsReader` cannot compute."""
        return torch.cat([reader.read(signal, units) for reader in self._readers])

    def in_prompt(self, columns: Tensor) -> Tensor:
        """See `RowsReader.in_prompt`."""
        parts = zip(self._readers, torch.split(columns, 1), strict=True)
        return torch.cat([reader.in_prompt(part) for reader, part in parts])


def _of_all_processes(heads: Tensor) -> Tensor:
    """Gather the heads of all processes of a tensor parallel group, in order: (1, heads, rows, head size)."""
    if get_tensor_model_parallel_world_size() == 1:
        return heads
    gathered: Tensor = tensor_model_parallel_all_gather(heads.contiguous(), dim=1)
    return gathered
