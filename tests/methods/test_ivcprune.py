import pytest
import torch
from hypothesis import given, strategies as st
from transformers import LlavaConfig

import foveate as fv
from foveate.contract import Arriving, CacheStage, LayerView, Rotary, Shape, ValueLikeness
from foveate.core.rank import spread_over
from foveate.methods.coordinates import places
from foveate.methods.ivcprune import IVCPrune
from tests.models import DEPTH

CONFIG = LlavaConfig(text_config={"num_hidden_layers": 28})
EXAMPLES = [
    IVCPrune(layer=2, keep=0.4),
    IVCPrune(layer=3, among="all", foreground=0.2, coordinates=0.05, kv=1),
    IVCPrune(layer=4, retention=0.8, skip=0, seeds=0.1, kv=None),
]
SMALLEST = IVCPrune(layer=2, keep=0.001)
KEEP_ALL = IVCPrune(layer=2, keep=1.0)


def kept(likeness, rotary, text_behind=True, **settings):
    method = IVCPrune(layer=1, **settings)
    signal, place = method.reads
    view = LayerView(signals={signal: likeness, place: rotary}, text_behind=text_behind)
    cut = method.stages(Shape(DEPTH))[0].cut(view)
    return cut.source.tolist() if cut.stays is None else cut.stays.nonzero()[:, 0].tolist()


SCORES = torch.tensor([[0.1, 0.0], [0.2, 0.1], [0.9, 0.0], [0.3, 0.5], [0.0, 0.7], [0.0, 0.6]])
ROTARY = torch.tensor([[0.9, 0.0], [0.1, 0.8], [0.8, 0.1], [0.0, 0.9], [0.5, 0.5], [0.4, 0.4]], dtype=torch.float64)
"""By C the rows come 0 2 4 5 1 3, by S 3 1 4 5 2 0."""


def test_six_rows_by_hand():
    """One seed, row 2; round(.2 · 6) = 1 by C and by S: rows 0 and 3. Then s2: 4 5 1."""
    part = {"coordinates": 0.2}
    assert kept(SCORES, ROTARY, keep=0.67, **part) == [0, 2, 3, 4]
    assert kept(SCORES, ROTARY, keep=0.5, **part) == [0, 2, 3]
    assert kept(SCORES, ROTARY, keep=0.34, **part) == [0, 2]  # fewer than must: the seed, then the first place
    assert kept(SCORES, ROTARY, keep=0.17, **part) == [2]
    assert kept(SCORES, ROTARY, keep=0.5, coordinates=0.0) == [2, 4, 5]
    assert kept(SCORES, ROTARY, foreground=0.34, **part) == [0, 2, 3, 4, 5]  # a union: the two largest s2 are 4 and 5
    assert kept(SCORES, ROTARY, foreground=0.0, **part) == [0, 2, 3]


def test_without_text_coordinates_stay_and_others_at_even_steps():
    none = torch.zeros(6, 2)
    assert kept(none, ROTARY, text_behind=False, keep=0.67, coordinates=0.2) == [0, 2, 3, 5]  # of 1 2 4 5 two
    assert kept(none, ROTARY, text_behind=False, keep=0.17, coordinates=0.2) == [0]
    assert kept(none, ROTARY, text_behind=False, foreground=0.34, coordinates=0.2) == [0, 2, 3, 5]


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(0, 40))
def test_even_steps_over_some(marks, count):
    marked = torch.tensor(marks)
    stays = spread_over(marked, count)
    assert int(stays.sum()) == min(count, sum(marks))
    assert not (stays & ~marked).any()
    chosen = (stays[marked]).nonzero()[:, 0].diff()
    assert not len(chosen) or int(chosen.max()) - int(chosen.min()) <= 1


@given(seed=st.integers(0, 2**16), tokens=st.integers(1, 60), keep=st.floats(0.02, 0.98), share=st.floats(0.0, 0.4))
def test_the_rule_in_other_words(seed, tokens, keep, share):
    rng = torch.Generator().manual_seed(seed)
    likeness, rotary = torch.rand(tokens, 2, generator=rng), torch.rand(tokens, 2, generator=rng).double()
    count = IVCPrune(keep=keep).count(28, 0, Arriving.all_of(tokens))
    if count >= tokens:
        return

    def highest(values, number):
        return sorted(range(tokens), key=lambda token: (-float(values[token]), token))[:number]

    number = round(share * tokens)
    must = dict.fromkeys(highest(likeness[:, 0], max(1, round(0.01 * tokens))))
    coordinates = {*highest(rotary[:, 0], number), *highest(rotary[:, 1], number)}
    by_place = places(rotary).tolist()
    must |= dict.fromkeys(sorted(coordinates, key=by_place.__getitem__))
    must |= dict.fromkeys(highest(likeness[:, 1], tokens))
    assert kept(likeness, rotary, keep=keep, coordinates=share) == sorted(list(must)[:count])


def test_counts_budgets_and_caches():
    method = IVCPrune()
    assert method.plan(28, (576,)) == (576,) * 16 + (288,) * 12
    counts = [method.count(28, 0, Arriving.all_of(count)) for count in (1, 2, 45, 576)]
    assert counts == [1, 1, 22, 288]  # 22.5 is rounded to even
    assert fv.cost(CONFIG, text_tokens=40, vision_tokens=576, method=method).cached == (288,) * 28
    assert IVCPrune(kv=None).stages(Shape(28))[-1].layer == 16
    assert IVCPrune(foreground=0.2).plan(28, (576,)) is None
    assert sum(IVCPrune.for_budget(CONFIG, tokens=432).plan(28, (576,))) / 28 == pytest.approx(432, abs=1)
    with pytest.raises(fv.BudgetError):
        IVCPrune.for_budget(CONFIG, retention=0.5)
    assert IVCPrune.for_budget(CONFIG, retention=0.5, layer=8)
    assert isinstance(IVCPrune(foreground=0.2).stages(Shape(28))[1], CacheStage)
    for given_too in ({"keep": 0.5}, {"target": 9}, {"retention": 0.5}, {"tokens": 64}):
        with pytest.raises(fv.SettingError, match=r"one of|either foreground or a budget"):
            IVCPrune(foreground=0.2, **given_too)
    with pytest.raises(fv.SettingError, match="one of keep"):
        IVCPrune(keep=0.5, target=9)
    assert not fv.preset("ivcprune/llava-1.5-7b/paper").open


def test_how_many_seeds_there_are():
    assert [ValueLikeness().seed_count(count) for count in (1, 49, 151, 250)] == [1, 1, 2, 2]
    assert Rotary() in IVCPrune().reads
