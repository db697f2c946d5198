"""The Gemmas: PaliGemma, Gemma 3 and Gemma 4. Image tokens, or a PaliGemma's whole prompt, attend in both directions.

The mask of each kind of layer says what a row sees: images in both directions, and windows in columns of the whole
prompt. These masks remain correct for the rows that are left. Local and global layers have separate RoPEs, and in Gemma
4 separate head sizes.
"""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from foveate.core.grid import Grid
from foveate.core.patching import Patcher
from foveate.core.signals import TowerSignal
from foveate.core.tensors import send
from foveate.families.base import Family
from foveate.families.llava import Llava, side_of, squares
from foveate.families.placing import first_rows, replace_images
from foveate.families.tower import Encoded, ImageReducer, Inputs, KeysOf, Run, Taps, coarser_grids
from foveate.families.vision import PictureLayout, smaller


class PaliGemma(Llava):
    """The structure of `PaliGemmaForConditionalGeneration`: one square an image, SigLIP patches in raster order.

    The decoder is a Gemma or a Gemma 2.
    """

    model_type: ClassVar[str] = "paligemma"
    title: ClassVar[str] = "PaliGemma"
    oldest: ClassVar[str] = "5.23"  # second turns and calls without a cache fail on 5.16
    fit: ClassVar[Literal["whole", "crop"]] = "whole"
    pixel_mean, pixel_std = Family.pixel_mean, Family.pixel_std
    decoders: ClassVar[frozenset[str]] = frozenset({"gemma", "gemma2"})
    shares_prefix: ClassVar[bool] = False  # rows before the question see it


class Gemma3(Family):
    """The structure of `Gemma3ForConditionalGeneration`: SigLIP patches averaged to 16 x 16 tokens."""

    model_type: ClassVar[str] = "gemma3"
    title: ClassVar[str] = "Gemma 3"
    oldest: ClassVar[str] = "5.23"  # second turns and calls without a cache fail on 5.16
    decoders: ClassVar[frozenset[str]] = frozenset({"gemma3_text"})
    shares_prefix: ClassVar[bool] = True
    grows: ClassVar[bool] = False  # image tokens attend in both directions
    needs_all_rows: ClassVar[str | None] = None

    def token_means(self, taps: Taps, signal: TowerSignal, modality: str, inputs: Inputs) -> Iterator[Tensor]:
        projector = self.core.multi_modal_projector
        side: int = projector.patches_per_image
        for patches in taps.read(signal):
            # (patches, numbers) -> (1, numbers, side, side): numbers are channels
            means: Tensor = projector.avg_pool(patches.T.reshape(1, -1, side, side))
            yield means.flatten(2)[0].T

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """As in the base class. The tower interpolates its position embeddings.

        The projector is made for one grid, so it gets the patches in the corner of an empty grid.
        """
        grid, pixels = _grid(self.model.config), inputs["pixel_values"]
        coarse, cuts = coarser_grids(reducer, [(grid,)] * len(pixels))
        if cuts[0] is None:
            return run(), cuts
        ((cells,), *_) = coarse
        projector = self.core.multi_modal_projector
        side = projector.patches_per_image
        rows, columns = (length * projector.kernel_size for length in cells)  # the smaller image's patches

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
        return output, replace_images(output, cuts)

    @classmethod
    def pictures(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[PictureLayout]:
        return squares(_grid(config), config.mm_tokens_per_image, lengths)

    @classmethod
    def block(cls, config: Any) -> int:
        return side_of(config) // _grid(config)[0]


def _grid(config: Any) -> Grid:
    """Rows and columns of an image's tokens in Gemma 3."""
    side = int(config.mm_tokens_per_image**0.5)
    return side, side


INPUTS = {"image": ("pixel_values", "image_position_ids"), "video": ("pixel_values_videos", "video_position_ids")}
"""Gemma 4's arguments with the patches of all images or frames, and with their x and y.

Patches are (images, patches, numbers), x and y (images, patches, 2), −1 for padding.
"""


class Gemma4(Family):
    """The structure of `Gemma4ForConditionalGeneration`: images of any shape, 3 x 3 patches per token.

    In local layers image tokens attend in both directions, in global ones they do not. The small models (E2B, E4B)
    share keys between layers and give each layer additional inputs. Their positions are not renumbered.
    """

    model_type: ClassVar[str] = "gemma4"
    title: ClassVar[str] = "Gemma 4"
    needs_all_rows: ClassVar[str | None] = (
        "its pooler derives the cells of patches, and their number, from the full length"
    )
    videos: ClassVar[bool] = True
    oldest: ClassVar[str] = "5.23"  # before, frames of videos have another form
    decoders: ClassVar[frozenset[str]] = frozenset()  # bench builds no bare layers of it
    shares_prefix: ClassVar[bool] = True
    is_usual = True
    grows: ClassVar[bool] = False
    keys_of: ClassVar[KeysOf | None] = ("k_norm", lambda _, keys: keys.transpose(1, 2))
    parts: ClassVar[bool] = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.gathers = bool(self.text.config.hidden_size_per_layer_input)  # E2B, E4B: more inputs for each token
        self.renumbers = not self.lenders

    def vision_masks(self, placeholders: Any, inputs: Inputs) -> list[tuple[str, Tensor]]:
        """As in the base class. At every call the core asks for all modalities; keep those that are there."""
        pairs = zip(INPUTS, placeholders, strict=False)
        return [(modality, mask) for modality, mask in pairs if self.has_pixels(modality, inputs)]

    def rotate(self, layer: Any, states: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        rotate = sys.modules[type(layer.self_attn).__module__].apply_rotary_pos_emb
        turned: Tensor = rotate(states, *rotary)
        return turned

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        _, positions = INPUTS[modality]
        on_host = inputs[positions].cpu()  # copy before work is queued, so that the host does not wait
        return super().encode(run, modality, {**inputs, positions: on_host}, reducer)

    def token_means(self, taps: Taps, signal: TowerSignal, modality: str, inputs: Inputs) -> Iterator[Tensor]:
        """As in the base class. The tower treats images and frames alike: an image is one of them, a video several."""
        config, (_, name) = self.model.config, INPUTS[modality]
        kernel: int = config.vision_config.pooling_kernel_size
        grids = itertools.chain(*self._grids(config, modality, inputs))
        for heads, positions, grid in zip(taps.samples(signal), inputs[name], grids, strict=True):
            rows, columns = grid
            real = (positions >= 0).all(dim=-1).nonzero()[:, 0]  # no padding
            x, y = (positions[real] // kernel).unbind(dim=-1)  # column and row of each patch's token
            token = send(x + columns * y, heads.keys.device)  # (patches,): its index in raster order
            patches = heads.at(send(real, heads.keys.device)).read(signal)
            totals = patches.new_zeros(rows * columns, patches.shape[1])
            yield totals.index_add(0, token, patches) / kernel**2

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """As in the base class. The patches are joined to images, resized to whole tokens and split again."""
        names = INPUTS[modality]
        patches, positions = (inputs[name].clone() for name in names)
        grids = self._grids(self.model.config, modality, inputs)
        coarse, cuts = coarser_grids(reducer, grids)
        pairs = zip(itertools.chain(*grids), itertools.chain(*coarse), strict=True)
        for picture, (grid, cells) in enumerate(pairs):  # or each frame of a video
            if cells != grid:
                patches[picture], positions[picture] = self._resize(patches[picture], grid, cells)
        output = run(**dict(zip(names, (patches, positions), strict=True)))
        return output, replace_images(output, cuts)

    def _resize(self, patches: Tensor, grid: Grid, cells: Grid) -> tuple[Tensor, Tensor]:
        """The patches of an image, (patches, numbers), and their places, after resizing it to `cells` tokens."""
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
        # Column and row of each patch, in raster order; −1 marks the remaining patches as padding.
        y, x = torch.meshgrid(torch.arange(tall), torch.arange(wide), indexing="ij")
        real = torch.stack((x, y), dim=-1).view(-1, 2)
        places = torch.full((len(patches), 2), -1, device=patches.device)
        places[: tall * wide] = real.to(places.device)
        return first_rows(cut, len(patches)), places

    @staticmethod
    def _grids(config: Any, modality: str, inputs: Inputs) -> list[tuple[Grid, ...]]:
        """Rows and columns of the tokens of each image, or of each video's frames."""
        _, positions = INPUTS[modality]
        last = inputs[positions].amax(dim=1)  # (images, 2): column and row of each image's last patch
        sides = (last + 1) // config.vision_config.pooling_kernel_size
        grids = [(rows, columns) for columns, rows in sides.tolist()]
        if modality == "image":
            return [(grid,) for grid in grids]
        frames = iter(grids)
        counts = inputs["num_frames_per_video"].tolist()
        return [tuple(next(frames) for _ in range(count)) for count in counts]

    @classmethod
    def pictures(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[PictureLayout]:
        _, positions = INPUTS[modality]
        if positions not in inputs:
            return super().pictures(config, modality, inputs, lengths)
        return [PictureLayout(grids) for grids in cls._grids(config, modality, inputs)]
