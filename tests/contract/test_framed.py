"""What methods that compare frames have in common: counts, and so cost, are known from the shape of a video."""

import pytest
import torch

import foveate as fv
from foveate.bench.shapes import shape
from tests.models import DEPTH, batch, tiny

FILM = [(14, 14)] * 32
"""32 frames of LLaVA-OneVision, behind which a newline follows."""


def film_cost(method, **known):
    config = shape("llava-onevision-7b").make_config()
    return fv.cost(config, text_tokens=40, vision_tokens=6273, tower_images=32, method=method, **known)


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
@pytest.mark.parametrize(
    "method", [fv.EVS(q=0.6), fv.EVS(retention=0.7), fv.DyCoke(k=0.6), fv.DyCoke(retention=0.8), fv.VidCom2(tokens=9)]
)
def test_a_picture_and_a_video_are_planned_as_they_are_run(family, method):
    model = tiny(family)
    with fv.drop(model, method) as trace, torch.no_grad():
        model(**batch(family, ["titvt"]))
    media = trace.latest.media[0]
    sizes, grids = [image.length for image in media], [image.layout().grids for image in media]
    planned = method.plan(DEPTH, sizes, grids, [False, True])
    assert planned == tuple(trace.stages[-1].after) * DEPTH
    assert planned[0] < sum(sizes)
    told = fv.cost(
        model,
        text_tokens=7,
        vision_tokens=sizes,
        method=method,
        grids=grids,
        tower_images=[1, len(grids[1])],
        videos=[False, True],
    )
    assert told.tokens == planned


@pytest.mark.parametrize(
    ("method", "left"),
    [
        (fv.EVS(q=0.75), 1568 + 1),  # a quarter of 6,272, and the newline
        (fv.EVS(retention=0.25), 1568),  # 1,568.25 of 6,273, the newline among them
        (fv.DyCoke(k=0.7), 8 * 196 + 24 * 58 + 1),  # the first of each four frames, and int(0.3 · 196) of the others
        (fv.VidCom2(retention=0.25), 1568),
    ],
)
def test_32_frames_by_hand(method, left):
    assert film_cost(method, grids=[FILM], videos=True).tokens == (left,) * 28


def test_a_budget_below_the_first_frame_is_refused_before_the_video_is_there():
    with pytest.raises(fv.BudgetError, match=r"3\.14%"):
        film_cost(fv.EVS(retention=0.02), grids=[FILM], videos=True)


def test_a_picture_of_several_views_keeps_all():
    assert film_cost(fv.EVS(), grids=[FILM], videos=False).retention == 1


def test_without_grids_it_does_not_help_to_know_what_is_a_video():
    assert fv.EVS().plan(4, (12,), None, [True]) is None
    assert fv.VidCom2().plan(4, (12,), None, [False]) is None  # how many of the tokens are newlines is not known
