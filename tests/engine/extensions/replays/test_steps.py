"""Recorded steps of decoding say what plain ones say, in rooms that one cache at a time has."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from transformers import DynamicCache

import foveate as fv
from foveate import embedded
from foveate._transformers import cache_in, with_cache
from foveate.engine.copies import copy_of
from foveate.engine.extensions.replays import recordings, replayer, shared_rooms
from foveate.engine.extensions.replays.shared_rooms import LentRoom, Rooms
from foveate.registry import family_for
from tests.engine.extensions.replays.test_replayer import (
    KEEPS_ALL,
    LAYOUT,
    RAGGED,
    ROUNDING,
    answer,
    assert_same,
    counted,
    prompts,
    run,
)
from tests.engine.test_crossings import METHODS, V2DROP
from tests.models import batch, tiny
from tests.recorder import Recorder, Sides

LINEAGES = ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl"]
SIX = [V2DROP, *(METHODS[f"{name}-0"] for name in ("visiondrop", "divprune", "fastv", "visionzip", "vidcom2"))]
TOKENS = 8
QUESTIONS = ("What is written?", "And what does the text in this picture say, word by word?", "A word?", "What is it?")


@pytest.fixture
def model():
    """A tiny model that nobody else has recorded."""
    return tiny.__wrapped__("llava")


@pytest.fixture(scope="module")
def plain_small():
    return fv.load()


@pytest.fixture
def small(graphs_on_cpu):
    return fv.load(cuda_graphs=True)


def replays(model, method, asked, tokens=TOKENS):
    """Hold answers against plain ones; answers what is counted of steps."""
    expected, _ = run(model, method or KEEPS_ALL, asked, cuda_graphs=False, tokens=tokens)
    answers, trace = run(model, method, asked, tokens=tokens)
    assert_same(answers, expected, ROUNDING)
    return trace.graphs.steps


def assert_said(answers, expected):
    for (ids, logits), (other_ids, other_logits, *_) in zip(answers, expected, strict=True):
        assert torch.equal(ids, other_ids)
        torch.testing.assert_close(logits, other_logits, rtol=0, atol=ROUNDING)


@pytest.mark.filterwarnings("ignore:cuda_graphs")  # of towers that cannot be recorded
@pytest.mark.parametrize("method", SIX, ids=lambda method: method.name)
@pytest.mark.parametrize(
    "family", [LINEAGES[0], *(pytest.param(one, marks=pytest.mark.further) for one in LINEAGES[1:])]
)
def test_answers_of_samples_and_batches(family, method, graphs_on_cpu):
    model = tiny.__wrapped__(family)
    for words in ((LAYOUT,), RAGGED):
        counts = replays(model, method, prompts(family, words, 2))
        assert counts.replayed > TOKENS


def test_a_long_answer(model, graphs_on_cpu):
    counts = replays(model, V2DROP, prompts("llava", count=2), tokens=64)
    assert counted(counts) == (1, 2 * 63 - 2)


@pytest.mark.parametrize(
    ("family", "kernel", "method", "words"),
    [(family, "sdpa", None, words) for family in ("llava", "qwen2_5_vl") for words in ((LAYOUT,), RAGGED)]
    + [("llava", "eager", V2DROP, RAGGED)],
)
def test_the_untouched_model_and_eager_attention(family, kernel, method, words, graphs_on_cpu):
    counts = replays(tiny.__wrapped__(family, kernel), method, prompts(family, words, 2))
    assert counts.replayed > TOKENS


def test_sampled_answers_draw_as_before(model, graphs_on_cpu):
    inputs = prompts("llava", count=1)[0]
    ids = []
    for cuda_graphs in (False, True, True):
        with Sides(), fv.drop(model, V2DROP, cuda_graphs=cuda_graphs):
            torch.manual_seed(3)
            ids.append(model.generate(**inputs, do_sample=True, top_k=20, max_new_tokens=TOKENS))
    assert torch.equal(ids[0], ids[1])
    assert torch.equal(ids[0], ids[2])


def test_an_end_in_the_middle_of_a_batch(model, graphs_on_cpu):
    asked = prompts("llava", RAGGED, 2)
    ((ids, *_), _), _ = run(model, V2DROP, asked, cuda_graphs=False, tokens=TOKENS)
    end = int(ids[0, -TOKENS // 2])
    settings = {"max_new_tokens": TOKENS, "eos_token_id": end, "do_sample": False}
    with fv.drop(model, V2DROP):
        expected = [model.generate(**inputs, **settings) for inputs in asked]
    with Sides(), fv.drop(model, V2DROP, cuda_graphs=True) as trace:
        answers = [model.generate(**inputs, **settings) for inputs in asked]
    assert all(map(torch.equal, answers, expected))
    assert trace.graphs.steps.replayed > 0


def test_answers_that_outgrow_their_room(model, graphs_on_cpu, monkeypatch):
    monkeypatch.setattr("foveate.engine.extensions.replays.replayer.MOST_ROOM", 4)
    monkeypatch.setattr(shared_rooms, "MORE", 4)
    counts = replays(model, V2DROP, prompts("llava", count=2), tokens=90)
    assert counts.recorded > 1
    assert counts.replayed > 140


def going_on(model, inputs, tokens, cache=None, ids=None):
    """Tokens one by one, and the cache: a loop of one's own."""
    logits = []
    for _ in range(tokens):
        if cache is None:
            out = model(**inputs, use_cache=True, logits_to_keep=1)
        else:
            columns = torch.full_like(ids, cache.get_seq_length())
            out = model(input_ids=ids, position_ids=columns, use_cache=True, **with_cache(cache))
        cache, ids = cache_in(out), out.logits[:, -1:].argmax(-1)
        logits.append(out.logits[:, -1])
    return torch.stack(logits), cache, ids


@pytest.mark.parametrize("method", [V2DROP, METHODS["visiondrop-0"], None], ids=["v2drop", "visiondrop", "untouched"])
def test_one_cache_then_another_then_the_first(model, method, graphs_on_cpu):
    first, second = prompts("llava", count=2)
    with torch.no_grad(), fv.drop(model, method or fv.Uniform(retention=1.0)):
        whole = [going_on(model, inputs, 18)[0] for inputs in (first, second)]
    with torch.no_grad(), Sides(), fv.drop(model, method, cuda_graphs=True) as trace:
        going_on(model, second, 3)
        begun, cache, ids = going_on(model, first, 6)
        copied = copy.deepcopy(cache)
        other, _, _ = going_on(model, second, 18)
        on, cache, ids_on = going_on(model, None, 6, cache, ids)
        _, _, _ = going_on(model, second, 6)
        end, _, _ = going_on(model, None, 6, cache, ids_on)
        again, _, _ = going_on(model, None, 12, copied, ids)
    torch.testing.assert_close(torch.cat((begun, on, end)), whole[0], rtol=0, atol=ROUNDING)
    torch.testing.assert_close(other, whole[1], rtol=0, atol=ROUNDING)
    torch.testing.assert_close(again, whole[0][6:], rtol=0, atol=ROUNDING)
    assert trace.graphs.steps.replayed > 40


@pytest.mark.parametrize("one_by_one", [True, False], ids=["layers", "cache"])
def test_a_shallow_copy_of_layers_keeps_its_rows(model, one_by_one, graphs_on_cpu):
    first, second = prompts("llava", count=2)
    with torch.no_grad(), fv.drop(model, V2DROP, cuda_graphs=True):
        _, cache, _ = going_on(model, first, 6)
        copied = [copy.copy(layer) for layer in cache.layers] if one_by_one else copy_of(cache).layers
        rows = [layer.keys.clone() for layer in copied]
        going_on(model, second, 6)
        kept = [torch.equal(layer.keys, keys) for layer, keys in zip(copied, rows, strict=True)]
        kept += [torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, rows, strict=True)]
    assert all(kept)


@pytest.mark.parametrize("first", ["keys", "values"])
def test_rows_are_there_when_they_are_wanted_and_may_be_replaced(model, first, graphs_on_cpu):
    inputs, answers = prompts("llava", count=1)[0], []
    for cuda_graphs in (False, True):
        with torch.no_grad(), fv.drop(model, V2DROP, cuda_graphs=cuda_graphs):
            begun, cache, ids = going_on(model, inputs, 8)
            layer = cache.layers[-1]
            setattr(layer, first, 2 * getattr(layer, first))
            on, _, _ = going_on(model, None, 4, cache, ids)
            answers.append((begun, on, *[rows for layer in cache.layers for rows in (layer.values, layer.keys)]))
    for one, other in zip(*answers, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=ROUNDING)
    assert not hasattr(layer, "queries")


def test_tokens_that_are_taken_back(model, graphs_on_cpu):
    inputs = prompts("llava", count=1)[0]
    with torch.no_grad(), fv.drop(model, V2DROP):
        whole, _, _ = going_on(model, inputs, 12)
    with torch.no_grad(), Sides(), fv.drop(model, V2DROP, cuda_graphs=True) as trace:
        begun, cache, ids = going_on(model, inputs, 6)
        going_on(model, None, 4, cache, ids)
        cache.crop(-4)
        on, _, _ = going_on(model, None, 6, cache, ids)
    torch.testing.assert_close(torch.cat((begun, on)), whole, rtol=0, atol=ROUNDING)
    assert trace.graphs.steps.replayed > 8


def test_a_kept_cache_goes_on_outside(model, graphs_on_cpu):
    inputs = prompts("llava", count=1)[0]
    with torch.no_grad():
        whole, _, _ = going_on(model, inputs, 10)
        with Sides(), fv.drop(model, None, cuda_graphs=True):
            begun, cache, ids = going_on(model, inputs, 6)
        on, _, _ = going_on(model, None, 4, cache, ids)
    torch.testing.assert_close(torch.cat((begun, on)), whole, rtol=0, atol=ROUNDING)


def test_an_interrupt_in_a_step(model, graphs_on_cpu, monkeypatch):
    asked = prompts("llava", count=3)
    expected, _ = run(model, V2DROP, asked, cuda_graphs=False, tokens=TOKENS)
    original, count = Recorder.replay, [0]

    def interrupted(tape):
        count[0] += 1
        if count[0] == 4:
            raise KeyboardInterrupt
        original(tape)

    monkeypatch.setattr(Recorder, "replay", interrupted)
    with Sides(), fv.drop(model, V2DROP, cuda_graphs=True) as trace:
        with pytest.raises(KeyboardInterrupt):
            answer(model, asked[0], TOKENS)
        answers = [answer(model, inputs, TOKENS) for inputs in asked]
    assert_said(answers, expected)
    assert trace.graphs.steps.replayed > TOKENS


def test_two_threads_take_turns(model, graphs_on_cpu):
    asked = prompts("llava", count=4)
    expected, _ = run(model, V2DROP, asked, cuda_graphs=False, tokens=TOKENS)
    answers = {}
    with Sides(), fv.drop(model, V2DROP, cuda_graphs=True):
        for inputs in asked[:2]:
            answer(model, inputs, TOKENS)

        def ask(index):
            answers[index] = answer(model, asked[index], TOKENS)

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert_said([answers[index] for index in range(4)], expected)


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"num_beams": 2}, "beams"), ({"prompt_lookup_num_tokens": 3}, None)],
    ids=["beams", "guesses"],
)
def test_other_ways_to_decode(model, settings, why, graphs_on_cpu):
    asked = prompts("llava", count=2)
    outputs = []
    for cuda_graphs in (False, True):
        with Sides(), fv.drop(model, V2DROP, cuda_graphs=cuda_graphs) as trace:
            outputs.append(
                [model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, **settings) for inputs in asked]
            )
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))
    if why is not None:
        assert any(why in reason for reason in trace.graphs.steps.plain)


@pytest.mark.parametrize(
    ("family", "method", "why"),
    [
        ("gemma3", V2DROP, "window"),
        ("qwen3_5", V2DROP, "more than keys"),
        ("llava", METHODS["read-0"], "reads in every step"),
    ],
)
def test_what_runs_plainly_says_why(family, method, why, graphs_on_cpu):
    counts = replays(tiny.__wrapped__(family), method, prompts(family, count=1), tokens=4)
    assert any(why in reason for reason in counts.plain)
    assert counted(counts) == (0, 0)


def test_other_caches_run_plainly(model, graphs_on_cpu):
    class Own(DynamicCache):
        pass

    inputs = prompts("llava", count=1)[0]
    with torch.no_grad(), fv.drop(model, V2DROP, cuda_graphs=True) as trace:
        model.generate(**inputs, **with_cache(Own()), max_new_tokens=4)
    assert "not a DynamicCache" in trace.graphs.steps.latest


def test_a_recording_that_forgets_its_row_is_thrown_away(model, graphs_on_cpu, monkeypatch):
    monkeypatch.setattr(replayer, "SURPRISE", 1e-3)  # random weights say nearly the same whatever they see
    monkeypatch.setattr(LentRoom, "put_at", lambda room, places, keys, values: (room._keys, room._values))
    with pytest.warns(UserWarning, match="nats"):
        assert counted(replays(model, V2DROP, prompts("llava", count=2))) == (0, 0)


@pytest.mark.parametrize("what", ["_reserve", "fill"])
def test_no_memory_for_rooms(model, what, graphs_on_cpu, monkeypatch, recwarn):
    def fail(*_):
        raise torch.OutOfMemoryError("no more")

    monkeypatch.setattr(Rooms, what, fail)
    assert counted(replays(model, V2DROP, prompts("llava", count=2))) == (0, 0)


def test_rooms_are_shared_and_do_not_grow(model, graphs_on_cpu):
    words = ("it", "itt", "tit", "iit", "itit", "ittt")
    with Sides(), fv.drop(model, V2DROP, cuda_graphs=True):
        sizes = []
        for _ in range(2):
            for word in words:
                model.generate(**batch("llava", [word]), max_new_tokens=8)
            memory = recordings._tapes[family_for(model).core].rooms(torch.device("cpu")).memory
            sizes.append(sum(tensor.nbytes for tensor in memory.values()))
    assert sizes[0] == sizes[1]


def test_recordings_and_rooms_go_with_their_model(graphs_on_cpu):
    model = tiny.__wrapped__("llava")
    run(model, V2DROP, prompts("llava"), tokens=6)
    gone = [weakref.ref(model), weakref.ref(recordings._tapes[family_for(model).core].rooms(torch.device("cpu")))]
    del model
    gc.collect()
    assert [one() for one in gone] == [None, None]


# -- looks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["v2drop", pytest.param("visiondrop", marks=pytest.mark.further), None])
def test_questions_about_a_look(small, plain_small, method):
    picture = embedded.picture()
    with Sides():
        looks = [vlm.look(picture, method=method) for vlm in (small, plain_small)]
        for question in (*QUESTIONS, *QUESTIONS[:2]):
            one, other = (look.ask(question, max_new_tokens=6) for look in looks)
            assert one.tokens == other.tokens
        pairs = [(picture, question) for question in QUESTIONS]
        many = [list(vlm.ask_many(pairs, method=method, max_new_tokens=6)) for vlm in (small, plain_small)]
    assert [one.tokens for one in many[0]] == [other.tokens for other in many[1]]


def test_a_question_is_replayed(small, monkeypatch):
    spans, original = [], replayer.Replayer.run

    def run(replayer, *args, **kwargs):
        output = original(replayer, *args, **kwargs)
        if replayer._graphs.steps.latest == "replayed":
            spans.append(replayer._runner.forward.span)
        return output

    monkeypatch.setattr(replayer.Replayer, "run", run)
    with Sides():
        look = small.look(embedded.picture(), method="v2drop")
        for question in (*QUESTIONS, *QUESTIONS[:2]):
            look.ask(question, max_new_tokens=2)
    assert any(span > 1 for span in spans)
