"""What is benched: shapes without weights, checkpoints shown noise, and methods at budgets."""

import pytest
import torch

import foveate as fv
from foveate.bench.benched import budgeted_methods, from_checkpoint, named_methods
from foveate.bench.shapes import shape
from foveate.eval.plan import USUAL
from foveate.plain.flags import PromptRequest


@pytest.fixture(scope="module")
def vlm():
    return fv.load(device="cpu")


def test_a_checkpoint_is_shown_noise_and_as_many_words_as_asked_for(vlm):
    benched = from_checkpoint(vlm, PromptRequest(batch=3, text_tokens=50, images=1))
    workload = benched.workload
    assert workload.inputs["input_ids"].shape == (3, workload.vision_tokens + workload.text_tokens)
    assert 44 < workload.text_tokens <= 50  # this tokenizer spells a word
    assert (benched.name, benched.shape, workload.batch) == ("embedded", None, 3)
    assert all(torch.equal(tensor[:1], tensor[-1:]) for tensor in workload.inputs.values())
    assert vlm.model.generation_config.eos_token_id is None
    cost = vlm.prepare(vlm_picture(), "word").cost()
    assert workload.cost(vlm.model).tower_flops == cost.tower_flops


def vlm_picture():
    return torch.zeros(672, 672, 3, dtype=torch.uint8).numpy()


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ({"text_tokens": 1}, "this model's template alone takes"),
        ({"frames": 4}, "go with a named shape"),
        ({"images": 1000}, "at most 64 pictures of noise; got 1000"),
    ],
)
def test_a_prompt_that_a_checkpoint_cannot_be_shown_is_refused(vlm, size, says):
    with pytest.raises(fv.SettingError, match=says):
        from_checkpoint(vlm, PromptRequest(**size))


# -- methods at budgets ---

CONFIG = shape("llava-1.5-7b").make_config()


def solved(*names, **budgets):
    return budgeted_methods(named_methods(names), CONFIG, 576, **budgets)


def test_every_method_has_a_row_at_every_budget():
    methods, infeasible = solved("v2drop", "visiondrop", tokens=(192, 64))
    assert list(methods) == ["v2drop 192", "v2drop 64", "visiondrop 192", "visiondrop 64"]
    assert methods["v2drop 192"] == fv.V2Drop(retention=1 / 3)
    assert infeasible == {}
    assert list(solved()[0]) == [f"{name} 192" for name in USUAL]  # a third of the usual ones


def test_a_control_that_cannot_meet_a_budget_cuts_before_the_decoder():
    methods, infeasible = solved("random", "v2drop", tokens=(20,))
    assert list(methods) == ["random 20"]
    assert methods["random 20"].layers == (0,)
    assert "floor" in infeasible["v2drop 20"]


def test_all_is_every_method_that_takes_the_budget_but_random_which_stands_beside_them():
    methods, infeasible = solved("all", tokens=(192,), passes_over=fv.SettingError)
    names = {name.removesuffix(" 192") for name in (*methods, *infeasible)}
    assert names == {name for name, kind in fv.methods().items() if kind().open} - {"random"}
    assert "finalkv" not in names
    assert methods["v2drop 192"] == fv.V2Drop(retention=1 / 3)


@pytest.mark.parametrize(
    ("names", "budget", "told"),
    [
        (("v2drop",), 20, "floor"),
        (("v2drop",), 600, "the prompt has 576 vision tokens"),
        (("all", "v2drop"), 192, "No method 'all'"),
    ],
)
def test_a_budget_that_nothing_meets_and_all_beside_a_name_are_refused(names, budget, told):
    with pytest.raises(fv.FoveateError, match=told):
        solved(*names, tokens=(budget,))
