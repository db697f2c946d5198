"""Resize: the control that gives the tower a smaller picture, so that it makes fewer tokens."""

from foveate.contract import Arriving, PixelStage, Shape, Stage
from foveate.methods.averagepool import Gridded


class Resize(Gridded):
    """Gives the tower a smaller image, so that its token grid is coarser: 13 x 14 for 24 x 24 at a third.

    Pixels are resized after the processor has normalised them, with antialiased bilinear interpolation. CLIP and SigLIP
    interpolate their position embeddings to the smaller grid; Qwen-VL's towers take any size. The prompt does not
    change: a token has the position ids of the original token at its centre. The tower also has less to compute.

    Attributes:
        keep, tokens, retention: See `Gridded`.
    """

    name = "resize"

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        return (PixelStage(coarsen=self.coarsen, count=self.cells),)

    def cells(self, arriving: Arriving) -> int | None:
        # A mosaic of tiles has a newline for each row. How many rows of smaller tiles are padding, which is cut off,
        # depends on the picture's proportions.
        newlines = arriving.entered - arriving.tokens
        if newlines > 1:
            return None
        return super().cells(arriving)


METHOD = Resize
