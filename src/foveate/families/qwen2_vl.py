"""Qwen2-VL: any image size, 2x2 patches merged into one token, M-RoPE."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.core.attention import received_attention
from foveate.core.cut import Cut
from foveate.core.grid import Grid, into_cells, join
from foveate.core.tower import TowerView
from foveate.errors import SettingError
from foveate.families._encode import Reducer, cells_cut, first_rows, place_rows, smaller, stays_whole
from foveate.families._tap import tapped
from foveate.families._towers import qwen_bytes, qwen_cost
from foveate.families.base import Family, grid_boxes

__all__ = ["FAMILY", "Qwen2VL"]


class Qwen2VL(Family):
    """Where things are inside `Qwen2VLForConditionalGeneration`.

    The layers get one (cos, sin) pair with M-RoPE's three axes already combined, so positions need
    nothing special; `rope_deltas` stay those of the unpruned prompt.
    """

    model_type: ClassVar[str] = "qwen2_vl"
    videos: ClassVar[bool] = True
    renumbers: ClassVar[bool] = False
    decoders: ClassVar[frozenset[str]] = frozenset({"qwen2_vl_text"})
    shares_prefix: ClassVar[bool] = True

    def boxes(self, modality: str, given: Mapping[str, Any], lengths: Sequence[int]) -> list[Tensor | None]:
        side: int = self.core.visual.spatial_merge_size
        grids = given[f"{modality}_grid_thw"].tolist()
        return [grid_boxes(h // side, w // side).repeat(t, 1) for t, h, w in grids]

    def encode(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """Behind the merger: a token's score and key are the means of its four patches'."""
        visual, grids = self.core.visual, given[f"{modality}_grid_thw"].cpu()  # while nothing is under way to wait for
        attention, group = self.scoring_block.attn, visual.spatial_merge_size**2
        scores: list[Tensor] = []
        keys: list[Tensor] = []

        def note_keys(module: Any, args: Any, output: Tensor) -> None:
            heads = output.reshape(len(output), 3, attention.num_heads, -1)[:, 1]
            keys.append(heads.float().mean(dim=1))  # before RoPE: (patches, head size)

        def note_scores(queries: Tensor, states: Tensor, scaling: float) -> None:
            scores.append(received_attention(queries[0], states[0], scaling))

        handle = attention.qkv.register_forward_hook(note_keys)
        try:
            with tapped(attention, note_scores):
                output = run()
        finally:
            handle.remove()
        features, order = list(output.pooler_output), self.token_order(grids)
        sizes = [len(one) for one in features]
        token_scores = torch.split(torch.cat(scores).view(-1, group).mean(dim=1)[order], sizes)
        token_keys = torch.split(keys[0].view(len(keys[0]) // group, group, -1).mean(dim=1)[order], sizes)
        views, side = [], visual.spatial_merge_size
        for index, (t, h, w) in enumerate(grids.tolist()):
            grid = (h // side, w // side) if t == 1 else None
            one, many = token_scores[index], token_keys[index]
            views.append(TowerView(features[index], grid, None, lambda _, one=one: one, lambda _, many=many: many))  # type: ignore[misc]
        cuts = reducer.reduce(views)
        for index, cut in enumerate(cuts):
            if not stays_whole(cut):
                features[index] = place_rows(features[index], cut)
                self.place_deepstack(output, index, cut)
        output.pooler_output = features
        return output, cuts

    @property
    def scoring_block(self) -> Any:
        """The block of the tower whose attention and keys are read."""
        return self.core.visual.blocks[-1]

    def token_order(self, grids: Tensor) -> Any:
        """Index of the blocks' tokens that puts them in the order of the features; `grids` is (images, 3)."""
        return slice(None)

    def encode_smaller(
        self, run: Callable[..., Any], modality: str, given: Mapping[str, Any], reducer: Reducer
    ) -> tuple[Any, list[Any]]:
        """The patches are put together again, resized to whole tokens and cut anew."""
        vision = self.model.config.vision_config
        side, name = vision.spatial_merge_size, "pixel_values" + ("_videos" if modality == "video" else "")
        grids = given[f"{modality}_grid_thw"]
        small = grids.clone()
        pictures: list[Tensor] = []
        merges: list[Cut | None] = []
        for index, (patches, (t, h, w)) in enumerate(
            zip(given[name].split(grids.prod(-1).tolist()), grids.tolist(), strict=True)
        ):
            frames = ((h // side, w // side),) * t
            cells = reducer.coarsen(frames, t * h * w // side**2, 0)
            if cells == frames:
                merges.append(None)
                pictures.append(patches)
            else:
                merges.append(join([into_cells(frames[0], cells[0])] * t))
                pictures.append(_resized(patches, (t, h, w), cells[0], vision))
                small[index, 1:] = torch.tensor(cells[0]) * side
        output = run(**{name: torch.cat(pictures), f"{modality}_grid_thw": small})
        features, cuts = list(output.pooler_output), []
        for index, merge in enumerate(merges):
            cuts.append(None if merge is None else cells_cut(features[index], merge))
            if merge is not None:
                features[index] = first_rows(features[index], merge.arriving)
                self._lengthen_deepstack(output, index, merge.arriving)
        output.pooler_output = features
        return output, cuts

    def _lengthen_deepstack(self, output: Any, index: int, length: int) -> None:
        """Nothing: this family has none."""

    @classmethod
    def tower_images(cls, config: Any, modality: str, given: Mapping[str, Any]) -> tuple[int, ...] | None:
        return tuple(int(frames) for frames, _, _ in given[f"{modality}_grid_thw"])

    @classmethod
    def tower_cost(cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None) -> tuple[int, int]:
        """As in the base class; a picture is a temporal patch, one for an image. The merger is the projector."""
        pictures = pictures or (1,) * len(sizes)
        if odd := [(size, count) for size, count in zip(sizes, pictures, strict=True) if count < 1 or size % count]:
            raise SettingError(f"{odd[0][0]} vision tokens do not divide into {odd[0][1]} temporal patches.")
        return cls._tower(config.vision_config, sizes, pictures)

    @classmethod
    def tower_bytes(
        cls, config: Any, sizes: tuple[int, ...], pictures: tuple[int, ...] | None, itemsize: int
    ) -> tuple[int, int] | None:
        vision = config.vision_config
        inner = int(vision.embed_dim * vision.mlp_ratio)
        return qwen_bytes(vision, sum(sizes), itemsize, inner=inner, out=vision.hidden_size)

    @classmethod
    def smaller_tower_cost(cls, config: Any, cells: Sequence[Sequence[Grid]]) -> tuple[int, int] | None:
        sizes = tuple(sum(rows * columns for rows, columns in frames) for frames in cells)
        return cls._tower(config.vision_config, sizes, tuple(len(frames) for frames in cells))

    @classmethod
    def _tower(cls, vision: Any, sizes: tuple[int, ...], pictures: tuple[int, ...]) -> tuple[int, int]:
        inner = int(vision.embed_dim * vision.mlp_ratio)
        return qwen_cost(vision, sizes, pictures, inner=inner, out=vision.hidden_size)


def _resized(patches: Tensor, grid: tuple[int, int, int], tokens: Grid, vision: Any) -> Tensor:
    """The patches of an image or video, (t · h · w, pixels), as they would be of one of `tokens` tokens a frame.

    Patches come token by token, each a block of `side` x `side` patches of (channels, frames, rows, columns).
    """
    side, patch, frames = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    times, height, width = grid
    blocks = patches.view(times, height // side, width // side, side, side, -1, frames, patch, patch)
    pictures = blocks.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(times * frames, -1, height * patch, width * patch)
    pictures = smaller(pictures, tokens[0] * side * patch, tokens[1] * side * patch)
    cut = pictures.view(times, frames, -1, tokens[0], side, patch, tokens[1], side, patch)
    return cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(-1, patches.shape[1])


FAMILY = Qwen2VL
