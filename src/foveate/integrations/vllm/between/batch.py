"""Between the layers: one step of the engine as the host knows it, and the images in it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Batch", "Images"]


@dataclass(frozen=True, slots=True)
class Batch:
    """The requests of a step, their rows one behind the other.

    An example: a prompt of five tokens, and the eighth token of another request.

        starts   0 5 6        lengths   5 8        blocks   3 1

    Attributes:
        starts: The first row of each request, and the number of all rows.
        lengths: Tokens of each sequence behind the step.
        blocks: The first KV block of each. No two requests share one, since prefixes are not cached.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    blocks: tuple[int, ...]

    @classmethod
    def of(cls, common: Any) -> "Batch":
        """That of vLLM's `CommonAttentionMetadata`. Without speculative decoding its host numbers are exact."""
        starts = tuple(common.query_start_loc_cpu.tolist())
        lengths = tuple(common.seq_lens_cpu_upper_bound.tolist())
        blocks = tuple(common.block_table_tensor[:, 0].tolist())
        return cls(starts, lengths, blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def rows(self) -> int:
        """Rows of all requests."""
        return self.starts[-1]

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows of each request."""
        return tuple(stop - start for start, stop in itertools.pairwise(self.starts))

    def begins(self, request: int) -> bool:
        """Whether a sequence begins in this step: it is new, or was preempted."""
        return self.counts[request] == self.lengths[request]

    def same_requests(self, other: "Batch") -> bool:
        """Whether the other step has the same requests with as many rows each."""
        return self.starts == other.starts and self.blocks == other.blocks


@dataclass(frozen=True, slots=True)
class Images:
    """Where the image tokens of a step are, as the request's media features say.

    Attributes:
        places: (rows,) bool, on the host.
        sizes: Tokens of each image, in the order of the rows.
        whole: Tokens of every image before any of them left; None: as many.
    """

    places: Tensor
    sizes: tuple[int, ...]
    whole: int | None = None

    @classmethod
    def of(cls, places: Tensor, embeddings: Sequence[Tensor], whole: int | None = None) -> "Images":
        """From what vLLM gives a model to embed."""
        return cls(places.cpu(), tuple(len(image) for image in embeddings), whole)

    def of_requests(self, batch: Batch) -> dict[int, tuple[int, ...]]:
        """The sizes of the images of each request that has any in this step."""
        tokens = torch.split(self.places[: batch.rows], list(batch.counts))
        sizes = iter(self.sizes)
        images: dict[int, tuple[int, ...]] = {}
        for request, marks in enumerate(tokens):
            left = int(marks.sum())
            own: list[int] = []
            while left > sum(own):
                own.append(next(sizes))
            if own:
                images[request] = tuple(own)
        return images
