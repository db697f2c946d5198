"""The Gemmas: PaliGemma, Gemma 3, and Gemma 4 without shared keys (26B-A4B, 31B).

Pictures, or all of a PaliGemma's prompt, are seen both ways. The masks of each kind of layer say what a row sees:
images both ways, and windows in columns of the whole prompt. They stay right for the rows that are left. Local and
global layers have a RoPE of their own, and in Gemma 4 a head size of their own.
"""

import functools
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.grid import Grid, into_cells, join
from foveate.core.patching import Patcher
from foveate.core.signals import TowerSignal
from foveate.core.views import TowerView
from foveate.families.base import Family
from foveate.families.llava import Llava, clip_thin_tower, pictures_in, side_of
from foveate.families.placing import first_rows, replace_images
from foveate.families.tap import Tapped
from foveate.families.thinning import ThinnedTower
from foveate.families.tower import (
    Encoded,
    Inputs,
    Reducer,
    Run,
    Taps,
    attentions,
    encoder_layers,
    of_image,
    shown,
    tapped_all,
)
from foveate.families.vision import grid_boxes, smaller


class PaliGemma(Llava):
    """Where things are inside `PaliGemmaForConditionalGeneration`, with a Gemma or a Gemma 2: one square per image,
    SigLIP patches in raster order."""

    model_type: ClassVar[str] = "paligemma"
    title: ClassVar[str] = "PaliGemma"
    oldest: ClassVar[str] = "5.23"  # second turns and calls without a cache fail on 5.16
    fit: ClassVar[Literal["whole", "crop"]] = "whole"
    pixel_mean, pixel_std = Family.pixel_mean, Family.pixel_std
    decoders: ClassVar[frozenset[str]] = frozenset({"gemma", "gemma2"})
    shares_prefix: ClassVar[bool] = False  # what stands before the question sees it


class Gemma3(Family):
    """Where things are inside `Gemma3ForConditionalGeneration`: SigLIP patches averaged to 16 x 16 tokens."""

    model_type: ClassVar[str] = "gemma3"
    title: ClassVar[str] = "Gemma 3"
    needs_all_rows: ClassVar[str | None] = None
    oldest: ClassVar[str] = "5.23"  # second turns and calls without a cache fail on 5.16
    decoders: ClassVar[frozenset[str]] = frozenset({"gemma3_text"})
    shares_prefix: ClassVar[bool] = True

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """Behind the projector: a token's score and key are the means of the patches averaged into it."""
        with tapped_all(attentions(encoder_layers(self.core.vision_tower), reducer.reads)) as taps:
            output = run()
        images = output.pooler_output
        views = []
        for index, image in enumerate(images):
            views.append(TowerView(image, _grid(self.model.config), None, partial(self._token_means, taps, index)))
        cuts = reducer.reduce(views)
        self.place(output, images, cuts)
        return output, cuts

    def thin_tower(self, modality: str, run: Run, inputs: Inputs) -> ThinnedTower:
        return clip_thin_tower(self.core.vision_tower, self.model.config)

    def _token_means(self, taps: Taps, picture: int, signal: TowerSignal) -> Tensor:
        """What a signal is of a picture's tokens, the means over the patches of each: (tokens, numbers)."""
        patches = taps.read(picture, signal)
        projector = self.core.multi_modal_projector
        side: int = projector.patches_per_image
        means: Tensor = projector.avg_pool(patches.T.reshape(1, -1, side, side))  # numbers as channels
        return means.flatten(2)[0].T

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """The tower interpolates its position embeddings; the projector, made for one grid, gets the patches in the
        corner of an empty one.
        """
        grid, pixels = _grid(self.model.config), inputs["pixel_values"]
        (cells,) = reducer.coarsen((grid,), math.prod(grid), 0)
        if cells == grid:
            return run(), [None] * len(pixels)
        projector = self.core.multi_modal_projector
        side = projector.patches_per_image
        rows, columns = (length * projector.kernel_size for length in cells)  # of a smaller picture's patches

        def project(original: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
            """In the place of the projector's forward, (pictures, patches, width)."""
            canvas = states.new_zeros(len(states), side, side, states.shape[2])
            canvas[:, :rows, :columns] = states.view(len(states), rows, columns, -1)
            tokens = original(canvas.flatten(1, 2)).view(len(states), *grid, -1)
            return tokens[:, : cells[0], : cells[1]].flatten(1, 2)

        patch = self.model.config.vision_config.patch_size
        small = smaller(pixels, rows * patch, columns * patch)
        with Patcher() as patches:
            patches.wrap(projector, "forward", project)
            output = run(pixel_values=small, interpolate_pos_encoding=True)
        return output, replace_images(output, [into_cells(grid, cells)] * len(pixels))

    @classmethod
    def token_grids(cls, config: Any, sizes: Sequence[int]) -> list[tuple[Grid, ...]] | None:
        rows, columns = _grid(config)
        if any(size != rows * columns for size in sizes):
            return None
        return [((rows, columns),)] * len(sizes)

    @classmethod
    def boxes(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[Tensor | None]:
        """Of the picture the processor made of each image: with pan and scan that may be a part of it."""
        return [grid_boxes(*_grid(config))] * len(lengths)

    @classmethod
    def block(cls, config: Any) -> int:
        return side_of(config) // _grid(config)[0]

    @classmethod
    def pictures_of(cls, config: Any, size: int) -> int:
        return pictures_in(size, config.mm_tokens_per_image)


def _grid(config: Any) -> Grid:
    """Rows and columns of a picture's tokens in Gemma 3."""
    side = int(config.mm_tokens_per_image**0.5)
    return side, side


INPUTS = {"image": ("pixel_values", "image_position_ids"), "video": ("pixel_values_videos", "video_position_ids")}
"""Gemma 4's patches of all pictures or frames, (pictures, patches, numbers), and their x and y, (pictures, patches, 2),
or −1 for padding."""


class Gemma4(Family):
    """Where things are inside `Gemma4ForConditionalGeneration`: any shape of picture, 3 x 3 patches a token.

    Local layers see an image both ways, global ones do not.

    Raises:
        UnsupportedError: If layers share keys, or get inputs of their own (E2B, E4B).
    """

    model_type: ClassVar[str] = "gemma4"
    title: ClassVar[str] = "Gemma 4"
    needs_all_rows: ClassVar[str | None] = (
        "its pooler tells the cells of patches, and how many there are, from the full length"
    )
    videos: ClassVar[bool] = True
    oldest: ClassVar[str] = "5.23"  # frames of videos come in another form before
    decoders: ClassVar[frozenset[str]] = frozenset()
    shares_prefix: ClassVar[bool] = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.gathers = bool(self.text.config.hidden_size_per_layer_input)  # E2B, E4B: more inputs for each token
        self.renumbers = not self.lenders

    def vision_masks(self, placeholders: Any, inputs: Inputs) -> list[tuple[str, Tensor]]:
        """The core asks where everything would be, at every call: of that, what is there."""
        encoded = inputs.get("mm_encoder_outputs") or {}
        masks = []
        for modality, mask in zip(INPUTS, placeholders, strict=False):
            pixels, _ = INPUTS[modality]
            if inputs.get(pixels) is not None or encoded.get(modality) is not None:
                masks.append((modality, mask))
        return masks

    @property
    def is_usual(self) -> bool:
        return True

    def rotate(self, layer: Any, states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        rotate = sys.modules[type(layer.self_attn).__module__].apply_rotary_pos_emb
        turned: Tensor = rotate(states, *rotary)
        return turned

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """Behind the projector: a token's score and key are the means of the patches pooled into it."""
        kernel = self.model.config.vision_config.pooling_kernel_size
        grids_of = self._grids(self.model.config, modality, inputs)  # read before the device has work to wait for
        modules = attentions(self.core.vision_tower.encoder.layers, reducer.reads)
        with tapped_all(modules, keys_of=("k_norm", lambda _, keys: keys.transpose(1, 2))) as taps:
            output = run()
        # The tower sees pictures and frames alike; an image is one of them, a video several.
        flat = [grid for grids in grids_of for grid in grids]
        _, positions = INPUTS[modality]
        lengths = [sum(map(math.prod, grids)) for grids in grids_of]

        @functools.cache
        def stats(signal: TowerSignal) -> tuple[Tensor, ...]:
            pictures = zip(taps.samples(signal), inputs[positions], flat, strict=True)
            means = [_picture(signal, *picture, kernel) for picture in pictures]
            return torch.split(torch.cat(means), lengths)

        images = output.pooler_output
        views = []
        for index, (image, grids) in enumerate(zip(images, grids_of, strict=True)):
            plain = grids[0] if len(grids) == 1 else None
            views.append(TowerView(image, plain, None, partial(of_image, stats, index), grids=tuple(grids)))
        cuts = reducer.reduce(views)
        self.place(output, images, cuts)
        return output, cuts

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: Reducer) -> Encoded:
        """The patches are put together again, resized to whole tokens and cut anew."""
        names = INPUTS[modality]
        patches, positions = (inputs[name].clone() for name in names)
        merged: list[Cut | None] = []
        picture = 0
        for grids in self._grids(self.model.config, modality, inputs):
            tokens = sum(map(math.prod, grids))
            cells = reducer.coarsen(grids, tokens, 0)
            if cells == grids:
                merged.append(None)
                picture += len(grids)
                continue
            pairs = list(zip(grids, cells, strict=True))
            merged.append(join([into_cells(*pair) for pair in pairs]))
            for grid, coarse in pairs:  # each picture, or each frame of a video
                if coarse != grid:
                    patches[picture], positions[picture] = self._resized(patches[picture], grid, coarse)
                picture += 1
        smaller_inputs = dict(zip(names, (patches, positions), strict=True))
        output = run(**smaller_inputs)
        return output, replace_images(output, merged)

    def _resized(self, patches: Tensor, grid: Grid, cells: Grid) -> tuple[Tensor, Tensor]:
        """A picture's patches, (patches, size · size · channels), and their places, as of one of `cells` tokens."""
        vision = self.model.config.vision_config
        size, kernel = vision.patch_size, vision.pooling_kernel_size
        rows, columns = grid[0] * kernel, grid[1] * kernel  # in patches, before and after
        tall, wide = cells[0] * kernel, cells[1] * kernel
        # (patches, …) -> (channels, rows, size, columns, size) -> one picture
        blocks = patches[: rows * columns].view(rows, columns, size, size, -1)
        picture = blocks.permute(4, 0, 2, 1, 3)
        picture = picture.reshape(1, -1, rows * size, columns * size)
        small = smaller(picture, tall * size, wide * size)[0]
        # and back: (channels, rows, size, columns, size) -> (patches, …)
        blocks = small.view(-1, tall, size, wide, size)
        blocks = blocks.permute(1, 3, 2, 4, 0)
        cut = blocks.reshape(tall * wide, -1)
        # Column and row of each patch, in raster order; −1 marks the patches that are left over as padding.
        y, x = torch.meshgrid(torch.arange(tall), torch.arange(wide), indexing="ij")
        real = torch.stack((x, y), dim=-1).view(-1, 2)
        places = torch.full((len(patches), 2), -1, device=patches.device)
        places[: tall * wide] = real.to(places.device)
        return first_rows(cut, len(patches)), places

    @staticmethod
    def _grids(config: Any, modality: str, inputs: Inputs) -> list[tuple[Grid, ...]]:
        """Rows and columns of the tokens of each image, or of each video's frames."""
        _, positions = INPUTS[modality]
        last = inputs[positions].amax(dim=1)  # column and row of each picture's last patch
        sides = (last + 1) // config.vision_config.pooling_kernel_size
        grids = [(rows, columns) for columns, rows in sides.tolist()]
        if modality == "image":
            return [(grid,) for grid in grids]
        frames = iter(grids)
        counts = inputs["num_frames_per_video"].tolist()
        return [tuple(next(frames) for _ in range(count)) for count in counts]

    @classmethod
    def boxes(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[Tensor | None]:
        boxes: list[Tensor | None] = []
        for grids in cls._grids(config, modality, inputs):
            frames = [grid_boxes(*grid) for grid in grids]
            boxes.append(torch.cat(frames))
        return boxes


def _picture(signal: TowerSignal, heads: Tapped, positions: Tensor, grid: Grid, kernel: int) -> Tensor:
    """What a signal is of a picture's tokens, (tokens, numbers), from where its patches are, (patches, 2)."""
    # Sorted so that padding comes last; as many are real as the grid says, so nothing waits for the device.
    is_padding = (positions < 0).any(dim=-1)
    order = torch.sort(is_padding.long(), stable=True).indices
    real = order[: math.prod(grid) * kernel**2]
    return _token_means(shown(signal, heads.at(real)), positions[real], grid, kernel)


def _token_means(patches: Tensor, positions: Tensor, grid: Grid, kernel: int) -> Tensor:
    """Means over the patches of each token of a picture, (patches, numbers) -> (tokens, numbers)."""
    rows, columns = grid
    x, y = positions[:, 0] // kernel, positions[:, 1] // kernel  # of each patch's token
    totals = patches.new_zeros(rows * columns, patches.shape[1])
    token = x + columns * y
    return totals.index_add(0, token, patches) / kernel**2


FAMILIES = (PaliGemma, Gemma3, Gemma4)
