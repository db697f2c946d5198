"""The fixtures of the rooms in which the faults are."""

from tests.batch.conftest import answer, asking, model, pictures, questions, vlm  # noqa: F401
from tests.cli.conftest import picture, run, tiny_llava  # noqa: F401
