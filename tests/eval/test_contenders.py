import pytest
from transformers import AutoConfig

import foveate as fv
from foveate import embedded
from foveate.cost.fitting import costs_of
from foveate.eval.plan import contenders_at
from foveate.naming import parse

CONFIG = AutoConfig.from_pretrained(embedded.path())


def contenders(name, *budgets, seeds=(0, 1, 2)):
    shares = [tokens / 576 for tokens in budgets]
    return contenders_at({name: parse(name)}, CONFIG, shares, 576, seeds)


def test_a_method_is_solved_for_every_budget():
    rivals = contenders("v2drop:metric=l1", 192, 64)
    assert [contender.draws for contender in rivals] == [
        (fv.V2Drop(retention=share, metric="l1"),) for share in (1 / 3, 1 / 9)
    ]


def test_a_method_that_draws_by_lot_is_drawn_once_a_seed():
    (contender,) = contenders("random", 192, seeds=(4, 7))
    assert [draw.seed for draw in contender.draws] == [4, 7]
    (contender,) = contenders("random:seed=9", 192)
    assert [draw.seed for draw in contender.draws] == [9]


def test_below_its_floor_a_method_is_infeasible_and_a_control_cuts_before_the_decoder():
    (contender,) = contenders("v2drop", 32)
    assert contender.draws == ()
    assert contender.floor * 576 == pytest.approx(54.9, abs=0.1)
    assert "floor" in contender.infeasible
    for name in ("random", "uniform"):
        (contender,) = contenders(name, 32)
        assert {draw.layers for draw in contender.draws} == {(0,)}
        assert contender.note == "cut before the decoder"


def test_a_preset_brings_its_own_budget():
    preset = fv.preset("v2drop/llava-1.5-7b/192")
    (contender,) = contenders("v2drop/llava-1.5-7b/192", 64, 32)
    assert (contender.budget, contender.draws) == (None, (preset,))


def test_a_schedule_brings_its_own_budget_and_a_chain_spends_those_given():
    (contender,) = contenders("v2drop:layers=3;keep=0.5", 192, 64)
    assert (contender.budget, contender.draws) == (None, (fv.V2Drop(layers=(3,), keep=(0.5,)),))
    rivals = contenders("visiondrop+random", 16, 12, seeds=(0, 1))
    assert [contender.budget for contender in rivals] == [16 / 576, 12 / 576]
    assert [[member.seed for member in draw.members[1:]] for draw in rivals[0].draws] == [[0], [1]]
    (contender,) = contenders("visiondrop+random", 1)
    assert (contender.draws, contender.floor < 0.02) == ((), True)


def test_budgets_of_flops_are_solved_for_each_method_and_what_the_picture_decides_is_infeasible():
    prompt = fv.load("embedded").prepare(embedded.picture(), "What is it?")
    methods = {name: parse(name) for name in ("divprune", "random", "visiondrop", "mustdrop")}
    costs, full = costs_of([prompt]), prompt.cost().total_flops
    rivals = contenders_at(methods, CONFIG, [0.4], 576, [0, 1], costs=costs, passes_over=fv.SettingError)
    assert {contender.budget for contender in rivals} == {0.4}
    assert [len(contender.draws) for contender in rivals] == [1, 2, 1, 0]
    assert "mustdrop" in rivals[-1].infeasible
    for contender in rivals[:-1]:
        for method in contender.draws:
            assert 0.39 < prompt.cost(method).total_flops / full <= 0.4
