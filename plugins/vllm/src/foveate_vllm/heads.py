"""Between the layers: queries and keys of a vLLM decoder layer, and readers of them for stages."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

from foveate.core.patching import Patcher
from foveate.engine.attending import RowsReader
from foveate.engine.rows import Rows
from foveate.families.tap import Tapped

__all__ = ["Heads", "HeadsReader", "heads_ahead", "heads_of"]


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
    handed: list[Heads] = []

    def note(heads: Heads) -> None:
        handed.append(heads)
        raise _Enough

    with suppress(_Enough), heads_of(layer, note):
        layer.self_attn(positions=positions, hidden_states=layer.input_layernorm(stream))
    return handed[0]


class HeadsReader(RowsReader):
    """Reads the attention of one request's rows.

    Args:
        table: The rows that are left.
        member: Index of the request among those with images.
        columns: (rows,) int64, its rows in the step, text included.
        width: Width of the residual stream.
        layer: The layer.
        heads: Computes queries and keys of these rows.
    """

    def __init__(
        self, table: Rows, member: int, columns: Tensor, width: int, layer: int, heads: Callable[[], Heads]
    ) -> None:
        super().__init__(table, member, columns, width, layer)
        self._heads = heads

    def _queries_and_keys(self, asking: Tensor, *_: Any) -> Tapped:
        heads = self._heads()
        # (rows, heads, head size) -> (heads, rows, head size)
        query, key = heads.query.transpose(0, 1)[:, asking], heads.key.transpose(0, 1)
        return Tapped(_of_all_processes(query), _of_all_processes(key), heads.scaling)

    def _rotated_ones(self, size: int) -> Tensor:
        raise NotImplementedError  # refused by guards.refuse_stages


def _of_all_processes(heads: Tensor) -> Tensor:
    """Gather the heads of all processes of a tensor parallel group, in order: (heads, rows, head size)."""
    if get_tensor_model_parallel_world_size() == 1:
        return heads
    gathered: Tensor = tensor_model_parallel_all_gather(heads.contiguous(), dim=0)
    return gathered
