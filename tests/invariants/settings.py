"""What the contract suite runs: every method there is, by the examples its own test file names."""

import importlib

import foveate as fv
from foveate.methods.base import Method
from foveate.registry import support
from tests.models import FAMILIES, PROMPTS

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


def works(example: str, family: str, word: str = "i") -> bool:
    """Whether a pair works, as tests/invariants/test_support.py has proven it; True for what is not known yet."""
    modality = "video" if "v" in word else "image"
    return isinstance(SUPPORT.get(family, {}).get(modality, {}).get(example.rsplit("-", 1)[0], []), list)


SUPPORT = support()
EXAMPLES = examples()
KEEP_ALLS = keep_alls()
SMALLEST = smallest()
PAIRS = [(name, family) for name in EXAMPLES for family in FAMILIES if works(name, family)]
"""Every example on every family it works on; the others are refused, which is tested and counted."""
FIRST = [(name, family) for name, family in PAIRS if name.endswith("-0")]
"""Every method, by one example, on every family: what every attention and every kind of prompt is run with."""
CORE = ("llava", "llava_onevision", "qwen2_vl", "qwen3_vl")
RUNS = [(*pair, "sdpa") for pair in PAIRS if pair in FIRST or pair[1] in CORE] + [(*pair, "eager") for pair in FIRST]
PROMPT_RUNS = [(*pair, "titit", "sdpa") for pair in PAIRS] + [
    (name, family, word, attention)
    for name in EXAMPLES
    for family, word in PROMPTS
    for attention in ATTENTIONS
    if works(name, family, word) and name.endswith("-0") and (word, attention) != ("titit", "sdpa")
]
