"""Several methods at several budgets in one run."""

import time
from contextlib import contextmanager

import pytest

import foveate as fv
from foveate.plain.stats import Estimate
from foveate.plain.writing import preset_files
from foveate.runs.listener import Listener
from foveate.tuning import trials
from foveate.tuning.forcing import answered, outcomes
from foveate.tuning.tunings import Outcome, Tunings
from tests.forked import kills_of
from tests.models import tiny
from tests.tune.pictures import questions
from tests.tune.presets import preset_of

LLAVA = tiny("llava")
SAMPLES = questions("llava", 12)
METHODS = ["v2drop:layers=1,2,3;over=net", "fastv:layers=1"]
FEW = {"max_new_tokens": 3}


class Heard(Listener):
    """Notes what each stage is told, and what is added."""

    def __init__(self):
        self.stages = []

    @contextmanager
    def stage(self, doing, total, done=0):
        added = []
        self.stages.append((total, added))
        yield added.append


@pytest.mark.parametrize("search", [0, 2])
def test_steps_add_up_to_the_total_that_was_told_also_where_all_is_known(tmp_path, search):
    for _ in range(2):
        heard = Heard()
        fv.tune_many(
            LLAVA, SAMPLES, METHODS, retention=[0.5, 0.7], search=search, state=tmp_path / "s", listener=heard, **FEW
        )
        assert [sum(added) for _, added in heard.stages] == [total for total, _ in heard.stages]
        assert all(count >= 0 for _, added in heard.stages for count in added)
        assert heard.stages[0][0] == 4
    assert len(heard.stages[1][1]) > 4


def test_the_full_model_answers_once_and_each_is_what_it_is_alone(monkeypatch):
    made = []

    def counted(model, about, most):
        made.append(about.key)
        return answered(model, about, most)

    monkeypatch.setattr(trials, "answered", counted)
    tunings = fv.tune_many(LLAVA, SAMPLES, METHODS, retention=[0.7, 0.5], **FEW)
    assert len(made) == len(set(made)) == 12
    assert [row.budget["retention"] for row in tunings.rows] == [0.7, 0.7, 0.5, 0.5]
    for row in tunings.rows:
        alone = fv.tune(LLAVA, SAMPLES, method=row.name, **row.budget, **FEW)
        assert (row.tuned.method, row.tuned.rows) == (alone.method, alone.rows)
    for best, other in (tunings.rows[:2], tunings.rows[2:]):
        figures = [{held.name: held for held in row.tuned.rows}["tuned"].agreement for row in (best, other)]
        assert other.behind.value == pytest.approx(figures[0].value - figures[1].value, abs=2e-5)
        assert best.behind == Estimate(0, 0, 0)
    assert tunings.best == (tunings.rows[0], tunings.rows[2])


def test_a_stopped_run_of_several_goes_on_and_repeats_nothing(tmp_path, monkeypatch):
    ran, ends = [], []

    def stops(model, pictures, wanted, method):
        if len(ran) in ends:
            raise KeyboardInterrupt
        ran.append((str(method.to_dict()), tuple(about.key for about in pictures)))
        return outcomes(model, pictures, wanted, method)

    monkeypatch.setattr(trials, "outcomes", stops)
    whole = fv.tune_many(LLAVA, SAMPLES, METHODS, retention=[0.5, 0.7], **FEW)
    every = list(ran)
    ran.clear()
    for end in (len(every) // 3, len(every) - 2):
        ends[:] = [end]
        with pytest.raises(KeyboardInterrupt):
            fv.tune_many(LLAVA, SAMPLES, METHODS, retention=[0.5, 0.7], state=tmp_path / "s", **FEW)
    ends.clear()
    again = fv.tune_many(LLAVA, SAMPLES, METHODS, retention=[0.5, 0.7], state=tmp_path / "s", **FEW)
    assert ran == every
    assert [(row.name, row.tuned.method, row.tuned.rows) for row in again.rows] == [
        (row.name, row.tuned.method, row.tuned.rows) for row in whole.rows
    ]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_run_of_several_that_is_killed_at_any_moment_comes_to_the_same(tmp_path):
    def work(folder="out"):
        return fv.tune_many(LLAVA, SAMPLES, METHODS, retention=[0.5], state=tmp_path / folder, **FEW)

    begun = time.monotonic()
    whole = work("whole")
    assert kills_of(work, time.monotonic() - begun)
    assert [(row.name, row.tuned and (row.tuned.method, row.tuned.rows)) for row in work().rows] == [
        (row.name, row.tuned and (row.tuned.method, row.tuned.rows)) for row in whole.rows
    ]


def test_what_cannot_meet_a_budget_is_a_row_with_its_reason():
    tunings = fv.tune_many(LLAVA, SAMPLES, ["finalkv", METHODS[1]], retention=[0.7, 0.01], **FEW)
    told = [(row.name, row.tuned is None, row.infeasible) for row in tunings.rows]
    assert told[0] == (METHODS[1], False, "")
    assert told[1][:2] == ("finalkv", True)
    assert "no schedule" in told[1][2]
    assert ["No setting of fastv meets 1.0% retention" in reason for *_, reason in told] == [False, False, False, True]
    assert "70.0% retention: finalkv is infeasible: " in str(tunings.table())
    assert [row["infeasible"] is None for row in tunings.to_dict()["rows"]] == [True, False, False, False]
    assert len(tunings.best) == 1


@pytest.mark.parametrize(
    ("methods", "budgets", "message"),
    [
        (METHODS, {}, "Give budgets of one kind"),
        (METHODS, {"tokens": [9], "kv": [0.5]}, "Give budgets of one kind"),
        ([], {"tokens": [9]}, "one method or more"),
        (METHODS, {"tokens": [9, 9]}, "each method and budget once"),
        (METHODS, {"retention": [0.01, 0.02]}, "No setting of v2drop meets 1.0% retention"),
    ],
)
def test_what_cannot_be_tuned_at_all_is_refused(methods, budgets, message):
    with pytest.raises(fv.SettingError, match=message):
        fv.tune_many(LLAVA, SAMPLES, methods, **budgets)


# -- what is said ---------------------------------------------------------------------------------------------------

NONE = Estimate(0, 0, 0)


def row(name, behind=NONE, untuned=None):
    tuned = preset_of(fv.FastV(layers=(1,), keep=(0.5,)))
    return Outcome(name=name, budget={"tokens": 64.0}, tuned=tuned, behind=behind, untuned_behind=untuned)


def verdicts(*rows):
    return Tunings(rows=rows, notes=()).verdicts


def test_the_best_is_named_and_whether_it_is_ahead_of_the_next():
    (line,) = verdicts(row("a"), row("b", Estimate(0.03, 0.01, 0.05)), row("c", Estimate(0.04, 0.02, 0.06)))
    assert line == "64 tokens: a is best, 3.0 [1.0, 5.0] points of agreement ahead of b."
    (line,) = verdicts(row("a"), row("b", Estimate(0.03, -0.01, 0.05)), row("c", Estimate(0.04, 0.02, 0.06)))
    assert line == "64 tokens: a has the highest agreement, but is not told apart from b (3.0 [-1.0, 5.0] behind)."
    assert verdicts(row("a")) == []


def test_an_untuned_method_that_is_as_good_is_named():
    (line,) = verdicts(row("a", untuned=Estimate(0.01, 0.0, 0.02)))
    assert "without tuning, as far as these pictures tell: a (1.0 [0.0, 2.0] behind)" in line
    assert verdicts(row("a", untuned=Estimate(0.02, 0.01, 0.03))) == []


def test_each_setting_is_saved_in_a_file_of_its_own_and_nothing_is_overwritten(tmp_path):
    tunings = Tunings(rows=(row("v2drop:metric=l1;layers=1"), row("a/mine.json"), row("b")), notes=())
    written = tunings.save(tmp_path / "presets")
    assert [path.name for path in written] == ["v2drop-metric=l1-layers=1-64.json", "a-mine-64.json", "b-64.json"]
    assert all(fv.Tuned.load(path) for path in written)
    written[0].unlink()
    with pytest.raises(fv.InputError, match=r"a-mine-64\.json exists already"):
        tunings.save(tmp_path / "presets")
    assert not written[0].exists()
    assert tunings.save(tmp_path / "presets", force=True) == written


def test_names_of_files_are_apart():
    budgets = [("a b", {"tokens": 9}), ("a:b", {"tokens": 9}), ("A-b", {"tokens": 9}), ("a", {"kv": 0.5})]
    assert preset_files(budgets) == ["a-b-9.json", "a-b-9-2.json", "A-b-9-3.json", "a-kv-0.5.json"]
    (name,) = preset_files([("v2drop:" + "1," * 200, {"retention": 1 / 3})])
    assert len(name) < 120
