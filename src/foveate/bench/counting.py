"""What a call does, counted and not timed, so that a run anywhere gives the same: FLOPs, operators, waits, bytes."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

__all__ = ["Counts", "Memory", "Waits", "count", "counter"]

aten = torch.ops.aten


class Memory(TorchDispatchMode):
    """Notes the largest tensor that comes to be, and the most bytes that live at once.

    Only what is made inside counts: weights and inputs do not. What a kernel takes and gives back inside itself is
    not seen.

    Attributes:
        largest: Numbers in the largest tensor made; `where` says by which operator, and its shape.
        made: Bytes of all tensors made.
        peak: The most bytes that lived at once.
        operators: How many operators ran, views included.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest, self.where = 0, ""
        self.made = self.peak = self.operators = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)}
        made = function(*args, **(kwargs or {}))
        self.operators += 1
        self._live = {key: held for key, held in self._live.items() if not held[0].expired()}  # type: ignore[no-untyped-call]
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and _key(leaf) not in given:
                storage = leaf.untyped_storage()
                self.made += storage.nbytes()
                self._live[_key(leaf)] = (StorageWeakRef(storage), storage.nbytes())  # type: ignore[no-untyped-call]
                if storage.nbytes() // leaf.element_size() > self.largest:
                    self.largest = storage.nbytes() // leaf.element_size()
                    self.where = f"{function} {tuple(leaf.shape)}"
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return made

    @property
    def left(self) -> int:
        """Bytes that live still."""
        held = [size for storage, size in self._live.values() if not storage.expired()]  # type: ignore[no-untyped-call]
        return sum(held)


def _key(tensor: Tensor) -> int:
    found: int = tensor.untyped_storage()._cdata
    return found


SIZED_BY_VALUES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    aten.bincount.default,
}
"""Operators that the host must wait for, since the size of what they make is in the values."""


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes where the host waits for an accelerator: values it reads, tensors whose size depends on values, and tensors
    it sends without saying that it need not wait. (`torch.tensor(…, device=…)` is not seen.)

    Args:
        passed_over: Files that no place is in, beside torch's.

    Attributes:
        places: How often, by place: (file, line, function, operator), of the innermost frame that is not passed over.
    """

    def __init__(self, *passed_over: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: Counter[tuple[str, int, str, str]] = Counter()
        self._passed_over = (str(Path(torch.__file__).parent), __file__, *passed_over)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        far = any(one.device.type != "cpu" for one in given)
        waits = _is_read(function, args, kwargs or {}, made) if far else _is_sent(function, kwargs or {}, made)
        if waits:
            self.places[(*_place(self._passed_over), str(function).removesuffix(".default"))] += 1
        return made


def _is_read(function: Any, args: Any, kwargs: dict[str, Any], made: Any) -> bool:
    if function is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if function in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        return any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
    return (
        function in SIZED_BY_VALUES
        or not any(isinstance(leaf, Tensor) for leaf in tree_leaves(made))  # a number: item, equal
        or any(isinstance(leaf, Tensor) and leaf.device.type == "cpu" for leaf in tree_leaves(made))
    )


def _is_sent(function: Any, kwargs: dict[str, Any], made: Any) -> bool:
    """Whether the host hands over a tensor and stays until the device has it, behind all it still has to do."""
    sent = function is aten._to_copy.default and made.device.type != "cpu"
    return sent and not kwargs.get("non_blocking")


def _place(passed_over: tuple[str, ...]) -> tuple[str, int, str]:
    """File, line and function of the innermost frame in none of these files or folders."""
    frame: Any = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(passed_over):
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    root = next((parent.parent for parent in path.parents if parent.name in ("foveate", "transformers")), path.parent)
    return path.relative_to(root).as_posix(), frame.f_lineno, frame.f_code.co_qualname


@dataclass(frozen=True, slots=True)
class Counts:
    """What one call did.

    Attributes:
        flops: Matrix products, a multiply-add counts two; attention in full.
        operators: Operators that ran, views included.
        per_layer: Of these, those inside each decoder layer and what stands around it.
        made: Bytes of tensors made.
        peak: The most of these that lived at once.
        waits: Where the host waited for an accelerator, and how often: (file, line, function, operator).
    """

    flops: int
    operators: int
    per_layer: tuple[int, ...]
    made: int
    peak: int
    waits: dict[tuple[str, int, str, str], int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; waits by file, function and operator, since lines move."""
        waits: Counter[str] = Counter()
        for (file, _, name, operator), times in sorted(self.waits.items()):
            waits[f"{file} {name}: {operator}"] += times
        return asdict(self) | {"per_layer": list(self.per_layer), "waits": dict(waits)}


def count(call: Callable[[], object], layers: Iterable[nn.Module] = (), *modes: TorchDispatchMode) -> Counts:
    """Run `call` and count, everything under these modes but for waits, which are seen above them.

    Args:
        call: What is counted.
        layers: Decoder layers, whose operators are counted apart.
        modes: Of torch's dispatch.
    """
    memory, waits = Memory(), Waits(*(str(sys.modules[type(mode).__module__].__file__) for mode in modes))
    inside: list[int] = []
    starts: list[int] = []

    def enter(*_: Any) -> None:
        starts.append(memory.operators)

    def leave(*_: Any) -> None:
        inside.append(memory.operators - starts.pop())

    with ExitStack() as stack, torch.no_grad():
        for layer in layers:
            for handle in (layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)):
                stack.callback(handle.remove)
        flops = stack.enter_context(counter())
        for mode in (memory, *modes, waits):
            stack.enter_context(mode)
        call()
    return Counts(
        flops.get_total_flops(), memory.operators, tuple(inside), memory.made, memory.peak, dict(waits.places)
    )


def counter() -> FlopCounterMode:
    """Torch's counter of FLOPs, and the attention of CPU kernels too, which it leaves out by itself."""
    flash = aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={flash: _attention_flops})


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of shapes (samples, heads, rows, head size)."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]
