"""Answers as they come: whole at the end, from a prefix where there is one, and never with a file of the machine."""

from types import SimpleNamespace

import pytest

from foveate.app.answers import FULL, Shelf, answer, check_method
from foveate.errors import SettingError, UnsupportedError

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


class Prefix:
    """What `VLM.look` gives, as far as the page uses it."""

    nbytes = 100

    def __init__(self, vlm, media, method, retention):
        self.vlm, self.parts = vlm, (media, method, retention)

    def ask(self, question, **options):
        media, method, retention = self.parts
        return self.vlm.ask(media, question, method=method, retention=retention, **options)


class Looking:
    """A model that counts how often it looks."""

    def __init__(self, vlm, refused=()):
        self.vlm, self.refused, self.looks = vlm, refused, 0

    def look(self, media, *, method, retention):
        if method in self.refused:
            raise UnsupportedError(f"{method} reads the question.")
        self.looks += 1
        return Prefix(self.vlm, media, method, retention)

    def ask(self, *arguments, **options):
        return self.vlm.ask(*arguments, **options)


def test_a_second_question_does_not_look_again(vlm, subject):
    looking, shelf = Looking(vlm), Shelf()
    first, second = (replies(looking, subject, "v2drop", 0.4, shelf)[-1] for _ in range(2))
    assert looking.looks == 1
    assert (first.reused, second.reused) == (False, True)
    assert first.text == second.text
    replies(looking, subject, "v2drop", 0.5, shelf)
    replies(looking, subject, "random", 0.4, shelf)
    assert looking.looks == 3


def test_a_method_that_reads_the_question_is_asked_afresh(vlm, subject):
    looking, shelf = Looking(vlm, refused=("fastv",)), Shelf()
    for _ in range(2):
        last = replies(looking, subject, "fastv", 0.4, shelf)[-1]
        assert last.text
        assert not last.reused
    assert looking.looks == 0


def test_the_shelf_lets_the_oldest_go_and_keeps_the_newest_however_large():
    shelf = Shelf(most=250)
    for name in "abc":
        shelf.keep((name, "", None), SimpleNamespace(nbytes=100))
        shelf.find(("a", "", None))  # used, so not the oldest
    assert [shelf.find((name, "", None)) is not None for name in "abc"] == [True, False, True]
    assert shelf.nbytes == 200
    shelf.keep(("d", "", None), SimpleNamespace(nbytes=1000))
    assert shelf.nbytes == 1000
