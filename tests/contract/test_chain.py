"""Methods one after the other: their order, their budgets, their notes."""

from dataclasses import replace

import pytest
import torch

import foveate as fv
from foveate.contract import LayerStage, Place, Shape, follow
from foveate.contract.method import Chain
from foveate.methods.averagepool import AveragePool
from foveate.methods.resize import Resize
from tests.models import DEPTH, batch, tiny

V2DROP = fv.V2Drop(layers=(2, 4), keep=(0.5, 0.5))
RANDOM = fv.Random(layers=(0,), keep=(0.8,))


def test_methods_add_up_and_chains_are_flat():
    chain = V2DROP + fv.FinalKV()
    assert isinstance(chain, Chain)
    assert chain.members == (V2DROP, fv.FinalKV())
    assert (RANDOM + chain).members == (RANDOM, V2DROP, fv.FinalKV())
    assert (chain + RANDOM).members == (V2DROP, fv.FinalKV(), RANDOM)
    assert Chain.of(chain, chain).members == chain.members * 2
    assert chain == V2DROP + fv.FinalKV()
    assert len({chain, V2DROP + fv.FinalKV(), RANDOM + V2DROP}) == 2
    with pytest.raises(TypeError):
        V2DROP + 1


def test_a_chain_of_fewer_than_two_is_refused():
    for members in ((), (V2DROP,)):
        with pytest.raises(fv.SettingError, match=f"two methods or more; got {len(members)}"):
            Chain(members=members)


def test_however_it_is_written_it_runs_along_a_tokens_life():
    chain = fv.FinalKV() + V2DROP + AveragePool() + RANDOM + fv.VisionDrop() + Resize()
    stages = follow.in_order(chain.stages(Shape(depth=32, cls=True)))
    places = [stage.place for stage in stages]
    assert places == sorted(places)
    assert places[:3] == [Place.PIXELS, Place.BEFORE_PROJECTOR, Place.BEHIND_PROJECTOR]
    assert places[-1] is Place.CACHE
    layers = [stage.layer for stage in stages if isinstance(stage, LayerStage)]
    assert layers == sorted(layers) == [0, 2, 4, 8, 16, 24]


def test_every_stage_knows_whose_it_is():
    chain = V2DROP + fv.FinalKV() + (RANDOM + fv.Uniform(layers=(1,), keep=(0.5,)))
    owners = {stage.owner for stage in chain.stages(Shape(DEPTH))}
    assert owners == {(0,), (1,), (2,), (3,)}
    assert all(stage.owner == () for stage in V2DROP.stages(Shape(DEPTH)))


def test_a_plan_is_one_members_after_the_others():
    assert (V2DROP + RANDOM).plan(DEPTH, (100,)) == (80, 80, 40, 40, 20, 20)
    assert (RANDOM + V2DROP).plan(DEPTH, (100,)) == (80, 80, 40, 40, 20, 20)
    same = fv.Random(layers=(2,), keep=(0.5,)) + fv.Uniform(layers=(2,), keep=(0.1,))
    assert same.plan(DEPTH, (100,)) == (100, 100, 5, 5, 5, 5)


class Later(fv.Method):
    """Moves all cuts of a chain so many layers on."""

    name = "later"

    by: int = 1

    def stages(self, shape):
        return ()

    def around(self, stages, shape):
        return tuple(replace(stage, layer=stage.layer + self.by) for stage in stages)


def test_a_member_may_change_the_stages_of_all_in_the_order_of_the_members():
    assert fv.V2Drop().around((), Shape(DEPTH)) == ()
    chain = Later(by=1) + RANDOM + V2DROP
    assert [stage.layer for stage in chain.stages(Shape(DEPTH))] == [1, 3, 5]
    assert {stage.owner for stage in chain.stages(Shape(DEPTH))} == {(1,), (2,)}
    assert (chain + Later(by=-1)).plan(DEPTH, (100,)) == (RANDOM + V2DROP).plan(DEPTH, (100,))
    with pytest.raises(fv.SettingError, match="layers"):
        (V2DROP + Later(by=-2)).stages(Shape(DEPTH))


# -- budgets ---------------------------------------------------------------------------------------------------


def test_a_budget_goes_to_the_last_member_that_takes_one():
    chain = (RANDOM + fv.V2Drop() + fv.FinalKV()).with_budget(retention=0.3)
    assert chain.members == (RANDOM, fv.V2Drop(retention=0.3), fv.FinalKV())
    chain = (fv.VisionDrop(retention=0.5) + fv.V2Drop()).with_budget(tokens=64)
    assert chain.members == (fv.VisionDrop(retention=0.5), fv.V2Drop(tokens=64))


def test_a_members_budget_is_of_what_entered_the_model():
    """And is met with what an earlier member has left of it."""
    chain = AveragePool(keep=0.5) + fv.V2Drop(layers=(2,), retention=0.3)
    plan = chain.plan(DEPTH, (100,), [((10, 10),)])
    assert plan == (49, 49, 20, 20, 20, 20)
    assert sum(plan) / DEPTH == pytest.approx(30, abs=1)


def test_a_budget_counts_on_what_others_cut_before_layer_0():
    chain = RANDOM + fv.V2Drop(layers=(2,), retention=0.3)
    assert chain.plan(DEPTH, (100,)) == (80, 80, 5, 5, 5, 5)  # 30 on average
    opening = fv.PyramidDrop(layer_list=(0, 2), image_token_ratio_list=(0.5, 0.2))
    assert (RANDOM + opening).plan(DEPTH, (100,)) == (50, 50, 20, 20, 20, 20)  # shares of what enters layer 0


# -- in a model ------------------------------------------------------------------------------------------------


class Marking(fv.Method):
    """Remembers a number of every token, and says later what it remembers."""

    name = "marking"

    number: int = 0

    def stages(self, shape):
        return (LayerStage(1, look=self._mark), LayerStage(3, choose=self._read))

    def _mark(self, view):
        return {"mark": torch.full((len(view),), self.number) + view.tokens}

    def _read(self, view, count):
        read.append((self.number, {name: (note - view.tokens).unique().tolist() for name, note in view.notes.items()}))


read: list[tuple[int, dict[str, list[int]]]] = []


def test_notes_of_members_are_apart_and_go_with_their_tokens():
    read.clear()
    chain = Marking(number=1000) + fv.Uniform(layers=(2,), keep=(0.5,)) + Marking(number=2000)
    with fv.drop(tiny("llava"), chain) as trace, torch.no_grad():
        tiny("llava")(**batch("llava", ["tit"]))
    assert trace.stages[0].after == (12,)
    assert read == [(1000, {"mark": [1000]}), (2000, {"mark": [2000]})]


@pytest.mark.parametrize("second", ["v2drop", "fastv", "pyramiddrop:positions=keep", "visiondrop:positions=keep"])
@pytest.mark.parametrize("prompts", [["tit"], ["tiit"], ["titt", "tit", "tiit"]], ids=["one", "two", "several"])
def test_a_budget_is_met_behind_a_cut_before_layer_0(second, prompts):
    model, inputs = tiny("llava"), batch("llava", prompts)
    with fv.drop(model, f"divprune:keep=0.8+{second}", retention=0.5) as trace, torch.no_grad():
        model(**inputs)
    for spent, entered in zip(trace.tokens, trace.vision_tokens, strict=True):
        assert spent == pytest.approx(entered * 0.5, abs=2)
