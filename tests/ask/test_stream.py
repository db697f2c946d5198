"""An answer piece by piece: its text, its end, and how the model is left."""

import gc
import subprocess
import sys
import threading
import time
from functools import partial

import pytest

import foveate as fv
from foveate import embedded
from foveate.ask import Stream
from tests.invariants.test_restore import state

QUESTION = embedded.QUESTION
LISTING = "List the objects from left to right."
METHOD = fv.V2Drop(retention=0.5)


def is_free(vlm):
    """Whether another thread could ask now."""
    taken = []

    def work():
        if vlm.lock.acquire(timeout=30):
            taken.append(True)
            vlm.lock.release()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return bool(taken)


def slowed(vlm, seconds=0.02):
    """Let each forward of the decoder take a moment."""
    return vlm.model.lm_head.register_forward_pre_hook(lambda *_: time.sleep(seconds))


@pytest.mark.parametrize(("question", "method"), [(QUESTION, None), (LISTING, METHOD)])
def test_the_pieces_together_are_the_answer(vlm, scenes, question, method):
    stream = vlm.ask(scenes[0], question, stream=True, method=method)
    assert isinstance(stream, Stream)
    pieces = list(stream)
    alone = vlm.ask(scenes[0], question, method=method)
    assert "".join(pieces) == alone.text == stream.answer.text
    assert stream.answer.tokens == alone.tokens
    assert (stream.answer.retention, stream.answer.kv_bytes) == (alone.retention, alone.kv_bytes)
    assert all(pieces)
    if question == LISTING:
        assert len(pieces) > 2


@pytest.mark.parametrize("stop", [("E9",), ("4S", "S"), ("S!",)])
def test_a_stop_is_part_of_no_piece(vlm, demo, stop):
    stream = vlm.ask(demo, QUESTION, stream=True, stop=stop)
    pieces = list(stream)
    assert "".join(pieces) == vlm.ask(demo, QUESTION, stop=stop).text == stream.answer.text


def test_before_its_end_there_is_no_answer(vlm, demo):
    handle = slowed(vlm)
    try:
        stream = vlm.ask(demo, LISTING, stream=True)
        with pytest.raises(fv.SessionError, match="close"):
            stream.answer  # noqa: B018 - it is a property that raises
        list(stream)
    finally:
        handle.remove()
    assert stream.answer.text


@pytest.mark.parametrize("error", [FloatingPointError, KeyboardInterrupt])
def test_what_goes_wrong_is_raised_where_the_pieces_are_read(vlm, demo, error):
    before = state(vlm.model)

    def fail(*_):
        raise error("no more")

    handle = vlm.model.get_decoder().layers[-1].mlp.register_forward_pre_hook(fail)
    stream = vlm.ask(demo, QUESTION, stream=True, method=METHOD)
    with pytest.raises(error, match="no more"):
        list(stream)
    handle.remove()
    with pytest.raises(error, match="no more"):
        stream.answer  # noqa: B018 - it is a property that raises
    assert list(stream) == []
    assert state(vlm.model) == before
    assert is_free(vlm)


def test_what_is_wrong_with_the_question_is_raised_at_once(vlm, demo):
    with pytest.raises(fv.InputError, match="nowhere"):
        vlm.ask("nowhere.png", QUESTION, stream=True)
    with pytest.raises(fv.BudgetError, match="floor"):
        vlm.ask(demo, QUESTION, stream=True, method="v2drop", tokens=1)


def test_closing_ends_an_answer_early_and_frees_the_model(vlm, scenes):
    whole = vlm.ask(scenes[0], LISTING)
    before = state(vlm.model)
    handle = slowed(vlm)
    try:
        stream = vlm.ask(scenes[0], LISTING, stream=True, method=METHOD)
        first = next(stream)
        stream.close()
    finally:
        handle.remove()
    assert is_free(vlm)
    assert state(vlm.model) == before
    assert len(stream.answer.tokens) < len(whole.tokens)
    assert first + "".join(stream) == stream.answer.text
    stream.close()


def read_and_interrupt(stream):
    """What a user does who reads one piece and presses Ctrl-C."""
    with stream:
        next(stream)
        raise KeyboardInterrupt


def test_a_keyboard_interrupt_of_the_reader_leaves_the_model_restored(vlm, scenes):
    before = state(vlm.model)
    handle = slowed(vlm)
    try:
        with pytest.raises(KeyboardInterrupt):
            read_and_interrupt(vlm.ask(scenes[0], LISTING, stream=True, method=METHOD))
    finally:
        handle.remove()
    assert is_free(vlm)
    assert state(vlm.model) == before
    with fv.drop(vlm.model, METHOD):
        pass
    assert vlm.ask(embedded.picture(), QUESTION).text == "36KUM"


def test_a_stream_that_is_closed_in_the_models_own_thread_ends(vlm, scenes):
    """As Python does where it collects what an abandoned generator held."""
    stream, ended = vlm.ask(scenes[0], LISTING, stream=True, max_new_tokens=50), threading.Event()

    def close(*_):
        stream.close()
        ended.set()

    with vlm.model.lm_head.register_forward_pre_hook(close):
        list(stream)
    assert ended.is_set()
    assert len(stream.answer.tokens) < 50
    assert is_free(vlm)


PICTURE = str(embedded.picture())
LEFT = """
import foveate as fv
from foveate import embedded
vlm = fv.load(device="cpu")
asker = {asker}
stream = asker.ask(*{question}, stream=True, max_new_tokens=400)
{then}
"""


further = partial(pytest.param, marks=pytest.mark.further)


@pytest.mark.parametrize(
    ("asker", "question", "then", "code"),
    [
        ("vlm", (PICTURE, LISTING), "", 0),
        further("vlm", (PICTURE, LISTING), "next(stream); raise SystemExit(7)", 7),
        further("vlm", (PICTURE, LISTING), "held = [stream]; held.append(held); del stream", 0),
        further("vlm.look(embedded.picture(), method='v2drop')", (LISTING,), "next(stream)", 0),
    ],
)
def test_a_program_that_leaves_a_stream_ends_as_it_would_without_it(asker, question, then, code):
    program = LEFT.format(asker=asker, question=question, then=then)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("in_circle", [False, True])
def test_a_stream_that_nobody_has_any_more_leaves_the_model_free(vlm, scenes, in_circle):
    vlm.ask(scenes[0], LISTING, max_new_tokens=1)  # transformers hangs hooks on at the first run
    with slowed(vlm):
        before = state(vlm.model)
        stream = vlm.ask(scenes[0], LISTING, stream=True, method=METHOD, max_new_tokens=400)
        next(stream)
        if in_circle:
            stream.itself = stream
        del stream
        gc.collect()
        assert state(vlm.model) == before
        with fv.drop(vlm.model, METHOD):
            pass


def test_a_stream_collected_by_who_has_the_model_does_not_wait_for_good(vlm, scenes, monkeypatch):
    monkeypatch.setattr("foveate.ask.stream.WAIT", 0.1)
    with vlm.lock:
        stream = vlm.ask(scenes[0], LISTING, stream=True)
        del stream
        gc.collect()
    assert is_free(vlm)
