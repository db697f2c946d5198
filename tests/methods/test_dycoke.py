import pytest
import torch

import foveate as fv
from foveate.contract import Arriving, ImageView, ReadView, Shape, follow
from foveate.methods.dycoke import DyCoke
from tests.methods import at, stage_of
from tests.methods.test_vidcom2 import kept
from tests.models import batch, generate, tiny

EXAMPLES = [DyCoke(k=0.6), DyCoke(retention=0.7, positions="keep"), DyCoke(k=0.6, p=0.5, layer=2)]
ONLY_VIDEOS = True


def test_the_third_frame_is_compared_with_the_first_and_not_with_its_neighbour():
    rows = at(0, 0, 60, 0, 60, 20)  # from frame 0: 60 and 20; from frame 1: 0 and 20
    assert kept(DyCoke(k=0.5), rows, 3) == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("frames", "drops", "left"),
    [
        (32, 0.7, 8 * 196 + 24 * 58),  # (1 − 0.7) · 196 are 58.8
        (32, 1.0, 8 * 196),
        (1, 0.7, 196),
        (2, 0.7, 196 + 58),
        (3, 0.7, 196 + 2 * 58),  # the release loses the last of an odd number
        (4, 0.7, 196 + 3 * 58),  # the release does not compare the third of the last window
        (5, 0.7, 2 * 196 + 3 * 58),
        (7, 0.9, 2 * 196 + 5 * 19),
    ],
)
def test_every_number_of_frames_and_the_last_window_are_handled(frames, drops, left):
    grids = ((14, 14),) * frames
    arriving = Arriving(frames * 196, frames * 196, frames * 196, grids=grids, video=True)
    assert stage_of(DyCoke(k=drops)).left(arriving) == left


def test_what_is_equal_everywhere_stays_at_the_lower_index():
    assert kept(DyCoke(k=0.5), torch.ones(8, 3), 2) == [0, 1, 2, 3, 4, 5]
    assert kept(DyCoke(k=0.5), torch.zeros(8, 3), 2) == [0, 1, 2, 3, 4, 5]
    for seed in range(5):  # a still scene, in which rounding must not look like a change
        scene = torch.randn(25, 64, generator=torch.Generator().manual_seed(seed)).repeat(4, 1)
        first = [frame * 25 + token for frame in (1, 2, 3) for token in range(12)]
        assert kept(DyCoke(k=0.5), scene, 4) == list(range(25)) + first


def test_a_picture_keeps_everything_also_with_a_budget():
    for method in (DyCoke(k=1.0), DyCoke(retention=0.1), DyCoke(tokens=3), fv.EVS(q=1.0), fv.EVS(retention=0.1)):
        assert kept(method, torch.randn(12, 4), 3, video=False) == list(range(12))
        assert kept(method, torch.randn(12, 4), 1) == list(range(12))
    inputs = batch("llava", ["tit"])
    with fv.drop(tiny("llava"), DyCoke(k=1.0)) as trace:
        generate(tiny("llava"), inputs)
    assert trace.retention == [1.0]


def test_how_many_stay_is_not_known_where_views_may_be_frames_or_tiles():
    assert stage_of(DyCoke()).left(Arriving(8, 8, 8, grids=((2, 2), (2, 2)))) is None
    assert DyCoke(retention=0.5).plan(28, (576,)) is None
    assert DyCoke().plan(28, (576,), [((24, 24),)]) == (576,) * 28
    with pytest.raises(fv.UnsupportedError, match="frames"):
        stage_of(DyCoke()).cut(ImageView(torch.randn(8, 4)))


# -- second stage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "count"), [(0.7, 3), (0.5, 5), (0.91, 0), (1.0, 0)])
def test_a_step_reads_the_most_attended_or_what_was_read_before(share, count):
    stage = follow.reading(DyCoke(p=share).stages(Shape(28)))
    assert (stage.layer, stage.when) == (3, "step")
    paid = torch.tensor([0.1, 0.5, 0.1, 0.9, 0.2, 0.8, 0.0, 0.1, 0.1, 0.3])
    ranked = [3, 5, 1, 9, 4]
    first = stage.cut(ReadView(paid))
    assert first.source.tolist() == sorted(ranked[:count])
    earlier = torch.zeros(10, dtype=torch.bool).index_fill(0, torch.arange(count), True)
    alike, other = 2 * paid, paid.flip(0)
    assert stage.cut(ReadView(paid, alike, earlier)).source.tolist() == list(range(count))
    assert torch.equal(stage.cut(ReadView(paid, other, earlier)).source, first.source)


def test_without_p_there_is_one_stage_and_a_picture_too_is_read_in_part():
    assert follow.reading(DyCoke().stages(Shape(28))) is None
    assert DyCoke(k=0.0).stages(Shape(28)) == ()
    inputs = batch("llava", ["tit"])
    with fv.drop(tiny("llava"), DyCoke(p=0.7)) as trace:
        generate(tiny("llava"), inputs)
    assert trace.retention == [1.0]
    assert trace.reads == dict.fromkeys((3, 4, 5), (7,))
    told = fv.cost(tiny("llava").config, text_tokens=7, vision_tokens=25, method=DyCoke(k=0.0, p=0.7))
    assert told.read == (25, 25, 25, 7, 7, 7)
