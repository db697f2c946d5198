"""A look: every question gets the answer that it gets alone, and the pictures run once."""

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import MistralConfig

import foveate as fv
from foveate.ask.generation import FirstToken
from foveate.ask.look import can_share, look_at, refuse_unshareable, resume, together
from foveate.ask.running import answers_to
from foveate.engine.copies import tensors_of
from foveate.methods.dycoke import DyCoke
from foveate.methods.read import Read
from foveate.registry import family_for
from tests import models
from tests.ask.conftest import asked, random_vlm
from tests.invariants.settings import EXAMPLES, METHODS
from tests.tiny import TEXT

FAMILIES = (
    "gemma3", "gemma4", "glm4v", "idefics3", "internvl", "llava", "llava_next", "llava_onevision", "mistral3",
    "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_vl", "smolvlm",
)  # fmt: skip
FILMS = ("gemma4", "glm4v", "llava_onevision", "qwen2_5_vl", "qwen2_vl", "qwen3_5", "qwen3_vl", "smolvlm")
DROPPING = ("v2drop-0", "visiondrop-0", "visiondrop-1")
"""Positions as they are, numbered anew, and kept behind merging in the tower."""
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
FEW = fv.Generation(max_new_tokens=4)


def method_of(name):
    return None if name is None else EXAMPLES[name]


def sharing(vlm, prompts, method=None, generation=FEW, first=False):
    """Their answers behind one look."""
    look = look_at(vlm.model, prompts[0].inputs, method)
    return behind(vlm, look, prompts, method, generation, first=first)


def behind(vlm, look, prompts, method, generation, first):
    """Their answers behind a look, in as few batches as may be."""
    answers = [None] * len(prompts)
    for places in together(vlm.model, look, [prompt.inputs for prompt in prompts]):
        extra = {"logits_processor": [FirstToken()]} if first else {}
        replies = answers_to(vlm, [prompts[place] for place in places], method, generation, look, extra)
        for place, answer in zip(places, replies, strict=True):
            answers[place] = answer
    return answers


def assert_as_alone(vlm, prompts, method, generation=FEW):
    """Questions that share a look get the tokens that each gets alone, from nearly the same logits."""
    shared = sharing(vlm, prompts, method, generation=generation, first=True)
    for prompt, answer in zip(prompts, shared, strict=True):
        alone = vlm.answer(prompt, method, generation=generation, first=True)
        assert (answer.tokens, answer.spent, answer.prompt) == (alone.tokens, alone.spent, prompt)
        torch.testing.assert_close(answer.first, alone.first, **CLOSE)
        assert answer.looked > 0 == alone.looked


# -- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "name"), list(zip(FAMILIES, itertools.cycle(DROPPING), strict=False)))
def test_questions_about_two_pictures_get_the_answers_that_each_gets_alone(family, name, monkeypatch):
    vlm = random_vlm(family, monkeypatch)
    assert_as_alone(vlm, asked(vlm, "titi", lengths=(3, 9)), method_of(name))


@pytest.mark.parametrize("method", [Read(keep=0.3), DyCoke(k=0.0, p=0.7)], ids=["read", "dycoke"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "smolvlm"])
def test_a_question_picks_what_its_own_answer_reads(family, method, monkeypatch):
    vlm = random_vlm(family, monkeypatch)
    prompts = asked(vlm, "titi", lengths=(3, 9))
    assert_as_alone(vlm, prompts, method)
    assert [answer.tokens for answer in sharing(vlm, prompts, None, generation=FEW)] != [
        answer.tokens for answer in sharing(vlm, prompts, method, generation=FEW)
    ]


@pytest.mark.parametrize("family", FILMS)
def test_questions_about_a_film_get_the_answers_that_each_gets_alone(family, monkeypatch):
    """In M-RoPE what stands behind a film goes on from less than the film's last position."""
    vlm = random_vlm(family, monkeypatch)
    word = "tv" if models.TINY[family].apart else "titv"
    assert_as_alone(vlm, asked(vlm, word, lengths=(3, 5)), EXAMPLES["v2drop-0"])


@pytest.mark.parametrize("name", [name for name in METHODS if name.endswith("-0") and name != "pixelprune-0"])
def test_every_method_that_may_look_answers_as_alone(name, monkeypatch):
    vlm, method = random_vlm("llava", monkeypatch), EXAMPLES[name]
    if not can_share(vlm.model, method):
        with pytest.raises(fv.UnsupportedError, match="v2drop"):
            sharing(vlm, asked(vlm), method)
        return
    assert_as_alone(vlm, asked(vlm, lengths=(3,)), method)


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"temperature": 0.8, "seed": 3}], ids=str)
@pytest.mark.parametrize("family", ["llava", "qwen3_5"])
def test_beams_and_samples_are_those_of_the_question_alone(family, settings, monkeypatch):
    vlm = random_vlm(family, monkeypatch)
    generation = fv.Generation(max_new_tokens=4, **settings)
    prompts = asked(vlm, lengths=(3, 3) if "num_beams" in settings else (3,))
    for method in (None, EXAMPLES["v2drop-0"]):
        shared = sharing(vlm, prompts, method, generation=generation)
        assert [answer.tokens for answer in shared] == [
            vlm.answer(prompt, method, generation=generation).tokens for prompt in prompts
        ]


def test_in_windows_padding_counts_so_questions_go_by_length():
    config = models.TINY["mistral3"].config()
    config.text_config = MistralConfig(**TEXT, sliding_window=16)
    model = models.made_of("mistral3", config)
    vlm = random_vlm("mistral3")
    vlm.model = model
    prompts = asked(vlm, lengths=(9, 3, 9))
    look = look_at(model, prompts[0].inputs)
    assert together(model, look, [prompt.inputs for prompt in prompts]) == [[1], [0, 2]]
    assert_as_alone(vlm, prompts, EXAMPLES["v2drop-0"])


def test_where_every_layer_sees_all_questions_go_together_and_by_like_lengths():
    vlm = random_vlm("llava")
    prompts = [prompt.inputs for prompt in asked(vlm, lengths=(9, 3, 5, 4))]
    look = look_at(vlm.model, prompts[0])
    assert together(vlm.model, look, prompts) == [[1, 3, 2, 0]]


# -- once ---------------------------------------------------------------------------------------------------------


class Inside(TorchDispatchMode):
    """Counts operators: all of them, and those that run inside some modules."""

    def __init__(self, *modules):
        super().__init__()
        self.all = self.inside = self._depth = 0
        self._hooks = []
        for module in modules:
            self._hooks.append(module.register_forward_pre_hook(lambda *_: self._move(1)))
            self._hooks.append(module.register_forward_hook(lambda *_: self._move(-1)))

    def _move(self, step):
        self._depth += step

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.all += 1
        self.inside += self._depth > 0
        return function(*args, **(kwargs or {}))

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*error)


@pytest.mark.parametrize("name", [None, "v2drop-0", "visiondrop-0", "visionzip-0"])
def test_a_second_question_runs_no_operator_of_tower_and_picture(name, monkeypatch):
    vlm, method = random_vlm("llava", monkeypatch), method_of(name)
    prompt = asked(vlm, lengths=(5,))[0]
    tower = vlm.model.model.vision_tower, vlm.model.model.multi_modal_projector
    with Inside(*tower) as fresh:
        vlm.answer(prompt, method, generation=FEW)
    assert fresh.inside > 50
    ask = prefix_of(vlm, prompt, method)
    ask(prompt)
    rows = []
    layer = family_for(vlm.model).layers[0]
    hook = layer.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
    with Inside(*tower) as again:
        ask(prompt)
    hook.remove()
    assert again.inside == 0 < again.all < fresh.all
    assert rows == [5, 1, 1, 1]  # the question, then a token at a time: no row of the picture


def prefix_of(vlm, prompt, method):
    """Asks about what was looked at once."""
    look = look_at(vlm.model, prompt.inputs, method)

    def ask(*prompts, **settings):
        generation = fv.Generation(max_new_tokens=4, **settings)
        return behind(vlm, look, prompts, method, generation, first=not settings)

    ask.look, ask.method = look, method
    return ask


@pytest.mark.parametrize(
    ("family", "name"), [("gemma3", None), ("llava", "v2drop-0"), ("qwen2_vl", "visiondrop-0"), ("qwen3_5", "v2drop-0")]
)
def test_questions_leave_a_look_as_it_was_and_know_nothing_of_one_another(family, name, monkeypatch):
    vlm, method = random_vlm(family, monkeypatch), method_of(name)
    prompts = asked(vlm, lengths=(3, 5))
    ask = prefix_of(vlm, prompts[0], method)
    held = [(tensor, tensor.clone()) for layer in ask.look.cache.layers for tensor in tensors_of(layer)]
    once = ask(prompts[0])[0]
    ask(prompts[1])
    ask(*prompts)
    ask(prompts[1], num_beams=2)
    again = ask(prompts[0])[0]
    assert torch.equal(once.first, again.first)
    assert once.tokens == again.tokens
    assert [torch.equal(tensor, before) for tensor, before in held] == [True] * len(held)
    assert ask.look.cache.get_seq_length() == ask.look.tokens


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen3_5"])
def test_looks_live_beside_one_another_and_beside_fresh_questions(family, monkeypatch):
    """M-RoPE models remember how far the last prompt's text lags behind: it must not be another's."""
    vlm = random_vlm(family, monkeypatch)
    method = EXAMPLES["v2drop-0"]
    one, two = asked(vlm, "ti", lengths=(3,))[0], asked(vlm, "titi", lengths=(5,))[0]
    expected = [vlm.answer(one, method, generation=FEW).tokens, vlm.answer(two, generation=FEW).tokens]
    first, second = prefix_of(vlm, one, method), prefix_of(vlm, two, None)
    for _ in range(2):
        assert [first(one)[0].tokens, second(two)[0].tokens] == expected
        vlm.answer(two, method, generation=FEW)


# -- memory -------------------------------------------------------------------------------------------------------


def test_of_pixels_only_the_shape_stays_and_nothing_holds_more_memory_than_it_says():
    for family in ("gemma3", "llava", "qwen3_5"):
        vlm = random_vlm(family)
        look = look_at(vlm.model, asked(vlm)[0].inputs, EXAMPLES["v2drop-0"])
        assert look.inputs["pixel_values"].is_meta
        tensors = {id(tensor): tensor for layer in look.cache.layers for tensor in tensors_of(layer)}.values()
        assert look.nbytes == sum(tensor.nbytes for tensor in tensors)
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        assert sum(storages.values()) <= look.nbytes


# -- refusals -----------------------------------------------------------------------------------------------------


def test_a_family_whose_prompt_is_seen_both_ways_is_refused():
    vlm = random_vlm("paligemma")
    assert not can_share(vlm.model, None)
    with pytest.raises(fv.UnsupportedError, match="paligemma"):
        sharing(vlm, asked(vlm))
    assert [name for name, kind in fv.families().items() if not kind.shares_prefix] == ["paligemma"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("mustdrop-0", "reads the question"),
        ("cdpruner-0", "reads the question"),
        ("mmtok-0", "reads the question"),
        ("finalkv", "cuts the cache only after the question has read all of it"),
    ],
)
def test_a_method_that_needs_the_question_is_refused_and_others_are_named(name, why):
    method = EXAMPLES["v2drop-0"] + fv.FinalKV() if name == "finalkv" else METHODS[name]
    with pytest.raises(fv.UnsupportedError, match=why) as raised:
        refuse_unshareable(models.tiny("llava"), method)
    serving = str(raised.value).rpartition(": ")[2].rstrip(".").split(", ")
    for name in serving:
        assert can_share(models.tiny("llava"), fv.methods()[name](retention=1 / 3)), name


def test_a_prompt_that_begins_in_another_way_is_refused():
    vlm = random_vlm("llava")
    one, other = asked(vlm, "ti")[0], asked(vlm, "tti")[0]
    look = look_at(vlm.model, one.inputs)
    for ids in (other.inputs["input_ids"], look.ids):  # another beginning, and no question behind it
        with pytest.raises(fv.SettingError, match="looked"):
            resume(vlm.model, look, [{"input_ids": ids}])


def test_a_cache_that_cannot_be_copied_is_refused(monkeypatch):
    from transformers import StaticCache

    vlm = random_vlm("llava")
    static = StaticCache(config=vlm.model.config.get_text_config(), max_cache_len=8)
    monkeypatch.setattr("foveate.ask.look.prefill", lambda *_: static)
    with pytest.raises(fv.UnsupportedError, match="StaticLayer"):
        look_at(vlm.model, asked(vlm)[0].inputs)
