"""One budget, one schedule: whichever door a method comes through, it leaves as many tokens in each layer."""

import json
from dataclasses import replace
from functools import cache

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import foveate as fv
from foveate import embedded, registry
from foveate.ask.generation import Generation
from foveate.bench.benched import budgeted_methods, named_methods
from foveate.cli.commands import parse_command
from foveate.cli.options import BudgetOptions
from foveate.cli.setup import parse_drop, parse_methods
from foveate.cli.usage import UsageError
from foveate.contract import Arriving, Shape, follow
from foveate.contract.method import meet
from foveate.engine.hold import holders
from foveate.errors import SettingError
from foveate.eval.lmms.model_args import Arguments
from foveate.eval.plan import Plan, contenders_at
from foveate.naming import method_of, parse
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


class Deep(fv.V2Drop):
    """One whose cuts come so late that a third is below its floor."""

    name = "deep"
    layers: tuple[int, ...] | None = (18, 20, 22)


@pytest.fixture(autouse=True)
def authors(monkeypatch):
    monkeypatch.setattr(registry, "_extra_methods", dict(registry._extra_methods))
    fv.register_method(Early)
    fv.register_method(Late)
    fv.register_method(Deep)


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
    first, *others = (registry.method(part)() for part in name.split("+"))
    return sum(others, first)


def dropped(method, **budget):
    with fv.drop(model(), method, **budget):
        return holders[family_for(model()).core].method


def by_name(name, **budget):
    return dropped(name, **budget)


def applied(name, **budget):
    fv.apply(model(), name, **budget)
    try:
        return holders[family_for(model()).core].method
    finally:
        fv.remove(model())


def by_instance(name, **budget):
    return dropped(instance(name), **budget)


def asked(name, **budget):
    return fv.VLM(model(), None).method_for(name, TOKENS, **budget)


def asked_by_instance(name, **budget):
    return fv.VLM(model(), None).method_for(instance(name), TOKENS, **budget)


def for_budget(name, **budget):
    return registry.method(name).for_budget(model(), **budget)


@cache
def generate():
    return parse_command(["generate"])


def on_the_command_line(name, retention=None):
    (method,) = parse_methods([name], replace(generate().budgets, retention=retention)).values()
    return fv.VLM(model(), None).method_for(method, TOKENS)


def in_batch(name, retention=None):
    words = [] if retention is None else ["--retention", str(retention)]
    command = parse_command(["batch", "in.jsonl", "out", "--method", name, *words])
    return method_of(parse_drop(command.method, command.budgets))


def in_eval(name, retention=None):
    plan = Plan(methods=[name], retention=() if retention is None else (retention,), baselines=False)
    contender, *_ = contenders_at(
        plan.by_name(), model(), plan.shares_of(TOKENS), TOKENS, (0,), given=retention is not None
    )
    if not contender.draws or contender.note:  # a control that cuts before the decoder instead, and says so
        raise fv.BudgetError(contender.infeasible or contender.note)
    return contender.draws[0]


def in_bench(name, retention=None):
    shares = () if retention is None else (retention,)
    try:
        methods, _ = budgeted_methods(named_methods([name]), model(), TOKENS, retention=shares, seed=0)
    except SettingError as error:
        raise fv.BudgetError(str(error)) from error
    ((row, method),) = methods.items()
    if getattr(method, "layers", None) == (0,):  # as in eval
        raise fv.BudgetError(row)
    return method


def in_lmms_eval(name, **budget):
    method = Arguments(method=name, **budget).drops
    meet(method, model().config, TOKENS)
    return method


DOORS = {
    "fv.drop": by_name,
    "fv.apply": applied,
    "fv.drop, instance": by_instance,
    "vlm.ask": asked,
    "vlm.ask, instance": asked_by_instance,
    "for_budget": for_budget,
    "generate": on_the_command_line,
    "batch": in_batch,
    "bench": in_bench,
    "eval": in_eval,
    "lmms-eval": in_lmms_eval,
}


def serves(door, name):
    """Whether a method goes through a door at all, at some budget."""
    if door == "for_budget":
        return "+" not in name
    if door in ("eval", "bench"):  # one row, whatever the budget, for a method that takes none
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


NAMED = tuple(door for door in DOORS if door != "for_budget" and "instance" not in door)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_alone_keeps_a_third_at_every_door_and_an_object_what_it_says(name):
    takes, third = parse(name).open, told("fv.drop", name, retention=1 / 3)
    doors = {door: told(door, name) for door in NAMED}
    assert set(doors.values()) == {third if takes else schedule(parse(name))}, doors
    if serves("fv.drop, instance", name):
        own = told("fv.drop", parse(name))
        assert {told("fv.drop, instance", name), told("vlm.ask, instance", name)} == {own}


SAYING = (
    "fastv:keep=0.5",
    "v2drop:metric=l1",
    "visionzip+v2drop:metric=l1",
    "visionzip:tokens=9+v2drop",
    "v2drop/llava-1.5-7b/192",
    "visionzip+v2drop/llava-1.5-7b/64",
    "random:seed=3",
    json.dumps(fv.FastV().to_dict()),
)


@pytest.mark.parametrize("text", SAYING)
def test_settings_presets_and_json_are_as_they_say_at_every_door(text):
    own = schedule(parse(text))
    assert own != schedule(method_of(parse(text), retention=1 / 3)) if parse(text).open else True
    assert {door: told(door, text) for door in NAMED} == dict.fromkeys(NAMED, own)


def test_settings_beside_a_name_are_settings_of_it_but_for_a_seed():
    assert method_of("v2drop", settings={"metric": "l1"}) == fv.V2Drop(metric="l1")
    assert method_of("random", settings=["seed=3"]) == fv.Random(seed=3, retention=1 / 3)
    assert Arguments(method="random", seed=3).drops == fv.Random(seed=3, retention=1 / 3)
    assert Arguments(method="random", seed=3).share == 1 / 3
    (method,) = parse_methods(["v2drop"], BudgetOptions(settings=("metric=l1",))).values()
    assert method == fv.V2Drop(metric="l1")


def test_a_third_below_the_floor_is_refused_and_names_it():
    with pytest.raises(fv.BudgetError, match=r"64\.43%"):
        asked("late:layers=18,20,22;retention=0.3333")
    with pytest.raises(fv.BudgetError, match=r"64\.43%"):
        asked("deep")


@pytest.mark.parametrize("name", ["v2drop", "divprune"])
def test_a_name_alone_keeps_a_third_where_it_is_asked_and_looked_with(name):
    vlm, few = fv.load(), {"max_new_tokens": 1}
    picture = embedded.picture()
    answers = [
        vlm.ask(picture, "What is it?", method=name, **few),
        next(vlm.ask_many([(picture, "What is it?")], method=name, **few)),
        vlm.look(picture, method=name).ask("What is it?", **few),
        vlm.answer(vlm.prepare(picture, "What is it?"), name, generation=Generation(max_new_tokens=1)),
    ]
    assert [answer.asked for answer in answers] == [1 / 3] * 4
    assert [answer.retention for answer in answers] == [pytest.approx(1 / 3, abs=0.01)] * 4


@pytest.mark.parametrize("door", [dropped, asked, on_the_command_line, in_lmms_eval])
@pytest.mark.parametrize("name", ["v2drop:retention=0.2", "visionzip:retention=0.2+finalkv", "v2drop:keep=0.5,0.3,0"])
def test_no_door_overwrites_a_budget_that_a_method_brings(door, name):
    with pytest.raises((SettingError, UsageError), match="its own"):
        door(parse(name) if door is dropped else name, retention=0.5)
