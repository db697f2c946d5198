"""Ladders: each step beside the one before it, as graphs where there are some, and steps that cannot run."""

import foveate as fv
from foveate.bench.ladder import ladder_methods, ladder_rows, ladder_sheet
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


def test_a_step_that_did_not_run_is_not_measured_and_the_next_is_over_the_last_that_ran():
    methods = {"visiondrop": fv.VisionDrop(tokens=0.5), "thintower+visiondrop": met(fv.DivPrune())}
    _, rows = climbed(methods)
    assert rows[2] == {"step": "+ fewer tokens", "name": "visiondrop"}
    assert rows[3]["ttft_over_before"] == rows[3]["ttft_ratio"]
    sheet = str(ladder_sheet(rows, "A model", ["visiondrop: did not run: why"]))
    assert "not measured" in sheet
    assert "within a round" in sheet
    assert "did not run: why" in sheet
