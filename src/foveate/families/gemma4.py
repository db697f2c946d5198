"""Gemma 4 without shared keys (26B-A4B, 31B): any shape of picture, 3 x 3 patches a token; local and global layers.

Local layers see an image both ways, global ones do not; each type has its own RoPE and its own head size.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.core.attention import received_attention
from foveate.core.grid import Grid, into_cells, join
from foveate.core.tower import TowerView
from foveate.errors import UnsupportedError
from foveate.families._encode import Reducer, cells_cut, first_rows, place_rows, smaller
from foveate.families._tap import tapped
from foveate.families.base import Family, grid_boxes

__all__ = ["FAMILY", "Gemma4"]

INPUTS = {"image": ("pixel_values", "image_position_ids"), "video": ("pixel_values_videos", "video_position_ids")}
"""Patches of all pictures or frames, (pictures, patches, numbers), and their x and y, (pictures, patches, 2), or −1."""


class Gemma4(Family):
    """Where things are inside `Gemma4ForConditionalGeneration`.

    Raises:
        UnsupportedError: If layers share keys, or get inputs of their own (E2B, E4B).
    """

    model_type: ClassVar[str] = "gemma4"
    videos: ClassVar[bool] = True
    oldest: ClassVar[str] = "5.23"  # frames of videos come in another form before
    decoders: ClassVar[frozenset[str]] = frozenset()
    shares_prefix: ClassVar[bool] = False  # images are seen both ways, told by token types

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        text = self.text.config
        if text.num_kv_shared_layers or text.hidden_size_per_layer_input:
            raise UnsupportedError(
                f"In this Gemma 4 {text.num_kv_shared_layers} layers reuse the keys of earlier ones, where tokens that "
                f"left would stay, and every layer gets {text.hidden_size_per_layer_input} more inputs for each token. "
                "Gemma 4 is served where it does neither: 26B-A4B and 31B."
            )

    def vision_masks(self, placeholders: Any, given: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
        """The core asks where everything would be, at every call: of that, what is there."""
        encoded = given.get("mm_encoder_outputs") or {}
        return [
            (modality, mask)
            for (modality, (name, _)), mask in zip(INPUTS.items(), placeholders, strict=False)
            if given.get(name) is not None or encoded.get(modality) is not None
        ]

    def queries_and_keys(
        self, layer: Any, hidden: Tensor, queries: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, float]:
        attention = layer.self_attn
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        normed = layer.input_layernorm(hidden)

        def heads(rows: Tensor, projection: Any, norm: Any, cos: Tensor, sin: Tensor) -> Tensor:
            states = norm(projection(rows).unflatten(-1, (-1, attention.head_dim)))
            turned: Tensor = rotate(states, cos, sin, unsqueeze_dim=2)
            return turned.transpose(1, 2)

        places = queries[..., None]
        tables = (table.take_along_dim(places, dim=-2) for table in rotary)
        return (
            heads(normed.take_along_dim(places, dim=1), attention.q_proj, attention.q_norm, *tables),
            heads(normed, attention.k_proj, attention.k_norm, *rotary),
            float(attention.scaling),
        )

    def encode(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """Behind the projector: a token's score and key are the means of the patches pooled into it."""
        attention = self.core.vision_tower.encoder.layers[-1].self_attn
        every = self._grids(modality, given)  # while nothing is under way to wait for
        seen: list[tuple[Tensor, Tensor, float]] = []
        keys: list[Tensor] = []  # before RoPE: (pictures, patches, heads, head size)
        handle = attention.k_norm.register_forward_hook(lambda module, args, output: keys.append(output))
        try:
            with tapped(attention, lambda q, k, s: seen.append((q, k, s))):
                output = run()
        finally:
            handle.remove()
        stats, ((queried, states, scaling),) = [], seen
        places, flat = given[INPUTS[modality][1]], [grid for grids in every for grid in grids]
        for queries, turned, plain, positions, grid in zip(queried, states, keys[0], places, flat, strict=True):
            order = torch.sort((positions < 0).any(dim=-1).long(), stable=True).indices
            real = order[: grid[0] * grid[1] * self._kernel**2]  # as many as known: padding comes last
            scores = received_attention(queries[:, real], turned[:, real], scaling)
            each = torch.cat((scores[:, None], plain[real].float().mean(dim=1)), dim=1)
            stats.append(_pooled(each, positions[real], grid, self._kernel))
        views, pictures = [], iter(stats)
        for index, grids in enumerate(every):
            known = torch.cat([next(pictures) for _ in grids])
            alone = grids[0] if len(grids) == 1 else None
            scores, means = known[:, 0], known[:, 1:]
            one = output.pooler_output[index]
            views.append(TowerView(one, alone, None, lambda _, s=scores: s, lambda _, k=means: k))  # type: ignore[misc]
        cuts = reducer.reduce(views)
        output.pooler_output = [place_rows(one, cut) for one, cut in zip(output.pooler_output, cuts, strict=True)]
        return output, cuts

    def encode_smaller(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """The patches are put together again, resized to whole tokens and cut anew."""
        names = INPUTS[modality]
        patches, positions = (given[name].clone() for name in names)
        merges, at = [], 0
        for grids in self._grids(modality, given):
            cells = reducer.coarsen(grids, sum(rows * columns for rows, columns in grids), 0)
            merges.append(
                None if cells == grids else join([into_cells(*pair) for pair in zip(grids, cells, strict=True)])
            )
            for grid, few in zip(grids, cells, strict=True):
                if few != grid:
                    patches[at], positions[at] = self._resized(patches[at], grid, few)
                at += 1
        output = run(**dict(zip(names, (patches, positions), strict=True)))
        cuts = [merge and cells_cut(one, merge) for one, merge in zip(output.pooler_output, merges, strict=True)]
        output.pooler_output = [
            one if merge is None else first_rows(one, merge.arriving)
            for one, merge in zip(output.pooler_output, merges, strict=True)
        ]
        return output, cuts

    def _resized(self, patches: Tensor, grid: Grid, cells: Grid) -> tuple[Tensor, Tensor]:
        """A picture's patches, (patches, size · size · channels), and their places, as of one of `cells` tokens."""
        size, kernel = self.model.config.vision_config.patch_size, self._kernel
        (rows, columns), (tall, wide) = ([side * kernel for side in sides] for sides in (grid, cells))
        whole = patches[: rows * columns].view(rows, columns, size, size, -1).permute(4, 0, 2, 1, 3)
        small = smaller(whole.reshape(1, -1, rows * size, columns * size), tall * size, wide * size)[0]
        cut = small.view(-1, tall, size, wide, size).permute(1, 3, 2, 4, 0).reshape(tall * wide, -1)
        y, x = torch.meshgrid(torch.arange(tall), torch.arange(wide), indexing="ij")
        places = torch.full((len(patches), 2), -1, device=patches.device)
        places[: tall * wide] = torch.stack((x, y), dim=-1).view(-1, 2).to(places.device)
        return first_rows(cut, len(patches)), places

    @property
    def _kernel(self) -> int:
        kernel: int = self.model.config.vision_config.pooling_kernel_size
        return kernel

    def _grids(self, modality: str, given: Mapping[str, Any]) -> list[tuple[Grid, ...]]:
        """Rows and columns of the tokens of each image, or of each video's frames."""
        sides = (given[INPUTS[modality][1]].amax(dim=1) + 1) // self._kernel
        grids = [(rows, columns) for columns, rows in sides.tolist()]
        counts = [1] * len(grids) if modality == "image" else given["num_frames_per_video"].tolist()
        left = iter(grids)
        return [tuple(next(left) for _ in range(count)) for count in counts]

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        return [torch.cat([grid_boxes(*grid) for grid in grids]) for grids in self._grids(modality, given)]


def _pooled(patches: Tensor, positions: Tensor, grid: Grid, kernel: int) -> Tensor:
    """Means over the patches of each token of a picture, (patches, columns) -> (tokens, columns)."""
    token = positions[:, 0] // kernel + grid[1] * (positions[:, 1] // kernel)
    whole = patches.new_zeros(grid[0] * grid[1], patches.shape[1])
    return whole.index_add(0, token, patches) / kernel**2


FAMILY = Gemma4
