"""The picture of a plan: as high in a layer as it has tokens."""

from dataclasses import replace

import numpy as np
from transformers import LlavaConfig

import foveate as fv
from foveate.viz import draw_plan

COST = fv.cost(LlavaConfig(), text_tokens=40, vision_tokens=576, method=fv.V2Drop(layers=(16,), keep=(0.5,)))


def blue_rows(picture):
    """How many pixels of each column of the picture are of the colour that fills the steps."""
    pixels = np.asarray(picture).astype(int)
    return (abs(pixels - pixels[-110, 200]).sum(axis=-1) < 12).sum(axis=0)


def test_steps_are_as_high_as_the_counts():
    heights = blue_rows(draw_plan(COST, "A plan"))
    first, second = heights[200:500], heights[700:1000]
    assert abs(np.median(first) / np.median(second) - 2) < 0.05


def test_caches_are_drawn_where_they_differ():
    fewer = draw_plan(replace(COST, cached=(100,) * 32))
    assert np.asarray(fewer).tobytes() != np.asarray(draw_plan(COST)).tobytes()
