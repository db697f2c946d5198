"""Each layer: extensions of the engine. This file is the list of them; the engine knows no other name.

encoding    reduces images before the decoder
borrowing   gives layers without keys of their own a mask over another layer's
cache_cut   cuts caches of earlier layers after a prompt
odd_layers  serves layers with a state, and layers that pick keys
renumbering numbers rows anew, as in a prompt that is that short
tracing     writes the trace: what was dropped where
step_reads  lets decode steps read only some vision tokens of the caches
replays     records calls as CUDA graphs, and replays them
tower_memo  keeps a tower's output for reuse. No method needs it: it joins a model's contexts (`hold.joining`)
"""

from collections.abc import Callable
from importlib import import_module

from foveate.engine.extension import Context, Extension

NEEDED: dict[str, Callable[[Context], bool]] = {
    "encoding": lambda context: context.program.encodes is not None,
    "borrowing": lambda context: bool(context.family.lenders),
    "cache_cut": lambda context: bool(context.program.cached),
    "odd_layers": lambda context: bool(context.family.recurrent or context.family.indexed),
    "renumbering": lambda context: context.program.renumbers,
    "tracing": lambda context: True,
    "step_reads": lambda context: context.program.reading is not None,
    "replays": lambda context: context.cuda_graphs,
}
"""When a context has each extension, in the order in which they are called."""

ORDERED = {
    ("cache_cut", "tracing"): "the record says how many slots are left, and has the cut of the caches",
    ("cache_cut", "step_reads"): "steps read a part of what is left in the caches",
    ("replays", "tower_memo"): "a tower's graph gets only calls that must run",
}
"""Which extension must be called before which other, and why. Any other order gives the same."""


def extensions_for(context: Context) -> list[Extension]:
    """Return new extensions for a method on a model."""
    names = [name for name, is_needed in NEEDED.items() if is_needed(context)]
    modules = [import_module(f"{__name__}.{name}") for name in names]
    return [module.EXTENSION() for module in modules]
