from contextlib import contextmanager
from dataclasses import replace

import pytest

from foveate.ask.loading import load
from foveate.embedded import FILM_TASKS
from foveate.errors import SettingError, UnknownNameError
from foveate.eval.evaluation import evaluate
from foveate.eval.plan import Plan
from foveate.eval.provenance import conditions
from foveate.runs.listener import Listener


class Heard(Listener):
    """Remembers what it hears."""

    def __init__(self):
        self.notes, self.stages = [], []

    def note(self, text):
        self.notes.append(text)

    @contextmanager
    def stage(self, doing, total, done=0):
        added = []
        yield added.append
        self.stages.append((doing, total, sum(added)))


@pytest.fixture(scope="module")
def vlm():
    return load("embedded", device="cpu")


def test_an_evaluation_is_a_function_that_prints_nothing_and_tells_a_listener(vlm, tmp_path, capfd):
    names = ("v2drop", "v2drop:metric=l2")  # the same twice, which is asked once
    plan = Plan(methods=names, tokens=(64,), baselines=False, cache=tmp_path, max_new_tokens=8)
    first, second = Heard(), Heard()
    quality = evaluate(vlm, ["colour"], plan, count=2, listener=first)
    assert first.stages == [("Drawing pictures", None, 0), ("Answering", 4, 4)]
    assert first.notes == []
    again = evaluate(vlm, ["colour"], plan, count=2, listener=second)
    assert second.stages[-1] == ("Answering", 0, 0)
    assert second.notes == [f"4 of 4 answers are known already, from {next(tmp_path.iterdir())}"]
    assert again.to_dict() == quality.to_dict()
    assert capfd.readouterr() == ("", "")
    ours, same = quality.settings
    assert (ours.name, quality.full.questions, quality.to_dict()["seeds"]) == ("v2drop", 2, [0])
    assert [pair.name for pair in same.paired] == ["v2drop"]
    assert replace(same, name="v2drop", paired=[]).to_dict() == ours.to_dict()
    assert ours.tokens == pytest.approx(64, abs=1)


def test_several_seeds_are_pooled(vlm, tmp_path):
    plan = Plan(methods=("random",), tokens=(64,), draws=2, baselines=False, cache=tmp_path, max_new_tokens=8)
    quality = evaluate(vlm, ["colour", "existence"], plan, count=6, seeds=(5, 9))
    assert (quality.to_dict()["seeds"], quality.full.questions) == ([5, 9], 6)
    assert "seeds 5, 9" in quality.title


def test_what_cannot_be_meant_is_refused_before_anything_is_asked(vlm, tmp_path):
    with pytest.raises(SettingError, match="give only one of them"):
        Plan(tokens=(64,), retention=(0.1,))
    with pytest.raises(UnknownNameError, match="No method 'v3drop'"):
        Plan(methods=("v3drop",))
    with pytest.raises(UnknownNameError, match="No embedded task 'smell'"):
        evaluate(vlm, ["smell"], Plan(cache=tmp_path, max_new_tokens=8))
    with pytest.raises(SettingError, match="900 tokens are more than the 576 vision tokens"):
        evaluate(vlm, ["colour"], Plan(tokens=(900,), cache=tmp_path, max_new_tokens=8), count=1)
    assert not list(tmp_path.iterdir())


def test_the_model_for_films_is_asked_about_films_and_keeps_its_answers_apart(vlm, tmp_path):
    films = load("embedded-films", device="cpu")
    assert conditions(films) != conditions(vlm)
    plan = Plan(methods=("random",), tokens=(288,), draws=1, baselines=False, cache=tmp_path, max_new_tokens=8)
    quality = evaluate(films, (), plan, count=3)
    assert set(quality.tasks_of(quality.full)) <= set(FILM_TASKS)
    assert quality.full.tokens == 8 * 144
    assert quality.settings[0].tokens == pytest.approx(288, abs=2)
    with pytest.raises(UnknownNameError, match="colour"):
        evaluate(films, ["colour"], plan, count=3)


def test_a_floor_that_the_frames_of_a_film_decide_is_known_before_anything_is_asked(tmp_path):
    plan = Plan(methods=("dycoke",), retention=(0.125,), baselines=False, cache=tmp_path, max_new_tokens=8)
    quality = evaluate(load("embedded-films", device="cpu"), (), plan, count=1)
    (row,) = quality.infeasible
    assert (row.name, row.floor) == ("dycoke", 0.25)


def test_controls_at_what_two_methods_spend_run_once(vlm, tmp_path):
    methods = ("random:layers=3;keep=0.2", "random:layers=3;keep=0.2;seed=1")
    quality = evaluate(vlm, ["colour"], Plan(methods=methods, draws=1, cache=tmp_path, max_new_tokens=8), count=1)
    cells = [(row.name, row.budget) for row in (*quality.settings, *quality.infeasible)]
    assert len(cells) == len(set(cells))
    assert ("uniform", round(quality.settings[0].retention, 3)) in cells
