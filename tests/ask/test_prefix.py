"""A prefix: asked again and again, in batches, in conversations, and never where its rows would be wrong."""

import copy
import threading
from contextlib import contextmanager

import numpy as np
import peft
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.ask.conversation import Conversation
from foveate.ask.media import Picture
from foveate.ask.prefix import Wording
from tests.ask.conftest import image, text, user

QUESTIONS = ("What does the text say?", "How many squares are there?", "\nIs there a ring? ", "é…?", "a" * 80)


@pytest.fixture(scope="module")
def vlm(small):
    return small


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (336, 336, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def prefix(vlm, picture):
    return vlm.look(picture, method="v2drop", retention=0.4)


NEW = {"max_new_tokens": 5}
FEW = fv.Generation(**NEW)


# -- what it is ---------------------------------------------------------------------------------------------------


def test_a_prefix_says_what_it_is(vlm, picture, prefix):
    assert prefix.nbytes < 0.6 * vlm.look(picture).nbytes
    assert prefix.trace.retention[0] == pytest.approx(0.4, abs=0.02)
    assert prefix.trace.stages[0].before == (576,)
    assert prefix.tokens == 578
    assert (prefix.method.name, prefix.notes) == ("v2drop", ())
    assert repr(prefix) == f"Prefix(578 tokens of 'small', v2drop, {prefix.nbytes / 1e6:.1f} MB)"
    assert "the untouched model" in repr(vlm.look(picture))
    assert copy.deepcopy(prefix) is prefix


# -- answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, "v2drop", "visionzip"])
def test_an_answer_is_that_of_the_same_question_asked_afresh(vlm, picture, method):
    prefix = vlm.look(picture, method=method)
    for question in QUESTIONS if method is None else QUESTIONS[:2]:
        answer, fresh = prefix.ask(question, **NEW), vlm.ask(picture, question, method=method, **NEW)
        assert torch.equal(answer.prompt.inputs["input_ids"], fresh.prompt.inputs["input_ids"])
        assert (answer.tokens, answer.text, answer.method) == (fresh.tokens, fresh.text, fresh.method)
        assert (answer.retention, answer.spent, answer.flops) == (fresh.retention, fresh.spent, fresh.flops)
        assert (answer.kv_bytes, answer.kv_bytes_whole) == (fresh.kv_bytes, fresh.kv_bytes_whole)
        assert (answer.looked, fresh.looked) == (578, 0)
        values, expected = answer.to_dict(), fresh.to_dict()
        assert values.pop("trace", {}).get("stages") == expected.pop("trace", {}).get("stages")
        assert values == expected | {"looked": 578}
    if method is not None:
        assert answer.trace is prefix.trace
        assert answer.show().size == fresh.show().size


def test_many_questions_are_answered_in_order_whatever_their_lengths(prefix):
    questions = (f"{question} {number}" for number in range(3) for question in QUESTIONS)
    answers = list(prefix.ask_many(questions, batch_size=4, **NEW))
    assert len(answers) == 15
    for number, answer in enumerate(answers):
        alone = prefix.ask(f"{QUESTIONS[number % 5]} {number // 5}", **NEW)
        assert (answer.prompt.text, answer.tokens) == (alone.prompt.text, alone.tokens)
    assert list(prefix.ask_many([])) == []
    with pytest.raises(fv.SettingError, match="several"):
        prefix.ask_many("What is it?")


def test_choices_are_scored_as_afresh(vlm, picture, prefix):
    choices = ["yes", "yes no", "12"]
    answer = prefix.ask("Is it?", choices=choices)
    fresh = vlm.ask(picture, "Is it?", choices=choices, method="v2drop", retention=0.4)
    assert answer.choices == pytest.approx(fresh.choices, abs=1e-4)
    assert (answer.text, answer.looked) == (fresh.text, 578)


# -- conversations ------------------------------------------------------------------------------------------------


def test_questions_of_a_conversation_build_on_answers(vlm, picture, prefix):
    first = prefix.ask("What is it?", **NEW)
    second = prefix.ask("And where?", after=["What is it?", first.text], **NEW)
    messages = [
        user(image(picture), text("What is it?")),
        {"role": "assistant", "content": first.text},
        user(text("And where?")),
    ]
    fresh = vlm.ask(messages=messages, method="v2drop", retention=0.4, **NEW)
    assert second.tokens == fresh.tokens
    assert torch.equal(second.prompt.inputs["input_ids"], fresh.prompt.inputs["input_ids"])


def test_what_was_said_is_questions_and_answers_in_turn(prefix):
    for after in ("What is it?", ["What is it?"], ["What?", "It.", "Where?"]):
        with pytest.raises(fv.SettingError, match="after"):
            prefix.ask("And where?", after=after)


# -- refusals -----------------------------------------------------------------------------------------------------


def test_half_a_letter_and_a_placeholder_are_refused(prefix):
    with pytest.raises(fv.InputError, match="Unicode"):
        prefix.ask("What \ud800?")
    with pytest.raises(fv.InputError, match="holds"):
        prefix.ask("What is <image>?")


def test_nothing_to_look_at_is_refused(vlm, picture):
    with pytest.raises(fv.SettingError, match="look"):
        vlm.look([])
    with pytest.raises(fv.SettingError, match="look"):
        vlm.look(messages=[user(text("Hello."))])
    with pytest.raises(fv.SettingError, match="messages"):
        vlm.look(picture, messages=[user(image(picture))])
    with pytest.raises(fv.SettingError, match="budget"):
        vlm.look(picture, retention=0.3)


def ways_of_asking(vlm, picture, prefix):
    """Each way to a model that nobody gave a method."""
    about = vlm.prepare(picture, "What?")
    return (
        lambda: vlm.ask(picture, "What?"),
        lambda: vlm.ask((), "What?"),
        lambda: vlm.ask(picture, "What?", choices=["a", "b"]),
        lambda: "".join(vlm.ask(picture, "What?", stream=True)),
        lambda: list(vlm.ask_many([(picture, "What?")])),
        lambda: vlm.answer(about),
        lambda: vlm.look(picture),
        lambda: prefix.ask("What?"),
        lambda: list(prefix.ask_many(["What?"])),
    )


@contextmanager
def applied(model, method, **budget):
    fv.apply(model, method, **budget)
    try:
        yield
    finally:
        fv.remove(model)


@contextmanager
def dropped_elsewhere(model, method, **budget):
    """A context that another thread holds."""
    opened, done = threading.Event(), threading.Event()

    def hold():
        with fv.drop(model, method, **budget):
            opened.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    opened.wait(60)
    try:
        yield
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("opened", [fv.drop, applied, dropped_elsewhere])
def test_inside_an_open_context_nothing_is_looked_at_and_asked(vlm, picture, prefix, opened):
    with opened(vlm.model, "v2drop", retention=0.5):
        for call in ways_of_asking(vlm, picture, prefix):
            with pytest.raises(fv.SessionError, match="already applied"):
                call()
    assert vlm.ask(picture, "What?", **NEW).retention == 1
    assert prefix.ask("What?", **NEW).text is not None


def load_anew(model):
    model.load_state_dict({name: weight.clone() for name, weight in model.state_dict().items()})


def replace(model):
    model.load_state_dict({name: weight.clone() for name, weight in model.state_dict().items()}, assign=True)


def train(model):
    weights = [weight for weight in model.parameters() if weight.is_floating_point()]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    torch.optim.SGD(weights, lr=1e-3).step()


@pytest.mark.parametrize("changed", [load_anew, replace, train, torch.nn.Module.half])
def test_with_other_weights_nothing_is_asked(vlm, picture, changed):
    other = fv.VLM(copy.deepcopy(vlm.model), vlm.processor, "small")
    prefix = other.look(picture)
    prefix.ask("What?", **NEW)
    changed(other.model)
    with pytest.raises(fv.SessionError, match="weights"):
        prefix.ask("What?")


def switch(model):
    model.set_adapter("two")


def merge(model):
    model.merge_adapter()


def scale(model):
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(2)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT still reads it
@pytest.mark.parametrize("changed", [switch, scale, merge])
def test_with_other_adapters_nothing_is_asked(vlm, picture, changed):
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, r=2)
    wrapped = peft.get_peft_model(copy.deepcopy(vlm.model), lora, adapter_name="one").eval()
    wrapped.add_adapter("two", lora)
    adapted = fv.VLM(wrapped, vlm.processor, "adapted")
    prefix = adapted.look(picture, method="v2drop", retention=0.4)
    expected = prefix.ask("What?", **NEW).tokens
    with wrapped.disable_adapter(), pytest.raises(fv.SessionError, match="adapted"):
        prefix.ask("What?")
    assert prefix.ask("What?", **NEW).tokens == expected  # the adapter that it looked with counts again
    changed(wrapped)
    with pytest.raises(fv.SessionError, match="adapted"):
        prefix.ask("What?")


# -- templates ----------------------------------------------------------------------------------------------------

SAYS = "{% for m in messages %}{% for p in m.content %}"
DONE = "{% endfor %}{% endfor %}"
PART = "{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}"
TEMPLATES = {
    "none": None,
    "trims": SAYS + PART.replace("p.text", "p.text | trim") + DONE + " ANSWER:",
    "text behind the picture": SAYS + PART.replace("<image>", "<image> See above.\n") + DONE,
    "nothing else": SAYS + PART + DONE,
}
FIRST = "{% for m in messages %}{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}<image>{% endfor %}"


def with_template(vlm, template):
    processor = copy.deepcopy(vlm.processor)
    processor.chat_template = template
    return fv.VLM(vlm.model, processor, "templated")


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_ids_behind_the_picture_are_those_of_the_whole_text(vlm, picture, template):
    model = with_template(vlm, TEMPLATES[template])
    prefix = model.look(picture)
    for question in QUESTIONS:
        ids = model.prepare(picture, question).inputs["input_ids"]
        assert torch.equal(prefix.prompt(question).inputs["input_ids"], ids)


def test_a_template_that_puts_the_question_first_is_refused(vlm, picture):
    with pytest.raises(fv.UnsupportedError, match="templated"):
        with_template(vlm, FIRST).look(picture)


def test_a_template_that_begins_otherwise_later_is_refused(vlm, picture, monkeypatch):
    model = with_template(vlm, TEMPLATES["nothing else"])
    prefix = model.look(picture)
    model.processor.chat_template = "Today." + TEMPLATES["nothing else"]
    with pytest.raises(fv.UnsupportedError, match="writes"):
        prefix.ask("What?")


def test_what_the_processor_writes_behind_a_picture_is_found(vlm):
    """Gemma 3's closes a picture with a token and two line breaks, which a tokenizer may join with the question's."""
    model = with_template(vlm, TEMPLATES["nothing else"])
    conversation = Conversation.about([Picture(None, Image.new("RGB", (8, 8)))], "")
    conversation = conversation.without_last_text()

    def ids_of(question):
        return model.tokenizer(f"{'<image>' * 4}</s>\n\n{question}").input_ids

    wording = Wording.of(model, conversation, "Is it?", torch.tensor(ids_of("Is it?")))
    assert wording.closing == "<image></s>\n\n"
    for question in ("\nWhat?", "What?", " ?"):
        rest = wording.rest(model, conversation.with_text(question))
        assert rest[0].tolist() == ids_of(question)[5:]


def test_ids_that_cannot_be_had_without_the_picture_are_refused(vlm, picture, monkeypatch):
    monkeypatch.setattr(Wording, "ids", lambda *_: [7])
    with pytest.raises(fv.UnsupportedError, match="without"):
        vlm.look(picture)
