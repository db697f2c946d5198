"""The copied program runs, and says what the page said."""

import pytest

from foveate.app import subjects
from foveate.app.replies import FULL, ask, program
from foveate.app.subjects import examples, read_upload
from tests.app.conftest import asking
from tests.films import film

QUESTION = 'What is "this" \\ ?\n# it'
METHODS = ["v2drop", "random:seed=3"]
FEW = {"retention": 0.4, "max_new_tokens": 3}


def said(vlm, subject):
    lines = []
    for name in (FULL, *METHODS):
        last = list(ask(vlm, subject, QUESTION, name, asking(name, 0.4, 3)))[-1]
        share = f" ({last.answer.retention:.1%} of {last.answer.vision_tokens} vision tokens)"
        lines.append(f"{name}: {last.text}{share if name != FULL else ''}")
    return lines


@pytest.mark.parametrize("kind", ["picture", "large picture", "film", "example", "generated film"])
def test_the_program_gives_the_pages_answers(kind, vlm, folder, picture, tmp_path, monkeypatch, capsys):
    if kind == "large picture":
        monkeypatch.setattr(subjects, "SIDE", 60)
    if kind == "film":
        picture = tmp_path / "it's a film.mp4"
        film(picture, 9, size=(64, 64))
    by_kind = {"example": 1, "generated film": -1}
    subject = examples()[by_kind[kind]] if kind in by_kind else read_upload(picture)
    text = program(subject, QUESTION, METHODS, str(folder), FEW)
    assert ("foveate.app" in text) == (kind not in ("picture", "film"))
    monkeypatch.chdir(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # a model that reads no films says so
        exec(compile(text, kind, "exec"), {})
    assert capsys.readouterr().out.splitlines() == said(vlm, subject)


def test_the_embedded_model_needs_no_name(subject):
    text = program(subject, "?", (), "embedded", FEW)
    assert "vlm = fv.load()\n" in text
    assert "for method in []:\n" in text
    how = {"retention": 1 / 3, "sure": 0.9, "max_new_tokens": 64}
    assert "retention=0.333333, sure=0.9, max_new_tokens=64\n" in program(subject, "?", ["v2drop"], "a/b", how)
    assert "vlm = fv.load('a/b')\n" in program(subject, "?", [], "a/b", FEW)
