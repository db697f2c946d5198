"""A second look: what is trusted is the method's own answer, what is not is the untouched model's, at every door."""

import json
import math
from dataclasses import replace

import pytest
import torch

import foveate as fv
from foveate import embedded
from foveate.ask import answers
from foveate.ask.answers import Answerer
from foveate.ask.generation import Generation, LeastSure
from foveate.ask.loading import load
from foveate.ask.running import log_probabilities
from foveate.ask.second_look import conditions_of
from foveate.engine.extensions.tower_memo import TowerMemo
from foveate.errors import InputError, SettingError
from tests.ask.conftest import noise

METHOD = "vidcom2"
FEW = {"method": METHOD, "tokens": 8, "max_new_tokens": 6}
QUESTIONS = ("What colour is the dog ?", "Read the text .")


@pytest.fixture(scope="module")
def vlm(unwarned):
    return unwarned


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    paths = noise(tmp_path_factory.mktemp("pictures"), 4)
    return [(path, question) for question in QUESTIONS for path in paths]


@pytest.fixture(scope="module")
def middle(vlm, pairs):
    """A threshold that trusts about half of the answers."""
    confidences = sorted(vlm.ask(*pair, sure=0.0, **FEW).confidence for pair in pairs)
    return (confidences[3] + confidences[4]) / 2  # between two: a batch moves a confidence by a rounding error


def forced(vlm, prompt, method, tokens):
    """The probability of the least likely token, each forced behind those before it."""
    logs = []
    with fv.drop(vlm.model, method):
        for count in range(1, len(tokens) + 1):
            values, _ = log_probabilities(
                vlm.model, prompt.inputs, [tokens[:count]], Generation().arguments(vlm.tokenizer)
            )
            logs.append(float(values))
    return math.exp(min(after - before for before, after in zip([0.0, *logs], logs, strict=False)))


def test_a_confidence_is_that_of_forced_tokens(vlm, pairs):
    for pair in pairs[:3]:
        answer = vlm.ask(*pair, sure=0.0, **FEW)
        method = answer.method
        expected = forced(vlm, answer.prompt, method, answer.tokens)
        assert answer.confidence == pytest.approx(expected, rel=1e-4)


def test_what_is_trusted_is_the_methods_answer_and_what_is_not_the_untouched_models(vlm, pairs, middle):
    again = 0
    for pair in pairs:
        answer = vlm.ask(*pair, sure=middle, **FEW)
        few, full = vlm.ask(*pair, **FEW), vlm.ask(*pair, max_new_tokens=6)
        assert answer.again == (answer.confidence < middle)
        assert answer.tokens == (full if answer.again else few).tokens
        if answer.again:
            again += 1
            assert answer.unsure.tokens == few.tokens
            assert answer.unsure.confidence == answer.confidence
            assert answer.method is None
        else:
            assert answer.unsure is None
    assert 0 < again < len(pairs)


def test_costs_count_both_looks(vlm, pairs):
    few, full = vlm.ask(*pairs[0], **FEW), vlm.ask(*pairs[0], max_new_tokens=6)
    answer = vlm.ask(*pairs[0], sure=1.0, **FEW)
    assert answer.again
    assert answer.spent == few.spent + full.spent == 8 + 576
    assert answer.retention == pytest.approx(584 / 576)
    assert answer.flops == few.flops + full.flops
    assert answer.saved.prefill_flops == pytest.approx(few.saved.prefill_flops - 1)
    assert answer.saved.prefill_flops < 0
    assert answer.saved.total_flops == pytest.approx(few.saved.total_flops - 1)
    values = json.loads(json.dumps(answer.to_dict()))
    assert (values["again"], values["confidence"]) == (True, answer.confidence)
    assert values["unsure"]["answer"] == few.text
    assert "asked again" in dict(answer.lines())["Confidence"]
    assert "unsure" in repr(answer)
    assert answer.show().size == few.show().size


def test_many_questions_are_answered_as_each_alone(vlm, pairs, middle):
    alone = [vlm.ask(*pair, sure=middle, **FEW) for pair in pairs]
    many = list(vlm.ask_many(pairs, sure=middle, batch_size=3, **FEW))
    assert [answer.again for answer in many] == [answer.again for answer in alone]
    assert [answer.tokens for answer in many] == [answer.tokens for answer in alone]
    assert [answer.confidence for answer in many] == pytest.approx([answer.confidence for answer in alone], rel=1e-4)


def test_a_picture_is_seen_once_by_the_tower_at_both_looks(vlm, pairs):
    seen = []
    layer = vlm.model.model.vision_tower.encoder.layers[0]
    with layer.register_forward_pre_hook(lambda _, given: seen.append(len(given[0]))):
        list(vlm.ask_many(pairs[:4], sure=1.0, batch_size=4, **FEW))
        assert seen == [4]
        seen.clear()
        vlm.ask(*pairs[0], sure=1.0, **FEW)
        assert seen == [1]


def test_a_second_look_uses_the_memo_that_others_share_with_it(vlm, pairs):
    """And leaves in it what it found there."""
    memo, seen = TowerMemo(), []
    layer = vlm.model.model.vision_tower.encoder.layers[0]
    with layer.register_forward_pre_hook(lambda _, given: seen.append(len(given[0]))):
        for method in (fv.FastV(), fv.SecondLook(method=method_of(), sure=1.0), fv.FastV()):
            answerer = Answerer(vlm, method, Generation(max_new_tokens=1), tower=memo)
            assert len([*answerer.replies(pairs[:1], lambda pair, _: vlm.prepare(*pair))]) == 1
    assert seen == [1]


def test_where_the_full_model_fails_nobody_gets_the_unsure_answer(vlm, pairs, middle, monkeypatch):
    answered = answers.answers_to

    def failing(loaded, prompts, method, *given, **options):
        if method is None:
            raise ValueError("no full model today")
        return answered(loaded, prompts, method, *given, **options)

    monkeypatch.setattr(answers, "answers_to", failing)
    answerer = Answerer(vlm, fv.SecondLook(method=method_of(), sure=middle), Generation())
    replies = [reply for batch in answerer.replies(pairs, lambda pair, _: vlm.prepare(*pair)) for reply in batch]
    assert sorted(reply.place for reply in replies) == list(range(len(pairs)))
    failed = [reply for reply in replies if isinstance(reply.result, Exception)]
    assert 0 < len(failed) < len(pairs)
    with pytest.raises(ValueError, match="no full model"):
        vlm.ask(*pairs[0], sure=1.0, **FEW)


def method_of(tokens=8):
    from foveate.naming import method_of

    return method_of(METHOD, tokens=tokens)


def test_a_question_without_a_picture_is_asked_once(vlm):
    answer = vlm.ask((), "What is it ?", sure=1.0, **FEW)
    assert not answer.again


def test_a_confidence_that_is_no_number_is_unsure(vlm, pairs, monkeypatch):
    monkeypatch.setattr(LeastSure, "of", lambda *_: math.nan)
    assert vlm.ask(*pairs[0], sure=0.0, **FEW).again


def test_a_sample_that_has_ended_is_not_less_sure_for_others_that_go_on():
    least = LeastSure()
    for first, second in ((2.0, 3.0), (2.0, 0.1), (2.0, 0.0)):
        least(None, torch.tensor([[first, 0.0], [second, 0.0]]))
    surely = [1 / (1 + math.exp(-value)) for value in (2.0, 3.0, 0.0)]
    assert least.of(0, 3) == pytest.approx(surely[0], rel=1e-6)
    assert least.of(1, 1) == pytest.approx(surely[1], rel=1e-6)  # an answer that is its end alone
    assert least.of(1, 3) == pytest.approx(surely[2], rel=1e-6)
    assert least.of(1, 0) == least.of(1, 1)


@pytest.mark.parametrize(
    "more",
    [{"temperature": 0.5}, {"num_beams": 2}, {"stream": True}, {"choices": ["a", "b"]}],
    ids=lambda more: next(iter(more)),
)
def test_answers_that_are_not_greedy_and_whole_are_refused(more, vlm, pairs):
    with pytest.raises(SettingError):
        vlm.ask(*pairs[0], sure=0.5, **FEW, **more)


@pytest.mark.parametrize("sure", [-0.1, 1.1, math.nan, "much", True])
def test_a_threshold_is_a_probability(sure, vlm, pairs):
    with pytest.raises(SettingError, match="sure"):
        vlm.ask(*pairs[0], sure=sure, **FEW)


def test_a_second_look_begins_with_a_method():
    with pytest.raises(SettingError, match="needs a method"):
        fv.SecondLook(method="vidcom2", sure=0.5)


def test_a_threshold_needs_something_that_drops(vlm, pairs):
    with pytest.raises(SettingError, match="sure needs a method"):
        vlm.ask(*pairs[0], sure=0.5)


# -- the file ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def promised(vlm):
    """A second look with a promise, as `foveate.tune` gives it."""
    from foveate.ask.second_look import Promise, TaskLook

    promise = Promise(
        agreement=0.95,
        samples=100,
        wrong=1,
        tried=1,
        pictures=100,
        again=0.2,
        tokens=123.5,
        first=8.0,
        full=576.0,
        tasks=(TaskLook(task="count", questions=100, again=0.2, differ=0.01),),
        model="embedded",
        conditions=conditions_of(vlm, Generation(max_new_tokens=6)),
        single_turn=True,
        notes=(),
        date="2026-01-01T00:00:00+00:00",
    )
    return fv.SecondLook(method=method_of(), sure=0.51234567890123456, promise=promise)


@pytest.fixture
def file(promised, tmp_path):
    path = tmp_path / "sure.json"
    promised.save(path)
    return path


def test_a_file_says_what_was_written(promised, file):
    assert fv.SecondLook.load(file) == promised
    with pytest.raises(InputError, match="exists already"):
        promised.save(file)


def test_a_file_goes_where_a_question_is_asked(vlm, pairs, promised, file):
    asked = [vlm.ask(*pairs[0], method=method, max_new_tokens=6) for method in (promised, str(file))]
    asked += vlm.ask_many(pairs[:1], method=str(file), max_new_tokens=6)
    by_hand = vlm.ask(*pairs[0], sure=promised.sure, **FEW)
    assert {answer.tokens for answer in asked} == {by_hand.tokens}
    assert promised.name == "vidcom2 8, else full"
    assert "at most 5 % differ" in promised.sentence
    assert "count" in promised.table().to_text(width=100)


def test_a_file_is_refused_where_nothing_is_asked_again(vlm, pairs, promised, file):
    prompt = vlm.prepare(*pairs[0])
    doors = [
        lambda method: fv.drop(vlm.model, method).__enter__(),
        lambda method: fv.apply(vlm.model, method),
        lambda method: vlm.look(pairs[0][0], method=method),
        lambda method: vlm.answer(prompt, method),
    ]
    for door in doors:
        for promise in (str(file), promised):
            with pytest.raises(SettingError, match=r"second look|SecondLook"):
                door(promise)
    for text in (f"{file}+v2drop", f"visionzip+{file}"):
        with pytest.raises(fv.FoveateError):
            vlm.ask(*pairs[0], method=text)


def test_a_second_look_has_its_own_budget_and_threshold(vlm, pairs, promised):
    for more in ({"tokens": 8}, {"retention": 0.5}, {"sure": 0.5}):
        with pytest.raises(SettingError, match="of its own"):
            vlm.ask(*pairs[0], method=promised, max_new_tokens=6, **more)


@pytest.mark.parametrize("text", ["Ends", "a.json"])
def test_a_name_that_is_no_second_look_stays_what_it_was(text, vlm, pairs):
    with pytest.raises((fv.UnknownNameError, InputError)):
        vlm.ask(*pairs[0], method=text)


def changed(file, change):
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))
    return str(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(sure=1.5),
        lambda values: values.update(sure=True),
        lambda values: values.update(sure=math.nan),
        lambda values: values.update(sure=0.1),  # its sentence says another
        lambda values: values.pop("sentence"),
        lambda values: values["promise"].update(wrong=101),
        lambda values: values["promise"].update(wrong=2),  # of 100: 5.2 %
        lambda values: values.pop("method"),
        lambda values: values["promise"].update(more=1),
        lambda values: values["promise"].pop("conditions"),
        lambda values: values["promise"].update(agreement=0.99),
        lambda values: values["method"].update(tokens=-3),
        lambda values: values["method"].update(method="exec"),
        lambda values: values.update(format="foveate second look 1"),
    ],
)
def test_a_damaged_file_is_refused(change, vlm, pairs, file):
    with pytest.raises(fv.FoveateError):
        vlm.ask(*pairs[0], method=changed(file, change), max_new_tokens=6)


def test_a_conversation_is_refused_where_the_samples_were_questions(vlm, promised):
    said = [("user", "What is it ?"), ("assistant", "a dog"), ("user", "What colour ?")]
    messages = [{"role": role, "content": text} for role, text in said]
    with pytest.raises(SettingError, match="conversations"):
        vlm.ask(messages=messages, method=promised, max_new_tokens=6)
    open_to_all = replace(promised, promise=replace(promised.promise, single_turn=False))
    assert vlm.ask(messages=messages, method=open_to_all, max_new_tokens=6).confidence is not None


@pytest.mark.parametrize(
    ("others", "says", "hides"),
    [
        ({"dtype": "bfloat16", "weights": "others"}, "give dtype=bfloat16.", "weights"),
        ({"max_new_tokens": "7"}, "give max_new_tokens=7.", "calibrate again"),
        ({"max_new_tokens": "7", "kernel": "eager"}, "give attention=eager and give max_new_tokens=7", "again"),
        ({"weights": "others"}, "or calibrate again", "give "),
    ],
)
def test_what_differs_from_the_calibration_is_said_and_what_to_give(vlm, promised, others, says, hides):
    conditions = {**promised.promise.conditions, **others}
    look = replace(promised, promise=replace(promised.promise, conditions=conditions))
    with pytest.raises(SettingError) as refused:
        look.refuse_others(vlm, Generation(max_new_tokens=int(promised.promise.conditions["max_new_tokens"])))
    assert says in str(refused.value)
    assert hides not in str(refused.value)
    assert all(f"another {name}" in str(refused.value) for name in others if name != "weights" or len(others) == 1)


def test_another_length_is_refused(vlm, pairs, promised):
    with pytest.raises(SettingError, match="max_new_tokens"):
        vlm.ask(*pairs[0], method=promised)
    with pytest.raises(SettingError, match="another stop"):
        vlm.ask(*pairs[0], method=promised, max_new_tokens=6, stop=["x"])


def test_conditions_are_those_of_the_weights_and_the_processor_as_they_are(vlm):
    settings = Generation()
    before = conditions_of(vlm, settings)
    other = load("embedded", device="cpu")
    assert conditions_of(other, settings) == before
    weight = next(iter(other.model.parameters()))
    with torch.no_grad():
        weight[0] += 1
    assert differing(other, before) == {"weights"}
    with torch.no_grad():
        weight[0] -= 1
    other.model.config.quantization_config = {"bits": 4}
    assert differing(other, before) == {"weights"}
    del other.model.config.quantization_config
    other.processor.chat_template = "{{ messages }}"
    assert differing(other, before) == {"processor"}
    other.processor.chat_template = vlm.processor.chat_template
    assert differing(other, before) == set()
    other.processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert differing(other, before) == {"processor"}
    other.processor.image_processor.image_mean = vlm.processor.image_processor.image_mean
    hook = other.model.lm_head.register_forward_hook(differing)
    assert conditions_of(other, settings) == before | {"hooks": f"lm_head: {__name__}.differing"}
    hook.remove()
    other.model(**other.prepare(embedded.picture(), "What?").inputs, output_hidden_states=True)  # transformers' hooks
    assert conditions_of(other, settings) == before
    half = load("embedded", device="cpu", dtype="bfloat16")
    assert {"dtype", "weights"} <= differing(half, before)
    eager = load("embedded", device="cpu", attention="eager")
    assert differing(eager, before) == {"kernel"}


def differing(vlm, before):
    now = conditions_of(vlm, Generation())
    return {name for name in before if now[name] != before[name]}


def test_a_share_asked_again_that_leaves_the_calibrations_interval_is_told(promised):
    promise = promised.promise
    assert promise.strange(0.2, 50) is None
    assert promise.strange(0.3, 20) is None
    assert "not like the samples" in promise.strange(0.02, 500)
    assert "60 %" in promise.strange(0.6, 100)


def test_the_threshold_itself_is_trusted_as_in_a_calibration(vlm, pairs):
    confidence = vlm.ask(*pairs[0], sure=0.0, **FEW).confidence
    assert not vlm.ask(*pairs[0], sure=confidence, **FEW).again
    assert vlm.ask(*pairs[0], sure=math.nextafter(confidence, 1.0), **FEW).again
