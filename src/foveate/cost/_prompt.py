"""The prompt of one sample as counts of tokens; counts that make no prompt are refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from foveate.errors import SettingError

__all__ = ["PromptLengths"]


@dataclass(frozen=True, slots=True)
class PromptLengths:
    """How many tokens go in.

    Attributes:
        text: Tokens that are not vision tokens.
        sizes: Vision tokens of each image or video.
        pictures: How many pictures the tower encodes for each of them; None to tell from the sizes.
    """

    text: int
    sizes: tuple[int, ...]
    pictures: tuple[int, ...] | None

    @classmethod
    def of(cls, text: int, vision_tokens: int | Sequence[int], tower_images: int | Sequence[int] | None) -> Self:
        """The prompt of these counts.

        Raises:
            SettingError: If one is negative, all are zero, or there is not a number of pictures for each image.
        """
        sizes = _counts(vision_tokens, "vision_tokens")
        pictures: tuple[int, ...] | None = None
        if tower_images is not None:
            pictures = _counts(tower_images, "tower_images")
        if pictures is not None and len(pictures) != len(sizes):
            raise SettingError(
                f"tower_images must have one count per image or video; got {len(pictures)} counts for {len(sizes)} "
                "in vision_tokens."
            )
        if text < 0 or text + sum(sizes) == 0:
            raise SettingError(
                f"A prompt needs at least one token; got {text} text tokens and {sum(sizes)} vision tokens."
            )
        return cls(text, sizes, pictures)

    @property
    def vision(self) -> int:
        """Vision tokens of all images."""
        return sum(self.sizes)

    @property
    def rows(self) -> int:
        """Tokens of the prompt."""
        return self.text + self.vision


def _counts(counts: int | Sequence[int], name: str) -> tuple[int, ...]:
    """One count an image as a tuple."""
    values = (counts,) if isinstance(counts, int) else tuple(int(count) for count in counts)
    if any(count < 0 for count in values):
        raise SettingError(f"{name} cannot be negative; got {counts}.")
    return values
