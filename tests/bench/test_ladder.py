"""Ladders: each step beside the one before it, as graphs where there are some, and steps that cannot run."""

from foveate.bench.ladder import ladder_methods, ladder_rows
from foveate.bench.paired import AGAIN, FULL, GRAPH, PairedRun
from foveate.bench.results import rows_of
from foveate.bench.workload import Workload
from tests.memory import AFTER, BEFORE, llava


def climbed(methods, cuda_graphs=False):
    model, inputs = llava(side=168, width=64, layers=5)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    run = PairedRun(model, Workload(inputs, 1, BEFORE + AFTER, (144,)), new_tokens=1)
    run.prepare(methods, controls=False, bare=False, cuda_graphs=cuda_graphs)
    list(run.run(2))
    return run, ladder_rows(run, rows_of(run), list(methods))


def met(method):
    return method.with_budget(retention=1 / 3)


def test_steps_that_drop_are_graphs_too_where_there_are_graphs(graphs_on_cpu):
    methods = {name: met(method) for name, method in ladder_methods().items()}
    run, rows = climbed(methods, cuda_graphs=True)
    steps = ["untouched", "untouched again", "+ CUDA graphs", "+ fewer tokens", "+ thinner tower"]
    assert [row["step"] for row in rows] == steps
    assert [row["name"] for row in rows] == [FULL, AGAIN, *(GRAPH.format(name) for name in (FULL, *methods))]
    first_tokens = [run.times(row["name"])["ttft"] for row in rows]
    medians = [row["ttft_over_before"] for row in rows[3:]]
    for median, seconds, before in zip(medians, first_tokens[3:], first_tokens[2:], strict=False):
        ratios = [mine / other for mine, other in zip(seconds, before, strict=True)]
        assert median == sum(ratios) / 2
