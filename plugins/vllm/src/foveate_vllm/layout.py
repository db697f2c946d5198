"""A step of the engine: its requests, the images in them, and their rows behind a cut."""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.core.tensors import send
from foveate.hosts import at_columns, images_of
from foveate_vllm.host import subclass_attention_backend

__all__ = ["Batch", "Built", "Images", "Layout", "built_of", "recording"]


@dataclass(frozen=True, slots=True)
class Batch:
    """The requests of a step, their rows concatenated.

    Example: a prompt of five tokens, and the eighth token of another request.

        starts   0 5 6        lengths   5 8

    Attributes:
        starts: The first row of each request, and the number of all rows.
        lengths: Tokens of each sequence after the step.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, common: Any) -> "Batch":
        """Read vLLM's `CommonAttentionMetadata`. Without speculative decoding its host numbers are exact."""
        starts = tuple(common.query_start_loc_cpu.tolist())
        lengths = tuple(common.seq_lens_cpu_upper_bound.tolist())
        return cls(starts, lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def rows(self) -> int:
        """Rows of all requests."""
        return self.starts[-1]

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of each request."""
        return tuple(stop - start for start, stop in itertools.pairwise(self.starts))

    @property
    def computed(self) -> tuple[int, ...]:
        """Tokens of each sequence before the step."""
        return tuple(length - count for length, count in zip(self.lengths, self.counts, strict=True))


@dataclass(frozen=True, slots=True)
class Images:
    """Where the image tokens of a step are, according to the requests' media.

    Attributes:
        places: (rows,) bool, on the host.
        sizes: Tokens of each image, in the order of the rows.
        whole: Tokens of every image before any were dropped; None: as many as `sizes`.
    """

    places: Tensor
    sizes: tuple[int, ...]
    whole: int | None = None

    @classmethod
    def of(cls, places: Tensor, embeddings: Sequence[Tensor], whole: int | None = None) -> "Images":
        """Read the arguments that vLLM passes to a model's `embed_input_ids`."""
        return cls(places.cpu(), tuple(len(image) for image in embeddings), whole)

    def of_requests(self, batch: Batch) -> dict[int, tuple[int, ...]]:
        """Return the image sizes of each request that has images in this step."""
        images: dict[int, tuple[int, ...]] = {}
        for image in images_of(self.places[None, : batch.rows], self.sizes):
            request = bisect.bisect_right(batch.starts, image[0, 1]) - 1
            images[request] = (*images.get(request, ()), len(image))
        return images


NAME = "foveate_built"


@dataclass(frozen=True, slots=True)
class Built:
    """How the metadata of a step was built.

    Attributes:
        builder: The metadata builder of the layers' attention backend.
        common: The batch description that every backend gets (vLLM's `CommonAttentionMetadata`).
    """

    builder: Any
    common: Any


@functools.cache
def recording(backend: type) -> type:
    """Return an attention backend whose metadata holds its `Built`. Cached: one class for all layers of a kind."""

    class Recording(backend.get_builder_cls()):  # type: ignore[misc]
        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
            metadata = super().build(common_prefix_len, common_attn_metadata, fast_build)
            setattr(metadata, NAME, Built(self, common_attn_metadata))
            return metadata

    changed: type = subclass_attention_backend("Foveate", backend, Recording)
    return changed


def built_of(metadata: Any) -> Built:
    """Return how a step's metadata was built."""
    built: Built = getattr(metadata, NAME)
    return built


class Layout:
    """The rows of a step behind a cut. Only counts decide it, so it can be reused while the batch stays the same.

    A request's keys and values are in the first slots of its own blocks. Example: one request of six tokens that lost
    two of them, with blocks 7 and 2 of four slots each:

        rows    0 1 4 5        places   0 1 2 3        slots   28 29 30 31
        the next token         place    4              slot    8

    Args:
        batch: The step.
        dropped: Tokens that each request has lost so far.
        rows: (rows,) int64, which of the step's rows stay, ascending; None: all.
        counts: How many rows stay of each request.
        device: The model's device.
    """

    def __init__(
        self, batch: Batch, dropped: Sequence[int], rows: Tensor | None, counts: Sequence[int], device: torch.device
    ) -> None:
        self.rows = rows
        self._counts = tuple(counts)
        self._dropped_on_host = tuple(dropped)
        self._dropped = send(torch.tensor(dropped, dtype=torch.int32), device)
        # Two requests with two rows and one: owners 0 0 1, places counted from the end −2 −1 −1.
        owners = torch.repeat_interleave(torch.tensor(self._counts))
        ends = torch.tensor(self._counts).cumsum(0)
        from_end = torch.arange(len(owners)) - ends[owners]
        self._owners = send(owners, device)
        self._from_end = send(from_end, device)

    @property
    def drops(self) -> bool:
        """Whether any request of the step has lost tokens."""
        return any(self._dropped_on_host)

    def slots(self, lengths: Tensor, table: Tensor, block: int) -> Tensor:
        """Return the slots for the rows' keys and values, (rows,) int64.

        Args:
            lengths: (requests,), tokens left of each sequence.
            table: (requests, blocks), the blocks of each request.
            block: Slots of a block.
        """
        places = lengths[self._owners] + self._from_end
        blocks = table[self._owners, places // block].long()
        return blocks * block + places % block

    def metadata(self, built: Built, stock: Any) -> tuple[Any, Tensor]:
        """Build the metadata of the layers behind the cut, and the slots of its rows.

        Args:
            built: How the step's own metadata was built.
            stock: The step's own metadata.
        """
        common = built.common
        lengths = common.seq_lens - self._dropped
        slots = self.slots(lengths, common.block_table_tensor, built.builder.kv_cache_spec.block_size)
        if self.rows is None and _bounds_lengths(stock):
            return dataclasses.replace(stock, seq_lens=lengths, slot_mapping=slots), slots
        return built.builder.build(0, self._pruned(common, lengths, slots)), slots

    def _pruned(self, common: Any, lengths: Tensor, slots: Tensor) -> Any:
        """Return the batch description with only the rows that stay."""
        on_host = common.seq_lens_cpu_upper_bound - torch.tensor(self._dropped_on_host, dtype=torch.int32)
        starts = torch.tensor([0, *itertools.accumulate(self._counts)], dtype=torch.int32)
        return dataclasses.replace(
            common,
            query_start_loc=send(starts, lengths.device),
            query_start_loc_cpu=starts,
            seq_lens=lengths,
            seq_lens_cpu_upper_bound=on_host,
            num_actual_tokens=len(slots),
            max_query_len=max(self._counts),
            max_seq_len=int(on_host.max()),
            slot_mapping=slots,
            positions=at_columns(common.positions, self.rows, -1),
            _num_computed_tokens_cache=None,
            _token_to_req_indices_cache=None,
        )


def as_before(batch: Batch, dropped: Sequence[int], device: torch.device) -> Layout:
    """Return the layout of a step that drops no rows."""
    return Layout(batch, dropped, None, batch.counts, device)


BOUNDED = ("CPUAttentionMetadata", "TritonAttentionMetadata", "FlashAttentionMetadata")


def _bounds_lengths(metadata: Any) -> bool:
    """Return whether a backend accepts metadata that was built for longer sequences with the same rows.

    These backends divide their work by the lengths at build time, and read the true lengths when they run. The
    exception is FLASH_ATTN's scheduler metadata, if there is any: it depends on the true lengths.
    """
    kind = type(metadata).__name__
    return kind in BOUNDED and not (kind == "FlashAttentionMetadata" and metadata.scheduler_metadata is not None)
