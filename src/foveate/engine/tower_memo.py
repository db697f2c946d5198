"""Encode: caches a vision tower's outputs for the next method or batch that shows it the same images."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from foveate.engine.replay import PLAIN_VALUES

KEPT = 4
"""Most calls that are cached: the batches of a few questions, reused by every method."""
MARKS = 64
"""Number of values of an image that are compared first, before the whole image."""
OUTSIDE = {"forward", "_forward_pre_hooks", "_forward_hooks"}
"""Attributes of the tower itself that act around the memo: hooks, and the wrappers of the session."""


def state_of(tower: nn.Module, wrapper: Any = None) -> list[Any] | None:
    """List all that a tower's output depends on besides its arguments; None if it is random or has gradients.

    These are its modules with their weights, settings, adapters, hooks and wrappers. Values are not read: a weight that
    is written to has another version. Writes through `.data` go unnoticed, as in `foveate.ask.look.weights_of`.

    Args:
        tower: The tower.
        wrapper: Its own `forward`, if somebody wrapped that before the session did.
    """
    weights = [*tower.parameters()]
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
        return None
    kind = weights[0].device.type if weights else "cpu"
    state = [tower, wrapper, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)]
    configs = {}
    for module in tower.modules():
        if module.training:
            return None
        for name, value in vars(module).items():
            if module is tower and name in OUTSIDE:
                continue
            if isinstance(value, dict):
                state += value.values()
            elif isinstance(value, list | tuple | set):
                state += value
            else:
                state.append(value)
            if hasattr(value, "_attn_implementation"):
                configs[id(value)] = value
    for config in configs.values():
        state += vars(config).values()
    for tensor in [value for value in state if isinstance(value, Tensor)]:
        state += (tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
    return state


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A call of a tower and its output.

    Attributes:
        state: What the output depends on besides the arguments; see `state_of`.
        leaves, spec: The arguments, flattened.
        output: The output.
        by_rows: Whether every tensor of the output has one row per image, as the only tensor of the arguments has.
    """

    state: list[Any]
    leaves: list[Any]
    spec: Any
    output: Any
    by_rows: bool

    def rows_of(self, pixels: Tensor, leaves: Sequence[Any], spec: Any) -> dict[int, int]:
        """Return the row of each of these images that this call had, if it differs in its images only."""
        own = _images(self.leaves)
        if own is None or not self.by_rows or self.spec != spec:
            return {}
        pairs = zip(self.leaves, leaves, strict=True)
        if not all(_equal(value, other) for value, other in pairs if other is not pixels):
            return {}
        return _places(pixels, own)


@dataclass(frozen=True, slots=True)
class TowerMemo:
    """The last calls of a model's vision towers, with their outputs.

    A tower whose only tensor has one row per image runs once per distinct row, whatever else is in the call. A tower
    that also takes tensors of sizes, such as Qwen's, reuses the output of an identical call only. What is returned is
    always a copy, because models and families write into it.
    """

    calls: deque[Call] = field(default_factory=lambda: deque(maxlen=KEPT))

    def __call__(
        self, look: Callable[..., Any], *args: Any, state: Callable[[], list[Any] | None] = list, **options: Any
    ) -> Any:
        """Return `look(*args, **options)`, from the cache if all that it depends on is as it was.

        Args:
            look: The tower's forward.
            args, options: Its arguments.
            state: Returns what else the output depends on; see `state_of`.
        """
        options.pop("use_cache", None)  # transformers 5.24 passes it on to towers, which do not take it
        leaves, spec = tree_flatten((args, options))
        now = state()
        if now is None or not _are_known(leaves):
            return look(*args, **options)
        known = [call for call in self.calls if _same(call.state, now)]
        for call in known:
            if call.spec == spec and _same(call.leaves, leaves):
                return _copy(call.output)
        pixels, places = _images(leaves), dict[int, int]()
        if pixels is not None:
            shown = _gather(known, pixels, leaves, spec)
            if shown is not None:
                return shown
            places = _places(pixels, pixels)  # of images a b a: 0 1 0
        rows = [*dict.fromkeys(places.values())]

        def run(leaves: Sequence[Any]) -> tuple[Any, bool]:
            args, options = tree_unflatten(leaves, spec)
            shown = look(*args, **options)
            shapes = [leaf.shape[:1] for leaf in tree_leaves(shown) if isinstance(leaf, Tensor)]
            return shown, bool(rows) and shapes == [(len(rows),)] * len(shapes)

        distinct = leaves
        if pixels is not None and len(rows) < len(pixels):
            distinct = [pixels[rows] if leaf is pixels else leaf for leaf in leaves]
        shown, by_rows = run(distinct)
        if distinct is not leaves and not by_rows:
            distinct = leaves
            shown, by_rows = run(leaves)
        now = state()  # a first run may install hooks, such as those that collect hidden states
        if now is None or not _are_known(tree_leaves(shown)):
            return shown
        self.calls.append(Call(now, _copy(distinct), spec, shown, by_rows))
        if distinct is leaves:
            return _copy(shown)
        return tree_map_only(Tensor, lambda images: images[[rows.index(row) for row in places.values()]], shown)


def _gather(known: Sequence[Call], pixels: Tensor, leaves: Sequence[Any], spec: Any) -> Any:
    """Collect cached outputs of these images, from any calls; None if one of the images is new."""
    origins: dict[int, tuple[Call, int]] = {}  # image -> the call that had it, and its row there
    for call in known:
        origins |= {place: (call, row) for place, row in call.rows_of(pixels, leaves, spec).items()}
    if len(origins) < len(pixels):
        return None
    outputs = {id(call): tree_flatten(call.output)[0] for call, _ in origins.values()}
    cells = [(outputs[id(call)], row) for call, row in map(origins.__getitem__, range(len(pixels)))]
    first, form = tree_flatten(origins[0][0].output)
    stacked = [
        torch.stack([values[at][row] for values, row in cells]) if isinstance(leaf, Tensor) else leaf
        for at, leaf in enumerate(first)
    ]
    return tree_unflatten(stacked, form)


def _images(leaves: Sequence[Any]) -> Tensor | None:
    """Return the only tensor of a call's arguments if it has a row per image, (images, channels, rows, columns)."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if len(tensors) != 1 or tensors[0].dim() != 4:
        return None
    return tensors[0]


def _places(pixels: Tensor, rows: Tensor) -> dict[int, int]:
    """Return the first of `rows` that equals each image, for the images that have one."""
    if pixels.shape[1:] != rows.shape[1:] or pixels.dtype != rows.dtype or pixels.device != rows.device:
        return {}
    near = (_marks(pixels)[:, None] == _marks(rows)[None]).all(dim=-1)  # (images, rows) bool
    places: dict[int, int] = {}
    for place, row in near.nonzero().tolist():
        if place not in places and torch.equal(pixels[place], rows[row]):
            places[place] = row
    return places


def _marks(rows: Tensor) -> Tensor:
    """Sample the numbers of each row: (rows, …) -> (rows, about MARKS)."""
    flat = rows.flatten(1)
    return flat[:, :: max(1, flat.shape[1] // MARKS)]


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
    return isinstance(value, PLAIN_VALUES) and bool(value == other)
