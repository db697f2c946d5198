import pytest
from transformers import AutoConfig

import foveate as fv
from foveate import embedded
from foveate.eval.cells import BASELINES, cells_of, contender, with_baselines

CONFIG = AutoConfig.from_pretrained(embedded.path())


def cells(named, *budgets, seeds=(0, 1, 2)):
    return cells_of([named], CONFIG, [tokens / 576 for tokens in budgets], 576, seeds)


def test_a_method_is_solved_for_every_budget():
    found = cells(contender("v2drop:metric=l1"), 192, 64)
    assert [cell.draws for cell in found] == [
        (fv.V2Drop.for_budget(CONFIG, tokens=tokens, metric="l1"),) for tokens in (192, 64)
    ]


def test_a_method_that_draws_by_lot_is_drawn_once_a_seed():
    (cell,) = cells(contender("random"), 192, seeds=(4, 7))
    assert [draw.seed for draw in cell.draws] == [4, 7]
    (cell,) = cells(contender("random:seed=9"), 192)
    assert [draw.seed for draw in cell.draws] == [9]


def test_below_its_floor_a_method_is_infeasible_and_a_control_cuts_before_the_decoder():
    (cell,) = cells(contender("v2drop"), 32)
    assert cell.draws == ()
    assert cell.floor * 576 == pytest.approx(54.9, abs=0.1)
    assert "floor" in cell.infeasible
    for name in ("random", "uniform"):
        (cell,) = cells(contender(name), 32)
        assert {draw.layers for draw in cell.draws} == {(0,)}
        assert cell.note == "cut before the decoder"


@pytest.mark.parametrize(
    ("kind", "tokens"), [(fv.MustDrop, 32), (fv.VisionDrop, 1), (fv.AveragePool, 0.5), (fv.Resize, 0.5)]
)
def test_every_method_names_its_floor(kind, tokens):
    (cell,) = cells(contender(kind.name), tokens)
    assert cell.draws == ()
    (at,) = cells(contender(kind.name), cell.floor * 576 * 1.01 + 1e-3)
    assert at.draws


def test_a_preset_brings_its_own_budget():
    preset = fv.preset("v2drop/llava-1.5-7b/192")
    (cell,) = cells(contender("v2drop/llava-1.5-7b/192"), 64, 32)
    assert (cell.budget, cell.draws) == (None, (preset,))


def test_baselines_stand_behind_what_was_asked_for_once():
    found = with_baselines([contender("uniform"), contender("v2drop")])
    assert [one.text for one in found] == ["uniform", "v2drop", "random", "averagepool", "resize"]
    assert {one.text for one in found} >= set(BASELINES)


def test_a_schedule_brings_its_own_budget_and_a_chain_spends_those_given():
    (cell,) = cells(contender("v2drop:layers=3;keep=0.5"), 192, 64)
    assert (cell.budget, cell.draws) == (None, (fv.V2Drop(layers=(3,), keep=(0.5,)),))
    found = cells(contender("visiondrop+random"), 16, 12, seeds=(0, 1))
    assert [cell.budget for cell in found] == [16 / 576, 12 / 576]
    assert [[member.seed for member in draw.members[1:]] for draw in found[0].draws] == [[0], [1]]
    (cell,) = cells(contender("visiondrop+random"), 1)
    assert (cell.draws, cell.floor < 0.02) == ((), True)
