"""The methods and prompts that both trees run, as plain values, and on which families."""

import hashlib
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import foveate as fv

__all__ = [
    "COUNTED",
    "EMBEDDED",
    "EXAMPLES",
    "FILMS",
    "FIRST",
    "NEW",
    "ON",
    "PROMPTS",
    "QUICK",
    "WRITTEN",
    "Example",
    "stem",
]

Example = tuple[str, dict[str, Any]]
"""A method's name and its settings; a setting may be an example again. With "budget" alone it is the name that is given
to foveate, and the budget beside it; a name with a stroke is a preset."""

SCHEDULE: dict[str, Any] = {"layers": (1, 3, 4), "keep": (0.6, 0.5, 0.3)}
VISIONDROP: dict[str, Any] = {
    "dominant": 14, "contextual": 3, "image_token_list": ((9, 2), (5, 1)), "layer_list": (2, 4), "reference": 25,
}  # fmt: skip
MUSTDROP: dict[str, Any] = {"pruning_layers": (1, 3), "merge_window": 2}
FILTER: dict[str, Any] = {**MUSTDROP, "global_thr": 0.2, "individual_thr": 0.2}

FIRST: dict[str, Example] = {
    "v2drop": ("v2drop", SCHEDULE),
    "v2drop-cosine": ("v2drop", {
        "layers": (2, 4), "keep": (0.5, 0.4), "metric": "cosine", "window": 2, "scope": "image",
    }),
    "v2drop-path": ("v2drop", {"layers": (1, 3, 4), "keep": (0.7, 0.5, 0.0), "over": "path", "min_keep": 0}),
    "v2drop-frame": ("v2drop", {"layers": (1, 3), "keep": (0.6, 0.4), "scope": "frame"}),
    "v2drop-reverse": ("v2drop", {"layers": (1, 3), "keep": (0.6, 0.4), "reverse": True, "skip_below": 30}),
    "random": ("random", {"layers": (0, 2), "keep": (0.5, 0.3), "seed": 7, "scope": "image"}),
    "uniform": ("uniform", {**SCHEDULE, "scope": "frame", "skip_below": 10}),
    "uniform-first": ("uniform", {"layers": (0,), "keep": (0.4,)}),
    "visiondrop": ("visiondrop", VISIONDROP),
    "visiondrop-average": ("visiondrop", {**VISIONDROP, "positions": "keep", "merge": "average"}),
    "visiondrop-both-ways": ("visiondrop", {
        **VISIONDROP, "dominant": 0, "contextual": 0, "bidirectional": True, "renorm": True,
    }),
    "visiondrop-no-cls": ("visiondrop", {**VISIONDROP, "include_cls": False}),
    "mustdrop": ("mustdrop", {**FILTER, "merge_threshold": 0.3}),
    "mustdrop-counts": ("mustdrop", {
        **MUSTDROP, "mode": "budget", "counts": (12, 7), "reference": 25, "merge_threshold": 0.3, "kv": False,
    }),
    "mustdrop-retention": ("mustdrop", {
        **MUSTDROP, "mode": "budget", "retention": 0.4, "depth": 6, "merge_threshold": 0.3,
    }),
    "mustdrop-no-windows": ("mustdrop", {**FILTER, "merge_windows": False, "positions": "keep"}),
    "averagepool": ("averagepool", {"keep": 0.4}),
    "resize": ("resize", {"keep": 0.4}),
    "finalkv-v2drop": ("finalkv", {"inner": ("v2drop", SCHEDULE)}),
    "finalkv-visiondrop": ("finalkv", {"inner": ("visiondrop", VISIONDROP), "first_layer": 1}),
}  # fmt: skip
"""What 32cba4e has already. It runs on all families, and its operators and waits are counted."""

METHODS: dict[str, Example] = {
    "clse": ("clse", {"layers": (1, 3), "keep": (0.6, 0.3)}),
    "dart": ("dart", {"layer": 2, "keep": 0.6, "pivots": 2, "text_pivots": 2}),
    "divprune": ("divprune", {"keep": 0.4}),
    "divprune-frame": ("divprune", {"tokens": 3, "positions": "keep", "scope": "frame"}),
    "fastv": ("fastv", {"layers": (2, 4), "keep": (0.6, 0.5), "scope": "image"}),
    "hiprune": ("hiprune", {"tokens": 7, "alpha": 0.5}),
    "holov": ("holov", {"keep": 0.4}),
    "holov-crops": ("holov", {"tokens": 6, "crops": 4, "tau": 0.5, "positions": "keep"}),
    "priortr": ("priortr", {"layer": 3, "keep": 0.4}),
    "priortr-max": ("priortr", {"layer": 2, "keep": 0.4, "heads": "max", "kv": False}),
    "prumerge": ("prumerge", {"neighbours": 3, "positions": "keep"}),
    "prumerge_plus": ("prumerge_plus", {}),
    "pyramiddrop": ("pyramiddrop", {"layer_list": (1, 3, 4), "image_token_ratio_list": (0.6, 0.3, 0.1)}),
    "scope": ("scope", {"keep": 0.4}),
    "sparsevlm": ("sparsevlm", {"pruning_layers": (1, 3), "targets": (12, 5), "reference": 25}),
    "sparsevlm_plus": ("sparsevlm_plus", {"pruning_layers": (1, 3), "targets": (12, 5), "reference": 25}),
    "tome": ("tome", {"retention": 0.2}),
    "visionzip": ("visionzip", {"dominant": 7, "contextual": 3, "reference": 25}),
    "vispruner": ("vispruner", {"keep": 0.4, "per_round": 2}),
    "vscan": ("vscan", {"tokens": 6, "layer": 2, "entry": 2.0, "window": 3}),
}
"""The other methods of pictures: on the quick families, and on those that a paper or a port is about."""

FILMS: dict[str, Example] = {
    "dycoke": ("dycoke", {"k": 0.6}),
    "evs": ("evs", {"q": 0.5}),
    "vidcom2": ("vidcom2", {"keep": 0.4}),
}
"""Methods of films: on all families that take films, with these alone."""

PLACES: tuple[Example, ...] = (
    ("resize", {"keep": 0.6}),
    ("mustdrop", {"filter": False, "merge_threshold": -1.0, "merge_window": 2}),
    ("visionzip", {"dominant": 9, "contextual": 3, "reference": 25}),
    ("averagepool", {"keep": 0.6}),
    ("vidcom2", {"keep": 0.6}),
    ("divprune", {"keep": 0.6}),
    ("v2drop", SCHEDULE),
    ("fastv", {"layers": (2,), "keep": (0.5,)}),
    ("finalkv", {}),
)
"""A method for each place: pixels, tower, before the projector, behind it (AveragePool needs whole grids, VidCom2 does
not), the first decoder layer, later ones (without and with the question), cache."""
CHAINS: dict[str, Example] = {
    f"{first[0]}+{second[0]}": ("chain", {"members": (first, second)}) for first, second in combinations(PLACES, 2)
}

NAMES = sorted({name for name, _ in (FIRST | METHODS | FILMS).values()} - {"finalkv"})  # it takes no budget
BUDGETS: dict[str, Example] = {
    f"{name}@{words}": (name, {"budget": share})
    for name in NAMES
    for words, share in (("fifth", 0.2), ("third", 1 / 3), ("half", 0.5))
}
NEW = {"cdpruner", "dtd", "fastvid", "flashvid", "holitom", "mmtok", "pixelprune", "read"}
"""Methods that neither of the old trees has."""
WITHOUT_PRESETS = {"averagepool", "dycoke", "evs", "random", "resize", "uniform", "mustdrop"}
PRESETS = [f"{name}/llava-1.5-7b/64" for name in NAMES if name not in WITHOUT_PRESETS]
ASKED: dict[str, Example] = {name: (name, {}) for name in ("untouched", *PRESETS)}
"""For the embedded model, whose depth and tokens are LLaVA-1.5-7B's."""

WRITTEN: dict[str, Example] = {**FIRST, **METHODS, **FILMS, **CHAINS, **BUDGETS, **ASKED}
"""As the old trees read them; an example's results are called by what is written here."""


def here(example: Example) -> Example:
    """An example as the tree that runs reads it: the new one's FinalKV is in a chain, its MustDrop has a budget."""
    name, settings = example
    if "inner" in fv.FinalKV.__dataclass_fields__:
        return example
    left = {key: value for key, value in settings.items() if key not in GONE}
    if "inner" in settings:
        return "chain", {"members": (settings["inner"], (name, left))}
    if "counts" in settings:
        left = {key: value for key, value in left.items() if key != "reference"} | {"retention": 0.6}
    return name, left


GONE = ("inner", "mode", "counts", "depth")
EXAMPLES = {name: here(example) for name, example in WRITTEN.items()}

PROMPTS: dict[str, tuple[str, ...]] = {
    "one": ("tit",),
    "two": ("titit",),
    "ragged": ("titt", "titit", "ttttt", "tit"),
    "film": ("tvt", "titvt"),
}
"""Samples of a batch, as `tests.models.batch` takes them; films alone where a model takes no pictures beside them."""

COUNTED = ("one", "ragged", "film")
QUICK = ("llava", "llava_onevision", "qwen2_vl", "gemma3")
OF_PAPERS = (*QUICK, "llava_next", "qwen2_5_vl", "qwen3_vl")
EMBEDDED = "embedded"
"""The embedded model in the place of a family: it is asked, looks, and answers a batch."""

ON: dict[str, Sequence[str]] = {
    **dict.fromkeys(METHODS, OF_PAPERS),
    **dict.fromkeys(CHAINS, QUICK),
    **{name: (EMBEDDED, "qwen2_5_vl" if method in FILMS else "llava") for name, (method, _) in BUDGETS.items()},
    **dict.fromkeys(ASKED, (EMBEDDED,)),
}
"""Where an example runs that does not run on all families."""


def stem(name: str) -> str:
    """How the files of its results are called: otherwise once its settings are changed."""
    content = hashlib.sha256(repr(WRITTEN[name]).encode()).hexdigest()[:8]
    return f"{name.replace('/', '_')}-{content}"
