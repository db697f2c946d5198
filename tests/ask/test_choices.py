"""Log-probabilities of given answers: those of a plain forward over prompt and answer."""

import itertools
from types import SimpleNamespace

import pytest
import torch

import foveate as fv
from foveate import embedded
from foveate.ask.running import Choices, choices_of, log_probabilities
from foveate.methods.dycoke import DyCoke
from foveate.methods.read import Read
from tests.ask.conftest import prompt_of, random_vlm
from tests.methods.test_mustdrop import EXAMPLES
from tests.models import TINY, batch, generate, mixed, tiny

QUESTION = embedded.QUESTION
HALF = 0.05  # the embedded model runs in bfloat16, in which a batch rounds otherwise
SETTINGS = fv.Generation().arguments(None)
CHOICES = [(11,), (12, 13, 14), (11, 15), (13, 12)]
FAMILIES = (
    "llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "gemma4", "qwen3_5", "internvl", "llava_onevision",
    "paligemma",
)  # fmt: skip
METHODS = {
    "v2drop": fv.V2Drop(layers=(1, 3), keep=(0.5, 0.3)),
    "visiondrop": fv.VisionDrop(retention=0.5),
    "mustdrop": EXAMPLES[0],
    "dycoke": DyCoke(k=0.0, p=0.7),
    "finalkv": fv.V2Drop(layers=(1, 3), keep=(0.5, 0.3)) + fv.FinalKV(),
    "read": fv.V2Drop(layers=(1, 3), keep=(0.5, 0.3)) + Read(keep=0.4),
}
CLOSE = {"abs": 2e-4}
ENDS = (40, 41)


def longer(family, inputs, tokens):
    """The prompt with an answer behind it."""
    answer = torch.tensor([tokens])
    ids = torch.cat((inputs["input_ids"], answer), dim=1)
    return inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | TINY[family].extra(ids)


def plain(family, inputs, tokens):
    """The log-probability of an answer by one forward over all."""
    with torch.no_grad():
        logits = tiny(family)(**longer(family, inputs, tokens)).logits[0]
    logs = logits.float().log_softmax(-1)[-1 - len(tokens) : -1]
    return float(logs.gather(1, torch.tensor(tokens)[:, None]).sum())


class Says:
    """Lets a model generate these tokens, and notes their log-probabilities."""

    def __init__(self, tokens):
        self.left, self.value = list(tokens), 0.0

    def __call__(self, ids, scores):
        token = self.left.pop(0)
        self.value += float(scores.float().log_softmax(-1)[0, token])
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([token]), 0.0)


def forced(family, inputs, tokens, method):
    """The log-probability of an answer by generating it from scratch."""
    says = Says(tokens)
    with fv.drop(tiny(family), method):
        generate(tiny(family), inputs, len(tokens), logits_processor=[says], bad_words_ids=None)
    return says.value


@pytest.mark.parametrize("family", FAMILIES)
def test_without_dropping_they_are_those_of_one_forward(family):
    inputs = batch(family, ["tit"])
    if family == "paligemma":  # whose prompts are seen both ways, the answer not
        expected = []
        for tokens in CHOICES:
            says = Says(tokens)
            generate(tiny(family), inputs, len(tokens), logits_processor=[says], bad_words_ids=None)
            expected.append(says.value)
    else:
        expected = [plain(family, inputs, tokens) for tokens in CHOICES]
    values, cache = log_probabilities(tiny(family), inputs, CHOICES, SETTINGS)
    assert values[0].tolist() == pytest.approx(expected, **CLOSE)
    assert cache.get_seq_length() == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_a_batch_have_the_values_of_each_alone(family):
    words = mixed(family)
    with fv.drop(tiny(family), METHODS["v2drop"]):
        values, _ = log_probabilities(tiny(family), batch(family, words), CHOICES, SETTINGS, ENDS)
        for row, word in zip(values, words, strict=True):
            (alone,), _ = log_probabilities(tiny(family), batch(family, [word]), CHOICES, SETTINGS, ENDS)
            assert row.tolist() == pytest.approx(alone.tolist(), **CLOSE)


@pytest.mark.parametrize(
    ("family", "method"),
    [*zip(FAMILIES, itertools.cycle(METHODS), strict=False), *(("llava", method) for method in list(METHODS)[1:])],
)
def test_with_a_method_they_are_those_of_generating_each_from_scratch(family, method):
    inputs = batch(family, ["tit"])
    setting = METHODS[method]
    if method == "mustdrop":
        try:
            forced(family, inputs, (11,), setting)
        except fv.UnsupportedError:
            pytest.skip("this family lacks a signal that the method reads")
    expected = [forced(family, inputs, tokens, setting) for tokens in CHOICES]
    with fv.drop(tiny(family), setting) as trace:
        values, _ = log_probabilities(tiny(family), inputs, CHOICES, SETTINGS)
        again, _ = log_probabilities(tiny(family), inputs, CHOICES, SETTINGS)
    assert values[0].tolist() == pytest.approx(expected, **CLOSE)
    assert torch.equal(again, values)
    assert trace.history


def test_the_end_of_an_answer_keeps_its_probability(monkeypatch):
    """A least number of new tokens would share it among the others."""
    inputs, expected = batch("llava", ["tit"]), []
    for tokens in CHOICES:
        expected.append(plain("llava", inputs, tokens))
    with torch.no_grad():
        likeliest = int(tiny("llava")(**longer("llava", inputs, (12,))).logits[0, -1].argmax())
    monkeypatch.setattr(tiny("llava").generation_config, "eos_token_id", [likeliest, 95])
    values, _ = log_probabilities(tiny("llava"), inputs, CHOICES, SETTINGS)
    assert values[0].tolist() == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("method", [None, "v2drop"])
def test_where_one_begins_another_the_end_counts_for_all(method, monkeypatch):
    family, ends = "llava", [40, 41]
    inputs, setting = batch(family, ["tit"]), METHODS.get(method)
    monkeypatch.setattr(tiny(family).generation_config, "eos_token_id", ends)

    def value(tokens):
        if setting is None:
            return plain(family, inputs, tokens)
        return forced(family, inputs, tokens, setting)

    expected = []
    for tokens in CHOICES:
        ended = torch.tensor([value((*tokens, end)) for end in ends])
        expected.append(float(ended.logsumexp(0)))
    prompt, vlm = inputs, tiny(family)
    if setting is None:
        values, _ = log_probabilities(vlm, prompt, CHOICES, SETTINGS, ends)
    else:
        with fv.drop(vlm, setting):
            values, _ = log_probabilities(vlm, prompt, CHOICES, SETTINGS, ends)
    assert values[0].tolist() == pytest.approx(expected, **CLOSE)


# -- asking -------------------------------------------------------------------------------------------------------


def test_the_likeliest_choice_is_the_answer(vlm, demo):
    answer = vlm.ask(demo, QUESTION, choices=["ABCDE", "36KUM", "KRPM"])
    assert answer.text == "36KUM" == max(answer.choices, key=answer.choices.get)
    assert list(answer.choices) == ["ABCDE", "36KUM", "KRPM"]
    assert vlm.processor.decode(list(answer.tokens)) == "36KUM"
    assert answer.to_dict()["choices"] == answer.choices


def test_a_shorter_choice_does_not_win_by_being_short(vlm, demo):
    answer = vlm.ask(demo, QUESTION, choices=["36KUMZ", "36KUM", "36K"], method=fv.V2Drop(retention=0.7))
    assert answer.text == "36KUM"


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ("yes", "choices"),
        (["yes"], r"got \['yes'\]"),
        ({"yes", "no"}, "choices"),
        (["yes", 2], "choices"),
        (["yes", ""], "Every choice must have at least one token; got ''"),
        (["yes", "yes"], "No two choices may have the same tokens"),
    ],
)
def test_choices_that_are_none_are_refused(vlm, demo, choices, says):
    with pytest.raises(fv.SettingError, match=says):
        vlm.ask(demo, QUESTION, choices=choices)


@pytest.mark.parametrize("special", ["<image>", "yes</s>"])
def test_choices_with_special_tokens_are_refused(special, vlm, demo):
    for ask in (vlm.ask, lambda *pair, **more: vlm.ask_many([pair], **more)):
        with pytest.raises(fv.InputError, match="special"):
            ask(demo, QUESTION, choices=[special, "no"])


def test_a_model_that_ends_no_answer_cannot_tell_a_choice_from_a_longer_one():
    vlm = random_vlm("llava")  # without an end of sequence
    ids = {"a": (11,), "ab": (11, 12)}
    vlm.processor.tokenizer = type("Words", (), {
        "eos_token_id": None, "all_special_tokens": (), "convert_ids_to_tokens": lambda _, ids: [],
        "__call__": lambda _, text, **__: SimpleNamespace(input_ids=ids[text])
    })()  # fmt: skip
    prompt = prompt_of(vlm, batch("llava", ["ti"]))
    with pytest.raises(fv.SettingError, match="no end token"):
        Choices.of(vlm, ["a", "ab"])
    vlm.processor.tokenizer.eos_token_id = 40
    (answer,) = choices_of(vlm, [prompt], Choices.of(vlm, ["a", "ab"]), None)
    assert set(answer.choices) == {"a", "ab"}


# -- many ----------------------------------------------------------------------------------------------------------

ASKED = ["What does the text say?", "What is it? Say it in one word, please.", "What?"]
CANDIDATES = ["yes", "no", "36KUM"]


@pytest.mark.parametrize("method", [None, "v2drop", "fastv"])
def test_many_questions_have_the_values_of_each_alone(vlm, demo, method):
    pairs = [(demo, question) for question in ASKED] + [([], "Is it?")]
    many = list(vlm.ask_many(pairs, choices=CANDIDATES, method=method))
    for pair, answer in zip(pairs, many, strict=True):
        alone = vlm.ask(*pair, choices=CANDIDATES, method=method)
        assert answer.text == alone.text
        assert list(answer.choices) == CANDIDATES
        assert list(answer.choices.values()) == pytest.approx(list(alone.choices.values()), abs=HALF)
        assert answer.retention == pytest.approx(alone.retention)


def test_many_questions_of_a_look_have_the_values_of_each_alone(vlm, demo):
    prefix = vlm.look(demo, method="divprune", retention=1 / 3)
    for question, answer in zip(ASKED, prefix.ask_many(ASKED, choices=CANDIDATES), strict=True):
        alone = prefix.ask(question, choices=CANDIDATES)
        assert list(answer.choices.values()) == pytest.approx(list(alone.choices.values()), abs=HALF)
        assert answer.looked == prefix.tokens


def test_choices_of_one_token_run_a_batch_once(vlm, demo):
    runs = []
    hook = vlm.model.get_decoder().register_forward_hook(lambda _, args, output: runs.append(1))
    try:
        list(vlm.ask_many([(demo, "Is it?"), (demo, "Is it so?")], choices=["yes", "no"], method="fastv"))
        once = len(runs)
        list(vlm.ask_many([(demo, "Is it?"), (demo, "Is it so?")], choices=["yes", "36KUM"], method="fastv"))
    finally:
        hook.remove()
    assert once == 1
    assert len(runs) > 2


@pytest.mark.parametrize("choices", [["yes"], ["yes", ""], ["yes", "yes"]])
def test_bad_choices_are_told_before_anything_runs(vlm, choices):
    with pytest.raises(fv.SettingError):
        vlm.ask_many([("nothing.png", "Is it?")], choices=choices)
    with pytest.raises(fv.SettingError, match="scored"):
        vlm.ask_many([("nothing.png", "Is it?")], choices=["yes", "no"], temperature=1.0)
    with pytest.raises(fv.SettingError, match="second look"):
        vlm.ask_many([("nothing.png", "Is it?")], choices=["yes", "no"], method="vidcom2", sure=0.9)
