"""Settings of a benchmark beside the full model: what is run, and what it comes to."""

import pickle
from functools import partial

import pytest
from lmms_eval.api.metrics import mean

import foveate as fv
from foveate.ask.loading import reloading
from foveate.eval.contenders import Contender
from foveate.eval.lmms import benchmarking
from foveate.eval.lmms.metrics import Metric
from foveate.eval.lmms.requests import Conduct
from foveate.eval.plan import Plan
from foveate.eval.records import open_answers


@pytest.fixture(scope="module")
def vlm():
    return fv.load(device="cpu")


def log(right, spent, answer="a"):
    """A log of 100 documents of which so many are right."""
    record = {"answer": answer, "kl": 0.25, "spent": spent, "vision_tokens": 576, "flops": int(spent * 10)}
    return [
        {**record, "task": "t", "document": at, "picture": at, "inputs": {"score": float(at < right)}}
        for at in range(100)
    ]


def of_method(vlm, names, method=None, **_):
    """What a run comes to."""
    metric = Metric("score", 0.9, True, "1", {"score": mean})
    if method is None:
        return {"t": log(90, 576)}, {"t": metric}
    if method.tokens == 32 and getattr(method, "layers", None) is None and method.name != "resize":
        raise fv.BudgetError("too little", floor=0.1)
    logs = {
        "v2drop": log(80, 64),
        "random": log(40 + 20 * (getattr(method, "seed", None) or 0), method.tokens or 64, "b"),
        "resize": log(30, (method.tokens or 1) - 2),
    }
    return {"t": logs[method.name]}, {"t": metric}


@pytest.fixture
def asked(monkeypatch):
    """The methods that were asked for, run by run."""
    methods = []

    def run(vlm, names, method=None, **given):
        assert {"conduct", "store", "advance"} == set(given)
        methods.append(method)
        return of_method(vlm, names, method)

    monkeypatch.setattr(benchmarking, "run", run)
    monkeypatch.setattr(benchmarking, "check_names", lambda names, include: {name: name for name in names})
    return methods


@pytest.fixture
def quality(vlm, asked, tmp_path):
    plan = Plan(methods=("v2drop", "random"), tokens=(64, 32), draws=2, baselines=False, cache=tmp_path)
    return benchmarking.evaluate_benchmarks(vlm, ["t"], plan)["t"]


def test_every_budget_and_draw_is_a_run(quality, asked):
    assert asked[0] is None
    runs = {(method.name, method.tokens, getattr(method, "seed", None)) for method in asked[1:]}
    drawn = {("random", budget, seed) for budget in (64, 32) for seed in (0, 1)}
    assert runs == drawn | {("v2drop", 64, None), ("v2drop", 32, None)}


def test_a_cell_of_which_one_draw_cannot_meet_the_budget_is_infeasible_and_has_no_log():
    draws = fv.Random(seed=0), fv.Random(seed=1)
    ran = [benchmarking._Ran(draws[0], {"t": log(9, 64)}), benchmarking._Ran(draws[1], {}, "too little", 0.1)]
    contender, logs = benchmarking._as_ran(Contender("random", 64, draws), ran)
    assert (contender.draws, contender.infeasible, contender.floor, logs) == ((), "too little", 0.1, [])


def test_figures_are_paired_and_have_intervals_that_are_honest_at_the_edges(quality):
    ours, random, early = quality.settings
    assert (quality.full["accuracy"], quality.unit) == (0.9, 100)
    assert (ours["accuracy"], ours["share"]) == (0.8, pytest.approx(8 / 9, abs=1e-5))
    assert ours["difference_high"] < 0
    assert (ours["tokens"], ours["flops"], ours["kl"]) == (64, pytest.approx(64 / 576, abs=1e-5), 0.25)
    assert (ours["agreement"], random["agreement"]) == (1, 0)
    assert (ours["agreement_low"], random["agreement_high"]) == (
        pytest.approx(0.963, abs=1e-3),
        pytest.approx(0.037, abs=1e-3),
    )
    assert (random["accuracy"], random["draws"]) == (0.5, [0.4, 0.6])
    assert ours["minus_random"] == pytest.approx(0.3)
    assert early["note"] == "cut before the decoder"
    assert {tuple(method["layers"]) for method in early["settings"]} == {(0,)}
    assert [(row["name"], row["budget"], row["floor"]) for row in quality.infeasible] == [("v2drop", 32, 0.1)]


def test_another_process_runs_a_method_and_adds_to_the_store_that_is_there(vlm, tmp_path):
    """As a process of a pool gets its task: pickled."""
    with open_answers({}, tmp_path) as store:
        run_one = partial(of_method, names=["t"], conduct=Conduct())
        task = partial(benchmarking._begin, reloading(vlm), run_one, store.conditions, tmp_path)
        worker = pickle.loads(pickle.dumps(task))(0, 2)
        (rows,) = worker((7, fv.V2Drop(tokens=64)), lambda: False)
    ((number, ran),) = rows
    assert (number, ran.method, ran.infeasible) == (7, fv.V2Drop(tokens=64), "")
    assert ran.logs["t"] == log(80, 64)


def test_hard_questions_are_asked_of_benchmarks_too(vlm, asked, tmp_path):
    plan = Plan(methods=("v2drop", "resize"), tokens=(64,), baselines=False, cache=tmp_path)
    ours = benchmarking.evaluate_benchmarks(vlm, ["t"], plan)["t"].settings[0]
    assert ours["minus_resize"] == pytest.approx(0.5)
    assert (ours["hard_questions"], ours["hard"]) == (60, pytest.approx(50 / 60, abs=1e-5))
