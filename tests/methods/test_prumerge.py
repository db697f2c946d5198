import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate as fv
from foveate.contract import ImageView, Shape, TowerAttention, TowerKeys
from foveate.methods.prumerge import PruMerge
from foveate.methods.prumerge_plus import PruMergePlus
from tests.models import batch, tiny

EXAMPLES = [PruMerge(), PruMerge(retention=0.4), PruMerge(neighbours=3, positions="keep")]
KEEP_ALL = PruMerge(retention=1.0)
SMALLEST = PruMerge(tokens=1)


def cut_of(method, view, **shape):
    (stage,) = method.stages(Shape(depth=32, **{"cls": True, **shape}))
    cut = stage.cut(view)
    return cut if cut is None or isinstance(cut.count, int) else cut.first(int(cut.count))


def random_view(tokens, seed=0, spikes=0.1):
    """Tokens of which a share is attended far more than the others."""
    rng = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, generator=rng) + 9 * (torch.rand(tokens, generator=rng) < spikes)
    features, keys = torch.randn(tokens, 6, generator=rng), torch.randn(tokens, 8, generator=rng)
    return ImageView(features, attention=scores / scores.sum(), keys=keys)


# -- an example ----------------------------------------------------------------------------------------------------


def eight_patches():
    """Patch 5 and patch 2 are outliers: of 1 1 1 1 1 1 4 9 the quartiles are 1 and 1.75, so the bound is 2.875."""
    scores = torch.tensor([1.0, 1, 4, 1, 1, 9, 1, 1])
    features = torch.tensor([[1.0], [2], [3], [4], [5], [6], [7], [8]])
    angles = torch.tensor([0, 10, 20, 30, 100, 110, 120, 200]).deg2rad()  # nearest to 2 are 1 and 3, to 5 4 and 6
    keys = torch.stack((angles.cos(), angles.sin()), dim=1) * torch.tensor([1.0, 9, 1, 1, 1, 5, 1, 1])[:, None]
    return ImageView(features, attention=scores, keys=keys)


def test_eight_patches_by_hand():
    cut = cut_of(PruMerge(neighbours=2), eight_patches())
    assert cut.count == 3
    assert cut.source.tolist()[:2] == [5, 2]  # by falling attention, not in raster order
    # 6 + (5 + 7), 3 + (2 + 4), and all that are not kept: 1 + 2 + 4 + 5 + 7 + 8, each weighed by its attention of 1.
    assert cut.rows[:, 0].tolist() == [18, 9, 27]
    assert cut.source.tolist()[2] == 0  # the most attended of those, the first of equals
    assert cut.parent.tolist() == [2, 2, 1, 2, 2, 0, 2, 2]


def test_kept_tokens_are_among_the_neighbours():
    view = eight_patches()
    cut = cut_of(PruMerge(neighbours=7), view)
    assert cut.rows[0].item() == 6 + (27 + 4 * 3)  # the other outlier weighs 4
    assert cut.rows[1].item() == 3 + (27 + 9 * 6)


def test_where_position_ids_are_kept_rows_stand_in_raster_order():
    cut = cut_of(PruMerge(neighbours=2, positions="keep"), eight_patches())
    assert cut.source.tolist() == [0, 2, 5]
    assert cut.rows[:, 0].tolist() == [27, 9, 18]
    assert cut.parent.tolist() == [0, 0, 1, 0, 0, 2, 0, 0]
    renumbered = cut_of(PruMerge(neighbours=2), eight_patches(), renumbers=False)
    assert renumbered.source.tolist() == cut.source.tolist()


def reference(features, scores, keys, method):
    """The released rule in numpy, one token at a time: (kept in order, rows), the last row being all others."""
    tokens, spatial = len(scores), isinstance(method, PruMergePlus)
    low, high = numpy.percentile(scores.numpy(), [25, 75])
    outliers = max(1, int((scores.numpy() > high + 1.5 * (high - low)).sum()))
    ratio = outliers / tokens
    order = sorted(range(tokens), key=lambda token: (-scores[token].item(), token))
    kept = order[: max(1, int(tokens * ratio))]
    if spatial:
        step = max(1, int(int(1 / ratio) / 3))
        kept += [token for token in range(0, tokens - 1, step) if token not in kept]
    unit = keys / keys.norm(dim=1, keepdim=True)
    rows = []
    for token in kept:
        others = [other for other in range(tokens) if other != token]
        others.sort(key=lambda other: (-(unit[other] @ unit[token]).item(), other))
        near = others[: method.neighbours]
        rows.append(features[token] + sum((scores[other] * features[other] for other in near), torch.zeros(1)))
    dropped = [token for token in range(tokens) if token not in kept]
    rows.append(sum((scores[token] * features[token] for token in dropped), torch.zeros(features.shape[1])))
    return kept, torch.stack(rows)


@pytest.mark.parametrize("kind", [PruMerge, PruMergePlus])
@given(tokens=st.integers(1, 60), seed=st.integers(0, 2**16), spikes=st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.6]))
def test_it_is_the_released_rule_token_by_token(kind, tokens, seed, spikes):
    view, method = random_view(tokens, seed, spikes), kind(neighbours=5)
    kept, rows = reference(view.features, view.attention, view.keys, method)
    cut = cut_of(method, view)
    if len(rows) >= tokens:
        assert cut.count == tokens  # which the engine takes for a merge of nothing
        return
    assert cut.count == len(rows)
    assert cut.source[:-1].tolist() == kept
    torch.testing.assert_close(cut.rows, rows, atol=1e-5, rtol=1e-4)
    assert cut.parent[kept].tolist() == list(range(len(kept)))
    assert cut.parent[cut.source].tolist() == list(range(len(rows)))


# -- counts and edges ----------------------------------------------------------------------------------------------


def test_without_outliers_the_most_attended_token_stays():
    """The released code divides by their number."""
    view = ImageView(torch.ones(6, 2), attention=torch.full((6,), 1 / 6), keys=torch.zeros(6, 3))
    cut = cut_of(PruMerge(), view)
    assert cut.source.tolist() == [0, 1]  # of equals the first, and the first of the rest
    assert cut.parent.tolist() == [0, 1, 1, 1, 1, 1]
    torch.testing.assert_close(cut.rows, torch.tensor([[1 + 5 / 6] * 2, [5 / 6] * 2]))


@pytest.mark.parametrize("tokens", [49, 196, 576, 729])
@pytest.mark.parametrize("kind", [PruMerge, PruMergePlus])
def test_a_single_outlier_stays_whatever_the_number_of_patches(kind, tokens):
    """As floats 49 · (1 / 49) is a little less than 1, as with 196 and 729: rounded down, nothing would stay."""
    scores = torch.full((tokens,), 1 / tokens)
    scores[5] = 0.5
    view = ImageView(torch.ones(tokens, 2), attention=scores, keys=torch.ones(tokens, 3))
    cut = cut_of(kind(), view)
    assert cut.source[0] == 5
    assert (cut.parent == 0).nonzero().tolist() == [[5]]  # a row of its own, not that of all others


@given(tokens=st.integers(1, 700), share=st.floats(0.005, 1.0), seed=st.integers(0, 99))
def test_a_budget_is_met_exactly(tokens, share, seed):
    for kind in (PruMerge, PruMergePlus):
        if share == 1:
            assert kind(retention=share).stages(Shape(depth=32)) == ()
            continue
        cut = cut_of(kind(retention=share, neighbours=2), random_view(tokens, seed))
        count = max(1, int(share * tokens + 0.5))
        assert (tokens if cut is None else cut.count) == count
        if cut is not None:
            assert len(set(cut.source.tolist())) == count


@pytest.mark.parametrize("budget", [192, 128, 64])
def test_a_budget_keeps_the_highest(budget):
    view = random_view(576)
    cut = cut_of(fv.preset(f"prumerge/llava-1.5-7b/{budget}"), view)
    highest = view.attention.sort(descending=True).indices
    assert cut.source.tolist() == highest[:budget].tolist()
    assert set(fv.preset(f"prumerge/llava-1.5-7b/{budget}").plan(32, (576,))) == {budget}
    assert PruMerge().plan(32, (576,)) is None  # the picture decides


def test_one_row_is_the_sum_of_all():
    view = random_view(9)
    cut = cut_of(PruMerge(tokens=1), view)
    torch.testing.assert_close(cut.rows, (view.attention[:, None] * view.features).sum(dim=0, keepdim=True))
    assert cut.parent.tolist() == [0] * 9


def test_budgets_below_a_token_are_refused():
    with pytest.raises(fv.BudgetError, match=r"floor is .*%, 1\.0 tokens"):
        PruMerge.for_budget(tiny("llava"), tokens=0.3)
    with pytest.raises(fv.SettingError):
        PruMerge(tokens=3, retention=0.4)


# -- on models -----------------------------------------------------------------------------------------------------


def test_it_reads_the_layer_after_the_feature_layer_with_heads_side_by_side():
    (stage,) = PruMerge().stages(Shape(depth=32, cls=True))
    assert stage.reads == (TowerAttention("cls", layer=1, heads="joined"), TowerKeys(layer=1, heads="joined"))
    (stage,) = PruMerge().stages(Shape(depth=32))
    assert stage.reads[0] == TowerAttention("patches", layer=1, heads="joined")


def test_pictures_of_a_batch_keep_as_many_as_each_has_outliers(monkeypatch):
    model, inputs = tiny("llava"), batch("llava", ["tititit"])
    seen, original = [], PruMerge._choose

    def noting(self, raster, view, count):
        seen.append(view.attention)
        return original(self, raster, view, count)

    monkeypatch.setattr(PruMerge, "_choose", noting)
    lefts = []
    for picture in inputs["pixel_values"]:  # each by itself, so that what is noted are numbers
        with fv.drop(model, PruMerge()), torch.no_grad():
            (features,) = model.model.get_image_features(pixel_values=picture[None]).pooler_output
        low, high = numpy.percentile(seen[-1].numpy(), [25, 75])
        lefts.append(max(1, int((seen[-1].numpy() > high + 1.5 * (high - low)).sum())) + 1)
        assert (features[lefts[-1] :] == 0).all()
        assert (features[: lefts[-1]] != 0).any(dim=1).all()
    with fv.drop(model, PruMerge()) as trace, torch.no_grad():
        model(**inputs)
    (stage,) = trace.stages
    assert (stage.where, stage.after) == ("tower", (sum(lefts),))
