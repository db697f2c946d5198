from dataclasses import replace

import numpy as np
import pytest

import foveate as fv
from foveate.eval import figure
from foveate.eval.cells import Cell
from foveate.eval.outcome import points
from foveate.eval.pairing import Column, summarise, unmatched
from foveate.eval.stats import Estimate
from foveate.eval.summary import sheets

TASKS = ["colour", "count"] * 100
PICTURES = [number // 2 for number in range(200)]


def method(seed):
    return fv.Random(seed=seed)


def cell(name, budget, *seeds):
    return Cell(name, budget, tuple(map(method, seeds)))


def column(right, spent=64.0, flops=1e9):
    score = np.zeros(200)
    score[: int(200 * right)] = 1
    score = score.reshape(2, 100).T.ravel()  # each task gets its part
    return Column(
        score=score,
        agrees=score,
        kl=np.full(200, 0.5),
        spent=np.full(200, spent),
        vision_tokens=np.full(200, 576.0),
        flops=np.full(200, flops),
    )


COLUMNS = {
    None: column(1.0, 576, 4e9),
    method(1): column(0.8),
    method(2): column(0.4),
    method(3): column(0.6),
    method(4): column(0.3, 60),
    method(5): column(0.5, 30, 5e8),
}
CELLS = [
    cell("ours", 64 / 576, 1),
    cell("random", 64 / 576, 2, 3),
    cell("resize", 64 / 576, 4),
    cell("spender", 64 / 576, 5),
    Cell("high", 64 / 576, (), infeasible="its floor is 70", floor=70 / 576),
]


@pytest.fixture(scope="module")
def summary():
    columns = [[COLUMNS[draw] for draw in cell.draws] for cell in CELLS]
    return summarise(TASKS, PICTURES, COLUMNS[None], CELLS, columns, title="a title")


def test_figures_are_the_plain_means(summary):
    ours, random, resize, spender = summary.outcomes
    assert summary.accuracy.value == 1
    assert summary.counts == {"colour": 100, "count": 100}
    assert summary.pictures == 100
    assert ours.accuracy.value == ours.share.value == 0.8
    assert ours.difference.value == pytest.approx(-0.2)
    assert ours.kl.value == 0.5
    assert (ours.tokens, ours.flops) == (64, 0.25)
    assert ours.retention == pytest.approx(64 / 576)
    assert (ours.tasks["colour"].value, ours.tasks["count"].value) == (1.0, 0.6)
    assert random.accuracy.value == pytest.approx(0.5)
    assert random.draws == (0.4, 0.6)
    assert resize.draws == ()
    assert spender.accuracy.value == 0.5
    assert ours.accuracy.low < 0.8 < ours.accuracy.high


def test_rivals_are_those_that_truly_cost_the_same(summary):
    ours, random, _, spender = summary.outcomes
    assert ours.against["random"].value == pytest.approx(0.3)
    assert ours.against["resize"].value == pytest.approx(0.5)
    assert ours.against["random"].low > 0
    assert set(random.against) == {"resize"}
    assert spender.against == {}
    assert (ours.hard.value, ours.hard_questions) == (pytest.approx((0.8 - 0.3) / (1 - 0.3)), 140)
    assert (spender.hard, summary.outcomes[2].hard) == (None, None)
    assert unmatched(summary) == [pytest.approx(30 / 576, abs=1e-3)]


def test_hard_questions_are_those_that_the_full_model_gets_right_and_a_smaller_picture_wrong():
    """Eight sorts of questions, 25 each; the method answers more of those that the full model fails at."""
    sorts = np.array([(full, small, ours) for full in (0, 1) for small in (0, 1) for ours in (0, 1)] * 25, float)
    full, small, ours = (replace(column(0), score=score) for score in sorts.T)
    ours.score[:8] = [1, 1, 0, 1, 0, 0, 0, 1]
    summary = summarise(TASKS, PICTURES, full, [CELLS[0], CELLS[2]], [[ours], [small]])
    (outcome, _) = summary.outcomes
    assert (outcome.hard.value, outcome.hard_questions) == (24 / 50, 50)
    assert outcome.to_dict()["hard"]["questions"] == 50
    assert "48% of 50" in str(summary.table())
    none_right = replace(full, score=small.score)
    (outcome, _) = summarise(TASKS, PICTURES, none_right, [CELLS[0], CELLS[2]], [[ours], [small]]).outcomes
    assert (outcome.hard, outcome.to_dict()["hard"]) == (None, None)


def test_what_cannot_be_reached_is_listed_with_its_floor(summary):
    assert summary.to_dict()["infeasible"] == [
        {"name": "high", "budget": 64 / 576, "floor": 70 / 576, "reason": "its floor is 70"}
    ]


def test_tables_show_every_cell_and_no_empty_column(summary):
    heads = [column.head for column in summary.table().columns]
    assert heads == ["", "Tokens", "FLOPs", "Accuracy", "Of full", "Agrees", "KL", "Hard", "− random", "− resize"]
    rows = [line.split() for line in str(summary.table()).splitlines()]
    assert ["ours", "64.0", "25%", "80.0", "±"] in [row[:5] for row in rows]
    assert ["high", "≥", "70.0", "infeasible"] in rows
    alone = replace(summary, outcomes=tuple(replace(outcome, against={}, hard=None) for outcome in summary.outcomes))
    assert [column.head for column in alone.table().columns] == heads[:-3]
    assert "Hard" not in " ".join(alone.notes())
    assert [tuple(row) for row in summary.task_table().rows[:2]] == [
        ("questions", "100", "100"),
        ("full model", "100", "100"),
    ]


def test_a_notebook_shows_tables_and_python_a_line(summary):
    assert repr(summary).startswith("Summary('a title', 200 questions about 100 pictures, full model 100.0 (≥ 96.3)")
    assert summary._repr_html_().count("<table") == 2
    assert "spender at 30 tokens: the budget is not met" in summary._repr_html_()


def test_the_figure_shows_every_method(summary):
    drawn = figure.draw(summary)
    assert drawn.mode == "RGB"
    assert len(drawn.getcolors(maxcolors=10**6)) > 50
    assert min(drawn.size) > 500


def test_a_budget_that_is_not_met_is_said_below_the_table(summary):
    said = " ".join(summary.notes())
    assert "spender at 30 tokens: the budget is not met, 11.1% was asked for, 5.2% is spent." in said
    assert "resize at 60 tokens: the budget is not met" in said
    assert "ours at" not in said
    (ours, *_) = summary.outcomes
    tokens = replace(summary, outcomes=(replace(ours, cell=replace(ours.cell, budget=192.0)),))
    assert "192 tokens was asked for, 64.0 is spent" in " ".join(tokens.notes())


def test_what_is_right_throughout_has_an_interval_all_the_same(summary):
    assert (summary.accuracy.low, summary.accuracy.high) == (pytest.approx(0.963, abs=1e-3), 1)  # 100 of 100 pictures
    assert points(Estimate(0.0, 0.0, 0.114), 100) == "0.0 (≤ 11.4)"
    assert points(Estimate(0.614, 0.593, 0.635), 100) == "61.4 ± 2.1"
    assert points(Estimate(0.03, 0.011, 0.03), 100, signed=True) == "+3.0 ± 0.9"
    assert "Wilson's" in " ".join(summary.notes())
    certain = replace(summary, accuracy=Estimate(3.0, 3.0, 3.0), outcomes=())
    assert "± 0.0: every picture scores the same" in " ".join(certain.notes())


def test_few_pictures_are_said(summary):
    assert not [note for note in summary.notes() if "Only" in note]
    (said,) = (note for note in replace(summary, pictures=2).notes() if "Only" in note)
    assert said == "Only 2 pictures: with fewer than 30, intervals and verdicts are worth little. Ask more."


def test_of_several_tasks_each_has_its_findings_below_its_own_table(summary):
    other = replace(summary, title="another", pictures=2, tasks={}, outcomes=summary.outcomes[1:])
    first, tasks, last = sheets([summary, other])
    assert "ours: better than random at 64 tokens." in first.notes
    assert not tasks.notes
    assert not [note for note in last.notes if note.startswith("ours")]
    assert any(note.startswith("Only 2 pictures") for note in last.notes)
    assert any(note.startswith("Tokens:") for note in last.notes)
