"""Between the layers: tokens that running requests have lost, and how requests are recognised from step to step."""

from collections.abc import Mapping
from typing import Any

from foveate_vllm.layout import Batch

__all__ = ["Lost"]


class Lost:
    """Tokens that requests have lost at each cut, from the step with their images on.

    Runner V2 numbers its requests on the host, and reports when a number is reused (`begin`). V1 does not, but keeps
    the table of KV blocks on the CPU. There a request is identified by the block that holds its prompt's last token.
    That token comes after an image, so no other request reads the block from the prefix cache.
    """

    def __init__(self) -> None:
        self._lost: dict[int, tuple[int, ...]] = {}
        self._keys: list[int] = []  # of the requests of the latest step

    def __bool__(self) -> bool:
        return bool(self._lost)

    def begin(self, number: int) -> None:
        """Forget a number that runner V2 gives to a new or recomputed request."""
        self._lost.pop(number, None)

    def of(self, batch: Batch, common: Any, block: int) -> tuple[tuple[int, ...], ...]:
        """Return what each request of a step lost in earlier steps, for each cut; empty if nothing.

        Args:
            batch: The step.
            common: vLLM's `CommonAttentionMetadata` of the step.
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
        """Store what requests of the latest step lost in it."""
        for request, counts in dropped.items():
            self._lost[self._keys[request]] = counts

    def _in(self, blocks: list[int], computed: int, block: int) -> tuple[int, ...]:
        """Return what the request with these blocks has lost. An entry is deleted if its block is filled from the
        first slot on in this step: the block was another request's, or the request is recomputed."""
        counts: tuple[int, ...] = ()
        for place, own in enumerate(blocks):
            if own in self._lost:
                if place * block < computed:
                    counts = self._lost[own]
                else:
                    del self._lost[own]
        return counts
