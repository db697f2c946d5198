"""The picture of a plan: as high in a layer as it has tokens."""

import numpy as np

from foveate.viz.plan import draw_plan


def blue_rows(picture):
    """How many pixels of each column of the picture are of the colour that fills the steps."""
    pixels = np.asarray(picture).astype(int)
    return (abs(pixels - pixels[-110, 200]).sum(axis=-1) < 12).sum(axis=0)


def test_steps_are_as_high_as_the_counts():
    heights = blue_rows(draw_plan("A plan", 100, [100] * 5 + [50] * 5, [100] * 5 + [50] * 5))
    first, second = heights[200:500], heights[700:1000]
    assert abs(np.median(first) / np.median(second) - 2) < 0.05


def test_caches_are_drawn_where_they_differ():
    alike = draw_plan("A plan", 100, [80] * 4, [80] * 4)
    fewer = draw_plan("A plan", 100, [80] * 4, [20] * 4)
    assert np.asarray(alike).tobytes() != np.asarray(fewer).tobytes()
