"""Between the layers: what running requests have lost, and which request of a step is which."""

from collections.abc import Mapping
from typing import Any

from foveate_vllm.layout import Batch

__all__ = ["Lost"]


class Lost:
    """Tokens that requests have lost behind each cut, from the step with their images on.

    Runner V2 numbers its requests on the host, and says when a number begins anew (`begin`). V1 says nothing, but keeps
    the table of KV blocks on a CPU: there a request is known by the block in which the last token of its prompt
    stands. It stands behind an image, so no other request reads it from the prefix cache.
    """

    def __init__(self) -> None:
        self._lost: dict[int, tuple[int, ...]] = {}
        self._keys: list[int] = []  # of the requests of the step that was asked about last

    def __bool__(self) -> bool:
        return bool(self._lost)

    def begin(self, number: int) -> None:
        """Runner V2 gives this number to a request that is new, or computed anew."""
        self._lost.pop(number, None)

    def of(self, batch: Batch, common: Any, block: int) -> tuple[tuple[int, ...], ...]:
        """What each request of a step has lost in earlier ones, for each cut; empty where nothing.

        Args:
            batch: The step.
            common: vLLM's `CommonAttentionMetadata` of it.
            block: Slots of a KV block.
        """
        if common.req_idx is not None:
            self._keys = common.req_idx.tolist()
            return tuple(self._lost.get(key, ()) for key in self._keys)
        most = -(-max(batch.lengths) // block)
        table = common.block_table_tensor[:, :most].tolist()
        self._keys = [blocks[(length - 1) // block] for blocks, length in zip(table, batch.lengths, strict=True)]
        places = zip(table, batch.lengths, batch.computed, strict=True)
        return tuple(self._in(blocks[: -(-length // block)], done, block) for blocks, length, done in places)

    def keep(self, dropped: Mapping[int, tuple[int, ...]]) -> None:
        """Remember what requests of that step have lost in it."""
        for request, counts in dropped.items():
            self._lost[self._keys[request]] = counts

    def _in(self, blocks: list[int], computed: int, block: int) -> tuple[int, ...]:
        """What the request with these blocks has lost. Of one whose block is filled from its first slot on in this
        step, that is forgotten: the block was another's, or the request is computed anew."""
        found: tuple[int, ...] = ()
        for place, own in enumerate(blocks):
            if own in self._lost:
                if place * block < computed:
                    found = self._lost[own]
                else:
                    del self._lost[own]
        return found
