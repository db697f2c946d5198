"""On a simulated CUDA device: what is recorded there, what a failure leaves behind, and which memory graphs share."""

import gc
import threading
import weakref
from collections import OrderedDict

import pytest
import torch

import foveate as fv
from foveate.core.tapes import GraphTape
from foveate.engine.extensions.replays import recordings, replayer, twins
from foveate.engine.extensions.replays.recordings import MOST_TAPES
from foveate.engine.extensions.replays.replayer import Replayer
from tests.engine.extensions.replays.test_replayer import KEEPS_ALL, LAYOUT, RAGGED, in_turns
from tests.engine.test_crossings import METHODS, NUMBERS_DECIDE, V2DROP
from tests.invariants.settings import EVERYTHING
from tests.models import FAMILIES, batch, tiny
from tests.simcuda import simulated, to_cuda, to_host

LINEAGES = ("llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl")
SIX = {"v2drop": V2DROP, "untouched": None} | {
    name: METHODS[f"{name}-0"] for name in ("visiondrop", "divprune", "fastv", "visionzip", "vidcom2")
}
MUSTDROP = METHODS["mustdrop-0"]
"""It reads on the host how many tokens stay, so its captures fail."""
TWIN = 2e-5
"""Largest difference of a twin's hidden states from a plain run's, in float32."""


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No recordings are left of others."""
    monkeypatch.setattr(recordings, "_tapes", weakref.WeakKeyDictionary())
    monkeypatch.setattr("foveate.core.graphs._lanes", {})
    monkeypatch.setattr("foveate.core.graphs._graphs", OrderedDict())


@pytest.fixture
def sim():
    with simulated() as sim, torch.no_grad():
        yield sim


def on_cuda(family="llava"):
    """A tiny model that nobody else has recorded."""
    return to_cuda(tiny.__wrapped__(family))


def prompts(family="llava", words=(LAYOUT,), count=3):
    return [to_cuda(batch(family, words, seed)) for seed in range(count)]


def answer(model, inputs, tokens=3, **settings):
    """Ids and logits of an answer, on the host."""
    settings = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True, **settings}
    output = model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, **settings)
    return to_host(output.sequences), to_host(torch.stack(output.logits))


def run(model, method, asked, cuda_graphs=True, tokens=3):
    """Each prompt's answer, with the tokens that stages kept; and the trace."""
    answers = []
    with fv.drop(model, method, cuda_graphs=cuda_graphs) as trace:
        for inputs in asked:
            ids, logits = answer(model, inputs, tokens)
            kept = [to_host(tokens).tolist() for stage in trace.stages for tokens in stage.kept]
            answers.append((ids, logits, kept))
    return answers, trace


def assert_same(answers, others, rounding=TWIN):
    for (ids, logits, kept), (other_ids, other_logits, other_kept) in zip(answers, others, strict=True):
        torch.testing.assert_close(logits, other_logits, rtol=0, atol=rounding)
        assert torch.equal(ids, other_ids)
        assert kept == other_kept


def graphs_of(sim):
    return [graph for graph in (one() for one in sim.graphs) if graph is not None]


def counted(counts):
    return counts.recorded, counts.replayed


@pytest.fixture
def distances(monkeypatch):
    """How far each twin's last hidden states were from the plain run's, before it is decided."""
    seen, original = [], Replayer._surprise

    def surprise(replayer, region, output, twin):
        if hasattr(region, "collect"):
            both = region.collect(output), region.real(twin, lambda tensor: tensor)
            one, other = (to_host(side.hidden) for side in both)
            seen.append(float((one - other).abs().max()))
        return original(replayer, region, output, twin)

    monkeypatch.setattr(Replayer, "_surprise", surprise)
    return seen


# -- answers ----------------------------------------------------------------------------------------------------


def replays(sim, distances, model, family, method, words=(LAYOUT,)):
    """Hold answers against those without graphs. Returns how calls ran."""
    asked = prompts(family, words)
    plain, _ = run(model, method or KEEPS_ALL, asked, cuda_graphs=False)
    before = len(sim.faults)
    answers, trace = run(model, method, asked)
    assert_same(answers, plain)
    assert max(distances, default=0.0) < TWIN
    return trace.graphs, sim.faults[before:]


@pytest.mark.parametrize(
    ("family", "words"),
    [
        *[pytest.param(family, (LAYOUT,), id=f"{family} alone") for family in LINEAGES],
        pytest.param("llava", RAGGED, id="llava ragged"),
        *[pytest.param(family, RAGGED, id=f"{family} ragged", marks=pytest.mark.further) for family in LINEAGES[1:]],
    ],
)
def test_four_lineages_and_six_methods_are_replayed(sim, distances, family, words):
    """Every other method alone, the rest in a ragged batch; with FOVEATE_TESTS=all all of them in both."""
    model, methods = on_cuda(family), list(SIX.values())
    for method in methods if EVERYTHING else methods[words == RAGGED :: 2]:
        graphs, faults = replays(sim, distances, model, family, method, words)
        assert graphs.decoder.replayed == 1
        assert graphs.steps.replayed >= 4
        assert (graphs.tower.replayed == 0) == ("tower" in graphs.tower.latest)
        assert not faults


@pytest.mark.further
@pytest.mark.filterwarnings("ignore:cuda_graphs")
@pytest.mark.parametrize(("name", "family"), [pair for pair in in_turns(1) if pair[0].split("-")[0] not in SIX])
def test_every_method_is_replayed(sim, distances, name, family):
    graphs, faults = replays(sim, distances, on_cuda(family), family, METHODS[name])
    assert bool(faults) == (name in NUMBERS_DECIDE)
    assert faults or not graphs.decoder.failed


@pytest.mark.further
@pytest.mark.filterwarnings("ignore:cuda_graphs")  # of towers that cannot be recorded
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in LINEAGES])
def test_every_family_is_replayed(sim, distances, family):
    graphs, _ = replays(sim, distances, on_cuda(family), family, V2DROP)
    assert counted(graphs.decoder) == (1, 1)


@pytest.mark.filterwarnings("ignore:cuda_graphs")
@pytest.mark.parametrize("broken", ["hides text", "shifts", None])
def test_a_broken_mask_of_padded_prompts_shows(sim, distances, broken, monkeypatch):
    """Columns of pads are part of the recording only: here they count as part of the prompt, or text does not."""
    original = twins.with_pads

    def with_pads(forward, pads):
        padded = original(forward, pads)
        if broken == "hides text":
            padded.table.text[:, forward.span - 2] = False
        elif broken == "shifts":
            padded.entering_rows = forward.entering_rows - 1
            padded.table.text = padded.table.text.roll(1, dims=1)
        return padded

    monkeypatch.setattr(replayer, "with_pads", with_pads)
    monkeypatch.setattr(replayer, "SURPRISE", 1e-4)  # random weights say nearly the same whatever they see
    model, asked = on_cuda("llava_next"), prompts("llava_next", ["it"])
    _, trace = run(model, V2DROP, asked, tokens=1)
    assert (max(distances, default=1.0) > TWIN) == (broken is not None)
    assert counted(trace.graphs.decoder) == ((1, 1) if broken is None else (0, 0))


# -- what accepts a recording -----------------------------------------------------------------------------------


def test_other_rounding_of_padded_prompts_is_accepted(sim):
    """Padded matrices run other kernels, which round otherwise and may keep other tokens at a tie."""
    sim.rounding = 1e-2
    _, trace = run(on_cuda("llava_next"), V2DROP, prompts("llava_next", ["it"]))
    assert counted(trace.graphs.decoder) == (1, 1)
    assert trace.graphs.steps.replayed == 4


def test_sums_in_another_order_are_accepted_where_rows_merge(sim):
    sim.disorder = 1e-3
    _, trace = run(on_cuda(), SIX["visiondrop"], prompts(count=4), tokens=1)
    assert counted(trace.graphs.decoder) == (1, 2)


@pytest.mark.filterwarnings("ignore:cuda_graphs")
@pytest.mark.parametrize(("name", "wrong"), [("v2drop", 1e-6), ("visiondrop", 1e-2)])
def test_a_replay_that_is_farther_than_two_runs_is_dropped(sim, name, wrong, monkeypatch):
    sim.disorder, record = 1e-4, GraphTape.record

    def strays(tape, call):
        tensors = record(tape, call)
        again = tape._graph.replay
        tape.replay = lambda: (again(), [one.mul_(1 + wrong) for one in tensors if one.is_floating_point()])
        return tensors

    monkeypatch.setattr(GraphTape, "record", strays)
    _, trace = run(on_cuda(), SIX[name], prompts(count=4), tokens=1)
    assert counted(trace.graphs.decoder) == (0, 0)
    assert "other numbers" in trace.graphs.decoder.latest


# -- failures ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:cuda_graphs")
@pytest.mark.parametrize("rules", ["new", "old"])
def test_after_a_failed_capture_others_are_recorded_and_answers_sampled(rules):
    with simulated(rules) as sim, torch.no_grad():
        model = on_cuda()
        _, trace = run(model, MUSTDROP, prompts(count=2), tokens=1)
        assert "cutting.py" in trace.graphs.decoder.latest
        assert trace.graphs.decoder.failed == 1
        _, trace = run(model, V2DROP, prompts())
        assert counted(trace.graphs.decoder) == counted(trace.graphs.tower) == (1, 1)
        assert trace.graphs.steps.replayed == 4
        answer(model, prompts(count=1)[0], do_sample=True)
        assert [kind for kind, *_ in sim.faults] == ["read in capture"]
        assert gc.isenabled()


@pytest.mark.filterwarnings("ignore:cuda_graphs")
@pytest.mark.parametrize("kernel", [3, 60, 300])
def test_a_capture_that_is_interrupted_anywhere(sim, kernel):
    model, count = on_cuda(), [0]

    def interrupt(name):
        count[0] += 1
        if count[0] == kernel:
            sim.capture.invalid = name
            raise KeyboardInterrupt

    def answers():
        return [answer(model, inputs) for inputs in prompts()]

    with fv.drop(model, V2DROP, cuda_graphs=True) as trace:
        sim.fails = interrupt
        with pytest.raises(KeyboardInterrupt):
            answers()
        answers()
    assert trace.graphs.decoder.replayed > 0
    assert trace.graphs.tower.replayed > 0
    assert not sim.faults


def test_rooms_that_grow_take_a_new_recording(sim):
    """The only graph of the memory goes, and another is recorded in it."""
    model = on_cuda()
    with fv.drop(model, None, cuda_graphs=True) as trace:
        for columns in (40, 40, 300, 300):
            ids = torch.randint(5, 50, (1, columns))
            answer(model, to_cuda({"input_ids": ids, "attention_mask": torch.ones_like(ids)}), 6)
    assert trace.graphs.steps.recorded == 2
    assert trace.graphs.steps.evicted == 1
    assert trace.graphs.steps.replayed == 16
    assert not sim.faults


def test_memory_that_is_short_is_no_final_reason(sim):
    model, asked = on_cuda(), prompts(count=6)
    with fv.drop(model, V2DROP, cuda_graphs=True) as trace:
        for inputs in prompts(words=["tit"], count=2):
            answer(model, inputs, 1)
        before, sim.most = sim.count["emptied"], sim.bytes() + 1000
        for inputs in asked[:2]:
            answer(model, inputs, 1)
        assert "OutOfMemoryError" in trace.graphs.decoder.latest
        assert trace.graphs.decoder.failed == 1
        assert trace.graphs.decoder.evicted == 1
        assert sim.count["emptied"] == before + 1
        sim.most = None
        for inputs in asked[2:]:
            answer(model, inputs, 1)
    assert counted(trace.graphs.decoder) == (2, 1)


def test_memory_that_is_short_in_a_replay_is_no_final_reason(sim, monkeypatch):
    model, asked, count, original = on_cuda(), prompts(count=9), [0], GraphTape.replay
    plain, _ = run(model, V2DROP, asked, cuda_graphs=False)

    def fail(tape):
        count[0] += 1
        if count[0] == 7:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        original(tape)

    monkeypatch.setattr(GraphTape, "replay", fail)
    answers, trace = run(model, V2DROP, asked)
    assert_same(answers, plain)
    parts = (trace.graphs.tower, trace.graphs.decoder, trace.graphs.steps)
    assert sum(counts.failed for counts in parts) == 1
    assert [counts.latest for counts in parts] == ["replayed"] * 3, trace.graphs


# -- layouts ----------------------------------------------------------------------------------------------------


def test_more_layouts_in_turn_than_are_kept(sim):
    model, counts = on_cuda(), []
    layouts = ["it" + "t" * index for index in range(MOST_TAPES + 1)]
    with fv.drop(model, SIX["fastv"], cuda_graphs=True) as trace:
        for seed in range(4):
            for words in layouts:
                answer(model, to_cuda(batch("llava", [words], seed)), 1)
            counts.append(counted(trace.graphs.decoder))
    assert counts == [(0, 0), (9, 0), (9, 8), (9, 16)]
    assert trace.graphs.decoder.evicted == 1


def test_two_methods_in_turn(sim):
    model, asked = on_cuda(), prompts()
    plain = [run(model, SIX[name], asked, cuda_graphs=False)[0] for name in ("v2drop", "fastv")]
    for _ in range(3):
        answers, traces = zip(*[run(model, SIX[name], asked) for name in ("v2drop", "fastv")], strict=True)
    for one, other in zip(answers, plain, strict=True):
        assert_same(one, other)
    assert [counted(trace.graphs.decoder) for trace in traces] == [(0, 3), (0, 3)]


@pytest.mark.parametrize("change", ["kernel of attention", "precision"])
def test_another_choice_of_kernels_is_another_recording(sim, change):
    model, asked = on_cuda(), prompts(count=4)
    with fv.drop(model, V2DROP, cuda_graphs=True) as trace:
        for inputs in asked[:3]:
            answer(model, inputs, 1)
        if change == "precision":
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")
            answer(model, asked[3], 1)
            torch.set_float32_matmul_precision(before)
        else:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                answer(model, asked[3], 1)
    assert trace.graphs.decoder.latest == replayer.FIRST


# -- memory and streams -----------------------------------------------------------------------------------------


def test_all_graphs_are_warmed_and_captured_on_one_stream_in_one_memory(sim):
    model = on_cuda()
    with fv.drop(model, V2DROP, cuda_graphs=True):
        for words in ("it", "itt", "tit"):
            for inputs in prompts(words=[words], count=2):
                answer(model, inputs)
    graphs = graphs_of(sim)
    assert len(graphs) > 3
    assert len({(graph.stream.number, graph.pool_id) for graph in graphs}) == 1
    ran = 0
    for graph in graphs:
        assert graph.warmed - ran >= 2 * len(graph.kernels)
        assert not graph.collects
        ran = graph.warmed


def test_recordings_share_the_memory_of_their_results(sim):
    model = on_cuda()
    with fv.drop(model, V2DROP, cuda_graphs=True) as trace:
        for words in ("iit" + 40 * "t", "iit", "it"):
            for inputs in prompts(words=[words], count=3):
                answer(model, inputs)
    assert trace.graphs.decoder.recorded > 1
    assert trace.graphs.decoder.replayed
    gc.collect()
    assert all(one() is None for graph in graphs_of(sim) for one, _ in graph.wrappers)
    (tapes,) = recordings._tapes.values()
    results = [one.tensors for one in tapes.recordings["decoder"].values()]
    assert len({tensor.untyped_storage().data_ptr() for tensors in results for tensor in tensors}) == 1


@pytest.mark.parametrize("how", ["dies", "is asked"])
def test_graphs_are_freed(sim, how):
    model = on_cuda()
    run(model, V2DROP, prompts())
    assert graphs_of(sim)
    if how == "is asked":
        fv.free_graphs(model)
        fv.free_graphs(model)
    else:
        del model
    gc.collect()
    assert not graphs_of(sim)
    assert all(pool.use_count == 0 for pool in sim.pools.values())
    assert not sim.faults


def test_freed_in_a_context_they_are_recorded_anew(sim):
    model, asked = on_cuda(), prompts()
    plain, _ = run(model, V2DROP, asked, cuda_graphs=False)
    with fv.drop(model, V2DROP, cuda_graphs=True) as trace:
        for _ in range(2):
            for inputs, expected in zip(asked, plain, strict=True):
                assert torch.equal(answer(model, inputs)[0], expected[0])
            fv.free_graphs(model)
    assert counted(trace.graphs.decoder) == (2, 2)


def test_two_models_are_recorded_in_two_threads_at_once(sim):
    models = {family: on_cuda(family) for family in ("llava", "qwen2_5_vl")}
    plain = {family: run(model, V2DROP, prompts(family), cuda_graphs=False)[0] for family, model in models.items()}
    answers, capturing = {}, torch.cuda.is_current_stream_capturing

    def ask(family):
        with sim, torch.no_grad():
            answers[family] = run(models[family], V2DROP, prompts(family))

    threads = [threading.Thread(target=ask, args=(family,)) for family in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for family, (said, trace) in answers.items():
        assert_same(said, plain[family])
        assert counted(trace.graphs.decoder) == (1, 1)
    assert torch.cuda.is_current_stream_capturing is capturing


def test_threads_take_turns(sim):
    model, asked = on_cuda(), prompts(count=4)
    plain, _ = run(model, V2DROP, asked, cuda_graphs=False)
    answers = {}
    with fv.drop(model, V2DROP, cuda_graphs=True):

        def ask(index):
            with sim, torch.no_grad():
                answers[index] = answer(model, asked[index])

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for index, (ids, logits, _) in enumerate(plain):
        assert torch.equal(answers[index][0], ids)
        torch.testing.assert_close(answers[index][1], logits, rtol=0, atol=TWIN)


def test_a_dangling_input_is_noticed(sim):
    """The simulation itself: a graph that reads memory which is gone."""
    inputs = [to_cuda(torch.ones(4))]
    tape = GraphTape(inputs[0].device, {})
    (double,) = tape.record(lambda: (inputs[0] * 2,))
    tape.replay()
    assert to_host(double).tolist() == [2.0] * 4
    inputs.clear()
    gc.collect()
    with pytest.raises(RuntimeError, match="dangling"):
        tape.replay()
