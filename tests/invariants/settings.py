"""What the invariants run: probes on every family, every method on four; with FOVEATE_TESTS=all, all on all."""

import importlib
import importlib.util
import os
from collections.abc import Iterable
from functools import cache

import pytest

import foveate as fv
from foveate import registry
from foveate.contract.method import Method
from foveate.errors import FoveateError
from foveate.families.support import reach, usual_input
from tests import probes
from tests.invariants.facts import attends_in, reads_less, stages
from tests.models import DEPTH, ENCODES_FIRST, FAMILIES, PROMPTS, TINY, config_of
from tests.probes import PROBES

MODALITIES = ("image", "video")
ATTENTIONS = ("sdpa", "eager") if ENCODES_FIRST else ("sdpa", "sdpa")
"""Kernels that tests take in turns; with an older transformers the one that most people use."""
EVERYTHING = os.environ.get("FOVEATE_TESTS") == "all"
METHOD_FAMILIES = ("llava", "llava_next", "llava_onevision", "qwen2_5_vl")
"""Where every method is run: one size of picture, tiles, film and newlines, M-RoPE and windows in the tower."""

MISSING = (
    "tests/methods/test_{name}.py has no EXAMPLES: a list of settings that drop on a decoder of six layers and images "
    "of some 25 tokens, such as EXAMPLES = [{kind}(…)]. See docs/guides/new-method.md."
)
NO_KEEP_ALL = (
    "{kind} takes no retention=1.0, so tests/methods/test_{name}.py needs a KEEP_ALL: what keeps everything. "
    "See docs/guides/new-method.md."
)


def home_of(name: str) -> object:
    """A method's test file; None if there is none."""
    home = f"tests.methods.test_{name}"
    return None if importlib.util.find_spec(home) is None else importlib.import_module(home)


def own_methods() -> dict[str, type[Method]]:
    """Every method of this package by its name."""
    return {name: kind for name, kind in registry.methods().items() if kind.__module__.startswith("foveate.")}


def examples() -> tuple[dict[str, Method], list[str]]:
    """For each method, settings that drop on the tiny models: `EXAMPLES` of its test file; and what lacks them."""
    by_family, lacking = {}, []
    for name, kind in own_methods().items():
        settings = getattr(home_of(name), "EXAMPLES", None)
        if not settings:
            lacking.append(MISSING.format(name=name, kind=kind.__name__))
        for index, example in enumerate(settings or ()):
            if not reads_less(example):  # tests/engine/extensions/test_step_reads.py has another reference for these
                by_family[f"{name}-{index}"] = example
    return by_family, lacking


def keep_alls() -> tuple[dict[str, Method], list[str]]:
    """For each method, the setting that keeps everything: its test file's `KEEP_ALL`, or a whole budget."""
    settings, lacking = {}, []
    for name, kind in own_methods().items():
        setting = getattr(home_of(name), "KEEP_ALL", None)
        try:
            settings[name] = setting or kind(retention=1.0)
        except (FoveateError, TypeError):
            lacking.append(NO_KEEP_ALL.format(name=name, kind=kind.__name__))
    return settings, lacking


def idle() -> dict[str, set[str]]:
    """For examples of methods that compare frames (`ONLY_VIDEOS` in its test file), where they have nothing to do."""
    still: dict[str, set[str]] = {}
    for name in own_methods():
        home = home_of(name)
        if not getattr(home, "ONLY_VIDEOS", False):
            continue
        nothing = {f"{family} image" for family in FAMILIES}
        nothing |= {f"{family} video" for family in FAMILIES if fv.families()[family].tiled}  # frames are pictures
        still |= {f"{name}-{index}": nothing for index in range(len(home.EXAMPLES))}
    return still


def smallest() -> dict[str, Method]:
    """For some methods, the setting that leaves one token of an image where it can: `SMALLEST` of its test file."""
    homes = {name: home_of(name) for name in own_methods()}
    return {f"{name}-0": home.SMALLEST for name, home in homes.items() if hasattr(home, "SMALLEST")}


@cache
def reach_of(example: str, family: str, modality: str = "image") -> list[str] | str:
    """Where tokens leave in an example on a family's tiny model, as it is derived."""
    kind = fv.families()[family]
    arriving = usual_input(kind, modality)
    return reach(EXAMPLES[example], kind, config_of(family), depth=DEPTH, arriving=arriving)


def serves(family: str, method: Method) -> bool:
    """Whether a family refuses nothing of a method; tests/invariants/test_coverage.py proves it."""
    return isinstance(reach(method, fv.families()[family], config_of(family), depth=DEPTH), list)


def works(example: str, family: str, word: str = "i") -> bool:
    """Whether an example drops on a family's tiny model; tests/invariants/test_coverage.py proves it."""
    modality = "video" if "v" in word else "image"
    if not attends_in(EXAMPLES[example]).isdisjoint(TINY[family].recurrent):
        return False
    return isinstance(reach_of(example, family), list) and f"{family} {modality}" not in NOTHING.get(example, ())


NOTHING = {
    "tower merge": {
        *(
            f"{family} {what}"
            for family in ("llava_next", "llava_next_video", "llava_onevision")
            for what in MODALITIES
        ),
        *(f"{family} video" for family in ("glm46v", "glm4v", "glm4v_moe")),
    },
    **idle(),
}
"""Where an example has nothing to do. "tower merge" needs a single grid, and several views or frames are none."""
METHODS, LACKING = examples()
KEEP_ALLS, NOT_KEEPING = keep_alls()
KEEP_ALLS = {**probes.KEEP_ALL, **KEEP_ALLS}
SMALLEST = {**probes.SMALLEST, **smallest()}
EXAMPLES = {**PROBES, **METHODS}
STAGES = {name: stages(example) for name, example in EXAMPLES.items()}
"""The stages of every example on the tiny models."""


def families_of(name: str) -> tuple[str, ...]:
    """Families that a probe or a method is run on."""
    return tuple(FAMILIES) if EVERYTHING or name in PROBES or name in probes.KEEP_ALL else METHOD_FAMILIES


def runs_on(name: str, family: str) -> bool:
    """Whether an example drops pictures or films on a family."""
    return works(name, family) or (name in FILMS and bool(TINY[family].videos) and works(name, family, "v"))


def in_turn(place: int) -> list[str]:
    """Every probe, and of every method one example: the next for the next place."""
    examples = [[name for name in METHODS if name.rsplit("-", 1)[0] == method] for method in OWN]
    return [*PROBES, *METHODS] if EVERYTHING else [*PROBES, *(few[place % len(few)] for few in examples if few)]


def one_each(shift: int = 0) -> list[tuple[str, str]]:
    """Every probe on every family, and every method with one example on four of them. Another `shift` takes the next
    examples, so that several tests together run them all."""
    return [
        (name, family)
        for place, family in enumerate(FAMILIES)
        for name in in_turn(place + shift)
        if family in families_of(name) and runs_on(name, family)
    ]


def diagonal(name: str, family: str) -> int:
    """Counts along both: with n kinds of a third thing, kind `diagonal % n` meets every name and every family."""
    return list(EXAMPLES).index(name) + FAMILIES.index(family)


def part(pairs: Iterable[tuple[str, str]], index: int, of: int) -> list[tuple[str, str]]:
    """One of several parts of pairs: each has every name and every family, and together they are all pairs."""
    return [pair for pair in pairs if EVERYTHING or diagonal(*pair) % of == index]


def with_kernels(pairs: Iterable[tuple[str, str]], shift: int = 0) -> list[tuple[str, str, str]]:
    """Each pair with one kernel: every name and every family meets both."""
    if EVERYTHING:
        return [(*pair, kernel) for pair in pairs for kernel in dict.fromkeys(ATTENTIONS)]
    return [(*pair, ATTENTIONS[(diagonal(*pair) // 2 + shift) % 2]) for pair in pairs]


def kernel_of(family: str, shift: int = 0) -> str:
    """One kernel for each family, in turns, for what is tried on families alone."""
    return ATTENTIONS[(FAMILIES.index(family) + shift) % 2]


def words_for(name: str, family: str) -> list[str]:
    """The prompts of a family that an example drops on."""
    return [word for of, word in PROMPTS if of == family and works(name, family, word)]


OWN = tuple(own_methods())
FILMS = set(idle())
"""Examples of methods that compare frames."""
PAIRS = [(name, family) for name in (EXAMPLES if EVERYTHING else PROBES) for family in FAMILIES if works(name, family)]
"""What runs on a family; what does not is refused, which tests/invariants/test_coverage.py proves."""
FIRST = [(name, family) for name, family in PAIRS if name in PROBES or name.endswith("-0")]
CORE = ("llava", "llava_onevision", "qwen2_vl", "qwen3_vl")
KINDS = FAMILIES if EVERYTHING else ["llava", "llava_onevision", "qwen2_vl", "gemma3", "qwen3_5"]
"""A family of each kind: plain, newlines and film, M-RoPE, masks and windows of its own, layers that carry a state."""
PROMPT_RUNS = [
    (name, family, word, kernel)
    for name, family, kernel in with_kernels(one_each())
    for at, word in enumerate(words_for(name, family))
    if EVERYTHING or (diagonal(name, family) - at) % len(words_for(name, family)) == 0
]
"""Each pair with one of the family's prompts."""


def complain() -> None:
    """Fail with what test files must add; discovery goes on without them."""
    if LACKING or NOT_KEEPING:
        pytest.fail("\n".join((*LACKING, *NOT_KEEPING)))
