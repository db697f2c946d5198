"""What the methods share that let an exact number of tokens into the decoder: counts, budgets, presets."""

import pytest
from hypothesis import given, strategies as st

import foveate as fv
from foveate.contract import Arriving, Shape
from foveate.contract.once import Once
from tests.contract.test_cuts import Config

KINDS = [
    kind
    for kind in fv.methods().values()
    if issubclass(kind, Once) and not kind.halves_up and "positions" in kind._fields() and kind is not fv.VScan
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


def test_there_are_such_methods():
    assert "divprune" in {kind.name for kind in KINDS}


@every_kind
def test_as_many_tokens_as_asked_for_are_left_in_every_layer(kind):
    assert kind(tokens=192).plan(32, (576,)) == (192,) * 32
    assert kind(keep=1 / 3).plan(28, (576,)) == kind(retention=1 / 3).plan(28, (576,)) == (192,) * 28
    assert kind(tokens=900).plan(32, (576,)) == (576,) * 32
    assert kind(keep=0.0001).plan(32, (576,)) == (1,) * 32
    assert kind(tokens=64).plan(32, (576, 576)) == (128,) * 32  # of each image


@every_kind
@pytest.mark.parametrize("budget", [{"keep": 1.0}, {"retention": 1.0}])
def test_the_whole_budget_is_no_stage_at_all(kind, budget):
    method = kind(**budget)
    assert method.stages(Shape(depth=32)) == ()
    assert method.plan(32, (576,)) == (576,) * 32


def test_a_closing_newline_is_one_of_those_that_are_counted():
    (kind, *_) = KINDS
    assert kind(tokens=10).rows(Arriving(25, 26, 26, reserved=1)) == 9
    assert kind(tokens=1).rows(Arriving(25, 26, 26, reserved=1)) == 1  # a token beside the newline all the same
    assert kind(tokens=99).rows(Arriving(25, 26, 26, reserved=1)) == 25


@every_kind
@given(tokens=st.integers(1, 3000), share=st.floats(0.0005, 1))
def test_any_budget_of_a_token_or_more_is_met_to_half_a_token(kind, tokens, share):
    if share * tokens < 1:
        with pytest.raises(fv.BudgetError, match=r"1\.0 tokens") as error:
            kind.for_budget(Config(28), retention=share, vision_tokens=tokens)
        assert error.value.floor == 1 / tokens
        return
    method = kind.for_budget(Config(28), retention=share, vision_tokens=tokens)
    plan = method.plan(28, (tokens,))
    assert len(set(plan)) == 1
    assert abs(plan[0] - share * tokens) <= 0.5 + 1e-6


@every_kind
def test_budgets_that_cannot_be(kind):
    with pytest.raises(fv.BudgetError, match=r"0\.17%"):
        kind.for_budget(Config(32), tokens=0.5, vision_tokens=576)
    with pytest.raises(fv.SettingError, match="greater"):
        kind(keep=0)
    with pytest.raises(fv.SettingError, match="either"):
        kind.for_budget(Config(32), tokens=64, keep=0.5)
    assert kind.for_budget(Config(32), tokens=64).plan(32, (576,)) == (64,) * 32
    assert kind().with_budget(tokens=64) == kind(tokens=64)


@every_kind
def test_every_preset_spends_what_its_name_says(kind):
    """Convention (a): tokens that enter the decoder. All layers process these, so that is the true mean too."""
    budgets = {}
    for preset in fv.presets().values():
        if type(preset.method) is not kind:
            continue
        _, model, budget = preset.name.split("/")
        if preset.vision_tokens is None:  # a share, of pictures of any size
            share = float(budget.removeprefix("fixed-").removesuffix("%"))
            assert set(preset.method.plan(preset.depth, (1000,))) == {round(10 * share)}
            continue
        plan = preset.method.plan(preset.depth, (preset.vision_tokens,))
        assert set(plan) == {int(budget.split("-")[0])}, preset.name
        assert "enter the decoder" in preset.source
        budgets.setdefault(model, []).append(budget)
    assert {"128", "64"} <= set(budgets.get("llava-1.5-7b", ("128", "64")))


@pytest.mark.parametrize("name", ["vispruner", "scope", "divprune"])
@pytest.mark.parametrize("tokens", [640, 320, 160])
def test_llava_next_presets_fit_its_own_square_picture(name, tokens):
    """672 x 672 pixels are five crops of 576 patches, 2,880, and a newline behind each of 48 rows of tiles: 2,928."""
    method = fv.preset(f"{name}/llava-next-7b/{tokens}")
    assert method.plan(32, (2928,)) == (tokens,) * 32
    assert method.rows(Arriving(2880, 2928, 2928, grids=((24, 24), (48, 48)))) == tokens
