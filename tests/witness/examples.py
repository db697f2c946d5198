"""The methods and prompts that both trees run, as plain values."""

from typing import Any

__all__ = ["COUNTED", "EXAMPLES", "PROMPTS", "QUICK", "Example"]

Example = tuple[str, dict[str, Any]]
"""A method's name and its settings; a setting may be an example again."""

SCHEDULE: dict[str, Any] = {"layers": (1, 3, 4), "keep": (0.6, 0.5, 0.3)}
VISIONDROP: dict[str, Any] = {
    "dominant": 14, "contextual": 3, "image_token_list": ((9, 2), (5, 1)), "layer_list": (2, 4), "reference": 25,
}  # fmt: skip
MUSTDROP: dict[str, Any] = {"pruning_layers": (1, 3), "merge_window": 2}
FILTER: dict[str, Any] = {**MUSTDROP, "global_thr": 0.2, "individual_thr": 0.2}

EXAMPLES: dict[str, Example] = {
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

PROMPTS: dict[str, tuple[str, ...]] = {
    "one": ("tit",),
    "two": ("titit",),
    "ragged": ("titt", "titit", "ttttt", "tit"),
    "film": ("tvt", "titvt"),
}
"""Samples of a batch, as `tests.models.batch` takes them; films alone where a model takes no pictures beside them."""

COUNTED = ("one", "ragged", "film")
QUICK = ("llava", "llava_onevision", "qwen2_vl", "gemma3")
