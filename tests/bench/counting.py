"""What a call does, counted and not timed, so that a run anywhere gives the same: FLOPs, operators, waits and bytes."""

import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from foveate.bench import peaks
from foveate.bench.peaks import tensors_in

aten = torch.ops.aten


class Memory(peaks.Memory):
    """What `foveate bench` counts on a CPU, and more.

    Attributes:
        largest: Numbers in the largest tensor made; `where` says by which operator, and its shape.
        made: Bytes of all tensors made.
        peak: The most bytes that lived at once.
        operators: How many operators ran, views included.
    """

    def __init__(self):
        super().__init__()
        self.largest, self.where = 0, ""
        self.made = self.operators = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operators += 1
        return super().__torch_dispatch__(function, types, args, kwargs)

    def add(self, tensor, function):
        super().add(tensor, function)
        size = tensor.untyped_storage().nbytes()
        self.made += size
        if size // tensor.element_size() > self.largest:
            self.largest = size // tensor.element_size()
            self.where = f"{function} {tuple(tensor.shape)}"

    @property
    def left(self):
        """Bytes that live still."""
        return sum(size for storage, size in self._live.values() if not storage.expired())


SIZED_BY_VALUES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    aten.bincount.default,
}
"""Operators that the host must wait for, since the size of what they make is in the values."""


class Waits(TorchDispatchMode):
    """Notes where the host waits for an accelerator: values it reads, tensors whose size depends on values, and tensors
    it sends without saying that it need not wait. (`torch.tensor(…, device=…)` is not seen.)

    Args:
        passed_over: Files that no place is in, beside torch's.

    Attributes:
        places: How often, by place: (file, line, function, operator), of the innermost frame that is not passed over.
    """

    def __init__(self, *passed_over):
        super().__init__()
        self.places = Counter()
        self._passed_over = (str(Path(torch.__file__).parent), __file__, *passed_over)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if self._waits(function, args, kwargs or {}, result):
            self.places[(*_place(self._passed_over), str(function).removesuffix(".default"))] += 1
        return result

    def _waits(self, function, args, kwargs, result):
        if any(tensor.device.type != "cpu" for tensor in tensors_in((args, kwargs))):
            return _is_read(function, args, kwargs, result)
        return _is_sent(function, kwargs, result)


def _is_read(function, args, kwargs, result):
    """Whether the host reads what is on the device."""
    if function is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if function in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    tensors = tensors_in(result)
    if function in SIZED_BY_VALUES or not tensors:  # without a tensor it is a number: item, equal
        return True
    return any(tensor.device.type == "cpu" for tensor in tensors)


def _is_sent(function, kwargs, result):
    """Whether the host hands over a tensor and stays until the device has it, behind all it still has to do."""
    sent = function is aten._to_copy.default and result.device.type != "cpu"
    return sent and not kwargs.get("non_blocking")


def _place(passed_over):
    """File, line and function of the innermost frame in none of these files or folders."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(passed_over):
        frame = frame.f_back
    path = Path(frame.f_code.co_filename)
    root = next((parent.parent for parent in path.parents if parent.name in ("foveate", "transformers")), path.parent)
    return path.relative_to(root).as_posix(), frame.f_lineno, frame.f_code.co_qualname


@dataclass(frozen=True)
class Counts:
    """What one call did.

    Attributes:
        flops: Matrix products, a multiply-add counts two; attention in full.
        operators: Operators that ran, views included.
        per_layer: Of the operators, those inside each decoder layer and what stands around it.
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

    def to_dict(self):
        """Plain values."""
        return asdict(self) | {"per_layer": list(self.per_layer), "waits": by_name(self.waits)}


def by_name(places):
    """Waits by file, function and operator, since lines move."""
    waits = Counter()
    for (file, _, name, operator), times in sorted(places.items()):
        waits[f"{file} {name}: {operator}"] += times
    return dict(waits)


def count(call, layers=(), *modes):
    """Run `call` and count, everything under these modes except waits, which are seen above them.

    Args:
        call: What is counted.
        layers: Decoder layers, whose operators are counted apart, without a hook: where a hook could read, dropping
            does more.
        modes: Of torch's dispatch.
    """
    seen, waits = Memory(), waits_above(modes)
    running = Layers(layers, seen)
    with ExitStack() as stack, torch.no_grad():
        flops = stack.enter_context(Flops())
        for mode in (seen, *modes, waits):
            stack.enter_context(mode)
        with running.counting():
            call()
    return Counts(flops.total, seen.operators, tuple(running.operators), seen.made, seen.peak, dict(waits.places))


def waits_in(call, *modes):
    """Run `call`; where the host waited, in the form of `Counts.to_dict`. Nothing else is counted, which is faster."""
    waits = waits_above(modes)
    with ExitStack() as stack, torch.no_grad():
        for mode in (*modes, waits):
            stack.enter_context(mode)
        call()
    return by_name(waits.places)


def waits_above(modes):
    """A counter of waits to enter behind these modes."""
    return Waits(*(str(sys.modules[type(mode).__module__].__file__) for mode in modes))


CALL = torch.nn.Module._call_impl.__code__


class Layers:
    """Counts the operators of each run of a layer, with what stands around its forward.

    Args:
        layers: Modules of which it is seen when they run.
        memory: Counts operators.

    Attributes:
        operators: How many ran, run by run.
    """

    def __init__(self, layers, memory):
        self.operators = []
        self._layers, self._memory, self._starts = set(layers), memory, []

    @contextmanager
    def counting(self):
        """While it is open, and where nobody else profiles."""
        with Unseen():
            sys.setprofile(self._see)
            try:
                yield
            finally:
                sys.setprofile(None)

    def _see(self, frame, event, _):
        if frame.f_code is not CALL or frame.f_locals["self"] not in self._layers:
            return
        if event == "call":
            self._starts.append(self._memory.operators)
        elif event == "return":
            self.operators.append(self._memory.operators - self._starts.pop())


class Unseen(TorchDispatchMode):
    """What runs inside an operator, the counters above all, is not profiled: that takes most of the time."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        profile = sys.getprofile()
        sys.setprofile(None)
        try:
            return function(*args, **(kwargs or {}))
        finally:
            sys.setprofile(profile)


class Flops(TorchDispatchMode):
    """Counts by torch's own formulas, and the attention of CPU kernels too, which torch leaves out.

    Torch's `FlopCounterMode` takes twice as long, since it notes for which module and tries to decompose each operator.

    Attributes:
        total: Of matrix products and attention; a multiply-add counts two.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _is_composite(function):
            with self:
                return function.decompose(*args, **kwargs)
        result = function(*args, **kwargs)
        if formula := FORMULAS.get(function.overloadpacket):
            self.total += formula(*args, **kwargs, out_val=result)
        return result


def _attention_flops(query, key, value, *_, **__):
    """Of shapes (samples, heads, rows, head size)."""
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


FORMULAS = {**flop_registry, aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


@cache
def _is_composite(function):
    """Whether an operator is made of others, which are then the ones to count."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), "CompositeImplicitAutograd")
