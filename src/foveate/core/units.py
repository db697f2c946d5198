"""Units: tokens that a stage ranks together, and the numbers of tokens that the host knows."""

from dataclasses import dataclass

from torch import Tensor

from foveate.core.grid import Grid


@dataclass(frozen=True, slots=True)
class Arriving:
    """The host's knowledge of the tokens that arrive at a stage, from which it computes how many stay.

    Attributes:
        tokens: How many arrive.
        entered: How many vision tokens entered the model, over all units that the stage ranks together, newlines and
            the like included.
        started: How many of these entered the decoder: fewer if an earlier stage dropped some.
        reserved: Rows that the family adds itself (a closing newline), to be subtracted from a fixed count.
        grids: Rows and columns of each frame or view, in order. Empty if they are not known, and before a decoder
            layer, unless the stage reads `Cells` of an image of which no token has left.
        video: True if they belong to a video, so that `grids` are its frames. None if not known.
    """

    tokens: int
    entered: int
    started: int
    reserved: int = 0
    grids: tuple[Grid, ...] = ()
    video: bool | None = None

    @property
    def frames(self) -> tuple[int, ...] | None:
        """The number of tokens in each frame. An image is one frame, however many views it has. None if not known."""
        if self.video is False or len(self.grids) == 1:
            return (self.tokens,)
        if not self.video or not self.grids:  # several views may be frames or tiles
            return None
        return tuple(rows * columns for rows, columns in self.grids)

    @classmethod
    def all_of(cls, tokens: int) -> "Arriving":
        """`tokens` tokens, of which none has left yet."""
        return cls(tokens, tokens, tokens)


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows that are ranked together: of a sample, an image or a frame.

    Attributes:
        rows: The sample's vision rows that they are.
        arriving: The token counts from which a stage's budget is computed.
        text_after: Whether text stands behind them; one entry per image if they span several.
        image: Index of the sample's image (or frame); −1 for all of them. Text behind all is that behind the last.
    """

    rows: slice
    arriving: Arriving
    text_after: tuple[bool, ...]
    image: int = -1

    def __len__(self) -> int:
        return self.arriving.tokens

    def of(self, values: Tensor) -> Tensor:
        """Return the unit's part of values of all vision rows of its sample: (rows of the sample, …) -> (rows, …)."""
        return values if len(values) == len(self) else values[self.rows]
