"""One budget, one schedule: whichever door a method comes through, it leaves as many tokens in each layer."""

from dataclasses import replace
from functools import cache

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import foveate as fv
from foveate._cells import at_budgets
from foveate.cli.asking import named
from foveate.cli.commands import parsed
from foveate.cli.usage import UsageError
from foveate.contract import Arriving, Shape, catalogue, follow
from foveate.contract.method import meet
from foveate.contract.naming import parse, spending
from foveate.engine.session import _sessions
from foveate.errors import SettingError
from foveate.eval.lmms.setting import Setting as LmmsSetting
from foveate.registry import family_for

BUDGETS = (0.05, 0.11, 1 / 3, 0.5, 0.73, 0.8, 0.9, 0.97)
DEPTH, TOKENS, GRID = 28, 256, (16, 16)
CHAINS = ("fastv+finalkv", "visionzip+v2drop", "early+late", "early+late+finalkv")


class Early(fv.DivPrune):
    """As an author would write a method that drops before the decoder."""

    name = "early"


class Late(fv.V2Drop):
    """And one between layers."""

    name = "late"


@pytest.fixture(autouse=True)
def authors(monkeypatch):
    monkeypatch.setattr(catalogue, "extra", dict(catalogue.extra))
    fv.register_method(Early)
    fv.register_method(Late)


@cache
def model():
    """A LLaVA of Qwen2.5-VL-7B's depth and 16 x 16 patches, otherwise as small as can be: no door runs it."""
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    text = LlamaConfig(**small, num_hidden_layers=DEPTH, vocab_size=16)
    vision = CLIPVisionConfig(**small, num_hidden_layers=2, image_size=224, patch_size=14)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=9, vision_feature_layer=-2)
    return LlavaForConditionalGeneration(config).eval()


# -- the doors: each gives the method that works at a budget ------------------------------------------------------


def instance(name):
    """The method, or the chain of them, as Python makes it."""
    first, *others = (catalogue.method(part)() for part in name.split("+"))
    return sum(others, first)


def dropped(method, **budget):
    with fv.drop(model(), method, **budget):
        return _sessions[family_for(model()).core].method


def by_name(name, **budget):
    return dropped(name, **budget)


def by_instance(name, **budget):
    return dropped(instance(name), **budget)


def asked(name, **budget):
    return fv.VLM(model(), None).solve(name, TOKENS, **budget)


def asked_by_instance(name, **budget):
    return fv.VLM(model(), None).solve(instance(name), TOKENS, **budget)


def for_budget(name, **budget):
    return catalogue.method(name).for_budget(model(), **budget)


@cache
def generate():
    return parsed(["generate"])


def on_the_command_line(name, retention=None):
    budgets = replace(generate().budgets, retention=retention)
    (method,) = named([name], budgets).values()
    return fv.VLM(model(), None).solve(spending(method, budgets.budget, budgets.retention), TOKENS)


def in_eval(name, retention):
    (cell,) = at_budgets({name: parse(name)}, model(), [retention], TOKENS, seeds=(0,))
    if not cell.draws or cell.note:  # a control that cuts before the decoder instead, and says so
        raise fv.BudgetError(cell.infeasible or cell.note)
    return cell.draws[0]


def in_lmms_eval(name, **budget):
    method = LmmsSetting(name=name, **budget).method
    meet(method, model().config, TOKENS)
    return method


DOORS = {
    "fv.drop": by_name,
    "fv.drop, instance": by_instance,
    "vlm.ask": asked,
    "vlm.ask, instance": asked_by_instance,
    "for_budget": for_budget,
    "generate": on_the_command_line,
    "eval": in_eval,
    "lmms-eval": in_lmms_eval,
}


def serves(door, name):
    """Whether a method goes through a door at all, at some budget."""
    if door == "for_budget":
        return "+" not in name
    if door == "eval":  # one row, whatever the budget, for a method that takes none
        return parse(name).open
    if "instance" in door:
        try:
            instance(name)
        except (TypeError, fv.SettingError):
            return False
    return True


def schedule(method):
    """The layers that cut, and the tokens in each: or what each stage leaves, where pictures decide."""
    stages = follow.in_order(method.stages(Shape(DEPTH, cls=True)))
    plan = follow.layer_plan(stages, DEPTH, (TOKENS,), ((GRID,),), (False,))
    if plan is None:
        arriving = Arriving(TOKENS, TOKENS, TOKENS, grids=(GRID,), video=False)
        plan = tuple(stage.left(arriving) for stage in stages)
    return follow.cut_layers(stages), plan


def told(door, *arguments, **budget):
    """The schedule that a door gives, or the kind of its refusal."""
    try:
        return schedule(DOORS[door](*arguments, **budget))
    except fv.BudgetError:
        return "a budget below its floor"
    except fv.FoveateError:
        return "no budget"


NAMES = (*sorted(set(fv.methods()) - {"pixelprune"}), *CHAINS)  # a LLaVA refuses that one


@pytest.mark.parametrize("name", NAMES)
def test_every_door_gives_the_same_schedule_for_a_budget(name):
    doors = [door for door in DOORS if serves(door, name)]
    assert len(doors) > 3
    differ = {}
    for share in BUDGETS:
        answers = {door: told(door, name, retention=share) for door in doors}
        if len(set(answers.values())) > 1:
            differ[share] = answers
    assert not differ


LIBRARY = ("fv.drop", "fv.drop, instance", "vlm.ask", "vlm.ask, instance")
COMMANDS = ("generate", "lmms-eval")


@pytest.mark.parametrize("name", NAMES)
def test_a_bare_name_is_the_methods_own_settings_and_in_commands_a_third(name):
    third = {"retention": 1 / 3} if parse(name).open else {}
    for doors, budget in ((LIBRARY, {}), (COMMANDS, third)):
        said = {told(door, name) for door in doors if serves(door, name)}
        assert said == {told("fv.drop", name, **budget)}


@pytest.mark.parametrize("door", [dropped, asked, on_the_command_line, in_lmms_eval])
@pytest.mark.parametrize("name", ["v2drop:retention=0.2", "visionzip:retention=0.2+finalkv", "v2drop:keep=0.5,0.3,0"])
def test_no_door_overwrites_a_budget_that_a_method_brings(door, name):
    with pytest.raises((SettingError, UsageError), match="its own"):
        door(parse(name) if door is dropped else name, retention=0.5)
