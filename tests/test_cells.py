import pytest
from transformers import AutoConfig

import foveate as fv
from foveate import embedded
from foveate._cells import at_budgets
from foveate.naming import parse

CONFIG = AutoConfig.from_pretrained(embedded.path())


def cells(name, *budgets, seeds=(0, 1, 2)):
    return at_budgets({name: parse(name)}, CONFIG, [tokens / 576 for tokens in budgets], 576, seeds)


def test_a_method_is_solved_for_every_budget():
    found = cells("v2drop:metric=l1", 192, 64)
    assert [cell.draws for cell in found] == [(fv.V2Drop(retention=share, metric="l1"),) for share in (1 / 3, 1 / 9)]


def test_a_method_that_draws_by_lot_is_drawn_once_a_seed():
    (cell,) = cells("random", 192, seeds=(4, 7))
    assert [draw.seed for draw in cell.draws] == [4, 7]
    (cell,) = cells("random:seed=9", 192)
    assert [draw.seed for draw in cell.draws] == [9]


def test_below_its_floor_a_method_is_infeasible_and_a_control_cuts_before_the_decoder():
    (cell,) = cells("v2drop", 32)
    assert cell.draws == ()
    assert cell.floor * 576 == pytest.approx(54.9, abs=0.1)
    assert "floor" in cell.infeasible
    for name in ("random", "uniform"):
        (cell,) = cells(name, 32)
        assert {draw.layers for draw in cell.draws} == {(0,)}
        assert cell.note == "cut before the decoder"


@pytest.mark.parametrize(
    ("kind", "tokens"), [(fv.MustDrop, 32), (fv.VisionDrop, 0.5), (fv.AveragePool, 0.5), (fv.Resize, 0.5)]
)
def test_every_method_names_its_floor(kind, tokens):
    (cell,) = cells(kind.name, tokens)
    assert cell.draws == ()
    (at,) = cells(kind.name, cell.floor * 576 * 1.01 + 1e-3)
    assert at.draws


def test_a_preset_brings_its_own_budget():
    preset = fv.preset("v2drop/llava-1.5-7b/192")
    (cell,) = cells("v2drop/llava-1.5-7b/192", 64, 32)
    assert (cell.budget, cell.draws) == (None, (preset,))


def test_a_schedule_brings_its_own_budget_and_a_chain_spends_those_given():
    (cell,) = cells("v2drop:layers=3;keep=0.5", 192, 64)
    assert (cell.budget, cell.draws) == (None, (fv.V2Drop(layers=(3,), keep=(0.5,)),))
    found = cells("visiondrop+random", 16, 12, seeds=(0, 1))
    assert [cell.budget for cell in found] == [16 / 576, 12 / 576]
    assert [[member.seed for member in draw.members[1:]] for draw in found[0].draws] == [[0], [1]]
    (cell,) = cells("visiondrop+random", 1)
    assert (cell.draws, cell.floor < 0.02) == ((), True)
