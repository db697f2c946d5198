"""Jobs of `foveate.batch` are what runs are tried with."""

from tests.batch.conftest import answer, asking, model, pictures, questions, vlm  # noqa: F401
