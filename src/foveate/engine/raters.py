"""Begin: which tokens of the text behind an image resemble it: the raters, told from what enters the decoder."""

import torch
from torch import Tensor

from foveate.engine.bucket import Bucket
from foveate.engine.forward import Forward
from foveate.engine.looking import Unit, image_units

__all__ = ["RATERS", "last_marked", "raters_of"]

RATERS = "raters"
"""The name under which a bucket remembers them."""


def raters_of(forward: Forward, bucket: Bucket, hidden: Tensor) -> Tensor:
    """Which columns are raters of each image, (samples, images, columns) bool: see `Attention`.

    Args:
        forward: Knows the columns of text.
        bucket: The samples and their images' rows.
        hidden: What enters the decoder, (all samples, columns, width).
    """
    assert bucket.sizes is not None  # nothing has cut in the decoder yet
    text = forward.text.to(hidden.device)[bucket.index]
    if forward.live is not None:
        text = text & (forward.live[:, -forward.span :].to(hidden.device)[bucket.index] != 0)
    units = image_units(bucket.first, bucket.sizes)
    return torch.stack([_of_image(bucket, hidden, text, unit) for unit in units], dim=1)


def _of_image(bucket: Bucket, hidden: Tensor, text: Tensor, unit: Unit) -> Tensor:
    """Those of one image, (samples, columns) bool."""
    nobody = torch.zeros_like(text)
    most, _ = bucket.text_behind(unit.start, unit.stop)
    if not len(unit) or not most:
        return nobody
    columns = bucket.columns[:, unit.rows]
    behind = torch.arange(text.shape[1], device=text.device) > columns[:, -1:]
    places, real = last_marked((text & behind).long(), most)
    image = hidden[bucket.owners, columns].float()
    words = hidden[bucket.owners, places].float()
    alike = (image @ words.transpose(1, 2)).masked_fill(real[:, None] == 0, float("-inf"))
    shares = alike.softmax(dim=2).mean(dim=1)  # (samples, words)
    mean = shares.sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True)
    above = (shares > mean) & (real != 0)
    raters = torch.where(above.any(dim=1, keepdim=True), above, real != 0)
    return nobody.scatter(1, places, raters)


def last_marked(marks: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Where the last marked places of each row are, `most` of them.

    An example: marks 1 0 1 1 and 0 0 0 1, two of each: places 2 3 and 2 3, marks 1 1 and 0 1.

    Args:
        marks: (rows, places), 0 or 1.
        most: At least as many as any row has.

    Returns:
        (rows, most) int64 twice: places, the marked ones at the end and in order; and their marks.
    """
    # A stable sort of 0s and 1s brings the marked places to the end, in order.
    sorted_marks, order = marks.sort(dim=1, stable=True)
    first = marks.shape[1] - most
    return order[:, first:], sorted_marks[:, first:]
