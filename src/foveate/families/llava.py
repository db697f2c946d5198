"""LLaVA-1.5 and ViP-LLaVA: one square per image, CLIP patches in raster order, 1-D RoPE."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from foveate.core.grid import Grid
from foveate.core.patching import Patcher
from foveate.errors import UnsupportedError
from foveate.families.base import Family, pixels_name
from foveate.families.placing import replace_images
from foveate.families.tower import Encoded, ImageReducer, Inputs, ReducedRun, Run, coarser_grids
from foveate.families.vision import CLIP, PictureLayout, picture_sizes, smaller

CLASS_TOKENS = {"clip_vision_model": 1, "siglip_vision_model": 0}  # the towers known here


class OfClip(Family):
    """Shared by the LLaVAs: a CLIP or SigLIP tower for squares, whose CLS may be left out, then a projector."""

    shares_prefix: ClassVar[bool] = True
    needs_all_rows: ClassVar[str | None] = None
    pixel_mean, pixel_std = CLIP

    @property
    def side(self) -> int:
        """Patches along a side of an image."""
        return side_of(self.model.config)

    @classmethod
    def cls_in_tower(cls, config: Any = None) -> bool | None:
        if config is None:
            return None
        return drops_cls(config)

    @classmethod
    def block(cls, config: Any) -> int:
        """One, for CLIP or SigLIP; other towers are refused."""
        _rows_beside(config)
        return 1

    def run_smaller(self, run: Run, inputs: Inputs, cells: Grid) -> Any:
        """Run with images resized to `cells`, rows and columns of patches."""
        name = pixels_name(inputs)
        pixels = inputs[name]  # (…, channels, rows, columns)
        patch = self.model.config.vision_config.patch_size
        rows, columns = cells
        resized = smaller(pixels.flatten(0, -4), rows * patch, columns * patch)
        resized = resized.view(*pixels.shape[:-2], *resized.shape[-2:])
        return run(**{name: resized, "interpolate_pos_encoding": True})


class Llava(OfClip):
    """The structure of `LlavaForConditionalGeneration`."""

    model_type: ClassVar[str] = "llava"
    title: ClassVar[str] = "LLaVA-1.5"
    fit: ClassVar[Literal["whole", "crop"]] = "crop"

    def _check_cls(self) -> None:
        """Refuse a tower whose projector does not get a grid of patches."""
        cls = drops_cls(self.model.config)
        parameters = (name for name, _ in self.tower.named_parameters())
        if cls == any(name.endswith("class_embedding") for name in parameters):
            return
        raise UnsupportedError(
            "This model uses the tower's CLS as a vision token, or drops a patch as if it were a CLS "
            f"(vision_feature_select_strategy={'default' if cls else 'full'!r}), so its tokens do not form a grid and "
            "cannot be reduced in the tower. Use a method that drops between layers."
        )

    def encode(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        reduced = ReducedRun(self.tower_parts(modality, run, inputs), reducer)
        self._check_cls()
        with Patcher() as patches:
            reduced.attach(patches, self.core.multi_modal_projector)
            return run(), reduced.cuts

    def encode_smaller(self, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
        """As in the base class. The tower interpolates its position embeddings to the smaller grid."""
        self.tower_parts(modality, run, inputs)  # raises if the tower is not supported
        self._check_cls()
        count = len(inputs[pixels_name(inputs)])
        coarse, cuts = coarser_grids(reducer, [((self.side, self.side),)] * count)
        if cuts[0] is None:
            return run(), cuts
        output = self.run_smaller(run, inputs, coarse[0][0])
        return output, replace_images(output, cuts)

    @classmethod
    def fixed_count(cls, config: Any) -> int | None:
        """As in the base class, by the tower's grid, because `image_seq_length` may not fit the tower."""
        if config.vision_config.model_type not in CLASS_TOKENS:  # Pixtral takes images of any shape
            return None
        return picture_tokens(config)

    @classmethod
    def pictures(cls, config: Any, modality: str, inputs: Inputs, lengths: Sequence[int]) -> list[PictureLayout]:
        if inputs.get("image_sizes") is not None:  # Pixtral takes images of any shape
            patch = config.vision_config.patch_size
            sizes = picture_sizes(inputs["image_sizes"])
            return [PictureLayout(((height // patch, width // patch),)) for height, width in sizes]
        side = side_of(config)
        return squares((side, side), cls.fixed_count(config), lengths)


class VipLlava(Llava):
    """The structure of `VipLlavaForConditionalGeneration`, whose projector reads several layers of the tower."""

    model_type: ClassVar[str] = "vipllava"
    title: ClassVar[str] = "ViP-LLaVA"
    oldest: ClassVar[str] = "5.23"  # before, its config has another name for the feature layers


# -- CLIP and SigLIP, and the projectors after them ---------------------------------------------------------------


def side_of(config: Any) -> int:
    """Patches along a side of an image."""
    vision = config.vision_config
    pixels, patch = (size if isinstance(size, int) else size[0] for size in (vision.image_size, vision.patch_size))
    return int(pixels // patch)


def drops_cls(config: Any) -> bool:
    """True if the tower's first token is a CLS that the projector does not get.

    If the config does not say, the projector gets no CLS.
    """
    strategy = getattr(config, "vision_feature_select_strategy", None)
    if strategy:
        return bool(strategy == "default")
    return bool(CLASS_TOKENS.get(config.vision_config.model_type))


def picture_tokens(config: Any) -> int:
    """Vision tokens that a LLaVA makes from one image, before it pools, unpads or adds newlines.

    Raises:
        UnsupportedError: If the tower is neither CLIP nor SigLIP.
    """
    return side_of(config) ** 2 + _rows_beside(config)


def squares(grid: Grid, each: int | None, lengths: Sequence[int]) -> list[PictureLayout]:
    """Images of one size.

    Args:
        grid: Rows and columns of an image's tokens.
        each: Number of vision tokens that the tower makes of an image. None if these vary.
        lengths: Number of vision tokens in each entry: of one image, or of several together.
    """
    pictures = []
    for length in lengths:
        images = length // each if each and length % each == 0 else None
        pictures.append(PictureLayout((grid,) if length == math.prod(grid) else None, images=images))
    return pictures


def _rows_beside(config: Any) -> int:
    """Vision tokens of an image in addition to its grid: 1 for a CLS that stays, −1 if a patch is left out."""
    kind = config.vision_config.model_type
    if kind not in CLASS_TOKENS:
        raise UnsupportedError(f"The cost of a tower of type {kind!r} is not known. Known: {', '.join(CLASS_TOKENS)}.")
    return CLASS_TOKENS[kind] - int(drops_cls(config))
