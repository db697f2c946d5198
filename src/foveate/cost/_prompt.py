"""The prompt of one sample as token counts, and checks of these counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypedDict

from torch import Tensor

from foveate.contract.settings import Count
from foveate.core.grid import Grid
from foveate.errors import SettingError

Grids = Sequence[Sequence[Grid]]
"""Rows and columns of each image's frames or views."""


class RunCounts(TypedDict, total=False):
    """Counts from a run, `trace.latest.ran()`, for methods whose counts depend on the picture.

    Attributes:
        tokens: Vision tokens that each decoder layer processes.
        tower_tokens: For a method that drops before the tower of a Qwen-VL or GLM-V (PixelPrune): for each image or
            video, the indices of the tokens whose patches the tower runs on.
        tower_rows: For the same method on other families, which restore dropped patches after the tower: for each
            image or video, the number of rows that the tower runs on in each of its pictures, tiles or frames. An
            empty entry means all rows. In a batch, every picture counts as the one with the most rows.
    """

    tokens: Sequence[int] | None
    tower_tokens: Sequence[Sequence[int] | Tensor] | None
    tower_rows: Sequence[Sequence[int]] | None


class Known(RunCounts, total=False):
    """Optional knowledge about a prompt beyond its token counts.

    Attributes:
        tower_images: Number of pictures that the tower encodes for each image or video: crops (LLaVA-OneVision: the
            base view and its tiles), frames, or temporal patches (Qwen-VL). By default derived from the token counts:
            for LLaVA the count divided by that of one picture, for LLaVA-OneVision one where the count is that of a
            picture without tiles, for Qwen-VL one (an image). Videos and pictures with tiles need it in LLaVA-NeXT and
            LLaVA-OneVision. `Family.pictures` reads it from a processor's output.
        grids: Rows and columns of the tokens in each image's frames or views, for methods that work on grids
            (AveragePool, Resize) and for towers whose cost depends on them (Qwen2.5-VL's windows). `[[(24, 24)]]` is
            one LLaVA-1.5 image, whose grids are known by default.
        videos: True for videos, whose grids are frames: one bool per entry, or one for all. For methods that compare
            frames (DyCoke, EVS). 32 frames of LLaVA-OneVision are `vision_tokens=6273, tower_images=32,
            grids=[[(14, 14)] * 32], videos=True`.
    """

    tower_images: Count | Sequence[Count] | None
    grids: Grids | None
    videos: bool | Sequence[bool] | None


@dataclass(frozen=True, slots=True)
class PromptLengths:
    """The token counts of a prompt.

    Attributes:
        sizes: Vision tokens of each image or video.
        pictures: Number of pictures that the tower encodes for each of them; None derives it from `sizes`.
        grids: Rows and columns of the frames or views of each; None if unknown.
        videos: True for each entry that is a video; None if unknown.
    """

    sizes: tuple[int, ...]
    pictures: tuple[int, ...] | None
    grids: Grids | None
    videos: Sequence[bool] | None

    @classmethod
    def of(cls, text: int, vision_tokens: int | Sequence[int], known: Known) -> Self:
        """Build a prompt and check its counts.

        Raises:
            SettingError: If all counts are zero, or an entry of `known` is missing for an image.
        """
        tower_images, grids, videos = known.get("tower_images"), known.get("grids"), known.get("videos")
        sizes, pictures = _counts(vision_tokens), None if tower_images is None else _counts(tower_images)
        if isinstance(videos, bool):
            videos = [videos] * len(sizes)
        if text + sum(sizes) == 0:
            raise SettingError("A prompt needs at least one token; got none in text_tokens and vision_tokens.")
        for name, entries in (("tower_images", pictures), ("grids", grids or None), ("videos", videos or None)):
            if entries is not None and len(entries) != len(sizes):
                raise SettingError(
                    f"{name} must have one entry per image or video; got {len(entries)} for {len(sizes)} in "
                    "vision_tokens."
                )
        return cls(sizes, pictures, grids, videos)


def _counts(counts: int | Sequence[int]) -> tuple[int, ...]:
    """Return one count per image, as a tuple."""
    return (counts,) if isinstance(counts, int) else tuple(counts)
