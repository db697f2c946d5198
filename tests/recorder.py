"""A CUDA graph emulated on a CPU: record kernels with their memory, replay them, and find what a graph cannot hold.

With a model on a GPU, a tensor made without a device, such as `torch.arange(4)`, is on the host. Tensors made on the
model's device, or from tensors there, are on the device. A CUDA capture refuses operations that cross between the two,
or freezes the values that they had. On a CPU nothing crosses, so this module tracks the side of each tensor through the
calls of torch's Python interface, on the thread that makes them.
"""

import itertools
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from foveate.bench.peaks import tensors_in
from foveate.core.patching import Patcher
from foveate.core.tapes import as_if_capturing
from foveate.errors import UnsupportedError

T = TypeVar("T")
HOST = torch.device("cpu", 0)
"""The `device` of a tensor on the host. Tensors on the emulated device have "cpu" without an index."""
OF_VALUES = {"tensor", "as_tensor", "asarray", "new_tensor"}
UNSEEN_READS = {"cpu", "tolist", "numpy", "__array__"}
"""Functions that read values on a CPU without a kernel."""
SAME = {"to", *UNSEEN_READS}
"""Functions that return their tensor's values, on the same or the other side."""
MOVED_INTO = {"__setitem__", "copy_", "index_put", "index_put_", "stack"}
"""Functions that first move a tensor from the host, whatever its shape."""
DECIDING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""Tags of kernels that make the host wait: it reads their values, or allocates memory by them."""
PASSED_OVER = (str(Path(torch.__file__).parent), __file__)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the kernels of a call and replays them on the same memory, like a CUDA graph.

        tape = Recorder()
        (logits,) = tape.record(lambda: [model(**inputs).logits])
        inputs["pixel_values"].copy_(others)
        tape.replay()  # the logits are now those of the others

    Tensors made before the call count as on the device, unless `Sides` tracked them.

    Args:
        strict: Raise an error at a crossing. If False, the call runs to its end to list all crossings, and cannot be
            replayed.

    Attributes:
        crossings: The operations that a graph cannot hold, in order, with their place in the code: "read" (the host
            reads a value from the device), "copy" (the host sends one to the device), "mix" (a kernel takes tensors of
            both) and "draw" (random numbers).
    """

    def __init__(self, *, strict: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.crossings: list[str] = []
        self._strict = strict
        self._kernels: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._outputs: Sequence[Tensor] = ()
        self._left_over: list[Tensor] = []  # must not be read after a replay
        self.on_host = False  # True while the running function makes tensors on the host

    def run(self, call: Callable[[], T]) -> T:
        """Run a call without recording it, on the code path of `record`."""
        with as_if_capturing():
            return call()

    def record(self, call: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """Run a call and record its kernels.

        Args:
            call: Returns its outputs, the only tensors that may be read after a replay.

        Returns:
            The outputs. Every replay writes into these tensors.

        Raises:
            UnsupportedError: If an operation crosses between host and device and `strict` is True.
        """
        with as_if_capturing(), self, Sides(self):
            self._outputs = call()
        kept = {output.untyped_storage().data_ptr() for output in self._outputs}
        outputs = itertools.chain.from_iterable(outputs for *_, outputs in self._kernels)
        self._left_over = [tensor for tensor in outputs if tensor.untyped_storage().data_ptr() not in kept]
        return self._outputs

    @torch.inference_mode()
    def replay(self) -> None:
        """Replay the kernels, and overwrite all other tensors of the call, so that reading them shows.

        Floats become NaN, integers −1 (255 if unsigned), and bools True.

        Raises:
            UnsupportedError: If an operation crosses between host and device.
        """
        if self.crossings:
            raise UnsupportedError(f"A crossing cannot be replayed: {self.crossings[0]}. Record with strict=True.")
        with torch._C.DisableTorchFunction():  # else `Sides` would look at every kernel again
            for kernel, args, kwargs, output in self._kernels:
                again = kernel(*args, **kwargs)
                for old, new in zip(output, tensors_in(again), strict=False):
                    old.copy_(new)
            for tensor in self._left_over:
                tensor.fill_(float("nan") if tensor.is_floating_point() else -1)

    def note(self, kind: str, name: str) -> None:
        """Record a crossing with its place in the code.

        Raises:
            UnsupportedError: If `strict` is True.
        """
        frames = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(PASSED_OVER)]
        here, caller = (f"{Path(frame.filename).name}:{frame.lineno}" for frame in (frames[-1], frames[-2]))
        self.crossings.append(f"{kind}: {name} at {here} < {caller}")
        if self._strict:
            raise UnsupportedError(f"A graph cannot hold a crossing between host and device: {self.crossings[-1]}")

    def __torch_dispatch__(self, kernel: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # here composite kernels arrive whole, so decompose them
            with self:
                output = kernel.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
        output = kernel(*args, **kwargs)
        if self.on_host:  # a graph does not record work of the host
            return output
        # True if the host must wait for the values of this kernel.
        decides = not DECIDING.isdisjoint(kernel.tags) and kwargs.get("output_size") is None
        if kernel.__name__.startswith(("index.", "index_put")):
            decides = any(place is not None and place.dtype in (torch.bool, torch.uint8) for place in args[1])
        if decides:
            self.note("read", kernel.__name__)
        # Attention has this tag because of dropout, which does not run here.
        if torch.Tag.nondeterministic_seeded in kernel.tags and "attention" not in kernel.__name__:
            self.note("draw", kernel.__name__)
        # A view needs no replay, and an in-place kernel makes no new tensor.
        is_new = not any(value.alias_info for value in kernel._schema.returns)
        if is_new or kernel._schema.is_mutable:
            self._kernels.append((kernel, args, kwargs, tensors_in(output) if is_new else []))
        return output


class Sides(TorchFunctionMode):
    """Tracks which tensors are on the host while it is active.

    A recorder activates it for its call. Activate it earlier to track tensors that are made before the call, too:

        with Sides():
            model(**inputs)  # calls tape.record(…) somewhere inside

    Args:
        tape: The recorder that notes crossings; None ignores them.

    Attributes:
        only_follows: True tells the replay of CUDA graphs that this mode does not prevent skipping calls.
    """

    only_follows = True

    def __init__(self, tape: Recorder | None = None) -> None:
        super().__init__()
        self._tape = tape or Recorder(strict=False)
        self._patches = Patcher()

    def __enter__(self) -> Any:
        # No function mode sees this function.
        self._patches.wrap(torch, "from_numpy", lambda make, numbers: _put_on_host(make(numbers)))
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        self._patches.restore()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function == Tensor.device.__get__ and _is_on_host(args[0]):
            return HOST
        name, target = function.__name__, kwargs.get("device")
        if name == "to":
            target = next((part for part in (*args[1:2], target) if isinstance(part, torch.device | str)), None)
        beside = all(map(_is_on_host, tensors_in((args, kwargs))))
        lands = name in UNSEEN_READS or target == HOST or (target is None and beside)
        crossing = _crossing(name, args, kwargs, lands)
        if crossing is not None:
            self._tape.note(crossing, name)
        self._tape.on_host = lands
        output = function(*args, **kwargs)
        self._tape.on_host = False
        if crossing is not None and output is args[0] and name in SAME:
            output = output.clone()  # a move to another device makes a new tensor
        for tensor in tensors_in(output) if lands else ():
            _put_on_host(tensor)
        return output


def _crossing(name: str, args: Any, kwargs: Any, lands: bool) -> str | None:
    """Return the kind of crossing of a call, if its kernels do not show it; None if it does not cross.

    Args:
        name: The name of torch's function.
        args, kwargs: The arguments of the call.
        lands: True if the result is on the host.
    """
    if name in SAME:
        if lands == _is_on_host(args[0]):
            return None
        return "read" if lands else "copy"
    if name in OF_VALUES and not lands:
        data = args[-1] if args else kwargs["data"]
        there = isinstance(data, Tensor) and not _is_on_host(data)
        return None if there or (isinstance(data, list) and not data) else "copy"
    if lands or "device" in kwargs:
        return None
    if name in ("__getitem__", "__setitem__"):
        parts = args[1] if isinstance(args[1], tuple) else args[1:2]
        # CUDA's indexing copies a list from the host, and a number that is written to places of a tensor.
        writes = name == "__setitem__" and not isinstance(args[2], Tensor)
        places = [part for part in parts if isinstance(part, Tensor) and part.dim() and part.dtype != torch.bool]
        if (writes and places) or any(isinstance(part, list) for part in parts):
            return "copy"
    # Other kernels accept a single number from the host.
    near = [tensor for tensor in tensors_in((args, kwargs)) if _is_on_host(tensor)]
    return "mix" if any(tensor.dim() or name in MOVED_INTO for tensor in near) else None


def _is_on_host(tensor: Tensor) -> bool:
    return getattr(tensor, "_foveate_on_host", False)


def _put_on_host(tensor: Tensor) -> Tensor:
    tensor._foveate_on_host = True  # type: ignore[attr-defined]
    return tensor
