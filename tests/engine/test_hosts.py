"""What enters a decoder that foveate does not run: the same rows as enter foveate's own, images alike together."""

from dataclasses import replace

import pytest
import torch

import foveate as fv
from foveate.contract import Attention, LayerStage, Shape, TowerAttention, follow
from foveate.core.views import TowerView
from foveate.engine.hosts import enter
from foveate.engine.program import Program
from foveate.errors import UnsupportedError
from foveate.naming import parse

TOKENS = 36


def early(method):
    return Program(method, follow.in_order(method.stages(Shape(6, cls=True))))


def shown(seed):
    rng = torch.Generator().manual_seed(seed)
    features, keys = torch.randn(TOKENS, 8, generator=rng), torch.randn(TOKENS, 4, generator=rng)
    scores, cls = torch.rand(TOKENS, 1, generator=rng), torch.randn(1, 8, generator=rng)

    def signal_of(signal):
        return scores if isinstance(signal, TowerAttention) else keys

    return TowerView(features, (6, 6), cls, signal_of, entered=TOKENS, grids=((6, 6),))


def doubled(images):
    return [torch.cat((rows, 2 * rows), dim=-1) for rows in images]


METHODS = ("visionzip", "divprune", "averagepool", "holov", "visionzip:retention=0.5+divprune", "tome")


def test_of_a_video_as_many_rows_enter_as_were_counted():
    stages = early(parse("dycoke").with_budget(retention=0.5))
    views = [replace(shown(seed), grid=None, grids=((3, 3),) * 4) for seed in (0, 1)]
    count = stages.count(TOKENS, views[0].grids, video=True)
    assert count == TOKENS // 2
    assert [len(rows) for rows in enter(stages, views, doubled, video=True)] == [count, count]
    assert stages.count(TOKENS, views[0].grids) == TOKENS  # a picture in four views stays whole


@pytest.mark.parametrize("name", METHODS)
def test_as_many_rows_enter_as_were_counted_and_images_alike_get_together_what_they_get_alone(name):
    stages = early(parse(name).with_budget(tokens=9))
    assert stages.late == ()
    together = enter(stages, [shown(0), shown(1), shown(2)], doubled)
    assert [len(rows) for rows in together] == [stages.count(TOKENS, [(6, 6)])] * 3
    for seed, image in enumerate(together):
        (alone,) = enter(stages, [shown(seed)], doubled)
        torch.testing.assert_close(image.rows, alone.rows, atol=1e-6, rtol=0)


def test_rows_are_dropped_before_they_are_projected():
    seen = []

    def project(images):
        seen.extend(len(rows) for rows in images)
        return doubled(images)

    view = shown(0)
    (image,) = enter(early(fv.VisPruner(tokens=5)), [view], project)
    assert seen == [5]
    # Every row is one of the image's own.
    assert all((view.features == row[:8]).all(dim=1).any() for row in image.rows)


def test_a_stage_before_layer_0_sees_what_the_projector_makes():
    view = shown(0)
    (image,) = enter(early(fv.DivPrune(tokens=4)), [view], doubled)
    features = doubled([view.features])[0]
    unit = features / features.norm(dim=1, keepdim=True)
    similar = unit @ unit.T
    kept = [int((features == row).all(dim=1).nonzero()[0, 0]) for row in image.rows]
    # Max-min diversity, by its definition: each token picked later is the farthest from those picked before.
    distance = 1 - similar
    left = [token for token in range(TOKENS) if token not in kept]
    nearest = [distance[token, kept].min() for token in left]
    among = min(distance[one, other] for one in kept for other in kept if one != other)
    assert max(nearest) <= among + 1e-6


def test_stages_between_layers_are_late():
    stages = early(fv.VisionZip(tokens=9) + fv.V2Drop(layers=(2, 4), keep=(0.5, 0.5)))
    assert [stage.layer for stage in stages.late] == [2, 4]
    assert stages.count(TOKENS, [(6, 6)]) == 9


def test_attention_before_layer_0_is_refused():
    class Asking(fv.Random):
        name = "asking"

        def stages(self, shape):
            signal = Attention(rows="last", layer="next")
            return (LayerStage(0, keep=0.5, reads=(signal,), score=lambda view: view[signal]),)

    with pytest.raises(UnsupportedError, match="foveate"):
        enter(early(Asking()), [shown(0)], doubled)
