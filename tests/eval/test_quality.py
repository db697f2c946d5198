import json
from dataclasses import replace
from itertools import product
from math import isnan

import numpy as np
import pytest

import foveate as fv
from foveate.eval import pareto
from foveate.eval.pairing import figures_of, has_collapsed, shares_unmatched, verdict
from foveate.eval.plan import Contender
from foveate.eval.quality import Quality, points, tables_of
from foveate.eval.quality_rows import FullRow, FullTaskRow
from foveate.plain.stats import UNKNOWN, Estimate

TASKS = ["colour", "count"] * 100
PICTURES = [number // 2 for number in range(200)]


def contender(name, budget, *seeds):
    return Contender(name, budget, tuple(fv.Random(seed=seed) for seed in seeds))


def log(scores, spent=64.0, flops=1e9, **more):
    """A log of these scores, whose right answers are the full model's."""
    rows = []
    for task, picture, score in zip(TASKS, PICTURES, scores, strict=True):
        row = {"task": task, "picture": picture, "score": float(score), "answer": "yes" if score else "no", "kl": 0.5}
        rows.append({**row, "spent": spent, "vision_tokens": 576, "flops": flops, **more})
    return rows


def right(share):
    """This share of right answers: each task gets its part."""
    score = np.zeros(200)
    score[: int(200 * share)] = 1
    return score.reshape(2, 100).T.ravel()


FULL = log(right(1.0), 576, 4e9)
RAN = [
    (contender("ours", 64 / 576, 1), [log(right(0.8))]),
    (contender("random", 64 / 576, 2, 3), [log(right(0.4)), log(right(0.6))]),
    (contender("resize", 64 / 576, 4), [log(right(0.3), 60)]),
    (contender("spender", 64 / 576, 5), [log(right(0.5), 30, 5e8)]),
    (Contender("high", 64 / 576, (), infeasible="its floor is 70", floor=70 / 576), []),
]


@pytest.fixture(scope="module")
def quality():
    return Quality(figures_of(FULL, RAN), title="a title")


def ends(*figures):
    """The columns of these figures."""
    return {f"{figure}{end}" for figure in figures for end in ("", "_low", "_high")}


def with_rows(quality, *settings):
    """The same figures of the full model beside these rows."""
    return replace(quality, rows=[*(row for row in quality.rows if row.name == "full model"), *settings])


def test_figures_are_the_plain_means(quality):
    ours, random, resize, spender = quality.settings
    full = quality.full
    assert (full.accuracy.value, full.questions, full.pictures, full.tokens) == (1, 200, 100, 576)
    assert [row.questions for row in quality.tasks_of(full).values()] == [100, 100]
    assert ours.accuracy.value == ours.share.value == ours.agreement.value == 0.8
    assert ours.difference.value == pytest.approx(-0.2)
    assert ours.kl.value == 0.5
    assert (ours.tokens, ours.flops) == (64, 0.25)
    assert ours.retention == pytest.approx(64 / 576, abs=1e-5)
    assert [row.accuracy.value for row in quality.tasks_of(ours).values()] == [1.0, 0.6]
    assert random.accuracy.value == pytest.approx(0.5)
    assert random.draws == [0.4, 0.6]
    assert resize.draws == []
    assert spender.accuracy.value == 0.5
    assert ours.accuracy.low < 0.8 < ours.accuracy.high


def test_rivals_are_those_that_truly_cost_the_same(quality):
    ours, random, resize, spender = quality.settings
    assert ours.minus_random.value == pytest.approx(0.3)
    assert ours.minus_resize.value == pytest.approx(0.5)
    assert ours.minus_random.low > 0
    assert random.minus["resize"].value == pytest.approx(0.2)
    assert {random.minus_random, *spender.minus.values(), spender.hard, resize.hard} == {UNKNOWN}
    assert (ours.hard.value, ours.hard_questions) == (pytest.approx((0.8 - 0.3) / (1 - 0.3), abs=1e-5), 140)
    assert shares_unmatched(quality.rows) == [pytest.approx(30 / 576, abs=1e-3)]


ANY = {"name", "budget", "task"}
TASK = ANY | {"questions", "tokens", *ends("accuracy")}
FULL_TASK = TASK | {"commonest", "commonest_label", "alike"}
SETTING = TASK | {"pictures", "retention", "again", "flops"}
METHOD = SETTING | {"hard_questions", "draws", "settings", "note", "paired"}
METHOD |= ends("share", "difference", "agreement", "kl", "minus_random", "minus_resize", "hard")


def test_every_kind_of_row_has_its_columns_and_none_for_what_is_unknown(quality):
    rows = json.loads(json.dumps(quality.to_dict(), allow_nan=False))["rows"]
    full, task, ours, of_ours, *_, refused = rows[0], *rows[2:]
    assert [set(row) for row in (full, task)] == [SETTING | FULL_TASK, FULL_TASK]
    assert [set(row) for row in (ours, of_ours, refused)] == [METHOD, TASK, ANY | {"infeasible", "floor"}]
    (pair,) = next(row for row in rows if row["name"] == "random")["paired"]
    assert set(pair) == {"name", "budget", "tokens", *ends("accuracy", "agreement")}
    assert (full["again"], full["commonest"], full["task"], refused["task"]) == (None,) * 4
    spender = next(row for row in rows if row["name"] == "spender")
    assert {spender[end] for end in ends("minus_random", "minus_resize", "hard")} == {None}
    assert (spender["hard_questions"], ours["accuracy"], ours["difference"]) == (0, 0.8, -0.2)
    assert ours["accuracy_low"] < 0.8 < ours["accuracy_high"]


def test_baselines_do_not_run_twice_at_nearly_the_same_share():
    chain = (contender("chain", None, 6), [log(right(0.5), 63)])
    assert shares_unmatched(figures_of(FULL, [RAN[1], chain])) == []
    assert shares_unmatched(figures_of(FULL, [chain])) == [pytest.approx(63 / 576, abs=1e-3)]


def test_hard_questions_are_those_that_the_full_model_gets_right_and_a_smaller_picture_wrong():
    """Eight sorts of questions, 25 each; the method answers more of those that the full model fails at."""
    full, small, ours = np.array(list(product((0, 1), repeat=3)) * 25, float).T
    ours[:8] = [1, 1, 0, 1, 0, 0, 0, 1]
    ran = [(RAN[0][0], [log(ours)]), (RAN[2][0], [log(small)])]
    quality = Quality(figures_of(log(full), ran))
    (row, _) = quality.settings
    assert (row.hard.value, row.hard_questions) == (24 / 50, 50)
    assert "48% of 50" in str(quality.table())
    (row, _) = Quality(figures_of(log(small), ran)).settings
    assert (row.hard, row.hard_questions) == (UNKNOWN, 0)


def test_a_figure_that_is_no_mean_is_counted_anew_on_every_resample():
    def pairs(rows):
        """The share of whole pairs, as MME counts them."""
        broken = {row["picture"] for row in rows if not row["score"]}
        return np.mean([row["picture"] not in broken for row in rows])

    rows = figures_of(FULL, RAN, pairs)
    quality = Quality(rows)
    ours = quality.settings[0]
    assert (quality.full.accuracy.value, ours.accuracy.value) == (1, 0.6)
    assert ours.accuracy.low < 0.6 < ours.accuracy.high
    assert ours.minus_random.low < ours.minus_random.value == pytest.approx(0.6 - (0 + 0.2) / 2)
    assert quality.tasks_of(ours) == {}


def test_tables_show_every_cell_and_no_empty_column(quality):
    heads = [column.head for column in quality.table().columns]
    assert heads == ["", "Tokens", "FLOPs", "Accuracy", "Agrees", "Of full", "KL", "Hard", "− random", "− resize"]
    rows = [line.split() for line in str(quality.table()).splitlines()]
    assert ["ours", "64.0", "25%", "80.0", "±"] in [row[:5] for row in rows]
    assert ["high", "≥", "70.0", "infeasible"] in rows
    in_flops = replace(quality, origin={"flops": [0.1]})
    assert ["high", "≥", "12.2%", "infeasible"] in [line.split() for line in str(in_flops.table()).splitlines()]
    lone = {**dict.fromkeys(("minus_random", "minus_resize", "hard"), UNKNOWN), "hard_questions": 0}
    alone = with_rows(quality, *(replace(row, **lone) for row in quality.settings))
    assert [column.head for column in alone.table().columns] == heads[:-3]
    assert "Hard" not in " ".join(alone.findings() + alone.legend())
    assert [tuple(row) for row in quality.task_table().rows[:2]] == [
        ("questions", "100", "100"),
        ("full model", "100", "100"),
    ]


def test_the_figure_shows_every_method(quality):
    drawn = pareto.draw(quality)
    assert drawn.mode == "RGB"
    assert len(drawn.getcolors(maxcolors=10**6)) > 50
    assert min(drawn.size) > 500


def test_what_is_right_throughout_has_an_interval_all_the_same(quality):
    accuracy = quality.full.accuracy
    assert (accuracy.low, accuracy.high) == (pytest.approx(0.963, abs=1e-3), 1)  # 100 of 100 pictures
    assert points(Estimate(0.0, 0.0, 0.114), 100) == "0.0 (≤ 11.4)"
    assert points(Estimate(0.614, 0.593, 0.635), 100) == "61.4 ± 2.1"
    assert points(Estimate(0.03, 0.011, 0.03), 100, signed=True) == "+3.0 ± 0.9"
    assert points(UNKNOWN, 100, signed=True) == ""
    assert "Wilson's" in " ".join(quality.legend() + quality.findings())
    certain = replace(quality.full, accuracy=Estimate(3.0, 3.0, 3.0))
    assert "± 0.0: every picture scores the same" in " ".join(Quality([certain]).legend())


def test_of_several_benchmarks_each_has_its_findings_below_its_own_table(quality):
    other = replace(quality, title="another", rows=[replace(quality.full, pictures=2), *quality.settings[1:]])
    first, tasks, paired, last = tables_of([quality, replace(other, rows=other.rows[:2])])
    assert "ours: better than random at 64 tokens." in first.notes
    assert not tasks.notes + paired.notes
    assert not [note for note in last.notes if note.startswith("ours")]
    assert any(note.startswith("Only 2 pictures") for note in last.notes)
    assert any(note.startswith("Tokens:") for note in last.notes)


# -- verdicts -------------------------------------------------------------------------------------------------


def between(low, high):
    """A difference with this interval."""
    return Estimate((low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("low", "high", "words", "lower_is_better"),
    [
        (0.01, 0.2, "better than", "worse than"),
        (-0.2, -0.01, "worse than", "better than"),
        (-0.1, 0.1, "not told apart from", "not told apart from"),
        (0.0, 0.1, "not told apart from", "not told apart from"),
        (0.0, 0.0, "not told apart from", "not told apart from"),
    ],
)
def test_an_interval_that_holds_zero_and_five_pictures_tell_nothing_apart(low, high, words, lower_is_better):
    """Five pictures that all point one way: p = 2 / 2⁵ = 0.06 of a sign test."""
    difference = between(low, high)
    assert verdict(difference, 6) == words
    assert verdict(difference, 5) == "not told apart from"
    assert verdict(difference, 6, higher_is_better=False) == lower_is_better
    assert verdict(UNKNOWN, 6) == "not told apart from"


def test_a_method_gets_one_sentence_over_all_budgets(quality):
    ours = quality.settings[0]
    better, worse, alike = (0.1, 0.3), (-0.3, -0.1), (-0.1, 0.1)
    expected = [(192.2, better, alike), (128.0, better, better), (64.0, alike, worse), (32.0, worse, worse)]
    rows = [
        replace(ours, tokens=tokens, minus_random=between(*random), minus_resize=between(*resize))
        for tokens, random, resize in expected
    ]
    assert with_rows(quality, *rows).verdicts() == [
        "ours: better than random at 192 and 128 tokens; not told apart from random at 64 tokens; "
        "worse than resize at 64 and 32 tokens; worse than random at 32 tokens."
    ]


def test_a_task_of_which_less_than_a_quarter_is_left_has_collapsed(quality):
    (row, _) = quality.tasks_of(quality.full).values()
    for accuracy, full, gone in ((0.24, 1.0, True), (0.25, 1.0, False), (0.2, 0.6, False), (0.0, 0.0, False)):
        left, whole = (replace(row, accuracy=replace(UNKNOWN, value=value)) for value in (accuracy, full))
        assert has_collapsed(left, whole) is gone


def test_what_an_accuracy_hides_is_said_of_methods_and_not_of_controls(quality):
    few = Estimate(0.04, 0.01, 0.1)
    settings = [row for row in quality.rows if not isinstance(row, FullRow | FullTaskRow)]
    lost = [replace(row, accuracy=few) if row.to_dict()["task"] == "count" else row for row in settings]
    said = [note for note in with_rows(quality, *lost).findings() if "quarter" in note]
    assert [note for note in said if note.startswith(("ours", "random"))] == [
        "ours at 64 tokens: less than a quarter is left of count (4%; full model 100%)."
    ]


@pytest.mark.parametrize("count", [4, 5])
def test_an_interval_of_fewer_than_five_pictures_says_nothing(count):
    """Two questions a picture: the bootstrap of so few is far too narrow, so there is none, and a sentence says so."""
    few = slice(2 * count)
    ran = [(RAN[0][0], [log(right(0.8))[few]]), (RAN[1][0], [log(right(0.4))[few], log(right(0.6))[few]])]
    for aggregate in (None, lambda rows: float(np.mean([row["score"] for row in rows]))):
        quality = Quality(figures_of(FULL[few], ran, aggregate))
        ours = quality.settings[0]
        assert [isnan(end) for end in (ours.difference.low, ours.minus_random.high)] == [count < 5, count < 5]
        assert ([note for note in nothing(quality) if "for an interval" in note] != []) == (count < 5)
        assert all("better" not in note for note in quality.verdicts())
        assert ("±" in points(ours.minus_random, 100, signed=True)) == (count >= 5)
        assert pareto.draw(quality).mode == "RGB"
        assert json.dumps(quality.to_dict(), allow_nan=False)


# -- what a figure cannot say ---------------------------------------------------------------------------------


def labelled(scores, share):
    """A log whose labels are "yes" in this share of the questions, evenly over tasks, and else all different."""
    often = int(200 * share)
    return [
        {**row, "labels": ("yes",) if place < often else (f"label {place}",)} for place, row in enumerate(log(scores))
    ]


def nothing(quality):
    """The sentences that say what the figure cannot."""
    return [note for note in quality.findings() if "says nothing" in note]


def test_an_accuracy_that_the_commonest_label_would_reach_says_nothing():
    """100 pictures, each right or wrong in both its questions: ± 9.6 at 60 %."""
    full = np.repeat(np.arange(100) < 60, 2).astype(float)
    ran = [(RAN[0][0], [log(full)])]
    for share, said in ((0.55, True), (0.4, False)):
        quality = Quality(figures_of(labelled(full, share), ran))
        assert quality.full.commonest == share
        assert [note.startswith("Accuracy says nothing here: ") for note in nothing(quality)][:1] == [True][: int(said)]
    quality = Quality(figures_of(labelled(full, 0.55), ran))
    first = nothing(quality)[0]
    assert "the full model's 60.0 % (95 % interval: 51.0 to 69.0 %)" in first
    assert "55.0 % that the commonest label, 'yes', scores alone" in first
    assert "Look at Agrees" in first
    assert quality.table().with_notes(quality.findings()).notes[0] == first
    assert quality.to_dict()["notes"] == quality.findings()


def test_agreement_is_no_way_out_where_all_answers_are_the_same():
    full = [{**row, "answer": "yes"} for row in labelled(np.repeat(np.arange(100) < 60, 2), 0.55)]
    said = nothing(Quality(figures_of(full, [])))[0]
    assert said.endswith("scores alone. Nor does Agrees: 100.0 % of the full model's answers are the same.")


def test_any_of_several_labels_counts_for_the_commonest():
    rows = [{**row, "labels": ("yes", f"label {place}")} for place, row in enumerate(FULL)]
    assert figures_of(rows, [])[0].commonest == 1
    rows = [{**row, "labels": ("yes",) if place else ()} for place, row in enumerate(FULL)]
    assert isnan(figures_of(rows, [])[0].commonest)
    assert isnan(figures_of(FULL, [])[0].commonest)


def test_a_task_that_the_full_model_fails_is_said_to_say_nothing():
    for count, said in ((0, True), (20, True), (21, False)):
        score = np.ones((100, 2))
        score[count:, 1] = 0
        quality = Quality(figures_of(log(score.ravel()), []))
        shown = [f"Accuracy says nothing on count: the full model gets {count}.0 % right. Look at Agrees."]
        assert nothing(quality) == shown[: int(said)]
    failed = Quality(figures_of(log(right(0.1)), []))
    assert nothing(failed)[0] == "Accuracy says nothing here: the full model gets 10.0 % right. Look at Agrees."
    errors = replace(failed, higher_is_better=False)
    assert nothing(errors) == []
    assert nothing(replace(failed, unit=1.0)) == []


def keeping(draw, drawn):
    """A canvas' `draw` that keeps its figure."""

    def kept(canvas):
        drawn.append(canvas.figure)
        return draw(canvas)

    return kept


# -- methods beside each other --------------------------------------------------------------------------------


def test_methods_are_compared_with_each_other_on_the_same_questions():
    """The one ahead is right wherever ours is and on ten pictures more: only the paired interval tells them apart."""
    pictures = np.arange(100)
    ours, ahead = (np.repeat(pictures < count, 2).astype(float) for count in (50, 60))
    names = ("ours", "ahead", "same", "random")
    ran = [
        (contender(name, 64 / 576, seed), [log(score)])
        for seed, (name, score) in enumerate(zip(names, (ours, ahead, ours, ours), strict=True))
    ]
    ran += [(contender("ours", 32 / 576, 5), [log(ours, 32)]), (contender("cheap", None, 6), [log(ahead, 33)])]
    quality = Quality(figures_of(FULL, ran))
    first, second, *_ = quality.settings
    assert first.accuracy.high > second.accuracy.low
    (pair,) = second.paired
    assert (pair.name, pair.tokens) == ("ours", 64)
    assert pair.accuracy.value == pair.agreement.value == pytest.approx(0.1)
    assert 0 < pair.accuracy.low < 0.1 < pair.accuracy.high < 0.2
    assert first.paired == []
    assert [other.name for other in quality.settings[3].paired] == ["ours", "ahead", "same"]
    assert [(other.name, other.tokens) for other in quality.settings[5].paired] == [("ours", 32)]
    table = quality.paired
    assert table.title == "Beside ours, on the same questions"
    assert [row[0] for row in table.rows if row] == ["cheap", "ahead", "same"]
    assert [row[3] for row in table.rows if row] == ["better", "better", "not told apart"]
    worse = replace(quality, higher_is_better=False).paired
    assert [row[3] for row in worse.rows if row] == ["worse", "worse", "not told apart"]
    assert [row[5] for row in worse.rows if row] == ["better", "better", "not told apart"]  # agreement stays good
    assert table.rows[2][2] == points(pair.accuracy, 100, signed=True)


def test_presets_and_second_looks_are_compared_at_the_same_cost_alone():
    """They have their own budgets, and none is asked of them."""
    ran = [
        (contender(name, None, seed), [log(right(0.5), spent)])
        for seed, (name, spent) in enumerate((("v2drop/192", 192), ("v2drop/64", 64), ("visiondrop/192", 190)))
    ]
    quality = Quality(figures_of(FULL, ran))
    assert [[pair.name for pair in row.paired] for row in quality.settings] == [[], [], ["v2drop/192"]]
    assert [row[0] for row in quality.paired.rows] == ["visiondrop/192"]


def test_methods_that_cost_differently_are_compared_at_a_budget_in_common(quality):
    """What was asked of both is the same; the table shows what each spends."""
    spender = quality.settings[3]
    assert [pair.name for pair in spender.paired] == ["ours", "random", "resize"]
    rows = {row[0]: row for row in quality.paired.rows if row}
    assert rows["spender"][1] == "30.0 (64.0)"


def test_one_method_alone_has_no_table_of_pairs():
    alone = Quality(figures_of(FULL, RAN[:1]))
    assert len(tables_of([alone])) == 2
    assert alone.paired.rows == ()
