import torch

import foveate as fv
from foveate.contract import Shape, change
from foveate.methods.evs import EVS
from tests.methods import at
from tests.methods.test_vidcom2 import kept
from tests.models import batch, tiny

EXAMPLES = [EVS(q=0.5), EVS(retention=0.6)]
ONLY_VIDEOS = True


def test_the_frame_before_counts_and_not_the_last_one_kept():
    rows = at(0, 0, 20, 0, 40, 0, 60, 25)  # by 20 each time, and once by 25, though it has come 60 in all
    assert kept(EVS(tokens=3), rows, 4) == [0, 1, 7]


def test_frames_may_vanish_and_ties_go_to_the_lower_index():
    rows = at(0, 0, 0, 0, 0, 0, 90, 90)
    assert kept(EVS(tokens=4), rows, 4) == [0, 1, 6, 7]
    assert kept(EVS(q=0.5), torch.ones(8, 3), 4) == [0, 1, 2, 3]
    assert kept(EVS(q=0.5), torch.zeros(8, 3), 4) == [0, 1, 2, 3]


def test_places_that_did_not_change_tie_whatever_they_show():
    """Rounding is no change: of a still scene the lower indices stay, and what moved by a hair goes before them."""
    for seed in range(5):
        scene = torch.randn(25, 64, generator=torch.Generator().manual_seed(seed)).repeat(8, 1)
        assert kept(EVS(q=0.5), scene, 8) == list(range(100))
        scene[150:, 0] += 1e-3  # from frame 6 on; 1 − cosine is below 1e-6, some 8 steps of a float32 cosine
        assert kept(EVS(tokens=50), scene, 8) == [*range(25), *range(150, 175)]


def test_from_and_to_nothing_is_a_change_like_a_right_angle():
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(change(rows, rows.roll(1, 0)), torch.tensor([2.0, 1.0, 1.0, 1 - 0.5**0.5, 1.0, 1.0]))
    assert change(torch.zeros(1, 2), torch.zeros(1, 2)).tolist() == [1.0]


def test_nothing_to_drop_is_no_stage():
    assert EVS(q=0.0).stages(Shape(depth=6)) == ()
    assert EVS().own == 0.75


def engine_keeps(rows, frames, q):
    """The engine's rule on one clip's rows, (tokens, width), in float64: 1 − cosine with the same place before."""
    clip = rows.double().reshape(frames, -1, rows.shape[-1])
    changed = 1 - torch.cosine_similarity(clip[1:], clip[:-1], dim=-1)
    scores = torch.cat((torch.full_like(clip[:1, :, 0], 255), changed)).flatten()
    count = max(clip.shape[1], int(len(rows) * (1 - q)))
    return scores.argsort(descending=True, stable=True)[:count].sort().values.tolist()


def test_on_qwen3_vl_what_is_added_later_counts_too():
    """Two clips, each by its features and its deepstack features side by side."""
    model = tiny("qwen3_vl")
    inputs = batch("qwen3_vl", ["tvtvt"])
    with torch.no_grad():
        clips = model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    frames, sizes = inputs["video_grid_thw"][:, 0].tolist(), [len(clip) for clip in clips.pooler_output]
    main = torch.cat(tuple(clips.pooler_output))
    deep = [part if isinstance(part, torch.Tensor) else torch.cat(tuple(part)) for part in clips.deepstack_features]
    beside, shares = torch.cat((main, *deep), dim=1), [0.2, 0.3, 0.4, 0.5, 0.6]

    def kept_of(rows, q):
        first, second = map(engine_keeps, rows.split(sizes), frames, (q, q))
        return first + [sizes[0] + token for token in second]

    assert any(kept_of(beside, q) != kept_of(main, q) for q in shares)
    for q in shares:
        with fv.drop(model, EVS(q=q)) as trace, torch.no_grad():
            model(**inputs)
        assert trace.stages[0].kept[0].tolist() == kept_of(beside, q)
