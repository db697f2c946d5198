"""What every test inside mlx-vlm needs: `make test-mlx` runs them, in an environment of their own."""

import importlib.util
import os

import pytest

if importlib.util.find_spec("mlx_vlm") is None:  # not for the other tests, which are collected where there is none
    collect_ignore_glob = ["*"]


def pytest_collection_modifyitems(config, items):
    """Leave out what there is no time for, unless FOVEATE_TESTS is set."""
    long = [
        item for item in items if item.get_closest_marker("long") is not None and not os.environ.get("FOVEATE_TESTS")
    ]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def embedded_folder(tmp_path_factory):
    """The embedded model as mlx-vlm loads it."""
    from tests import models

    return models.embedded_folder(tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
    """Four layers of it, which say nothing but are fast."""
    from tests import models

    return models.embedded_folder(tmp_path_factory.mktemp("small"), layers=4)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """No test reads or leaves marks of checks in the user's folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
