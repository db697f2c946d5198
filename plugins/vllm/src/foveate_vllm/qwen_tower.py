"""Signals of a Qwen tower run by vLLM, the same as `foveate.families.qwen_vl` reads in transformers."""

import functools
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_gather

from foveate.core.patching import Patcher
from foveate.core.signals import TowerAttention, TowerSignal
from foveate.core.views import TowerView
from foveate.families.tap import Tapped
from foveate.families.tower import block_of

__all__ = ["TowerSignals"]

Grids = Sequence[Sequence[int]]
"""(frames, rows, columns) of each image's patches."""


class TowerSignals:
    """Signals of a tower for the images of one or more runs, concatenated.

    Args:
        visual: vLLM's tower.
        reads: The signals to read.
    """

    def __init__(self, visual: Any, reads: Sequence[TowerSignal]) -> None:
        self._visual = visual
        depth = len(visual.blocks)
        seeing = None
        if hasattr(visual, "fullatt_block_indexes"):
            seeing = [index for index in range(depth) if index in visual.fullatt_block_indexes]
        self._readers = {}
        for signal in reads:
            block = visual.blocks[block_of(signal, depth - 1, depth, seeing)]
            self._readers[signal] = _Reader(signal, block.attn)

    def attach(self, patches: Patcher) -> None:
        """Read every run until the patcher restores the tower."""
        for reader in self._readers.values():
            reader.attach(patches)

    def views(self, features: Sequence[Tensor], grids: Grids) -> list[TowerView]:
        """Return the view of each image that ran.

        Args:
            features: Its tokens behind the merger, (tokens, width), which may be reduced.
            grids: Grids of its patches.
        """
        side: int = self._visual.spatial_merge_size
        orders = [self._order(grid) for grid in grids]
        times = [frames for frames, _, _ in grids]
        # Frames of a video attend only within themselves.
        lengths = [height * width for frames, height, width in grids for _ in range(frames)]

        @functools.cache
        def stats(signal: TowerSignal) -> list[Tensor]:
            frames = iter(self._readers[signal].values(lengths))
            values = [torch.cat([*itertools.islice(frames, count)]) for count in times]
            # A token's patches are consecutive.
            tokens = [image.view(len(image) // side**2, side**2, -1).mean(dim=1) for image in values]
            return [image[order] for image, order in zip(tokens, orders, strict=True)]

        views = []
        for index, (image, (frames, height, width)) in enumerate(zip(features, grids, strict=True)):
            cells = (height // side, width // side)
            read = partial(_of_image, stats, index)
            views.append(TowerView(image, cells if frames == 1 else None, None, read, grids=(cells,) * frames))
        return views

    def _order(self, grid: Sequence[int]) -> Any:
        """Return the index that puts an image's tokens from their order in the blocks into that of its features."""
        if not hasattr(self._visual, "get_window_index_thw"):
            return slice(None)
        index, _ = self._visual.get_window_index_thw(*grid)
        # `index` lists the tokens in the blocks' order, so its argsort is the inverse.
        return index.argsort()


def _of_image(stats: Callable[[TowerSignal], list[Tensor]], index: int, signal: TowerSignal) -> Tensor:
    """Return a signal of one image's tokens, (tokens, numbers)."""
    return stats(signal)[index]


class _Reader:
    """Reads one block for the patches of all images, run by run.

    With tensor parallelism each process has some of the heads. All processes gather all heads, so that they all make
    the same cut.
    """

    def __init__(self, signal: TowerSignal, attention: Any) -> None:
        self._signal: Any = signal
        self._attention = attention
        self._parts: list[tuple[Tensor, ...]] = []

    def attach(self, patches: Patcher) -> None:
        """Read until the patcher restores the block: queries and keys after RoPE, or keys before it."""
        if isinstance(self._signal, TowerAttention):
            patches.hook(self._attention.attn, "before", self._attends, with_kwargs=True)
        else:
            patches.hook(self._attention.qkv, "after", self._projects)

    def _attends(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._note(kwargs["query"][0], kwargs["key"][0])

    def _projects(self, module: nn.Module, args: Any, output: Any) -> None:
        # (patches, 1, 3 · width of this process): queries, keys and values side by side, each (heads, head size)
        heads = output[0].reshape(len(output[0]), 3, self._attention.num_attention_heads_per_partition, -1)
        self._note(heads[:, 1])

    def _note(self, *heads: Tensor) -> None:
        """Store a run's queries or keys, (patches, heads of this process, head size) each."""
        if get_tensor_model_parallel_world_size() > 1:
            heads = tuple(tensor_model_parallel_all_gather(part.contiguous(), dim=1) for part in heads)
        self._parts.append(heads)

    def values(self, lengths: Sequence[int]) -> list[Tensor]:
        """Return the signal of each image, from the number of its patches: (patches, numbers) float32."""
        whole = [torch.cat(parts).transpose(0, 1) for parts in zip(*self._parts, strict=True)]
        images = zip(*(torch.split(heads, list(lengths), dim=1) for heads in whole), strict=True)
        scale = self._attention.attn.scale
        # For keys before RoPE there are no queries: heads[0] is heads[-1].
        return [Tapped(heads[0], heads[-1], scale).read(self._signal) for heads in images]
