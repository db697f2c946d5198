"""Encode: caches a vision tower's outputs for the next method or batch that shows it the same images."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from foveate.core.tensors import PLAIN_VALUES
from foveate.engine.extension import Context, Extension
from foveate.engine.hold import joining
from foveate.engine.state import State, state_of
from foveate.registry import family_for

KEPT = 4
"""Most calls that are cached: the batches of a few questions, reused by every method."""
MARKS = 64
"""Number of values of an image that are compared first, before the whole image."""
OUTSIDE = {"forward", "_forward_pre_hooks", "_forward_hooks"}
"""Attributes of the tower itself that act around the memo: hooks, and the session's wrappers."""


@dataclass(frozen=True, slots=True, eq=False)
class TowerOutputs:
    """A call of a tower with its output, image by image or as a whole.

    Attributes:
        state: What the output depends on besides the arguments; see `tower_state`.
        spec: The structure of the arguments.
        parts: For each image what `_images_of` returns, or for the whole call its arguments, flattened.
        outputs: A copy of the output of each part.
    """

    state: Any
    spec: Any
    parts: list[list[Any]]
    outputs: list[Any]


@dataclass(frozen=True, slots=True)
class TowerMemo(Extension):
    """The last calls of a model's vision towers, with their outputs.

    A tower whose input has one row per image runs once per distinct row, whatever else is in the call. A tower that
    also takes tensors of sizes, such as Qwen's, reuses the output of an identical call only. The cache keeps copies and
    returns copies, because models and families write into outputs.
    """

    calls: deque[TowerOutputs] = field(default_factory=lambda: deque(maxlen=KEPT))

    def attach(self, context: Context) -> None:
        """Put this around the towers, outside what else is around them. Stages inside a tower return other rows."""
        if context.program.in_tower:
            return
        for tower in context.family.towers:
            state = partial(tower_state, tower, context.patches.before(tower, "forward"))
            context.patches.wrap(tower, "forward", partial(self, state=state))

    @contextmanager
    def around(self, model: Any) -> Iterator[None]:
        """Let the towers answer from the cache in `drop` contexts of the model that open inside this one."""
        core = family_for(model).core
        joining[core] = self
        try:
            yield
        finally:
            if joining.get(core) is self:  # not another thread's
                del joining[core]

    def __call__(self, look: Callable[..., Any], *args: Any, state: Callable[[], Any] = list, **options: Any) -> Any:
        """Return `look(*args, **options)`, from the cache if all that it depends on is as it was.

        Args:
            look: The tower's forward.
            args, options: Its arguments.
            state: Returns what else the output depends on; see `tower_state`.
        """
        options.pop("use_cache", None)  # transformers 5.24 passes it on to towers, which do not take it
        leaves, spec = tree_flatten((args, options))
        now = state()
        if now is None or not _are_known(leaves):
            return look(*args, **options)
        calls = [call for call in [*self.calls] if call.spec == spec and call.state == now]
        pairs = [pair for call in calls for pair in zip(call.parts, call.outputs, strict=True)]
        images = _images_of(leaves)
        for parts in ([leaves], images):
            outputs = [next((output for other, output in pairs if _same(other, part)), None) for part in parts]
            if parts and all(output is not None for output in outputs):
                return _join(outputs)

        parts, places = [], list[int]()  # of images a b a: a b, and 0 1 0
        for image in images:
            places.append(next((at for at, other in enumerate(parts) if _same(other, image)), len(parts)))
            if places[-1] == len(parts):
                parts.append(image)
        output, outputs = None, []
        if len(parts) < len(images):
            args, options = _join([tree_unflatten(part[1:], spec) for part in parts])  # without the marks
            outputs = _rows_of(look(*args, **options), len(parts))
        if not outputs:  # all images differ, or they do not come back as rows
            args, options = tree_unflatten(leaves, spec)
            output = look(*args, **options)
            outputs = _rows_of(output, len(images))
            if len(parts) < len(images) or not outputs:
                parts, outputs = [leaves], [output]
        now = state()  # a first run may install hooks, such as those that collect hidden states
        if now is not None and _are_known(tree_leaves(outputs)):
            self.calls.append(TowerOutputs(now, spec, _copy(parts), _copy(outputs)))
        if output is not None:
            return output
        return _join([outputs[place] for place in places])


def tower_state(tower: nn.Module, wrapper: Any = None) -> State | None:
    """Return all that a tower's output depends on besides its arguments; None if it is random or has gradients.

    Args:
        tower: The tower.
        wrapper: Its own `forward`, if somebody wrapped that before the session did.
    """
    learns = torch.is_grad_enabled() and any(weight.requires_grad for weight in tower.parameters())
    if learns or any(module.training for module in tower.modules()):
        return None
    state = state_of(tower, OUTSIDE)
    state.objects.extend((tower, wrapper))
    return state


def _images_of(leaves: Sequence[Any]) -> list[list[Any]]:
    """Split a call's arguments by images; empty unless one tensor (images, channels, rows, columns) is the only one.

    In front of each image's arguments are its marks.
    """
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if len(tensors) != 1 or tensors[0].dim() != 4:
        return []
    flat = tensors[0].flatten(1)
    marks = flat[:, :: max(1, flat.shape[1] // MARKS)].tolist()
    return [[tuple(mark), *image] for mark, image in zip(marks, _rows_of(leaves, len(marks)), strict=True)]


def _rows_of(values: Any, count: int) -> list[Any]:
    """Split nested values by their rows; empty if a tensor of them has not `count` rows."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    if any(tensor.shape[:1] != (count,) for tensor in tensors):
        return []
    return [tree_map_only(Tensor, itemgetter(slice(at, at + 1)), values) for at in range(count)]


def _join(outputs: Sequence[Any]) -> Any:
    """Return copies of outputs, joined by rows."""
    if len(outputs) == 1:
        return _copy(outputs[0])
    columns = zip(*map(tree_leaves, outputs), strict=True)
    return tree_unflatten(map(_cat, columns), tree_flatten(outputs[0])[1])


def _cat(values: Sequence[Any]) -> Any:
    """Join tensors by rows. Of other values, which are all equal, return one."""
    return torch.cat(tuple(values)) if isinstance(values[0], Tensor) else values[0]


def _are_known(leaves: Sequence[Any]) -> bool:
    """Return whether all values of a call can be compared and copied."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return all(isinstance(leaf, (Tensor, *PLAIN_VALUES)) for leaf in leaves)


def _copy(values: Any) -> Any:
    return tree_map_only(Tensor, torch.clone, values)


def _same(values: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(values) == len(others) and all(map(_equal, values, others))


def _equal(value: Any, other: Any) -> bool:
    if value is other:
        return True
    if type(value) is not type(other):
        return False
    if isinstance(value, Tensor):
        alike = (value.shape, value.dtype, value.device) == (other.shape, other.dtype, other.device)
        return alike and torch.equal(value, other)
    return isinstance(value, (tuple, *PLAIN_VALUES)) and bool(value == other)
