from contextlib import ExitStack

import pytest

import foveate as fv
from foveate.ask.loading import load
from foveate.eval.embedded.pictures import questions
from foveate.eval.embedded.run import outstanding, prompts_of, run
from foveate.eval.store import key_of, open_answers

TASKS = ("colour", "read text")


@pytest.fixture(scope="module")
def loaded():
    return load("embedded", device="cpu")


@pytest.fixture(scope="module")
def methods(loaded):
    return [fv.V2Drop.for_budget(loaded.model, tokens=64), fv.MustDrop.for_budget(loaded.model, tokens=96)]


@pytest.fixture(scope="module")
def asked():
    return questions(TASKS, 6, seeds=(9,))


@pytest.fixture
def kept(tmp_path):
    """Opens stores of answers by name, also one that is open."""
    with ExitStack() as stack:

        def opened(name):
            is_new = not (tmp_path / name).exists()
            return stack.enter_context(open_answers({}, tmp_path / name, alone=is_new))

        yield lambda *names: [opened(name) for name in names]


def ask(loaded, asked, methods, store, **more):
    run(loaded, outstanding(asked, methods, store), store, max_new_tokens=16, **more)


def test_every_question_is_answered_under_every_method(loaded, asked, methods, kept):
    (store,), done = kept("answers"), []
    ask(loaded, asked, methods, store, advance=done.append)
    assert sum(done) == len(store) == 3 * len(asked)
    right = sum(store.get("full", one.key)["answer"] == one.question.answer for one in asked)
    assert right >= len(asked) - 1
    for one in asked:
        row = store.get(key_of(methods[0]), one.key)
        assert row["spent"] == pytest.approx(64, abs=1)
        assert row["vision_tokens"] == prompts_of(loaded, [one])[0].vision_tokens == 576
        assert row["flops"] < store.get("full", one.key)["flops"]
        assert row["kl"] >= 0
    assert outstanding(asked, methods, *kept("answers")) == []


def test_a_run_that_is_stopped_goes_on_and_says_the_same(loaded, asked, methods, kept):
    whole, broken = kept("whole", "broken")
    ask(loaded, asked, methods, whole)

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(loaded, asked, methods, broken, advance=stop)
    (again,) = kept("broken")
    assert 0 < len(again) < len(whole)
    ask(loaded, asked, methods, again)
    for method in (None, *methods):
        for one in asked:
            assert again.get(key_of(method), one.key) == whole.get(key_of(method), one.key)


def test_a_method_that_is_added_later_is_held_against_the_answers_that_are_there(loaded, asked, methods, kept):
    at_once, later = kept("once", "later")
    ask(loaded, asked, methods, at_once)
    ask(loaded, asked, [], later)
    (todo, *_) = outstanding(asked, methods, later)
    assert [method.name for method, _ in todo.methods] == ["v2drop", "mustdrop"]
    ask(loaded, asked, methods, later)
    for one in asked:
        kl = later.get(key_of(methods[0]), one.key)["kl"]
        assert kl == pytest.approx(at_once.get(key_of(methods[0]), one.key)["kl"], abs=1e-4)


def test_several_processes_say_what_one_says(loaded, asked, methods, kept):
    one, two = kept("one", "two")
    ask(loaded, asked, methods[:1], one)
    run(loaded, outstanding(asked, methods[:1], two), two, max_new_tokens=16, jobs=2)
    assert len(one) == len(two)
    for method in (None, methods[0]):
        for question in asked:
            answers = [store.get(key_of(method), question.key)["answer"] for store in (one, two)]
            assert answers[0] == answers[1]


def test_settings_have_different_names():
    names = [key_of(method) for method in (None, fv.V2Drop(), fv.V2Drop(metric="l1"), fv.Random(), fv.Random(seed=1))]
    assert len(set(names)) == 5
