"""The prompt of one sample as counts of tokens; counts that make no prompt are refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, TypedDict

from torch import Tensor

from foveate.core.grid import Grid
from foveate.errors import SettingError

Grids = Sequence[Sequence[Grid]]
"""Rows and columns of each image's frames or views."""


class RunCounts(TypedDict, total=False):
    """What a run tells, for methods that decide by what the picture shows: `trace.latest.ran()`.

    Attributes:
        tokens: Vision tokens each decoder layer processes.
        tower_tokens: For a method that drops before the tower (PixelPrune) of a Qwen-VL or GLM-V: the tokens of each
            image or video whose patches the tower runs on.
        tower_rows: The same for other families, where patches come back behind the tower: on how many rows of each of
            its pictures, tiles or frames it runs. An empty entry: on all. Pictures of a batch count as the one with
            most.
    """

    tokens: Sequence[int] | None
    tower_tokens: Sequence[Sequence[int] | Tensor] | None
    tower_rows: Sequence[Sequence[int]] | None


class Known(RunCounts, total=False):
    """What is known of a prompt beside its counts.

    Attributes:
        tower_images: Pictures the tower encodes for each image or video: crops (LLaVA-OneVision: the base view and its
            tiles), frames, or temporal patches (Qwen-VL). By default told from the token counts: for LLaVA their
            multiple of a picture's, for LLaVA-OneVision the number that alone gives that count, for Qwen-VL one, an
            image. `Family.tower_images` reads it off a processor's output.
        grids: For methods that work on grids (AveragePool, Resize), and for towers whose cost depends on them
            (Qwen2.5-VL's windows): rows and columns of the tokens of each image's frames or views, `[[(24, 24)]]` for
            one LLaVA-1.5 image, whose grids are known without.
        videos: Whether they are videos, so that their grids are frames: one bool for each, or one for all. For methods
            that compare frames (DyCoke, EVS); 32 frames of LLaVA-OneVision are `vision_tokens=6273,
            grids=[[(14, 14)] * 32], videos=True`.
    """

    tower_images: int | Sequence[int] | None
    grids: Grids | None
    videos: bool | Sequence[bool] | None


@dataclass(frozen=True, slots=True)
class PromptLengths:
    """How many tokens go in.

    Attributes:
        sizes: Vision tokens of each image or video.
        pictures: How many pictures the tower encodes for each of them; None to tell from the sizes.
        grids: Rows and columns of the frames or views of each, where they are known.
        videos: Whether each is a video, where that is known.
    """

    sizes: tuple[int, ...]
    pictures: tuple[int, ...] | None
    grids: Grids | None
    videos: Sequence[bool] | None

    @classmethod
    def of(cls, text: int, vision_tokens: int | Sequence[int], known: Known) -> Self:
        """The prompt of these counts.

        Raises:
            SettingError: If one is negative, all are zero, or what is known is not known of each image.
        """
        sizes = _counts(vision_tokens, "vision_tokens")
        tower_images, grids, videos = known.get("tower_images"), known.get("grids"), known.get("videos")
        pictures: tuple[int, ...] | None = None
        if tower_images is not None:
            pictures = _counts(tower_images, "tower_images")
        if isinstance(videos, bool):
            videos = [videos] * len(sizes)
        if pictures is not None and len(pictures) != len(sizes):
            raise SettingError(
                f"tower_images must have one count per image or video; got {len(pictures)} counts for {len(sizes)} "
                "in vision_tokens."
            )
        if text < 0 or text + sum(sizes) == 0:
            raise SettingError(
                f"A prompt needs at least one token; got {text} text tokens and {sum(sizes)} vision tokens."
            )
        for name, entries in (("grids", grids), ("videos", videos)):
            if entries and len(entries) != len(sizes):
                raise SettingError(
                    f"{name} must have one entry per image or video; got {len(entries)} for {len(sizes)} in "
                    "vision_tokens."
                )
        return cls(sizes, pictures, grids, videos)


def _counts(counts: int | Sequence[int], name: str) -> tuple[int, ...]:
    """One count an image as a tuple."""
    values = (counts,) if isinstance(counts, int) else tuple(int(count) for count in counts)
    if any(count < 0 for count in values):
        raise SettingError(f"{name} cannot be negative; got {counts}.")
    return values
