"""A small random model to ask, and files to show it."""

import signal

import pytest
from PIL import Image

import foveate as fv
from foveate.app.replies import FULL
from foveate.app.subjects import read_upload
from tests.app.serving import Served
from tests.cli.conftest import save_tiny_llava


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The folder of a random LLaVA that sees 36 tokens of a picture."""
    return save_tiny_llava(tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="session")
def vlm(folder):
    return fv.load(folder)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "a picture.png"
    Image.effect_mandelbrot((90, 90), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(path)
    return path


def asking(name, retention, max_new_tokens):
    """How the page asks under a method of this name."""
    if name == FULL:
        return {"max_new_tokens": max_new_tokens}
    return {"method": name, "retention": retention, "max_new_tokens": max_new_tokens}


@pytest.fixture
def subject(picture):
    return read_upload(picture)


@pytest.fixture(scope="module")  # an idle page takes 2 % of a core: it does not wait for other files
def served(folder, tmp_path_factory):
    """The page of that model, whose answers have four tokens; at the end, SIGTERM ends it cleanly."""
    page = Served("--model", folder, "--max-new-tokens", 4, folder=tmp_path_factory.mktemp("served"))
    yield page
    assert page.end(signal.SIGTERM) == (143, "", "foveate: terminated.\n")
    assert page.files == []
