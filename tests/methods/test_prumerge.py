import numpy
import pytest
import torch

import foveate as fv
from foveate.contract import ImageView
from foveate.methods.prumerge import PruMerge
from foveate.methods.prumerge_plus import PruMergePlus
from tests.methods import stage_of
from tests.models import batch, tiny

EXAMPLES = [PruMerge(), PruMerge(retention=0.4), PruMerge(neighbours=3, positions="keep")]
KEEP_ALL = PruMerge(retention=1.0)
SMALLEST = PruMerge(tokens=1)


def cut_of(method, view, **shape):
    cut = stage_of(method, **shape).cut(view)
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


def test_where_position_ids_are_kept_rows_stand_in_raster_order():
    cut = cut_of(PruMerge(neighbours=2, positions="keep"), eight_patches())
    assert cut.source.tolist() == [0, 2, 5]
    assert cut.rows[:, 0].tolist() == [27, 9, 18]
    assert cut.parent.tolist() == [0, 0, 1, 0, 0, 2, 0, 0]
    renumbered = cut_of(PruMerge(neighbours=2), eight_patches(), renumbers=False)
    assert renumbered.source.tolist() == cut.source.tolist()


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


@pytest.mark.parametrize("budget", [192, 128, 64])
def test_a_budget_keeps_the_highest(budget):
    view = random_view(576)
    cut = cut_of(fv.preset(f"prumerge/llava-1.5-7b/{budget}"), view)
    highest = view.attention.sort(descending=True).indices
    assert cut.source.tolist() == highest[:budget].tolist()
    assert PruMerge().plan(32, (576,)) is None  # the picture decides


def test_one_row_is_the_sum_of_all():
    view = random_view(9)
    cut = cut_of(PruMerge(tokens=1), view)
    torch.testing.assert_close(cut.rows, (view.attention[:, None] * view.features).sum(dim=0, keepdim=True))
    assert cut.parent.tolist() == [0] * 9


# -- on models -----------------------------------------------------------------------------------------------------


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
