"""The folder for a hosting space: whole, and its page builds."""

import importlib.util
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.forked import ANEW, said_by

ROOT = Path(__file__).parents[2]
SPACE = ROOT / "spaces"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What `make space` makes, elsewhere."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("Makefile", "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "spaces").symlink_to(SPACE)
    (folder / "src").symlink_to(ROOT / "src")
    subprocess.run(["make", "space"], cwd=folder, check=True, capture_output=True)
    return folder / "out/space"


def test_it_asks_for_what_the_project_asks_for():
    extras = PROJECT["optional-dependencies"]
    asked = (SPACE / "requirements.txt").read_text(encoding="utf-8").split()
    commands, *of_app = extras["app"]
    assert commands == "foveate[cli]"
    asked_by_extras = (*extras["cli"], *of_app, *reversed(extras["vision"]))
    assert asked == [*PROJECT["dependencies"], *dict.fromkeys(asked_by_extras)]


def test_it_is_whole_without_what_is_made(made):
    assert {path.name for path in made.iterdir()} == {"app.py", "requirements.txt", "README.md", "foveate"}
    assert (made / "foveate/app/page.css").is_file()
    assert (made / "foveate/embedded/model/model.safetensors").stat().st_size > 10**6
    assert not list(made.rglob("__pycache__"))


@pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="THE SPACE IS NOT BUILT: no Gradio; see make setup-page"
)
def test_its_app_imports_and_its_page_builds(made, folder):
    program = (
        f"{ANEW}sys.path.insert(0, {str(made)!r})\n"
        "import app, foveate, pathlib; from foveate.app.page import application\n"
        "print(pathlib.Path(foveate.__file__).parent.parent)\n"
        "print(len(application(app.fv.load(app.MODEL)).routes) > 0, app.PORT)"
    )
    environment = os.environ | {"FOVEATE_MODEL": str(folder), "GRADIO_ANALYTICS_ENABLED": "False"}
    assert said_by(program, cwd=made, env=environment).split() == [str(made), "True", "7860"]
