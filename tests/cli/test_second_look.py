"""A second look from the command line: calibrated, written, asked with; and refused where nothing is asked again."""

import json

import pytest

import foveate as fv
from foveate.embedded import TASKS
from foveate.eval.held_out import questions

AGREEMENT = 0.6  # five samples are enough for one setting


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Six pictures, each with a question, its label and its task."""
    folder = tmp_path_factory.mktemp("samples")
    by_picture = {}
    for question in questions(TASKS, 60, (55,)):
        by_picture.setdefault(question.picture, question)
    lines = []
    for place, question in enumerate(list(by_picture.values())[:6]):
        question.media().save(folder / f"{place}.png")
        row = {"image": f"{place}.png", "question": question.text, "label": question.labels[0], "task": question.task}
        lines.append(json.dumps(row))
    path = folder / "samples.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def file(samples):
    """A second look by hand: about half of the answers are asked again."""
    path = samples.with_name("sure.json")
    fv.SecondLook(method=fv.VidCom2(tokens=64), sure=0.95).save(path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "answers"))


def test_it_is_calibrated_written_and_asked_with(run, samples, tmp_path):
    out = tmp_path / "sure.json"
    narrow = ("--method", "vidcom2", "--budget", 64)
    code, said, err = run("tune", "--samples", samples, "--agreement", AGREEMENT, *narrow, "--out", out)
    assert (code, "Second look:" in said, "at most 40 % differ" in " ".join(said.split())) == (0, True, True)
    code, said, _ = run("tune", "--samples", samples, "--agreement", AGREEMENT, *narrow)
    assert (code, "Second look:" in said, "at most 40 % differ" in " ".join(said.split())) == (0, False, True)
    assert "Decoding takes" in err
    look = fv.SecondLook.load(out)
    assert (look.promise.samples, look.promise.tried, look.promise.agreement) == (6, 1, AGREEMENT)
    assert {row.task for row in look.promise.tasks} <= set(TASKS)
    assert len({row.task for row in look.promise.tasks}) > 1
    code, said, _ = run("generate", samples.with_name("0.png"), "--prompt", "What is it?", "--method", out, "--json")
    values = json.loads(said)
    assert (code, values["again"]) == (0, values["confidence"] < look.sure)
    more = ("--prompt", "What is it?", "--max-new-tokens", 5)
    code, _, err = run("generate", samples.with_name("0.png"), "--method", out, *more)
    assert (code, "another max_new_tokens: 64 there, 5 here" in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("bench", "--method"), 2, "asks the full model again"),
        (("compare", "PICTURE", "--prompt", "?", "--method"), 2, "asks the full model again"),
        (("tune", "SAMPLES", "--budget", "64", "--method"), 2, "asks the full model again"),
        (("generate", "--budget", "64", "--method"), 2, "its own budget"),
        (("batch", "IN", "--retention", "0.2", "--method"), 2, "its own budget"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_it_is_refused_with_a_sentence(words, code, says, run, samples, file, tmp_path):
    flags = []
    for word in words:
        flags += {
            "PICTURE": [samples.with_name("0.png")],
            "SAMPLES": ["--samples", samples],
            "IN": [samples, tmp_path / "out"],
        }.get(word, [word])
    got, _, err = run(*flags, file)
    assert (got, says in err) == (code, True), err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--task", "x"), "leave --task out"),
        (("--out", "sure.csv"), "a .json file"),
        (("--budget", 64, "--retention", 0.2), "each set the budget"),
        (("--agreement", 0.98), "6: 108 are missing"),
    ],
    ids=str,
)
def test_what_cannot_be_calibrated_is_refused(words, says, run, samples):
    code, _, err = run("tune", "--samples", samples, "--agreement", AGREEMENT, *words)
    assert (code, says in err) == (2, True), err
