"""The copied program runs, and says what the page said."""

import pytest
from PIL import Image

from foveate.app.answers import Shelf, answer
from foveate.app.code import code_of
from foveate.app.examples import examples
from foveate.app.limits import Limits, opened
from tests.films import film

QUESTION = 'What is "this" \\ ?\n# it'
METHODS = ["v2drop", "random:seed=3"]


def said(vlm, subject):
    lines = []
    for method in (None, *METHODS):
        last = list(answer(vlm, Shelf(), subject, QUESTION, method, method and 0.4, max_new_tokens=3))[-1]
        share = f" ({last.answer.retention:.1%} of {last.answer.vision_tokens} vision tokens)" if method else ""
        lines.append(f"{method or 'full model'}: {last.text}{share}")
    return lines


@pytest.mark.parametrize("kind", ["picture", "large picture", "film", "shipped", "scene", "sketch", "generated film"])
def test_the_program_gives_the_pages_answers(kind, vlm, folder, picture, tmp_path, monkeypatch, capsys):
    limits = Limits(frames=4)
    if kind == "large picture":
        Image.open(picture).resize((120, 120)).save(picture)
        limits = Limits(side=60)
    if kind == "film":
        picture = tmp_path / "it's a film.mp4"
        film(picture, 9, size=(64, 64))
    by_kind = {"shipped": 0, "scene": 1, "sketch": 3, "generated film": -1}
    subject = examples()[by_kind[kind]] if kind in by_kind else opened(picture, limits)
    program = code_of(subject, QUESTION, METHODS, 0.4, str(folder), 3)
    monkeypatch.chdir(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # a model that reads no films says so
        exec(compile(program, kind, "exec"), {})
    assert capsys.readouterr().out.splitlines() == said(vlm, subject)


def test_the_embedded_model_needs_no_name(subject):
    assert "vlm = fv.load()\n" in code_of(subject, "?", [], 0.33)
    assert "vlm = fv.load('a/b')\n" in code_of(subject, "?", [], 0.33, "a/b")


def test_imports_stand_at_the_top():
    for one in examples():
        lines = code_of(one, "?", METHODS, 0.33).splitlines()
        places = [number for number, line in enumerate(lines) if line.startswith(("import", "from"))]
        assert places == list(range(len(places)))
