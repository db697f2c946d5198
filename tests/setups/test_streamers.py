"""Streamers, also from a thread of their own: a model serves one context and one thread at a time."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers.generation.streamers import BaseStreamer

import foveate as fv
from tests.models import batch, generate, tiny
from tests.setups.running import METHOD, SOME


class Collecting(BaseStreamer):
    """Notes what comes, as it comes."""

    def __init__(self):
        self.parts, self.ended = [], False

    def put(self, value):
        self.parts.append(value.flatten())

    def end(self):
        self.ended = True


@pytest.mark.parametrize("family", SOME)
def test_a_thread_of_its_own(family):
    model, inputs, streamer = tiny(family), batch(family, ["titit"]), Collecting()
    with fv.drop(model, METHOD) as expected:
        here = generate(model, inputs, new_tokens=4)
    with fv.drop(model, METHOD) as trace:
        thread = threading.Thread(target=generate, args=(model, inputs, 4), kwargs={"streamer": streamer})
        thread.start()
        thread.join(timeout=120)
    assert torch.equal(torch.cat(streamer.parts), here.sequences[0])
    assert [len(part) for part in streamer.parts[1:]] == [1, 1, 1, 1]
    assert streamer.ended
    assert trace.kv_lengths == expected.kv_lengths


def test_a_forward_beside_a_running_generate_is_refused():
    model, inputs, refused = tiny("llava"), batch("llava", ["tit"]), []

    class Asking(Collecting):
        def put(self, value):
            with ThreadPoolExecutor(1) as pool:
                refused.append(pool.submit(lambda: model(**inputs)).exception())

    with fv.drop(model, METHOD):
        expected = generate(model, inputs, new_tokens=2)
        got = generate(model, inputs, new_tokens=2, streamer=Asking())
    assert torch.equal(got.sequences, expected.sequences)
    assert {(type(error), "waits for its turn" in str(error)) for error in refused} == {(fv.SessionError, True)}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_forwards_in_several_threads_answer_as_alone(family):
    model, prompts = tiny(family), [batch(family, ["titit"], seed) for seed in range(4)]
    with torch.no_grad(), fv.drop(model, METHOD):
        expected = [model(**inputs, use_cache=False).logits for inputs in prompts]
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda index: said(model, prompts[index % 4]), range(48)))
    for index, answer in enumerate(answers):
        assert torch.equal(answer, expected[index % 4])


@torch.no_grad()
def said(model, inputs):
    return model(**inputs, use_cache=False).logits


def test_copies_of_a_model_in_several_threads_are_refused():
    with pytest.raises(fv.UnsupportedError, match="DataParallel runs copies"):
        fv.apply(torch.nn.DataParallel(tiny("llava")), METHOD)


def test_a_context_that_ends_under_a_running_thread_says_so():
    """Its next step would read a pruned cache with masks for the whole prompt."""
    model, inputs, failed = tiny("llava"), batch("llava", ["tit"]), []
    left, drawn = threading.Event(), threading.Event()

    class Waiting(Collecting):
        def put(self, value):
            super().put(value)
            if len(self.parts) == 3:
                drawn.set()
                left.wait(timeout=120)

    def run():
        try:
            generate(model, inputs, new_tokens=6, streamer=Waiting())
        except fv.SessionError as error:
            failed.append(str(error))

    with fv.drop(model, METHOD):
        thread = threading.Thread(target=run)
        thread.start()
        assert drawn.wait(timeout=120)
    left.set()
    thread.join(timeout=120)
    assert failed
    assert "outside its context" in failed[0]
