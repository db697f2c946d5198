import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate as fv
from foveate.contract import ImageView, Shape
from foveate.core.merge import bipartite, by_first_token
from foveate.methods.tome import ToMe
from tests.models import batch, tiny

EXAMPLES = [ToMe(retention=0.6), ToMe(retention=0.2, positions="keep")]
KEEP_ALL = ToMe(retention=1.0)
SMALLEST = ToMe(tokens=1)


def cut_of(method, keys, features=None):
    (stage,) = method.stages(Shape(depth=32, cls=True))
    return stage.cut(ImageView(keys if features is None else features, keys=keys))


def directions(*degrees):
    angles = torch.tensor(degrees, dtype=torch.float32).deg2rad()
    return torch.stack((angles.cos(), angles.sin()), dim=1)


# -- an example ----------------------------------------------------------------------------------------------------


def test_six_tokens_by_hand():
    """A is 0 2 4 and B is 1 3 5. The edges: 0 to 5 (2 degrees apart), 2 to 3 (10), 4 to 3 (1).

    Down to four tokens the edges 4 and 0 merge: the rows are 0 with 5, 1, 2, and 3 with 4, sorted by their first.
    """
    keys = directions(0, 90, 50, 40, 41, 358) * torch.tensor([1.0, 1, 1, 3, 1, 9])[:, None]  # lengths do not matter
    features = torch.tensor([[1.0], [2], [3], [4], [5], [6]])
    cut = cut_of(ToMe(tokens=4), keys, features)
    assert cut.source.tolist() == [0, 1, 2, 3]
    assert cut.parent.tolist() == [0, 1, 2, 3, 3, 0]
    assert cut.rows[:, 0].tolist() == [3.5, 2, 3, 4.5]


def test_several_of_one_side_may_join_the_same():
    keys = directions(0, 1, 2, 180, 3, 170)
    cut = cut_of(ToMe(tokens=3), keys, torch.tensor([[1.0], [2], [3], [4], [5], [6]]))
    assert cut.parent.tolist() == [0, 0, 0, 1, 0, 2]
    assert cut.rows[:, 0].tolist() == [2.75, 4, 6]


def test_where_more_than_half_must_go_the_merged_are_split_again():
    """Eight to two: first 0 1, 2 3, 4 5 and 6 7, of means 0.5, 10.5, 90.5 and 100.5 degrees; then the first two."""
    keys = directions(0, 1, 10, 11, 90, 91, 100, 101)
    cut = cut_of(ToMe(tokens=2), keys, torch.arange(8.0)[:, None])
    assert cut.parent.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert cut.rows[:, 0].tolist() == [1.5, 5.5]
    assert cut.source.tolist() == [0, 4]


def reference(keys, features, count):
    """Groups of tokens, one edge at a time; a group's key and row are the means over its tokens."""
    groups = [[token] for token in range(len(keys))]
    while len(groups) > count:
        means = [keys[group].mean(dim=0) for group in groups]
        units = [mean / mean.norm().clamp(min=1e-12) for mean in means]
        edges = []
        for one in range(0, len(groups), 2):
            cosines = [float(units[one] @ units[other]) for other in range(1, len(groups), 2)]
            best = max(cosines)
            edges.append((-best, one, 2 * cosines.index(best) + 1))
        edges.sort()
        left = {place: list(group) for place, group in enumerate(groups)}
        gone = min(len(groups) // 2, len(groups) - count)
        for _, one, other in edges[:gone]:
            left[other] += left.pop(one)
        # In the code's order: those of the one side that are left by falling cosine, then the other side.
        order = [one for _, one, _ in edges[gone:]] + list(range(1, len(groups), 2))
        groups = [sorted(left[place]) for place in order]
    groups.sort()
    return groups, torch.stack([features[group].mean(dim=0) for group in groups])


@given(tokens=st.integers(2, 40), seed=st.integers(0, 2**16), data=st.data())
def test_it_is_the_description_edge_by_edge(tokens, seed, data):
    count = data.draw(st.integers(1, tokens - 1))
    rng = torch.Generator().manual_seed(seed)
    keys, features = torch.randn(tokens, 6, generator=rng), torch.randn(tokens, 3, generator=rng)
    cut = cut_of(ToMe(tokens=count), keys, features)
    groups, rows = reference(keys.double(), features, count)
    assert cut.source.tolist() == [group[0] for group in groups]
    for row, group in enumerate(groups):
        assert cut.parent[group].tolist() == [row] * len(group)
    torch.testing.assert_close(cut.rows, rows, atol=1e-5, rtol=1e-4)


# -- counts and edges ----------------------------------------------------------------------------------------------


@given(tokens=st.integers(1, 300), share=st.floats(0.005, 1.0))
def test_a_budget_is_met_exactly_and_no_token_is_lost(tokens, share):
    if share == 1:
        assert ToMe(retention=share).stages(Shape(depth=32)) == ()
        return
    count = max(1, int(share * tokens + 0.5))
    features = torch.arange(float(tokens))[:, None]
    cut = cut_of(
        ToMe(retention=share), torch.randn(tokens, 4, generator=torch.Generator().manual_seed(tokens)), features
    )
    if cut is None:
        assert count == tokens
        return
    assert cut.count == count
    assert set(cut.parent.tolist()) == set(range(count))
    sizes = cut.parent.bincount().float()
    torch.testing.assert_close((cut.rows[:, 0] * sizes).sum(), features.sum())  # every patch weighs the same


def test_ties_go_to_the_lower_index():
    cut = bipartite(torch.ones(7, 2), 5)  # rows 4 6 1 3 5
    assert cut.parent.tolist() == [2, 2, 2, 3, 0, 4, 1]  # 0 and 2 into 1
    zeros = bipartite(torch.zeros(4, 2), 3)  # keys of length 0 have no direction: the first edge
    assert zeros.parent.tolist() == [1, 1, 0, 2]
    ordered = by_first_token(cut)
    assert (ordered.source.tolist(), ordered.parent.tolist()) == ([0, 3, 4, 5, 6], [0, 0, 0, 1, 2, 3, 4])


def test_presets_and_default():
    assert set(ToMe().plan(32, (576,))) == {192}
    for budget in (64, 128, 192):
        assert set(fv.preset(f"tome/llava-1.5-7b/{budget}").plan(32, (576,))) == {budget}
    with pytest.raises(fv.BudgetError, match=r"floor is .*%, 1\.0 tokens"):
        ToMe.for_budget(tiny("llava"), tokens=0.2)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
def test_rows_on_models_are_sorted_by_their_first_token(family):
    model, inputs = tiny(family), batch(family, ["tit"])
    with fv.drop(model, ToMe(retention=0.3)) as trace, torch.no_grad():
        model(**inputs)
    (stage,) = trace.stages
    assert stage.after[0] == int(0.3 * stage.before[0] + 0.5)
    origin = stage.origin[0].tolist()
    assert origin == sorted(origin)
