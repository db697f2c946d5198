"""Asking: what goes in, what comes out, in what order, and how the model is left."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import foveate as fv
from foveate import embedded
from foveate.ask import answers as module
from foveate.embedded.questions import one_per_task
from foveate.embedded.scenes import scene
from tests.ask.conftest import INDEX, clip_of, image, prompt_of, random_vlm, text, user
from tests.invariants.test_restore import state
from tests.setups.running import elsewhere, until

QUESTION = embedded.QUESTION
METHOD = fv.V2Drop(retention=0.5)


def alike(answers, others):
    """Whether they say and spend the same."""
    for answer, other in zip(answers, others, strict=True):
        assert (answer.text, answer.tokens, answer.retention) == (other.text, other.tokens, other.retention)
        assert (answer.kv_bytes, answer.kv_bytes_whole) == (other.kv_bytes, other.kv_bytes_whole)


@pytest.fixture(scope="module")
def questions(scenes):
    """Nine questions of different lengths about three pictures."""
    asked = []
    for number, picture in enumerate(scenes):
        for question in one_per_task(scene("held-out", INDEX + number), "held-out", INDEX + number)[:3]:
            asked.append((picture, question.question))
    return asked


# -- what goes in -------------------------------------------------------------------------------------------------


def test_a_picture_may_be_a_path_an_object_an_array_or_in_a_list(vlm, demo):
    answer = vlm.ask(embedded.picture(), QUESTION)
    assert (answer.text, answer.vision_tokens, answer.retention, answer.method) == ("36KUM", 576, 1.0, None)
    assert str(answer) == answer.text
    for media in (str(embedded.picture()), demo, np.asarray(demo), [demo], (embedded.picture(),)):
        inputs = vlm.prepare(media, QUESTION).inputs
        assert all(torch.equal(value, inputs[name]) for name, value in answer.prompt.inputs.items())
    assert vlm.ask(np.asarray(demo), QUESTION, max_new_tokens=1).tokens == answer.tokens[:1]


def test_no_picture_is_said_with_an_empty_list_and_nothing_else_at_every_door(vlm):
    other = fv.VLM(vlm.model, vlm.processor, "mine")
    doors = {
        "ask": lambda each: each.ask(None, QUESTION),
        "alone": lambda each: each.ask(prompt=QUESTION),
        "nothing": lambda each: each.ask(),
        "stream": lambda each: each.ask(None, QUESTION, stream=True),
        "look": lambda each: each.look(None),
        "prepare": lambda each: each.prepare(None, QUESTION),
        "pairs": lambda each: list(each.ask_many([(None, QUESTION)])),
        "questions": lambda each: list(each.ask_many([fv.Question(prompt=QUESTION)])),
        "mappings": lambda each: list(each.ask_many([{"prompt": QUESTION}])),
    }
    for model in (vlm, other):
        for door in doors.values():
            with pytest.raises(fv.SettingError, match=r"\[\]"):
                door(model)
    assert [answer.vision_tokens for answer in vlm.ask_many([([], "Hello")], max_new_tokens=1)] == [0]


def test_a_question_may_be_without_a_picture(vlm):
    answer = vlm.ask([], "What does the text say?", method="v2drop", retention=0.2)
    assert (answer.vision_tokens, answer.retention, answer.method, answer.met) == (0, 1.0, None, None)
    assert answer.kv_bytes == answer.kv_bytes_whole > 0
    with pytest.raises(fv.SettingError, match="question"):
        vlm.ask([])


def test_a_question_without_a_picture_says_that_the_method_had_nothing_to_drop(vlm, demo):
    once = {"method": "v2drop", "max_new_tokens": 1}
    with vlm.ask([], QUESTION, stream=True, **once) as stream:
        list(stream)
    answers = [
        vlm.ask([], QUESTION, **once),
        vlm.ask([], QUESTION, choices=["a", "b"], method="v2drop"),
        vlm.ask([], QUESTION, sure=0.99, **once),
        vlm.ask(messages=[{"role": "user", "content": [{"type": "text", "text": QUESTION}]}], **once),
        vlm.answer(vlm.prepare([], QUESTION), "v2drop"),
        stream.answer,
        *vlm.ask_many([([], QUESTION), ([], "Why?")], **once),
    ]
    assert all("nothing to drop" in answer.notes[0] and "v2drop" in answer.notes[0] for answer in answers)
    assert answers[0].to_dict()["notes"] == [*answers[0].notes]
    assert vlm.ask([], QUESTION, max_new_tokens=1).notes == vlm.ask(demo, QUESTION, **once).notes == ()


def test_the_frames_of_a_clip_go_in_as_pictures_and_a_warning_says_so(vlm, scenes):
    clip = clip_of(*scenes[:2])
    with pytest.warns(UserWarning, match=r"reads no videos: the 2 frames of film\.mp4 go in as pictures"):
        answer = vlm.ask(clip, QUESTION, max_new_tokens=2)
    assert answer.tokens == vlm.ask(scenes[:2], QUESTION, max_new_tokens=2).tokens
    assert answer.prompt.sizes == (576, 576)
    assert answer.prompt.clips[0] is clip
    assert ("embedded-films" in answer.prompt.notes[0]) == (vlm.name == "embedded")
    long = clip_of(*scenes, *scenes)
    prompt = vlm.prepare(long, QUESTION)
    assert (prompt.vision_tokens, len(prompt.clips[0])) == (3 * 576, 3)
    assert "of the 6 frames read of film.mp4, 3 go in" in prompt.notes[0]


# -- messages -----------------------------------------------------------------------------------------------------


def test_several_turns_and_pictures_are_one_prompt(vlm, scenes, demo):
    messages = [
        user(image(scenes[0]), text("What colour is the star?")),
        {"role": "assistant", "content": "red"},
        user(image(demo), text(QUESTION)),
    ]
    answer = vlm.ask(messages=messages, method="v2drop", retention=0.6)
    assert answer.prompt.sizes == (576, 576)
    assert answer.prompt.text == QUESTION
    words = vlm.processor.decode(answer.prompt.inputs["input_ids"][0], skip_special_tokens=True)
    assert words.index("What colour") < words.index("red") < words.index(QUESTION)
    assert vlm.prepare(messages=[*messages, {"role": "assistant", "content": "XRP"}]).text == QUESTION


def test_messages_take_the_place_of_media_and_prompt(vlm, demo):
    for more in ({"media": demo}, {"prompt": QUESTION}):
        with pytest.raises(fv.SettingError, match="prompt"):
            vlm.ask(messages=[user(text("Hello"))], **more)


# -- settings -----------------------------------------------------------------------------------------------------


def test_two_budgets_or_one_without_a_method_are_a_mistake(vlm, demo):
    with pytest.raises(fv.SettingError, match="tokens"):
        vlm.ask(demo, QUESTION, method="v2drop", tokens=96, retention=0.3)
    for budget in ({"tokens": 96}, {"retention": 0.3}):
        with pytest.raises(fv.SettingError, match="budget"):
            vlm.ask(demo, QUESTION, **budget)


def test_a_method_may_be_an_object_a_name_a_text_or_a_preset(small, demo):
    own = small.ask(demo, QUESTION, max_new_tokens=3, method=fv.V2Drop())
    assert (own.asked, own.method) == (None, fv.V2Drop())
    alike([own], [small.ask(demo, QUESTION, max_new_tokens=3, method="v2drop:metric=l2")])
    third = small.ask(demo, QUESTION, max_new_tokens=3, method="v2drop")
    assert (third.asked, third.met) == (pytest.approx(1 / 3), True)
    alike([third], [small.ask(demo, QUESTION, max_new_tokens=3, method=third.method)])
    assert third.method.name == "v2drop"
    half = small.ask(demo, QUESTION, max_new_tokens=3, method=fv.V2Drop(), retention=0.5)
    alike([half], [small.ask(demo, QUESTION, max_new_tokens=3, method=fv.V2Drop(retention=0.5))])
    assert (half.asked, half.met) == (0.5, True)
    exact = small.ask(demo, QUESTION, max_new_tokens=3, method="v2drop:metric=l1", tokens=288)
    assert (exact.method.metric, exact.met) == ("l1", True)
    assert exact.spent == pytest.approx(288, abs=1)


def test_settings_that_exclude_each_other_are_refused(vlm, demo):
    for more in ({"stream": True}, {"temperature": 0.5}, {"num_beams": 2}):
        with pytest.raises(fv.SettingError, match="decoded"):
            vlm.ask(demo, QUESTION, choices=["a", "b"], **more)
    with pytest.raises(fv.SettingError, match="beam"):
        vlm.ask(demo, QUESTION, stream=True, num_beams=2)
    with pytest.raises(fv.SettingError, match="fit"):
        vlm.ask(demo, QUESTION, fit="crop")
    with pytest.raises(fv.SettingError, match="got 0"):
        vlm.ask_many([], batch_size=0)
    with pytest.raises(fv.SettingError, match="max_new_tokens"):
        vlm.ask_many([], max_new_tokens=0)


def test_a_model_without_a_family_is_refused():
    from types import SimpleNamespace

    with pytest.raises(fv.UnsupportedError, match="blip"):
        fv.VLM(SimpleNamespace(config=SimpleNamespace(model_type="blip")), None)


def test_a_processor_that_leaves_the_picture_out_is_refused(vlm, demo, monkeypatch):
    without = vlm.processor(text=["USER: What? ASSISTANT:"], return_tensors="pt")
    monkeypatch.setattr("foveate.ask.prompt.encode", lambda *_: without)
    with pytest.raises(fv.UnsupportedError, match="without"):
        vlm.ask(demo, QUESTION)


# -- what the user is told ----------------------------------------------------------------------------------------


def test_a_cropped_picture_is_a_warning_at_the_users_line_and_a_note(cropping, wide):
    with pytest.warns(UserWarning, match=r"cuts off 50% of the picture \(left and right\)") as heard:
        answer = cropping.ask(wide, QUESTION)
    assert [Path(warning.filename) for warning in heard] == [Path(__file__)]
    assert answer.notes == (str(heard[0].message),)
    with pytest.warns(UserWarning, match="cuts off 50%") as heard:
        (answer,) = cropping.ask_many([(wide, QUESTION)])
    assert [Path(warning.filename) for warning in heard] == [Path(__file__)]
    assert answer.notes == (str(heard[0].message),)


# -- many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [None, "v2drop"])
def test_many_answers_come_in_order_and_are_those_of_each_alone(small, questions, scenes, method):
    unlike = [
        *questions[:2],
        fv.Question([], "Hello?"),
        {"media": scenes[:2], "prompt": "How many stars are there?"},
        questions[4],
        {"messages": [user(image(scenes[2]), text("What colour is the star?"))]},
    ]
    settings = {"method": method, "retention": 0.5 if method else None, "max_new_tokens": 4}
    many = list(small.ask_many(unlike, batch_size=3, **settings))
    alone = []
    for question in unlike:
        parts = question if isinstance(question, tuple) else ()
        named = question if isinstance(question, dict) else {}
        if isinstance(question, fv.Question):
            parts = (question.media, question.prompt)
        alone.append(small.ask(*parts, **named, **settings))
    for answer, other in zip(many, alone, strict=True):
        assert answer.prompt.text == other.prompt.text
        assert (answer.text, answer.tokens, answer.retention) == (other.text, other.tokens, other.retention)


def test_questions_are_read_as_they_are_needed(small, demo, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 3)
    read_so_far = []

    def endless():
        while True:
            read_so_far.append(True)
            yield demo, "What?"

    answers = small.ask_many(endless(), batch_size=1, max_new_tokens=1)
    assert read_so_far == []
    next(answers)
    assert len(read_so_far) == 3
    for _ in range(3):
        next(answers)
    assert len(read_so_far) == 6
    answers.close()


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("a.png", r"A question must be \(media, prompt\), a mapping or a Question; got 'a\.png'"),
        (("a.png",), "A question must be"),
        ({"media": "a.png", "text": "What?"}, "has the key text, which is not read"),
    ],
)
def test_what_is_no_question_is_refused(vlm, question, says):
    with pytest.raises((fv.SettingError, fv.InputError), match=says):
        next(vlm.ask_many([question]))


# -- one call at a time -------------------------------------------------------------------------------------------


def in_another_thread(work, seconds=60):
    """What `work` answers there; a lock that is still held would let it wait for ever."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert answers, "the lock is held, or the work failed"
    return answers[0]


def test_two_threads_get_the_right_answers(small, questions):
    settings = [{}, {"method": "v2drop", "retention": 0.4}, {"method": "visiondrop", "retention": 0.6}, {}]
    jobs = list(zip(questions, settings, strict=False))
    expected = [small.ask(*question, **more, max_new_tokens=3) for question, more in jobs]
    answers = {}

    def work(start):
        for place in range(start, len(jobs), 2):
            question, more = jobs[place]
            answers[place] = small.ask(*question, **more, max_new_tokens=3)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    alike([answers[place] for place in range(len(jobs))], expected)


@pytest.mark.parametrize("error", [FloatingPointError, KeyboardInterrupt])
def test_after_an_error_the_model_is_restored_and_free(small, demo, error):
    before, expected = state(small.model), small.ask(demo, QUESTION, method=METHOD, max_new_tokens=3)
    random = torch.get_rng_state()

    def fail(*_):
        raise error

    layers = small.model.get_decoder().layers
    handle = layers[-1].mlp.register_forward_pre_hook(fail)
    for more in ({}, {"choices": ["a", "b"]}, {"temperature": 1.0, "seed": 3}):
        with pytest.raises(error):
            small.ask(demo, QUESTION, method=METHOD, **more)
    handle.remove()
    assert state(small.model) == before
    assert torch.equal(torch.get_rng_state(), random)
    assert in_another_thread(lambda: small.ask(demo, QUESTION, method=METHOD, max_new_tokens=3).text) == expected.text
    with fv.drop(small.model, expected.method) as trace:
        small.model.generate(**expected.prompt.inputs, max_new_tokens=2, do_sample=False)
    assert trace.retention == [pytest.approx(expected.retention)]


def test_two_vlms_of_one_model_wait_for_each_other(small, demo):
    twin = fv.VLM(small.model, small.processor, "twin")
    expected = small.ask(demo, "What?", method="v2drop", max_new_tokens=2).text
    with small.lock, ThreadPoolExecutor(1) as pool:
        call = pool.submit(twin.ask, demo, "What?", method="v2drop", max_new_tokens=2)
        until(lambda: small.lock._queue)
        small.lock.release()
        try:
            assert call.result(60).text == expected
        finally:
            small.lock.acquire()


def test_a_vlm_and_a_context_of_another_thread_refuse_each_other_also_without_a_method(small, demo):
    before, plain = state(small.model), small.ask(demo, "What?", max_new_tokens=2).text

    def opens(model):
        with fv.drop(model, METHOD):
            pass

    def opened(*_):
        errors.append(elsewhere(opens, small.model))

    with fv.drop(small.model, METHOD):
        for method in (None, "v2drop"):
            assert isinstance(elsewhere(small.ask, demo, "What?", method=method), fv.SessionError)
    for method in (None, "v2drop"):
        errors = []
        hook = small.model.lm_head.register_forward_pre_hook(opened)
        small.ask(demo, "What?", method=method, max_new_tokens=2)
        hook.remove()
        assert {type(error) for error in errors} == {fv.SessionError}
        assert "vlm.ask" in str(errors[0])
    assert small.ask(demo, "What?", max_new_tokens=2).text == plain
    assert state(small.model) == before


# -- seeds --------------------------------------------------------------------------------------------------------


def test_a_seed_decides_the_sample_and_leaves_torchs_generator_alone(small, demo):
    before = torch.get_rng_state()
    tokens = [small.ask(demo, "What?", temperature=3.0, seed=seed, max_new_tokens=12).tokens for seed in (1, 1, 2)]
    assert tokens[0] == tokens[1] != tokens[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_seed_samples_differ(small, demo):
    tokens = {small.ask(demo, "What?", temperature=3.0, max_new_tokens=12).tokens for _ in range(3)}
    assert len(tokens) > 1


# -- prompts ------------------------------------------------------------------------------------------------------


def test_images_are_told_apart_by_what_stands_between_them(monkeypatch):
    vlm = random_vlm("llava")

    def sizes(ids, pictures):
        return prompt_of(vlm, {"input_ids": torch.tensor([ids])}, pictures).sizes

    assert sizes([1, 91, 91, 9, 91, 91, 91, 2], 2) == (2, 3)
    assert sizes([91, 91, 91, 91], 2) == (4,)  # nothing between them: only their sum is known
    assert sizes([1, 2], 0) == ()


# -- as graphs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def graphed(small, graphs_on_cpu):
    """The small model, whose tower and prompts run as graphs."""
    return fv.VLM(small.model, small.processor, "small", cuda_graphs=True)


@pytest.mark.parametrize("method", [None, METHOD])
def test_the_third_prompt_of_a_layout_is_replayed_and_says_the_same(small, graphed, scenes, method):
    asked = [scenes[0], scenes[1], scenes[0]]
    plain = [small.ask(picture, QUESTION, method=method, max_new_tokens=4) for picture in asked]
    replayed = [graphed.ask(picture, QUESTION, method=method, max_new_tokens=4) for picture in asked]
    alike(plain, replayed)
    assert [answer.trace.graphs for answer in plain] == [None] * 3
    ran = [(answer.trace.graphs.decoder.latest, answer.trace.graphs.tower.latest) for answer in replayed]
    assert ran[1:] == [("recorded", "recorded"), ("replayed", "replayed")]
    choices = graphed.ask(scenes[1], QUESTION, method=method, choices=["red", "blue"])
    assert choices.trace.graphs.decoder.replayed == 1
    others = small.ask(scenes[1], QUESTION, method=method, choices=["red", "blue"]).choices
    assert choices.choices == pytest.approx(others, abs=1e-4)  # its text was padded


def test_looks_are_replayed_too(small, graphed, scenes):
    asked = [QUESTION, "What is it?"]
    plain = list(small.look(scenes[0], method=METHOD).ask_many(asked, max_new_tokens=4))
    for count in (0, 0, 1):
        prefix = graphed.look(scenes[0], method=METHOD)
        many = prefix.ask_many(asked, max_new_tokens=4)  # which hold the look's rows once each, in rooms
        assert [answer.tokens for answer in many] == [answer.tokens for answer in plain]
        assert prefix.trace.graphs.decoder.replayed == count
    many = list(graphed.ask_many([(scenes[0], question) for question in asked], method=METHOD, max_new_tokens=4))
    assert [answer.trace.graphs.decoder.latest for answer in many] == ["replayed"] * 2


def test_a_model_that_has_left_its_device_is_refused(graphed, scenes, monkeypatch):
    monkeypatch.undo()
    with pytest.raises(fv.SettingError, match="CUDA"):
        graphed.ask(scenes[0], QUESTION)
