"""Which tokens are one picture, where the prompt and the features each tell half of it."""

import itertools
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from foveate.families.tiles import run_lengths

NAMES = ("{}_token_id", "{}_token_index", "{}_patch_id")
INSIDE = ("vision_config", "text_config")


def token_id(config: Any, modality: str) -> int | None:
    """The id of a placeholder, by the names that configs have for it; None if there is none."""
    for part in (config, *(getattr(config, name, None) for name in INSIDE)):
        for name in NAMES:
            token: int | None = getattr(part, name.format(modality), None)
            if token is not None:
                return token
    return None


def images_in(mask: Tensor, pieces: Sequence[int]) -> list[list[int]]:
    """Vision tokens of each image of each sample: an image ends where both a piece and a run of placeholders end.

    Tiles in one run are one image, and so are rows that have a run each. An example of 12 tokens:

        runs      4   4   4        a picture whose three rows are told apart in the prompt, or a film's frames
        pieces    12               one image of 12

        runs      8       4        one run of two tiles, and one of one
        pieces    4   4   4        images of 8 and 4

    Args:
        mask: Where the vision tokens are, (samples, columns) bool.
        pieces: Tokens of each piece of the features, in order; none: every run is an image.
    """
    runs = run_lengths(mask)
    if not pieces or sum(pieces) != sum(itertools.chain(*runs)):
        return runs
    ends = set(itertools.accumulate(pieces))
    images, end = [], 0
    for sample in runs:
        lengths, begun = [], 0
        for length in sample:
            end, begun = end + length, begun + length
            if end in ends:
                lengths.append(begun)
                begun = 0
        images.append(lengths if not begun else sample)  # a piece of two samples: nothing is known
    return images
