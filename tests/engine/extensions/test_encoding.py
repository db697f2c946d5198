"""What the reducer makes of images in the tower: pooled where the tower cannot, and alike ones together as alone."""

from functools import partial

import pytest
import torch

import foveate as fv
from foveate.contract import ImageStage, Method, ThinStage, TowerAttention
from foveate.core.views import TowerView
from foveate.engine.extensions.encoding.reducer import TowerReducer
from foveate.engine.program import Program
from foveate.registry import family_for
from tests.bench.operators import Operators
from tests.models import tiny


def reducer(method, family="llava"):
    return TowerReducer(Program.on(method, family_for(tiny(family))), None)


def test_where_the_tower_cannot_lose_tokens_the_projected_grid_is_merged():
    grid = torch.randn(6, 6, 8, generator=torch.Generator().manual_seed(3))
    grid[:3, :3] = torch.ones(8)
    scores = torch.zeros(36)
    scores[[0, 1, 2]] = 9.0  # averaged over the window they are its three ninths
    scores[35] = 4.0
    known = {TowerAttention(layer=1): scores[:, None]}
    view = TowerView(grid.reshape(36, 8), (6, 6), None, known.__getitem__, entered=36)
    (cut,) = reducer(fv.MustDrop(key_rate=0.03, pruning_layers=(2,))).reduce([view])
    assert cut.count == 28
    assert torch.equal(cut.rows[0], torch.ones(8))
    (key,) = cut.notes.values()
    assert cut.source[key].tolist() == [35]


def shown(seed, tokens=36, alike=0.0):
    """An image in the tower, whose first window of patches is alike to a share."""
    rng = torch.Generator().manual_seed(seed)
    features = torch.randn(tokens, 8, generator=rng)
    features[[0, 1, 2, 6, 7, 8, 12, 13, 14]] *= 1 - alike
    features[[0, 1, 2, 6, 7, 8, 12, 13, 14]] += alike * torch.ones(8)
    scores, keys = torch.rand(tokens, generator=rng), torch.randn(tokens, 4, generator=rng)
    cls = torch.randn(1, 8, generator=rng)
    return TowerView(features, (6, tokens // 6), cls, partial(read, scores, keys), entered=tokens)


def read(scores, keys, signal):
    return scores[:, None] if isinstance(signal, TowerAttention) else keys


def same(one, other):
    if one is None or other is None:
        assert one is other
        return
    assert one.count == other.count
    assert one.source.tolist() == other.source.tolist()
    assert one.parent.tolist() == other.parent.tolist()
    torch.testing.assert_close(one.rows, other.rows, atol=1e-6, rtol=0)
    assert {name: note.tolist() for name, note in one.notes.items()} == {
        name: note.tolist() for name, note in other.notes.items()
    }


METHODS = [
    fv.VisionDrop(dominant=14, contextual=3, layer_list=(2,), image_token_list=((9, 2),), reference=36),
    fv.MustDrop(pruning_layers=(2,)),
    fv.MustDrop(pruning_layers=(2,), positions="keep"),
    fv.MustDrop(pruning_layers=(2,), merge_windows=False),
]


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("alike", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 1.0)], ids=str)
@pytest.mark.parametrize("tokens", [36, 42])
def test_images_come_to_what_each_does_alone(method, alike, tokens):
    def views():
        return [shown(seed, (36, tokens, 36)[seed], share) for seed, share in enumerate(alike)]

    alone = [reducer(method).reduce([view])[0] for view in views()]
    for one, other in zip(reducer(method).reduce(views()), alone, strict=True):
        same(one, other)


@pytest.mark.parametrize("keep", [1 / 9, 1 / 3])
def test_the_frames_of_a_film_take_few_more_operators_than_one(keep):
    frames, counts = list(torch.randn(16, 36, 8)), []
    for segments in (frames[:1], frames[:1], frames):  # the first call makes what later ones find
        with Operators() as operators:
            reducer(fv.ThinTower(keep=keep)).thin(segments, [(6, 6)] * len(segments))
        counts.append(operators.count)
    assert counts[2] < 2 * counts[1]


def test_a_thinning_stage_of_another_author_may_read_values():
    class Loudest(Method):
        name = "loudest"

        def stages(self, shape):
            return (ThinStage(at=0.5, keep=0.5, score=lambda view: torch.tensor(view.patches[:, 0].tolist())),)

    rows = torch.arange(8.0)[:, None]
    cuts = reducer(Loudest()).thin([rows, -rows], [None, None])
    assert [cut.source.tolist() for cut in cuts] == [[4, 5, 6, 7], [0, 1, 2, 3]]


def test_a_second_stage_reads_of_the_tower_what_the_first_has_left():
    class Twice(Method):
        name = "twice"

        def stages(self, shape):
            first = ImageStage(keep=0.5, score=lambda view: torch.arange(len(view)) % 2)
            return first, ImageStage(reads=(TowerAttention(layer=1),), keep=0.5, score=lambda view: view.attention)

    image = shown(5)
    odd = image.read(TowerAttention(layer=1))[1::2, 0]
    (cut,) = reducer(Twice()).reduce([image])
    assert cut.source.tolist() == (1 + 2 * odd.topk(9).indices.sort().values).tolist()


def test_a_second_stage_reads_what_the_first_has_noted():
    class Noting(Method):
        name = "noting"

        def stages(self, shape):
            first = ImageStage(look=lambda view: {"mine": torch.arange(len(view)) % 3})
            return first, ImageStage(keep=1 / 3, score=lambda view: view.notes["mine"])

    (cut,) = reducer(Noting()).reduce([shown(5)])
    assert cut.source.tolist() == list(range(2, 36, 3))
