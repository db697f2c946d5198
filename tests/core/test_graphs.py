"""Loops as CUDA graphs: the same bits, whoever calls. `benchmarks/speed/gpu.py` says what that takes."""

import threading
from collections import OrderedDict

import pytest
import torch

from foveate.core import graphs
from foveate.core.graphs import as_graph
from foveate.core.picks import cosines, cover, determinantal, max_min, suppress

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are of CUDA, and here is no GPU")


def calls(tokens, seed):
    """The loops, each with arguments as methods hand them in."""
    rows = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(seed)).cuda()
    alike, weight = cosines(rows), rows[:, 0].sigmoid()
    count = tokens // 3
    return [
        (max_min, (1 - alike, count), {}),
        (cover, (alike, count), {}),
        (cover, (alike, count), {"saliency": weight}),
        (determinantal, (alike * weight * weight[:, None], count), {"fill": weight}),
        (suppress, (weight, alike, 0.2, count), {}),
        (suppress, (weight, alike, weight, count), {}),
    ]


@needs_cuda
@pytest.mark.parametrize("tokens", [30, 576])
def test_a_graph_makes_the_same_bits_each_time(tokens):
    for seed in range(4):  # seen, captured, replayed, replayed
        for loop, args, named in calls(tokens, seed):
            with torch.no_grad():
                assert torch.equal(loop(*args, **named), loop.__wrapped__(*args, **named))
    kinds = {type(graph) for graph in graphs._graphs.values()}
    assert kinds == {graphs.Recording}
    assert len(graphs._graphs) <= graphs.MOST


@needs_cuda
def test_threads_and_modes_share_a_graph():
    answers = []

    def ask(seed, mode):
        with mode():
            for loop, args, named in calls(60, seed):
                for _ in range(20):
                    answers.append(torch.equal(loop(*args, **named), loop.__wrapped__(*args, **named)))

    threads = [threading.Thread(target=ask, args=pair) for pair in ((1, torch.no_grad), (2, torch.inference_mode))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 240
    assert all(answers)


@pytest.fixture
def sim(monkeypatch):
    from tests.simcuda import simulated

    monkeypatch.setattr(graphs, "_graphs", OrderedDict())
    monkeypatch.setattr(graphs, "_lanes", {})
    with simulated() as sim, torch.no_grad():
        yield sim


def test_loops_share_a_stream_and_memory(sim):
    from tests.simcuda import to_cuda, to_host

    for seed in range(4):
        rows = torch.randn(30, 8, generator=torch.Generator().manual_seed(seed))
        for loop, args in ((max_min, (1 - cosines(rows), 9)), (suppress, (rows[:, 0], cosines(rows), 0.2, 9))):
            on_device = [to_cuda(one) if isinstance(one, torch.Tensor) else one for one in args]
            assert torch.equal(to_host(loop(*on_device)), loop.__wrapped__(*args))
    captured = [one() for one in sim.graphs]
    assert [graph.replays for graph in captured] == [3, 3]
    assert len({(graph.stream.number, graph.pool_id) for graph in captured}) == 1
    assert not sim.faults


def test_a_loop_that_cannot_be_captured_runs_as_it_is_and_says_so_once(sim, recwarn):
    from tests.simcuda import to_cuda, to_host

    @as_graph
    def reads(rows):
        return rows[: int(rows.sum().item())]

    for length in (4, 5):
        for _ in range(3):
            assert len(to_host(reads(to_cuda(torch.eye(length)[0].repeat(3))))) == 3
    (warning,) = recwarn
    assert "capturing" in str(warning.message)
    assert max_min(to_cuda(torch.rand(6, 6)), 2).shape == (2,)
    assert [kind for kind, *_ in sim.faults] == ["read in capture"] * 2
