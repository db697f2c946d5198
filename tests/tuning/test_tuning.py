"""`foveate.tune` from samples to a file: the embedded model, and a tiny one where many answers are asked."""

import json
import time

import pytest

import foveate as fv
from foveate.embedded import TASKS, picture
from foveate.eval.asked import prompts_of
from foveate.eval.held_out import questions
from foveate.naming import parse
from foveate.tuning.parts import by_picture, split
from tests.cli.conftest import save_tiny_llava
from tests.eval.test_evaluation import Heard
from tests.forked import kills_of
from tests.tuning.presets import preset_of

METHOD = "v2drop:metric=cosine;over=net"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return fv.load(save_tiny_llava(tmp_path_factory.mktemp("tune"), layers=8))


@pytest.fixture(scope="module")
def asked():
    """Two questions about each of ten pictures."""
    groups = {}
    for question in questions(TASKS, 120, (77,)):
        groups.setdefault(question.picture, []).append(question)
    return [question for about in list(groups.values())[:10] for question in about[:2]]


@pytest.fixture(scope="module")
def pairs(asked):
    return [(question.media(), question.text) for question in asked]


@pytest.mark.further
def test_a_schedule_is_tuned_and_its_file_goes_where_a_name_does(asked, tmp_path):
    vlm = fv.load(device="cpu")
    tuned = fv.tune(vlm, prompts_of(vlm, asked), method=METHOD, tokens=64, task="drawn", cache=tmp_path / "cache")
    assert (tuned.tried, tuned.pictures, tuned.questions, tuned.task) == (3, (6, 4), 20, "drawn")
    assert tuned.cost == tuned.tokens == pytest.approx(64, rel=0.02)
    assert (tuned.method.tokens, tuned.method.metric) == (64, "cosine")
    assert any("are few" in note for note in tuned.notes)
    by_name = {row.name: row for row in tuned.rows}
    assert next(iter(by_name)) == "published"
    assert list(by_name)[-3:] == ["tuned", "random, tuned schedule", "uniform, tuned schedule"]
    for row in tuned.rows:
        assert row.tokens == pytest.approx(64, rel=0.03)
    assert by_name["published"].method == parse(METHOD).with_budget(tokens=64)
    ahead = by_name["tuned"].agreement.value - by_name["published"].agreement.value
    assert by_name["tuned"].ahead.value == pytest.approx(ahead, abs=2e-5)
    tuned.save(path := tmp_path / "mine.json")
    assert parse(str(path)) == tuned.method
    assert json.dumps(fv.Tuned.load(path).to_dict()) == json.dumps(tuned.to_dict())
    with pytest.raises(fv.InputError, match="exists"):
        tuned.save(path)


def test_what_has_been_answered_is_not_asked_again(tiny, pairs, tmp_path):
    how = {"method": METHOD, "retention": 0.5, "max_new_tokens": 3, "cache": tmp_path}
    heard = Heard()
    first = fv.tune(tiny, pairs, **how)
    again = fv.tune(tiny, pairs, listener=heard, **how)
    assert first.runs > 0 == again.runs
    assert (first.method, first.rows) == (again.method, again.rows)
    assert any("known already" in note for note in heard.notes)
    other = fv.tune(tiny, pairs, **how | {"method": "v2drop:metric=l1;over=net"})
    assert other.runs < first.runs  # the full model has answered


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_run_that_is_killed_at_any_moment_comes_to_the_same(tiny, pairs, tmp_path):
    def work(folder="out"):
        return fv.tune(tiny, pairs[:8], method=METHOD, retention=0.5, max_new_tokens=3, cache=tmp_path / folder)

    begun = time.monotonic()
    whole = work("whole")
    assert kills_of(work, time.monotonic() - begun)
    again = work()
    assert (again.method, again.rows) == (whole.method, whole.rows)
    assert again.runs < whole.runs


def test_flops_are_spent_as_they_are_counted(tiny, pairs, tmp_path):
    tuned = fv.tune(tiny, pairs[:8], method=METHOD, flops=0.8, max_new_tokens=3, cache=tmp_path)
    assert 0.75 < tuned.cost <= 0.81


def test_questions_about_one_picture_stay_together(tiny, pairs):
    pictures = by_picture(tiny.prepare(*pair) for pair in pairs)
    assert [len(about) for about in pictures.values()] == [2] * 10
    chosen, reported = split(pictures, seed=3)
    assert (len(chosen), len(reported)) == (6, 4)
    assert {*chosen, *reported} == set(pictures)
    assert split(pictures, seed=3) == (chosen, reported) != split(pictures, seed=4)


@pytest.mark.parametrize(
    ("method", "more", "word"),
    [
        ("v2drop", {}, "one budget"),
        ("v2drop", {"tokens": 5, "flops": 0.5}, "one budget"),
        ("v2drop", {"retention": 1}, "drops nothing"),
        ("v2drop", {"tokens": 0}, "tokens"),
        ("v2drop", {"tokens": 5, "search": 1}, "search"),
        ("v2drop", {"tokens": 5, "tasks": ["a"]}, "tasks"),
        ("v2drop:keep=0.5,0.5,0.5", {"tokens": 5}, "schedule"),
        ("finalkv", {"retention": 0.5}, "budget"),
        (fv.MustDrop(filter=False), {"retention": 0.5}, "filter"),
    ],
)
def test_what_cannot_be_tuned_is_refused(tiny, pairs, method, more, word, tmp_path):
    with pytest.raises(fv.SettingError, match=word):
        fv.tune(tiny, pairs[:4], method=method, cache=tmp_path, **more)


@pytest.mark.parametrize("samples", [[], [(picture(), "What?")], ["a.png"], "pictures", [(None, "What?")] * 3], ids=len)
def test_samples_that_say_nothing_are_refused(tiny, samples, tmp_path):
    with pytest.raises(fv.SettingError):
        fv.tune(tiny, samples, retention=0.5, cache=tmp_path)


def test_a_model_alone_is_refused(tiny, pairs):
    with pytest.raises(fv.SettingError, match="VLM"):
        fv.tune(tiny.model, pairs, retention=0.5)


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "another"}', '{"format": "foveate tuning 4"}',
             '{"format": "foveate tuning 4", "method": {"method": "mustdrop"}, "rows": 1}'],
)  # fmt: skip
def test_a_file_that_is_no_preset_is_refused(tmp_path, text):
    (path := tmp_path / "preset.json").write_text(text)
    with pytest.raises(fv.InputError):
        fv.Tuned.load(path)
    with pytest.raises(fv.InputError):
        fv.Tuned.load(tmp_path / "nothing.json")


def test_a_key_of_a_preset_that_is_not_read_is_refused():
    values = preset_of(parse("v2drop:layers=1,2,3;keep=0.5,0.3,0")).to_dict()
    row = values["rows"][0]
    for changed in ({"note": []}, {"rows": [row | {"agrement": None}]}):
        with pytest.raises(fv.InputError, match="not read"):
            fv.Tuned.from_dict(values | changed)
