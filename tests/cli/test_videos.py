"""Video files on the command line, on a model that reads pictures only; others: tests/with_torchvision."""

import json
import re
import shutil
import sys

import pytest
from PIL import Image

from tests.cli.conftest import QUESTION
from tests.films import film, sound

HALF = ("--retention", 0.5)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return film(tmp_path_factory.mktemp("clips") / "clip.mp4", 30, size=(64, 64))


def test_on_a_model_that_reads_pictures_frames_go_in_as_pictures_and_a_line_says_so(ask, clip, tmp_path):
    code, out, err = ask("generate", clip, "--frames", 3, "--figure", tmp_path / "kept.png", "--json", *HALF)
    assert code == 0
    assert err == f"foveate: this model reads no videos: the 3 frames of {clip} go in as pictures.\n"
    told = json.loads(out)
    assert told["vision_tokens"] == [36, 36, 36]
    assert told["videos"][0]["seconds"] == pytest.approx([0.5, 1.5, 2.5])
    with Image.open(tmp_path / "kept.png") as drawn:
        assert drawn.height > 1000 > drawn.width > 700  # four sheets of one row, and bars


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("{many}", "--fps", 10), 2, "768"),
        (("{picture}", "--frames", 3), 2, "need a video"),
        (("{nameless}",), 1, "Pillow"),
        (("none.mp4",), 1, "none.mp4"),
        (("{song}",), 1, "sound"),
        (("{text}",), 1, "readable"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_the_model_is_loaded(
    run, clip, picture, tmp_path, arguments, code, says
):
    (tmp_path / "text.mp4").write_text("no video at all")
    places = {"clip": clip, "picture": picture, "song": sound(tmp_path / "song.mp4"), "text": tmp_path / "text.mp4"}
    places["nameless"] = shutil.copy(clip, tmp_path / "clip")
    if "{many}" in arguments:
        places["many"] = film(tmp_path / "many.mp4", 800, size=(16, 16))
    files = [str(argument).format(**places) for argument in arguments]
    (tmp_path / "config.json").write_text("{}")  # it cannot be loaded, and only loading tells
    status, out, err = run("generate", *files, *QUESTION, "--model", tmp_path)
    assert (status, out) == (code, "")
    assert says in " ".join(err.split())
    assert len(err.splitlines()) == 1 or code == 2


def test_of_a_damaged_video_both_are_said_how_many_frames_were_read_and_how_many_are_used(ask, tmp_path):
    pieces = film(tmp_path / "whole.mp4", 200, size=(64, 64), gop=200, options={"movflags": "faststart"}).read_bytes()
    (path := tmp_path / "short.mp4").write_bytes(pieces[: len(pieces) * 6 // 10])
    code, out, err = ask("generate", path, "--json", *HALF)
    assert code == 0
    first, second = err.splitlines()
    read = re.search(r": (\d+) of 32 frames could be read", first)[1]
    assert second == f"foveate: this model reads no videos: of the {read} frames read of {path}, 3 go in as pictures."
    [told] = json.loads(out)["videos"]
    assert told["frames"] == 3
    assert told["note"] == f"{first.removeprefix('foveate: ')} 3 of those read are used."


def test_without_pyav_its_package_is_named(ask, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    code, _, err = ask("generate", clip)
    assert (code, err) == (1, "foveate: Reading videos needs PyAV: pip install av.\n")
