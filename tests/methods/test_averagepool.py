import pytest
import torch
from hypothesis import given, strategies as st

import foveate as fv
from foveate.contract import Arriving, ImageView, Shape
from foveate.methods.averagepool import AveragePool
from tests.contract.test_cuts import Config
from tests.models import FAMILIES, QWENS, batch, features, tiny

EXAMPLES = [AveragePool(keep=0.4), AveragePool(keep=0.15)]
KEEP_ALL = AveragePool(keep=1.0)
SMALLEST = AveragePool(keep=0.001)
DEPTH = 6


def pooled(method, features, grids):
    """What the stage behind the projector makes of an image's tokens."""
    (stage,) = method.stages(Shape(depth=32))
    assert (stage.side, stage.unit) == ("behind", "image")
    return stage.cut(ImageView(features, grids=grids))


def arriving(*grids, entered=None, reserved=0):
    tokens = sum(rows * columns for rows, columns in grids)
    return Arriving(tokens, entered or tokens, tokens, reserved, grids)


def test_a_small_grid_by_hand():
    features = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [7.0]])  # 2 x 4
    cut = pooled(AveragePool(keep=0.25), features, ((2, 4),))
    assert cut.rows.tolist() == [[2.5], [4.5]]
    assert cut.parent.tolist() == [0, 0, 1, 1] * 2
    assert cut.source.tolist() == [5, 7]
    assert cut.count == 2


@given(tall=st.integers(1, 6), wide=st.integers(1, 6), down=st.integers(1, 4), across=st.integers(1, 4))
def test_where_sides_divide_it_is_torchs_adaptive_pooling(tall, wide, down, across):
    grid = (tall * down, wide * across)
    features = torch.randn(grid[0] * grid[1], 3, generator=torch.Generator().manual_seed(tall + 7 * wide))
    method = AveragePool(keep=1 / (down * across))
    cells = method.coarsen(arriving(grid))[0]
    if cells == grid:  # no stage at all, or nothing to do
        return
    cut = pooled(method, features, (grid,))
    if grid[0] % cells[0] or grid[1] % cells[1]:
        return
    wanted = torch.nn.functional.adaptive_avg_pool2d(features.T.view(1, 3, *grid), cells)[0].flatten(1).T
    torch.testing.assert_close(cut.rows, wanted)


def test_frames_are_pooled_apart_and_a_closing_newline_is_spared():
    features = torch.cat((torch.zeros(4, 1), torch.ones(4, 1)))
    cut = pooled(AveragePool(keep=0.25), features, ((2, 2), (2, 2)))
    assert cut.rows.tolist() == [[0.0], [1.0]]
    # a closing newline is one of the five rows that a fifth of 26 tokens may leave
    assert AveragePool(keep=5.2 / 26).coarsen(arriving((5, 5), entered=26, reserved=1)) == ((2, 2),)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_shows_is_pooled_behind_the_projector(family):
    model, inputs, method = tiny(family), batch(family, ["tit"]), AveragePool(keep=0.4)
    with torch.no_grad():
        (whole,) = features(model, inputs)
        with fv.drop(model, method) as trace:
            (reduced,) = features(model, inputs)
            model(**inputs)
    (stage,) = trace.stages
    assert (stage.where, stage.layer, stage.before) == ("projector", None, (len(whole),))
    (merged,), (origin,), (count,) = stage.merged, stage.origin, stage.after
    assert len(merged) == count < len(whole)
    for row, (members, centre) in enumerate(zip(merged, origin.tolist(), strict=True)):
        assert centre in members
        torch.testing.assert_close(reduced[row], whole[members].mean(dim=0))
    assert not reduced[count:].any()
    assert reduced.shape == whole.shape


@pytest.mark.parametrize("family", QWENS)
def test_a_video_of_patches_is_pooled_frame_by_frame(family):
    model, vision = tiny(family), tiny(family).config.vision_config
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(3 * 16, width, generator=torch.Generator().manual_seed(0))
    grid = torch.tensor([[3, 4, 4]])
    given_ = {"pixel_values_videos": pixels, "video_grid_thw": grid}
    with torch.no_grad():
        (whole,) = model.model.get_video_features(**given_).pooler_output
        with fv.drop(model, AveragePool(keep=0.25)):
            (reduced,) = model.model.get_video_features(**given_).pooler_output
    torch.testing.assert_close(reduced[:3], whole.view(3, 4, -1).mean(dim=1))


def test_what_the_spec_asks_for_at_published_budgets():
    for tokens, left in ((192, 182), (128, 121), (64, 64), (576, 576), (1, 1)):
        method = AveragePool.for_budget(Config(32), tokens=tokens)
        assert method.plan(32, (576,), [((24, 24),)]) == (left,) * 32


@given(rows=st.integers(1, 60), columns=st.integers(1, 60), share=st.floats(0, 1))
def test_any_budget_of_a_token_or_more_is_met_from_below(rows, columns, share):
    size = rows * columns
    tokens = share * size
    if tokens < 1:
        if share > 0:
            with pytest.raises(fv.BudgetError, match=r"1\.0 tokens"):
                AveragePool.for_budget(Config(28), tokens=min(tokens, 0.99), vision_tokens=size)
        return
    method = AveragePool.for_budget(Config(28), tokens=tokens, vision_tokens=size)
    (left, *_) = method.plan(28, (size,), [((rows, columns),)])
    assert 1 <= left <= tokens + 1e-6
    assert left > tokens / 2


def test_tokens_without_a_known_place_are_refused():
    with pytest.raises(fv.UnsupportedError, match="rows and columns"):
        pooled(AveragePool(), torch.zeros(4, 1), ())
