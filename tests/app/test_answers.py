"""Answers as they come: whole at the end, from a prefix where there is one, and never with a file of the machine."""

import gc
import weakref

import pytest
import torch

import foveate as fv
from foveate.app.answers import FULL, Shelf, answer, check_method
from foveate.app.examples import examples
from foveate.errors import SettingError
from foveate.registry import family_for

QUESTION = "What is this ?"


def replies(vlm, subject, method=None, retention=None, shelf=None):
    return list(answer(vlm, shelf or Shelf(), subject, QUESTION, method, retention, max_new_tokens=4))


def test_the_last_reply_is_what_asking_gives(vlm, subject):
    whole = vlm.ask(subject.medium, QUESTION, method="v2drop", retention=0.4, max_new_tokens=4)
    *growing, last = replies(vlm, subject, "v2drop", 0.4)
    assert growing
    assert all(last.text.startswith(reply.text.rstrip()) for reply in growing)
    assert last.name == "v2drop"
    assert last.text == whole.text
    assert last.answer.tokens == whole.tokens
    assert last.answer.retention == whole.retention
    assert 0 < last.first <= last.seconds
    assert not last.reused


def test_the_full_model_is_asked_without_a_method(vlm, subject):
    last = replies(vlm, subject)[-1]
    assert last.name == FULL
    assert last.answer.method is None
    assert last.answer.retention == 1


@pytest.mark.parametrize(
    ("method", "words"), [("nosuch", "nosuch"), ("v2drop:bogus=1", "bogus"), ("mustdrop:nothing", "nothing")]
)
def test_what_cannot_run_is_said_in_the_reply(vlm, subject, method, words):
    (reply,) = replies(vlm, subject, method, 0.4)
    assert words in reply.error
    assert reply.answer is None


def test_a_method_that_names_a_file_is_refused_and_the_file_not_read(vlm, subject, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text('{"password": "hush"}')
    for text in (str(secret), f"v2drop+{secret}", f"{secret}:layers=3"):
        (reply,) = replies(vlm, subject, text, 0.4)
        assert "no method that the page takes" in reply.error, text
        assert "hush" not in reply.error
        assert "password" not in reply.error
    check_method("visionzip+v2drop:metric=l1")
    with pytest.raises(SettingError):
        check_method("tuned.json")


class Tower:
    """Counts how often a model's vision tower runs."""

    def __init__(self, vlm):
        self.runs = 0
        self._hook = family_for(vlm.model).tower.register_forward_hook(self._count)

    def _count(self, *_):
        self.runs += 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._hook.remove()


@pytest.fixture(scope="module")
def embedded():
    return fv.load()


@pytest.mark.parametrize("method", [None, "v2drop", "visiondrop"])
def test_a_second_question_does_not_run_the_tower(embedded, method):
    subject, shelf, retention = examples()[0], Shelf(), None if method is None else 0.3
    (one, _), (other, _) = subject.questions[:2]
    with Tower(embedded) as tower:
        (*_, first) = answer(embedded, shelf, subject, one, method, retention)
        assert (tower.runs, first.reused, first.answer.looked > 0) == (1, False, True)
        (*_, second) = answer(embedded, shelf, subject, other, method, retention)
        assert (tower.runs, second.reused) == (1, True)
        assert second.answer.looked == first.answer.looked
    for reply, question in ((first, one), (second, other)):
        afresh = embedded.ask(subject.medium, question, method=method, retention=retention)
        assert reply.answer.tokens == afresh.tokens
        assert reply.answer.retention == afresh.retention


def test_another_budget_or_method_is_looked_at_anew(vlm, subject):
    shelf = Shelf()
    with Tower(vlm) as tower:
        for runs, (method, retention) in enumerate([("v2drop", 0.4), ("v2drop", 0.5), ("random", 0.4)], start=1):
            assert not replies(vlm, subject, method, retention, shelf)[-1].reused
            assert tower.runs == runs


@pytest.mark.parametrize("method", ["fastv", "sparsevlm", "mustdrop", "visionzip+fastv"])
def test_a_method_that_reads_the_question_is_asked_afresh(vlm, subject, method):
    shelf = Shelf()
    with Tower(vlm) as tower:
        for runs in (1, 2):
            last = replies(vlm, subject, method, 0.4, shelf)[-1]
            assert last.text, last.error
            assert not last.reused
            assert last.answer.looked == 0
            assert tower.runs == runs
    assert shelf.nbytes == 0


def test_after_a_change_of_weights_it_looks_again(vlm, subject):
    shelf = Shelf()
    replies(vlm, subject, "v2drop", 0.4, shelf)
    kept = shelf.nbytes
    with torch.no_grad():
        next(vlm.model.parameters()).mul_(1)
    with Tower(vlm) as tower:
        assert [replies(vlm, subject, "v2drop", 0.4, shelf)[-1].reused for _ in range(2)] == [False, True]
        assert tower.runs == 1
    assert shelf.nbytes == kept


def test_a_budget_that_no_schedule_meets_is_said(vlm, subject):
    (reply,) = replies(vlm, subject, "v2drop:layers=3", 0.01)
    assert "No schedule" in reply.error or "budget" in reply.error.lower()


def test_the_shelf_lets_the_oldest_go_and_keeps_the_newest_however_large(vlm, subject):
    prefixes = [vlm.look(subject.medium) for _ in range(3)]
    size = prefixes[0].nbytes + 3 * 90 * 90
    shelf = Shelf(most=2 * size)
    freed = []
    for name in "abc":
        prefix = prefixes.pop()
        freed.append(weakref.ref(prefix))
        shelf.keep((name, "", None), prefix)
        del prefix
        shelf.find(("a", "", None))  # used, so not the oldest
    gc.collect()
    assert [prefix() is not None for prefix in freed] == [True, False, True]
    assert [shelf.find((name, "", None)) is not None for name in "abc"] == [True, False, True]
    assert shelf.nbytes == 2 * size
    small = Shelf(most=1)
    small.keep(("a", "", None), freed[0]())
    assert small.nbytes == size


def test_the_frames_of_a_film_count(vlm):
    film = examples()[-1].medium
    shelf = Shelf()
    with pytest.warns(UserWarning, match="frames"):
        prefix = vlm.look(film)
    (clip,) = prefix.media
    shelf.keep(("a", "", None), prefix)
    assert shelf.nbytes == prefix.nbytes + clip.frames.nbytes
