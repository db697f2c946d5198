"""Resize: the control that gives the vision tower a smaller image, so that it produces fewer tokens."""

from foveate.contract import Arriving, PixelStage, Shape, Stage
from foveate.methods.averagepool import Gridded


class Resize(Gridded):
    """Gives the tower a smaller image, so that its token grid is coarser. At a third, 24 x 24 becomes 13 x 14.

    Pixels are resized after the processor has normalised them, with antialiased bilinear interpolation. CLIP and SigLIP
    interpolate their position embeddings to the smaller grid; Qwen-VL's towers take any size. The prompt does not
    change: a token has the position ids of the original token at its centre. The tower also computes less.

    Attributes:
        keep, tokens, retention: See `Gridded`.
    """

    name = "resize"

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        return (PixelStage(coarsen=self.coarsen, count=self.cells),)

    def cells(self, arriving: Arriving) -> int | None:
        # A map of tiles has a newline for each row. How many rows of smaller tiles are padding, which is cut off,
        # depends on the image's aspect ratio. So the count is not known.
        newlines = arriving.entered - arriving.tokens
        if newlines > 1:
            return None
        return super().cells(arriving)
