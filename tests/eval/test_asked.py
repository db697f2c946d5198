import pickle
from functools import partial

import pytest

import foveate as fv
from foveate.ask.generation import Generation
from foveate.ask.loading import load, reloading
from foveate.ask.second_look import conditions_of
from foveate.eval.asked import _begin, answer_missing, outstanding, prompts_of
from foveate.eval.held_out import questions
from foveate.eval.records import key_of, open_answers

TASKS = ("colour", "read text")


@pytest.fixture(scope="module")
def loaded():
    return load("embedded", device="cpu")


@pytest.fixture(scope="module")
def methods(loaded):
    return [fv.V2Drop.for_budget(loaded.model, tokens=64), fv.MustDrop.for_budget(loaded.model, tokens=96)]


@pytest.fixture(scope="module")
def asked():
    return questions(TASKS, 4, seeds=(9,))


def ask(loaded, asked, methods, store, **more):
    answer_missing(loaded, outstanding(asked, methods, store), store, max_new_tokens=16, **more)


@pytest.fixture(scope="module")
def whole(loaded, asked, methods, tmp_path_factory):
    """Everything, asked at once; and how much was told to be done."""
    done = []
    with open_answers({}, tmp_path_factory.mktemp("whole")) as store:
        ask(loaded, asked, methods, store, advance=done.append)
        yield store, sum(done)


def test_every_question_is_answered_under_every_method(loaded, asked, methods, whole):
    store, done = whole
    assert done == len(store) == 3 * len(asked)
    right = sum(store.get("full", one.key)["answer"] in one.labels for one in asked)
    assert right >= len(asked) - 1
    for one in asked:
        kept = store.get(key_of(methods[0]), one.key)
        assert kept["spent"] == pytest.approx(64, abs=1)
        assert kept["vision_tokens"] == prompts_of(loaded, [one])[0].vision_tokens == 576
        assert kept["flops"] < store.get("full", one.key)["flops"]
        assert kept["kl"] >= 0
    with open_answers({}, store.path.parent, alone=False) as again:
        assert outstanding(asked, methods, again) == []


@pytest.fixture
def store(tmp_path):
    with open_answers({}, tmp_path) as store:
        yield store


def test_a_run_that_is_stopped_goes_on_and_says_the_same(loaded, asked, methods, whole, tmp_path):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), open_answers({}, tmp_path) as broken:
        ask(loaded, asked, methods, broken, advance=stop)
    with open_answers({}, tmp_path) as again:
        assert 0 < len(again) < len(whole[0])
        ask(loaded, asked, methods, again)
        for method in (None, *methods):
            for one in asked:
                assert again.get(key_of(method), one.key) == whole[0].get(key_of(method), one.key)


def test_a_method_that_is_added_later_is_held_against_the_answers_that_are_there(loaded, asked, methods, whole, store):
    ask(loaded, asked, [], store)
    (todo, *_) = outstanding(asked, methods, store)
    assert [method.name for method, _ in todo.methods] == ["v2drop", "mustdrop"]
    ask(loaded, asked, methods, store)
    for one in asked:
        kl = store.get(key_of(methods[0]), one.key)["kl"]
        assert kl == pytest.approx(whole[0].get(key_of(methods[0]), one.key)["kl"], abs=1e-4)


def test_another_process_says_what_this_one_says(loaded, asked, methods, whole, store):
    """As a process of a pool gets its task and its items: pickled."""
    settings = Generation(max_new_tokens=16)
    task = partial(_begin, reloading(loaded), conditions_of(loaded, settings), settings)
    worker = pickle.loads(pickle.dumps(task))(0, 1)
    for item in pickle.loads(pickle.dumps(outstanding(asked, methods, store))):
        for rows in worker.rows(item, lambda: False):
            store.add(rows)
    assert len(store) == len(whole[0])
    for method in (None, *methods):
        for question in asked:
            answers = [one.get(key_of(method), question.key)["answer"] for one in (store, whole[0])]
            assert answers[0] == answers[1]


def test_a_process_that_would_load_another_model_than_this_one_refuses(loaded):
    settings = Generation(max_new_tokens=16)
    with pytest.raises(fv.SettingError, match="workers=1"):
        _begin(reloading(loaded), conditions_of(loaded, settings) | {"weights": "others"}, settings, 0, 1)
    hook = loaded.model.lm_head.register_forward_hook(lambda *_: None)
    hooked = conditions_of(loaded, settings)
    hook.remove()
    with pytest.raises(fv.SettingError, match="workers=1"):
        _begin(reloading(loaded), hooked, settings, 0, 1)
