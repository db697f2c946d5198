"""When two records agree: on worked examples, and how often records of the same truth do."""

import numpy as np
import pytest
from benchmarks.quality.agree import Record, agreement, difference, holm, notes, read_record

from foveate._stats import Estimate, Resampled
from foveate.errors import InputError

TIMES = 300


def figure(value, half=0.02):
    return {"accuracy": value, "accuracy_low": value - half, "accuracy_high": value + half}


def record(*seeds, cells=(("v2drop", 0.9),), count=100, weights="w", task=0.8):
    rows = [{"name": "high", "budget": 0.01, "task": None, "infeasible": "its floor"}]
    for name, value in (("full model", 0.95), *cells):
        cell = {"name": name, "budget": None if name == "full model" else 1 / 3}
        for kind, asked, share in ((None, count, value), ("colour", count, task), ("rare", 5, 0.1)):
            rows.append({**cell, "task": kind, "questions": asked, **figure(share)})
    return Record.model_validate({"model": {"weights": weights}, "seeds": seeds, "rows": rows})


def whole(record):
    """The rows over all questions, but for the full model's."""
    return [row for row in record.rows if row.task is None and row.name not in ("full model", "high")]


def of_cells(found):
    return [row for row in found["rows"] if row["task"] is None]


def accuracy(rng, chance, pictures, questions, seeds, between=0.0, together=0.1):
    """An accuracy as a fresh record would have it: seeds, pictures in them, questions about each.

    Args:
        between: Standard deviation of the seeds' log-odds.
        together: Correlation of a picture's questions.
    """
    of_seed = chance / (chance + (1 - chance) * np.exp(-rng.normal(0, between, seeds)))
    seed = np.arange(pictures) % seeds
    strength = 1 / together - 1
    of_picture = rng.beta(of_seed[seed] * strength, (1 - of_seed[seed]) * strength)
    asked = rng.integers(max(1, questions - 2), questions + 3, pictures) if questions > 1 else np.ones(pictures, int)
    picture = np.repeat(np.arange(pictures), asked)
    right = (rng.random(len(picture)) < of_picture[picture]).astype(float)
    return Resampled(picture, seed[picture]).proportion(right)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    """Accuracies are not drawn again: quick."""
    monkeypatch.setattr("foveate._stats.RESAMPLES", 2)


def share_that_agrees(both):
    """How often the interval of the difference of two records holds 0."""
    found = [difference(*both()) for _ in range(TIMES)]
    return sum(between.low <= 0 <= between.high for between in found) / TIMES


@pytest.mark.parametrize(
    ("chance", "pictures", "questions", "fresh_seeds"),
    [(0.5, 264, 7, 3), (0.9, 264, 7, 1), (0.99, 264, 7, 3), (0.04, 90, 1, 1), (0.97, 60, 1, 3), (0.999, 264, 7, 1)],
)
def test_records_of_the_same_truth_agree_as_often_as_intervals_say(chance, pictures, questions, fresh_seeds):
    rng = np.random.default_rng([round(1000 * chance), pictures, fresh_seeds])

    def both():
        first = accuracy(rng, chance, pictures, questions, 3)
        return first, accuracy(rng, chance, pictures // 3 * fresh_seeds, questions, fresh_seeds)

    assert share_that_agrees(both) >= 0.93


def test_records_agree_where_seeds_differ_by_more_than_their_pictures_explain():
    """Seeds whose log-odds differ by 0.15: over pictures alone, seven of ten records would agree."""
    rng = np.random.default_rng(8)

    def both():
        return [accuracy(rng, 0.5, 264, 7, 3, between=0.15) for _ in range(2)]

    assert share_that_agrees(both) >= 0.91


def test_whole_tables_of_the_same_truth_are_seldom_refused():
    """Forty cells, as the committed tables have: one pair in twenty may be refused, over cells and tasks together."""
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(30):
        tables = []
        for seeds in ((0, 1, 2), (3, 4, 5)):
            chances = np.linspace(0.03, 0.995, 40)
            cells = [(f"m{place}", accuracy(rng, chance, 264, 7, 3)) for place, chance in enumerate(chances)]
            made = record(*seeds, cells=[(name, 0.5) for name, _ in cells])
            for row, (_, found) in zip(whole(made), cells, strict=True):
                row.accuracy, row.accuracy_low, row.accuracy_high = found.value, found.low, found.high
            tables.append(made)
        refused += not agreement(*tables)["agrees"]
    assert refused <= 3


def test_a_table_of_another_truth_is_refused():
    found = agreement(record(0, 1, 2), record(7, cells=(("v2drop", 0.8),)))
    full, ours = of_cells(found)
    assert (full["agrees"], ours["agrees"], found["agrees"]) == ("yes", "no", False)
    assert ours["difference"] == pytest.approx(-0.1)
    assert "The records do not agree." in notes(found)


def test_one_cell_of_many_beyond_its_interval_is_chance():
    """The case that asked for a definition: 93.3 ± 2.8 beside 89.8 ± 1.6 in a table of forty cells."""
    others = [(f"m{number}", 0.5) for number in range(39)]
    first, second = (record(seed, cells=(("v2drop", 0.898), *others)) for seed in (0, 7))
    for made, value, half in ((first, 0.898, 0.016), (second, 0.933, 0.028)):
        row = whole(made)[0]
        row.accuracy, row.accuracy_low, row.accuracy_high = value, value - half, value + half
    found = agreement(first, second)
    assert [row["agrees"] for row in of_cells(found)].count("chance") == 1
    assert found["agrees"]
    assert notes(found)[0].startswith("1 of 41 cells differ beyond")


def test_rare_tasks_are_not_compared_and_collapsed_ones_are():
    found = agreement(record(0), record(7, task=0.4))
    assert [row["task"] for row in found["rows"] if row["task"]] == ["colour", "colour"]
    assert not found["agrees"]
    assert len(of_cells(few := agreement(record(0), record(7, count=29)))) == len(few["rows"])


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="different weights"):
        agreement(record(0), record(7, weights="others"))
    with pytest.raises(InputError, match="Both records have seed 2"):
        agreement(record(0, 2), record(2, 7))
    with pytest.raises(InputError, match="no cell in common"):
        agreement(record(0), record(7, cells=(("random", 0.5),)))
    found = agreement(record(0, cells=(("v2drop", 0.9), ("resize", 0.4))), record(7))
    assert found["alone"] == ["resize at 33.3%"]


def test_files_that_are_no_record_end_in_a_line(tmp_path):
    path = tmp_path / "record.json"
    with pytest.raises(InputError, match="cannot be read"):
        read_record(path)
    for text, says in (("{", "no JSON"), ("[]", "no record"), ('{"model": 3}', "model is missing or wrong")):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            read_record(path)


def test_the_interval_of_a_difference_is_newcombes():
    """Statistics in Medicine 17, 1998, table II: 56/70 minus 48/80, method 10: 0.0524 to 0.3339."""
    from foveate._stats import wilson

    found = difference(wilson(48 / 80, 80), wilson(56 / 70, 70))
    assert (found.low, found.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))
    assert difference(Estimate(0.2, 0.1, 0.4), Estimate(0.2, 0.2, 0.2)).value == 0


def test_holm_is_that_of_the_books():
    """By hand: 0.01 ≤ 0.05/4, 0.015 ≤ 0.05/3, 0.03 > 0.05/2; nothing after it, though 0.04 ≤ 0.05/1."""
    assert holm([0.03, 0.01, 0.04, 0.015], 0.05) == [False, True, False, True]
    assert holm([], 0.05) == []
