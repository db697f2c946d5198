"""What the contract suite runs: every method there is, by the examples its own test file names."""

import importlib

import foveate as fv
from foveate.methods.base import Method

ATTENTIONS = ("sdpa", "eager")


def examples() -> dict[str, Method]:
    """For each method, settings that drop on the tiny models: `EXAMPLES` of its test file."""
    found = {}
    for name in fv.methods():
        home = importlib.import_module(f"tests.methods.test_{name}")
        found.update({f"{name}-{index}": example for index, example in enumerate(home.EXAMPLES)})
    return found


def keep_alls() -> dict[str, Method]:
    """For each method, the setting that keeps everything: `KEEP_ALL` of its test file."""
    return {name: importlib.import_module(f"tests.methods.test_{name}").KEEP_ALL for name in fv.methods()}


def smallest() -> dict[str, Method]:
    """For each method, the setting that leaves one token of an image where it can: `SMALLEST` of its test file."""
    return {name: importlib.import_module(f"tests.methods.test_{name}").SMALLEST for name in fv.methods()}


EXAMPLES = examples()
KEEP_ALLS = keep_alls()
SMALLEST = smallest()
