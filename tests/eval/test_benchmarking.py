from dataclasses import replace

import numpy as np
import pytest

import foveate as fv
from foveate.eval.cells import contenders_of
from foveate.eval.lmms.pairing import cells_of, run_cells, summarise_task
from foveate.eval.lmms.scores import Metric, Scores, TaskScores
from foveate.eval.lmms.setting import Setting


def scores(right, spent, answers="a"):
    """A task of 100 documents of which so many are right."""
    inputs = tuple(float(at < right) for at in range(100))
    metric = Metric("score", float(np.mean(inputs)), True, tuple(range(100)), inputs, tuple(range(100)), np.mean)
    record = {"answer": answers, "kl": 0.25, "spent": spent, "retention": spent / 576, "vision_tokens": 576}
    record |= {"flops": int(spent * 10), "media": ""}
    task = TaskScores("t", "1", tuple(range(100)), (record,) * 100, {"score": metric}, "score")
    return Scores({"t": task}, {}, {"t": "t"}, "own", "0")


FULL = scores(90, 576)


@pytest.fixture(scope="module")
def cells():
    return cells_of(contenders_of(("v2drop", "random", "resize")), [("budget", 64.0), ("budget", 32.0)], (0, 1))


def run(setting):
    if setting.name == "v2drop":
        if setting.budget == 32:
            raise fv.BudgetError("too little", floor=0.1)
        return scores(80, 64)
    if setting.name == "random":
        if setting.budget == 32 and "layers" not in setting.settings:
            raise fv.BudgetError("too little", floor=0.1)
        return scores(40 + 20 * setting.seed, setting.budget, "b")
    return scores(30, setting.budget - 2)


def test_every_budget_and_draw_is_a_run(cells):
    assert [(cell.name, cell.budget, len(cell.draws)) for cell in cells] == [
        ("v2drop", 64, 1),
        ("v2drop", 32, 1),
        ("random", 64, 2),
        ("random", 32, 2),
        ("resize", 64, 1),
        ("resize", 32, 1),
    ]
    assert [draw.seed for draw in cells[2].draws] == [0, 1]
    (preset,) = cells_of(contenders_of(["v2drop/llava-1.5-7b/192"]), [("budget", 9.0)], (0,))
    assert (preset.budget, preset.draws) == (None, (Setting(name="v2drop/llava-1.5-7b/192"),))


def test_figures_are_paired_and_rivals_cost_the_same(cells):
    done, found = run_cells(cells, run)
    summary = summarise_task("t", FULL, done, found)
    ours, random, early, _, _ = summary.outcomes
    assert summary.accuracy.value == 0.9
    assert summary.unit == 100
    assert (ours.accuracy.value, ours.share.value) == (0.8, pytest.approx(8 / 9))
    assert ours.difference.high < 0
    assert (ours.tokens, ours.flops, ours.kl.value) == (64, pytest.approx(64 / 576), 0.25)
    assert (ours.agreement.value, random.agreement.value) == (1, 0)
    assert (random.accuracy.value, random.draws) == (0.5, (0.4, 0.6))
    assert ours.against["random"].value == pytest.approx(0.3)
    assert ours.against["resize"].value == pytest.approx(0.5)
    assert early.cell.note == "cut before the decoder"
    assert {draw.settings["layers"] for draw in early.cell.draws} == {(0,)}
    assert [(cell.name, cell.budget, cell.floor) for cell in summary.infeasible] == [("v2drop", 32, 0.1)]


def test_a_figure_that_is_no_share_is_shown_as_it_is(cells):
    def large(setting):
        found = scores(50, 64) if setting is None else run(setting)
        task = found.tasks["t"]
        metric = task.metrics["score"]
        whole = Metric("score", 2000 * metric.value, True, metric.documents, metric.inputs, metric.groups, total)
        return replace(found, tasks={"t": replace(task, metrics={"score": whole})})

    def total(inputs):
        return 2000 * float(np.mean(inputs))

    done, found = run_cells(cells[:1], large)
    summary = summarise_task("t", large(None), done, found)
    assert summary.unit == 1
    assert summary.accuracy.value == 1000
    assert summary.outcomes[0].accuracy.value == 1600
    assert summary.outcomes[0].accuracy.low < 1600 < summary.outcomes[0].accuracy.high
