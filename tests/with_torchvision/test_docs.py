"""The code blocks of the guide to videos run, with a tiny OneVision in place of a large one."""

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from foveate import embedded
from foveate.ask.loading import load
from tests.films import film
from tests.test_docs import VIDEOS, always, blocks, run_command_lines, run_python


@pytest.fixture
def stand_in(folders, tmp_path, monkeypatch):
    """A fresh folder with a clip, in which every model is the tiny OneVision."""
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "clip.mp4")
    loaded = load(str(folders["llava_onevision"]), device="cpu")
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", always(loaded.model))
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *_, **__: loaded.processor)
    monkeypatch.setattr(embedded, "path", lambda: folders["llava_onevision"])
    return tmp_path


def test_python_blocks_run(stand_in):
    run_python(VIDEOS)
    assert (stand_in / "kept.png").exists()


def test_command_lines_run(stand_in, capsys):
    assert len(blocks(VIDEOS, "bash")[0].splitlines()) >= 5
    run_command_lines(VIDEOS, capsys)
