"""What a vision tower and its projector are, in numbers of a config: `foveate.cost` counts FLOPs of these."""

from dataclasses import dataclass
from typing import Any, Self

from foveate.core.grid import Grid

Counts = tuple[int, ...]
"""A count for each image or video."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerShape:
    """A vision tower of transformer blocks, and what projects its features.

    Attributes:
        depth: Blocks. transformers runs all, also those behind the one that the projector reads.
        width: Of the blocks.
        inner: Width of the blocks' MLP.
        pixels: Numbers of a patch, of all channels and frames.
        projector: FLOPs of the projector on one token.
        gated: Whether the MLP has a gate.
        patches: Patches of a token.
        cls_tokens: Rows of a picture besides its patches: 1 for a CLS.
        extra: Tokens that the projector gets of a picture besides those of its patches: −1 where a patch is left out.
        tokens: Tokens that the projector makes of any picture; 0: as many as its grid has.
        pooling_head: Whether SigLIP's pooling head runs, though its output is not used.
        joined: Whether patches are multiplied with those of all pictures, as in a Pixtral without flash attention.
        windowed: Blocks that look through windows.
        window: Tokens of a window's side.
    """

    depth: int
    width: int
    inner: int
    pixels: int
    projector: int
    gated: bool = False
    patches: int = 1
    cls_tokens: int = 0
    extra: int = 0
    tokens: int = 0
    pooling_head: bool = False
    joined: bool = False
    windowed: int = 0
    window: int = 0

    @classmethod
    def of(cls, vision: Any, projector: int, **others: Any) -> Self:
        """That of a tower's config, where it calls its numbers by the usual names; `others` are attributes of this."""
        patch = vision.patch_size
        side = patch if isinstance(patch, int) else patch[0]  # of a patch, in pixels
        return cls(
            depth=vision.num_hidden_layers,
            width=vision.hidden_size,
            inner=vision.intermediate_size,
            pixels=vision.num_channels * side**2,
            projector=projector,
            **others,
        )


@dataclass(frozen=True, slots=True)
class PicturesRun:
    """The pictures of a sample that go through the tower.

    Attributes:
        grids: Rows and columns of each one's tokens before anything is pooled.
        projected: Tokens that the projector gets; None: those of the grids, and the tower's `extra`.
        pooling: FLOPs of pooling before the projector.
    """

    grids: tuple[Grid, ...]
    projected: int | None = None
    pooling: int = 0
