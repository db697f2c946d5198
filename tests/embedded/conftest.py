"""Films to look at; and tests of the training code import its modules by their short names, as its scripts do."""

import sys
from pathlib import Path

import pytest

from foveate.embedded.films import film

TRAINING = str(Path(__file__).parents[2] / "training")
if TRAINING not in sys.path:
    sys.path.append(TRAINING)


@pytest.fixture(scope="session")
def films():
    return [film("held-out", index) for index in range(80)]
