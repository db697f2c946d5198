"""One bad file among several: the others are done without it, and it is named; and all files are looked at first."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from foveate.ask import loading

ASKED = ("--prompt", "What is this ?")
QUICK = ("--max-new-tokens", 2)
DAMAGED = ("damaged.png", "empty.png", "words.png", "gone.png")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "answers"))


@pytest.fixture
def mixed(picture, tmp_path):
    """A folder with four pictures and three files that only end like one, and a list of these and one that is gone."""
    (folder := tmp_path / "mixed").mkdir()
    for number in range(4):
        Image.open(picture).rotate(90 * number).save(folder / f"{number}.png")
    shutil.copy(picture, folder / "damaged.png")
    (folder / "damaged.png").write_bytes((folder / "damaged.png").read_bytes()[:-60])
    (folder / "empty.png").touch()
    (folder / "words.png").write_text("no picture")
    names = [*(f"{number}.png" for number in range(4)), *DAMAGED]
    rows = [json.dumps({"image": name, "question": "What is this ?"}) for name in names]
    (folder / "samples.jsonl").write_text("\n".join(rows))
    return folder


def commands(folder, model):
    tune = ("--retention", 0.5, "--method", "v2drop:metric=cosine;over=net", "--model", model, *QUICK)
    few = ("--retention", 0.5, "--method", "v2drop", "--no-baselines", "--workers", 1, "--model", model, *QUICK)
    return {
        "count": ("count", folder, "--model", model),
        "tune": ("tune", folder, *ASKED, *tune),
        "tune samples": ("tune", "--samples", folder / "samples.jsonl", *tune),
        "eval": ("eval", "--samples", folder, *ASKED, *few),
        "eval samples": ("eval", "--samples", folder / "samples.jsonl", *few),
        "batch": ("batch", folder, folder.parent / "out", *ASKED, "--model", model, *QUICK),
    }


@pytest.mark.parametrize("name", commands(Path("a"), "b"))
def test_a_folder_with_bad_files_is_done_without_them_and_they_are_named(name, mixed, run, tiny_llava):
    if not name.endswith("samples"):
        (mixed / "samples.jsonl").unlink()
    code, out, err = run(*commands(mixed, tiny_llava)[name])
    assert code == 3, err
    told = out + err
    if name == "batch":
        told = (mixed.parent / "out/bad.jsonl").read_text()
    for bad in DAMAGED[: len(DAMAGED) - (not name.endswith("samples"))]:
        assert bad in told or "more rows are left out" in told
    if name == "count":
        assert "Together 144 vision" in " ".join(out.split())


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "damaged.png", *ASKED),
        ("compare", "damaged.png", *ASKED),
        ("count", "damaged.png"),
        ("check", "MODEL", "--image", "damaged.png"),
        ("tune", "damaged.png", *ASKED, "--retention", 0.5),
        ("eval", "--samples", "list.jsonl"),
    ],
    ids=lambda words: words[0],
)
def test_a_damaged_picture_is_refused_before_the_model_is_loaded(words, mixed, run, tiny_llava, monkeypatch):
    monkeypatch.chdir(mixed)
    (mixed / "list.jsonl").write_text('{"image": "damaged.png", "question": "What?"}\n')
    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    model = [] if words[0] == "check" else ["--model", tiny_llava]
    code, out, err = run(*(tiny_llava if word == "MODEL" else word for word in words), *model)
    assert (code, out) == (1, "")
    assert "damaged.png is damaged" in err
