"""Models told from their structure but for one thing, which their structure does not say."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.grid import Grid
from foveate.families.derived import Derived
from foveate.families.newlines import Stats, reduce_apart
from foveate.families.placing import place_rows, put_images
from foveate.families.tiles import runs
from foveate.families.tower import Inputs, Reducer
from foveate.families.vision import grid_boxes


class HunYuanVL(Derived):
    """A picture's grid has a newline behind each row, and a token before and behind all; these always stay.

    begin 0 1 2 ↵ 3 4 5 ↵ end        a grid of 2 x 3
    """

    model_type: ClassVar[str] = "hunyuan_vl"
    tiled: ClassVar[bool] = False

    @classmethod
    def boxes(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[Tensor | None]:
        boxes = list[Tensor | None]()
        for rows, columns in _grids(config, inputs):
            lines = torch.full((rows, columns + 1, 4), float("nan"))
            lines[:, :-1] = grid_boxes(rows, columns).view(rows, columns, 4)
            end = lines[0, -1:]
            boxes.append(torch.cat((end, lines.flatten(0, 1), end)))
        return boxes

    @classmethod
    def fixed_tokens(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[Sequence[int]]:
        boxes = cls.boxes(config, modality, inputs, lengths)
        return [own.isnan().any(dim=-1).nonzero()[:, 0].tolist() for own in boxes if own is not None]

    def reduce_features(
        self, output: Any, modality: str, inputs: Inputs, reducer: Reducer, stats: Stats | None = None
    ) -> list[Cut | None]:
        config, images = self.model.config, list(output.pooler_output)
        boxes = self.boxes(config, modality, inputs, ())
        cells = [(~own.isnan().any(dim=-1)).to(images[0].device) for own in boxes if own is not None]
        of_cells = [image[own] for image, own in zip(images, cells, strict=True)]
        grids = [(grid,) for grid in _grids(config, inputs)]
        cuts = reduce_apart(of_cells, [None] * len(images), reducer, stats, grids)
        for index, (own, cut) in enumerate(zip(cells, cuts, strict=True)):
            if cut is not None and not cut.stays_whole:
                images[index] = images[index].index_put((own,), place_rows(of_cells[index], cut))
        put_images(output, images)
        return cuts


class Ovis2(Derived):
    """A picture begins at a token of its own; a view of the whole, and tiles apart by other tokens, are one picture."""

    model_type: ClassVar[str] = "ovis2"

    def image_lengths(self, mask: Tensor, ids: Tensor | None, pieces: Sequence[int] = ()) -> list[list[int]]:
        """Of a prompt that came as embeddings every tile is taken for an image, as its tokens cannot be read."""
        if ids is None:
            return super().image_lengths(mask, ids, pieces)
        begin = self.model.config.visual_indicator_token_ids[0]
        samples = []
        for row, tiles in zip((ids == begin).cpu(), runs(mask), strict=True):
            before = row.cumsum(dim=0).tolist()  # pictures that have begun up to here
            images: dict[int, int] = {}
            for start, end in tiles:
                images[before[start]] = images.get(before[start], 0) + end - start
            samples.append(list(images.values()))
        return samples


def _grids(config: Any, inputs: Inputs) -> list[Grid]:
    """Rows and columns of each picture's tokens."""
    side = config.vision_config.spatial_merge_size
    return [(rows // side, columns // side) for _, rows, columns in inputs["image_grid_thw"].tolist()]


OVERRIDES: Mapping[str, type[Derived]] = {kind.model_type: kind for kind in (HunYuanVL, Ovis2)}
"""By `model_type`."""
