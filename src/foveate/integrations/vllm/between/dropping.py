"""Between the layers: one model's stages at work, step after step, and what is remembered of each request."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from vllm.forward_context import ForwardContext, get_forward_context

from foveate.engine.program import Program
from foveate.integrations.vllm.between import guards
from foveate.integrations.vllm.between.batch import Batch, Images
from foveate.integrations.vllm.between.layout import Layout, as_before
from foveate.integrations.vllm.between.passing import Passing
from foveate.integrations.vllm.between.recording import built_of, recording

__all__ = ["Dropping"]


class Dropping:
    """Drops vision tokens between the layers of one decoder.

    Args:
        stages: Of the method, those between layers.
        decoder: vLLM's decoder: has `layers`, whose attention is `self_attn.attn`, and `norm`.
        image: Tokens of every image before any of them leave; None: as many as enter the decoder.
    """

    def __init__(self, stages: Program, decoder: Any, image: int | None = None) -> None:
        self._stages = stages
        self._cuts = sorted(self._stages.cuts)
        self._decoder = decoder
        self._image = image
        self._names = []
        for index, layer in enumerate(decoder.layers):
            attention = layer.self_attn.attn
            guards.refuse_backend(attention.attn_backend.get_name())
            attention.attn_backend = recording(attention.attn_backend)
            self._names.append(attention.layer_name)
            layer.forward = self._around(index, layer, layer.forward)
        # Tokens that a request has lost behind each cut, by its first KV block.
        self._dropped: dict[int, tuple[int, ...]] = {}
        self._last: tuple[Batch, list[Layout]] | None = None
        self._images: Images | None = None
        self._passing: Passing | None = None

    def see(self, places: Tensor | None, embeddings: Sequence[Tensor] | None) -> None:
        """Hear where the images of the coming step are.

        Args:
            places: (rows,) bool; None where there are none.
            embeddings: (tokens, width) of each image.
        """
        self._images = None
        if places is not None and embeddings:
            self._images = Images.of(places, embeddings, self._image)

    @contextmanager
    def step(self, device: torch.device) -> Iterator[None]:
        """While the decoder runs on the rows of one step."""
        images, self._images = self._images, None
        context = get_forward_context()
        metadata = context.attn_metadata
        if not metadata or (images is None and not self._dropped):  # a trial run, or nobody has lost anything
            yield
            return
        assert isinstance(metadata, dict)  # microbatches are refused by guards
        context.attn_metadata = dict(metadata)
        context.slot_mapping = dict(context.slot_mapping)
        stock = metadata[self._names[0]]
        batch = Batch.of(built_of(stock).common)
        self._forget(batch)
        if images is None:
            self._continue(context, stock, batch, device)
            yield
            return
        lost = [self._dropped.get(block, ()) for block in batch.blocks]
        self._passing = Passing(
            self._stages,
            batch,
            images,
            lost,
            self._decoder.norm,
            lambda cut, layout: self._put(context, stock, cut, layout),
            device,
        )
        try:
            yield
            for request, dropped in self._passing.dropped.items():
                self._dropped[batch.blocks[request]] = dropped
        finally:
            self._passing = None
            self._last = None

    def _around(self, index: int, layer: Any, original: Callable[..., Any]) -> Callable[..., Any]:
        """A layer's forward, through the step's stages if it has images."""

        def forward(positions: Tensor, hidden_states: Tensor, residual: Tensor | None, **others: Any) -> Any:
            if self._passing is None:
                return original(positions, hidden_states, residual, **others)
            return self._passing.run(index, layer, original, positions, hidden_states, residual, **others)

        return forward

    def _forget(self, batch: Batch) -> None:
        """Forget sequences whose blocks belong to others by now, or that are computed anew."""
        for request, block in enumerate(batch.blocks):
            if block in self._dropped and batch.begins(request):
                del self._dropped[block]

    def _continue(self, context: ForwardContext, stock: Any, batch: Batch, device: torch.device) -> None:
        """Give the layers behind each cut their metadata in a step in which no row leaves."""
        if self._last is None or not self._last[0].same_requests(batch):
            none = (0,) * len(self._cuts)
            lost = [self._dropped.get(block, none) for block in batch.blocks]
            layouts = [as_before(batch, dropped, device) for dropped in zip(*lost, strict=True)]
            self._last = batch, layouts
        for cut, layout in enumerate(self._last[1]):
            self._put(context, stock, cut, layout)

    def _put(self, context: ForwardContext, stock: Any, cut: int, layout: Layout) -> None:
        """Let the layers from a cut to the next have the metadata of their rows."""
        if not layout.drops:
            return
        metadata, slots = layout.metadata(built_of(stock), stock)
        last = self._cuts[cut + 1] if cut + 1 < len(self._cuts) else len(self._names)
        for name in self._names[self._cuts[cut] : last]:
            context.attn_metadata[name] = metadata
            context.slot_mapping[name] = slots
