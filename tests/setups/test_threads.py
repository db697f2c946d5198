"""The law of threads: what waits, what is refused, and what drops although it did not ask."""

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

import foveate as fv
from foveate.engine.hold import holders
from foveate.engine.session import Session
from foveate.registry import family_for
from tests.invariants.test_restore import state
from tests.models import batch, config_of, generate, made_of, tiny
from tests.setups.running import METHOD, elsewhere, until

METHODS = [fv.DivPrune(retention=1 / 3), fv.V2Drop(layers=(1,), keep=(0.5,)), fv.Random(layers=(1,), keep=(0.5,))]
THREADS, CONTEXTS = 6, 2000
SECONDS = 300
"""In which threads that try again have all been answered: some twenty times what one core takes."""


@pytest.fixture(scope="module")
def shallow():
    """A model of two layers, its inputs, and what it answers with each method."""
    config = copy.deepcopy(config_of("llava"))
    config.text_config.num_hidden_layers = 2
    model, inputs = made_of("llava", config).eval(), batch("llava", ["ti"])
    return model, inputs, [dropped(model, method, inputs) for method in METHODS]


@torch.no_grad()
def said(model, inputs):
    return model(**inputs, use_cache=False).logits


def dropped(model, method, inputs):
    with fv.drop(model, method):
        return said(model, inputs)


def in_threads(work):
    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + SECONDS
    for thread in threads:
        thread.join(max(0, end - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads)


# -- many contexts ----------------------------------------------------------------------------------------------------


def test_of_contexts_in_six_threads_each_answers_as_its_own_method_or_is_refused_at_once(shallow):
    model, inputs, expected = shallow
    before, answered, refused, odd = state(model), [], [], []
    opened, tried = threading.Event(), threading.Barrier(THREADS)

    def attempt(number, turn):
        method = (number + turn) % len(METHODS)
        try:
            with fv.drop(model, METHODS[method]):
                if (number, turn) == (0, 0):  # once, all others meet a context that is open
                    opened.set()
                    tried.wait(SECONDS)
                answered.append(torch.equal(said(model, inputs), expected[method]))
        except fv.SessionError as error:
            refused.append("foveate.apply once" in str(error))

    def work(number):
        try:
            if number:
                opened.wait(SECONDS)
            for turn in range(CONTEXTS // THREADS + (number < CONTEXTS % THREADS)):
                attempt(number, turn)
                if turn == 0 and number:
                    tried.wait(SECONDS)
        except Exception as error:
            odd.append(error)

    in_threads(work)
    assert not odd
    assert len(answered) + len(refused) == CONTEXTS
    assert THREADS - 1 <= len(refused) < CONTEXTS
    assert all(answered)
    assert all(refused)
    assert state(model) == before


def test_of_contexts_in_six_threads_that_try_again_all_answer_in_time(shallow):
    model, inputs, expected = shallow
    before, answered, odd = state(model), [], []

    def work(number):
        for turn in range(number, CONTEXTS, THREADS):
            while True:
                try:
                    answered.append(torch.equal(dropped(model, METHODS[turn % 3], inputs), expected[turn % 3]))
                    break
                except fv.SessionError:
                    time.sleep(0.05)
                except Exception as error:
                    odd.append(error)
                    return

    in_threads(work)
    assert not odd
    assert len(answered) == CONTEXTS
    assert all(answered)
    assert state(model) == before


# -- what waits -------------------------------------------------------------------------------------------------------


class Held:
    """Stops a forward of another thread at a module, usually inside a decoder layer."""

    def __init__(self, model, place=None):
        self.came, self.goes = threading.Event(), threading.Event()
        self._hook = (place or model.get_decoder().layers[3].mlp).register_forward_pre_hook(self.hold)
        self._main = threading.current_thread()

    def hold(self, *_):
        if threading.current_thread() is not self._main:
            self.came.set()
            assert self.goes.wait(60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.goes.set()
        self._hook.remove()


def test_a_context_ends_after_the_forward_of_another_thread(monkeypatch):
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    before, expected, detach = state(model), dropped(model, METHOD, inputs), Session.detach
    with ThreadPoolExecutor(1) as pool:
        with Held(model) as held:

            def ending(self, *args, **kwargs):
                held.goes.set()
                return detach(self, *args, **kwargs)

            with fv.drop(model, METHOD):
                call = pool.submit(said, model, inputs)
                assert held.came.wait(60)
                monkeypatch.setattr(Session, "detach", ending)
        assert torch.equal(call.result(60), expected)
    assert state(model) == before


def test_a_call_does_not_overtake_those_that_wait():
    model, inputs, order = tiny("llava"), batch("llava", ["tit"]), []
    fv.apply(model, METHOD)
    turn = holders[family_for(model).core]._turn
    hook = (
        model.get_decoder()
        .layers[0]
        .mlp.register_forward_pre_hook(lambda *_: order.append(threading.current_thread().name))
    )
    try:
        with turn:
            threads = []
            for name in ("first", "second"):
                threads.append(threading.Thread(target=said, args=(model, inputs), name=name, daemon=True))
                threads[-1].start()
                until(lambda: len(turn._queue) == len(threads))
        said(model, inputs)
        assert order == ["first", "second", threading.current_thread().name]
        for thread in threads:
            thread.join(60)
    finally:
        hook.remove()
        fv.remove(model)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_a_context_of_another_thread_is_refused_with_its_own_advice_and_not_removed():
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    with fv.drop(model, METHOD) as trace:
        for error in (elsewhere(dropped, model, METHOD, inputs), elsewhere(fv.apply, model, METHOD)):
            assert isinstance(error, fv.SessionError)
            assert "foveate.apply once" in str(error)
            assert "foveate.remove" not in str(error)
        error = elsewhere(fv.remove, model)
        assert isinstance(error, fv.SessionError)
        assert "another thread" in str(error)
        said(model, inputs)
    assert trace.retention[0] < 0.6


def test_what_apply_put_on_is_removed_from_any_thread():
    model = tiny("llava")
    before = state(model)
    fv.apply(model, METHOD)
    assert "foveate.remove" in str(elsewhere(fv.apply, model, METHOD))
    assert elsewhere(fv.remove, model) is None
    assert state(model) == before


def test_what_a_dead_thread_left_open_can_be_removed():
    model, contexts = tiny("llava"), []
    before = state(model)

    def opened():
        contexts.append(fv.drop(model, METHOD))
        contexts[0].__enter__()

    elsewhere(opened)
    fv.remove(model)
    assert state(model) == before
    contexts[0].__exit__(None, None, None)


def test_apply_and_remove_in_many_threads_leave_nothing():
    model, odd = tiny("llava"), []
    before = state(model)

    def work(number):
        for _ in range(40):
            try:
                (fv.apply, fv.remove)[number % 2](*(model, METHOD)[: 2 - number % 2])
            except fv.SessionError:
                pass
            except Exception as error:
                odd.append(error)

    in_threads(work)
    if family_for(model).core in holders:
        fv.remove(model)
    assert not odd
    assert state(model) == before


def test_a_generate_whose_context_ended_before_its_turn_is_refused():
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    with ThreadPoolExecutor(1) as pool:
        with fv.drop(model, METHOD):
            turn = holders[family_for(model).core]._turn
            turn.acquire()
            calls = pool.submit(generate, model, inputs)
            until(lambda: turn._queue)
        assert isinstance(calls.exception(60), fv.SessionError)


def test_a_forward_that_waits_is_refused_when_a_generate_begins_before_it():
    """A streamer of that `generate` may wait for the thread."""
    model, inputs, refused = tiny("llava"), batch("llava", ["tit"]), []

    class Asking(BaseStreamer):
        def put(self, value):
            if not refused:
                refused.append(call.exception(60))

        def end(self):
            pass

    with ThreadPoolExecutor(1) as pool, fv.drop(model, METHOD):
        turn = holders[family_for(model).core]._turn
        with turn:
            call = pool.submit(said, model, inputs)
            until(lambda: turn._queue)
            generate(model, inputs, new_tokens=2, streamer=Asking())
    assert isinstance(refused[0], fv.SessionError)


def test_a_forward_that_began_before_the_context_is_right_or_refused():
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    before, plain, expected = state(model), said(model, inputs), dropped(model, METHOD, inputs)
    layers = [model.get_decoder().layers[layer].mlp for layer in (0, 3, 5)]
    for place in (model.get_input_embeddings(), model.model.vision_tower, *layers):
        with ThreadPoolExecutor(1) as pool:
            with Held(model, place) as held:
                call = pool.submit(said, model, inputs)
                assert held.came.wait(60)
                assert torch.equal(dropped(model, METHOD, inputs), expected)
                with fv.drop(model, METHOD):
                    held.goes.set()
                    assert torch.equal(said(model, inputs), expected)
                    error = call.exception(60)
            assert isinstance(error, fv.SessionError) if error else torch.equal(call.result(), plain)
    assert state(model) == before


# -- what drops although it did not ask -------------------------------------------------------------------------------


def test_a_plain_forward_of_another_thread_drops_too():
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    expected = dropped(model, METHOD, inputs)
    with fv.drop(model, METHOD) as trace:
        assert torch.equal(elsewhere(said, model, inputs), expected)
        assert len(trace.history) == 1
    assert not torch.equal(elsewhere(said, model, inputs), expected)
