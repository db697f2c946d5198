"""Encode: caches a vision tower's outputs for the next method or batch that shows it the same images."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from foveate.contract.method import Method
from foveate.core.patching import Patcher
from foveate.engine.program import Program
from foveate.registry import family_for

KEPT = 4
"""Most calls that are cached: the batches of a few questions, reused by every method."""
MARKS = 64
"""Number of values of an image that are compared first, before the whole image."""


@dataclass(frozen=True, slots=True)
class TowerMemo:
    """The last calls of a vision tower, with their outputs.

    A tower whose input has one row per image runs once per distinct row, whatever else is in the call. A tower that
    also takes sizes, such as Qwen's, reuses the output of an identical call only.
    """

    calls: deque[tuple[list[Any], Any]] = field(default_factory=lambda: deque(maxlen=KEPT))

    @contextmanager
    def around(self, model: Any, method: Method | None) -> Iterator[None]:
        """Let the tower answer from the cache inside the context, unless the method works inside the tower."""
        with Patcher() as patches:
            family, program = family_for(model), None
            if method is not None:
                program = Program.on(method, family)
            works_in_it = program and (program.thin is not None or program.encodes not in (None, "projector"))
            tower = getattr(family.core, "vision_tower", None)
            if tower is not None and not works_in_it:
                patches.wrap(tower, "forward", self)
            yield

    def __call__(self, look: Callable[..., Any], pixel_values: Tensor, *sizes: Any, **options: Any) -> Any:
        options.pop("use_cache", None)  # transformers 5.24 passes it on to towers, which do not take it
        alike = None
        if pixel_values.ndim == 4 and not any(isinstance(value, Tensor) for value in (*sizes, *options.values())):
            pixel_values, alike = torch.unique(pixel_values, dim=0, return_inverse=True)
        leaves, _ = tree_flatten(((pixel_values, *sizes), sorted(options.items())))
        if alike is None:
            same = (shown for call, shown in self.calls if len(call) == len(leaves) and all(map(_equal, call, leaves)))
            shown = next(same, None)
        else:
            shown = self._gather(*leaves)
        if shown is None:
            shown = look(pixel_values, *sizes, **options)
            self.calls.append((leaves, shown))
        if alike is None:
            return shown
        made = {name: tree_map_only(Tensor, lambda rows: rows[alike], value) for name, value in shown.items()}
        return type(shown)(**made)

    def _gather(self, pixels: Tensor, *rest: Any) -> Any:
        """Collect cached outputs of these images, from any calls; None if one of the images is new."""
        origins: dict[int, tuple[Any, int]] = {}  # image -> output of the call that had it, and its row there
        for call, shown in self.calls:
            rows, others = call[0], call[1:]
            if rows.shape[1:] != pixels.shape[1:] or rows.dtype != pixels.dtype or not all(map(_equal, others, rest)):
                continue
            near = (_marks(pixels)[:, None] == _marks(rows)[None]).all(dim=-1)  # (pictures, rows) bool
            for place, row in near.nonzero().tolist():
                if torch.equal(pixels[place], rows[row]):
                    origins[place] = shown, row
        if len(origins) < len(pixels):
            return None
        first, _ = origins[0]
        cells = [(tree_flatten(dict(origins[place][0].items()))[0], origins[place][1]) for place in range(len(pixels))]
        leaves, form = tree_flatten(dict(first.items()))
        stacked = [
            torch.stack([values[at][row] for values, row in cells]) if isinstance(leaf, Tensor) else leaf
            for at, leaf in enumerate(leaves)
        ]
        return type(first)(**tree_unflatten(stacked, form))


def _marks(rows: Tensor) -> Tensor:
    """Sample the numbers of each row: (rows, …) -> (rows, about MARKS)."""
    flat = rows.flatten(1)
    return flat[:, :: max(1, flat.shape[1] // MARKS)]


def _equal(known: Any, given: Any) -> bool:
    if isinstance(known, Tensor) and isinstance(given, Tensor):
        return known.shape == given.shape and known.dtype == given.dtype and torch.equal(known, given)
    return type(known) is type(given) and bool(known == given)
