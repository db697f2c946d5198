from contextlib import contextmanager

import pytest

from foveate.ask.loading import load
from foveate.embedded import FILM_TASKS
from foveate.errors import SettingError, UnknownNameError
from foveate.eval.embedded import evaluate
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
    plan = Plan(methods=("v2drop",), tokens=(64,), baselines=False, cache=tmp_path)
    first, second = Heard(), Heard()
    summary = evaluate(vlm, ["colour"], plan, count=2, max_new_tokens=8, listener=first)
    assert first.stages == [("Drawing pictures", None, 0), ("Answering", 4, 4)]
    assert first.notes == []
    again = evaluate(vlm, ["colour"], plan, count=2, max_new_tokens=8, listener=second)
    assert second.stages[-1] == ("Answering", 0, 0)
    assert second.notes == [f"4 of 4 answers are known already, from {next(tmp_path.iterdir())}"]
    assert again.to_dict() == summary.to_dict()
    assert capfd.readouterr() == ("", "")
    (ours,) = summary.outcomes
    assert (ours.cell.name, summary.questions, summary.to_dict()["seeds"]) == ("v2drop", 2, [0])
    assert ours.tokens == pytest.approx(64, abs=1)


def test_several_seeds_are_pooled_and_each_ones_counts_are_kept(vlm, tmp_path):
    plan = Plan(methods=("random",), tokens=(64,), draws=2, baselines=False, cache=tmp_path)
    summary = evaluate(vlm, ["colour", "existence"], plan, count=6, seeds=(5, 9), max_new_tokens=8)
    record = summary.to_dict()
    assert (record["seeds"], record["questions"], len(record["by_seed"]["pictures"])) == ([5, 9], 6, 2)
    assert sum(record["by_seed"]["pictures"]) == record["pictures"]
    for task, count in record["counts"].items():
        assert sum(record["by_seed"]["counts"][task]) == count
        assert sum(record["full"]["right"][task]) == pytest.approx(count * record["full"]["tasks"][task]["value"])
        (cell,) = record["cells"]
        assert sum(cell["right"][task]) == pytest.approx(2 * count * cell["tasks"][task]["value"], abs=1e-3)
    assert "seeds 5, 9" in summary.title
    assert "over pictures and over 2 seeds" in " ".join(summary.notes())


def test_what_cannot_be_meant_is_refused_before_anything_is_asked(vlm, tmp_path):
    with pytest.raises(SettingError, match="give one of them"):
        Plan(tokens=(64,), retention=(0.1,))
    with pytest.raises(UnknownNameError, match="No method 'v3drop'"):
        Plan(methods=("v3drop",))
    with pytest.raises(UnknownNameError, match="No embedded task 'smell'"):
        evaluate(vlm, ["smell"], Plan(cache=tmp_path))
    with pytest.raises(SettingError, match="900 tokens are more than the 576 vision tokens"):
        evaluate(vlm, ["colour"], Plan(tokens=(900,), cache=tmp_path), count=1)
    assert not list(tmp_path.iterdir())


def test_the_model_for_films_is_asked_about_films_and_keeps_its_answers_apart(vlm, tmp_path):
    films = load("embedded-films", device="cpu")
    assert conditions(films) != conditions(vlm)
    plan = Plan(methods=("random",), tokens=(288,), draws=1, baselines=False, cache=tmp_path)
    summary = evaluate(films, (), plan, count=3, max_new_tokens=8)
    assert set(summary.to_dict()["counts"]) <= set(FILM_TASKS)
    assert summary.to_dict()["vision_tokens"] == 8 * 144
    assert summary.outcomes[0].tokens == pytest.approx(288, abs=2)
    with pytest.raises(UnknownNameError, match="colour"):
        evaluate(films, ["colour"], plan, count=3)
