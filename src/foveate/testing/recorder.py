"""What a CUDA graph holds, on a CPU: every kernel with its memory. And what would not go into one.

Beside a model on a GPU a tensor that is made without a device, such as `torch.arange(4)`, lies on the host. What is
made on the model's device, or of tensors that lie there, lies on the device. What crosses between the two, a capture by
CUDA refuses, or it keeps the numbers of that day. On a CPU nothing crosses, so here the side of each tensor is followed
from call to call of torch's Python interface, on the thread that makes them.
"""

import itertools
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foveate.core.patching import Patcher
from foveate.errors import UnsupportedError

HOST = torch.device("cpu", 0)
"""Where a tensor of the host says it is; on a CPU those of the device say "cpu", without a number."""
OF_VALUES = {"tensor", "as_tensor", "asarray", "new_tensor"}
UNSEEN_READS = {"cpu", "tolist", "numpy", "__array__"}
"""Functions that need no kernel to read numbers of a CPU."""
SAME = {"to", *UNSEEN_READS}
"""Functions whose numbers are those of their tensor, on the one side or the other."""
MOVED_INTO = {"__setitem__", "copy_", "index_put", "index_put_", "stack"}
"""Functions that first move a tensor of the host, of whatever shape."""
DECIDING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""Tags of kernels whose numbers the host waits for: it hands them out, or makes room for what they say."""
PASSED_OVER = (str(Path(torch.__file__).parent), __file__)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the kernels of a call and runs them again on the same memory, as a CUDA graph does.

        tape = Recorder()
        (logits,) = tape.record(lambda: [model(**inputs).logits])
        inputs["pixel_values"].copy_(others)
        tape.replay()  # the logits are now those of the others

    What was there before the call lies on the device, unless `Sides` says that it does not.

    Args:
        strict: Whether a crossing is an error; else the call is run to its end, to list them, and cannot be replayed.

    Attributes:
        crossings: What would not go into a graph, in order, and where: "read" (the host looks at a number of the
            device), "copy" (it sends one there), "mix" (a kernel takes tensors of both) and "draw" (of random numbers).
    """

    def __init__(self, *, strict: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.crossings: list[str] = []
        self._strict = strict
        self._kernels: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._outputs: Sequence[Tensor] = ()
        self._left_over: list[Tensor] = []  # what nobody may read behind a replay
        self.on_host = False  # whether the function that runs is the host's alone

    def record(self, call: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
        """Run a call and remember its kernels.

        Args:
            call: Answers its outputs: all that may be read behind a replay.

        Returns:
            These. Every replay writes into the same tensors.

        Raises:
            UnsupportedError: If something crosses between host and device, and `strict` is on.
        """
        with Patcher() as patches, self, Sides(self):
            # transformers asks, and reads no mask then.
            patches.put(torch.cuda, "is_current_stream_capturing", lambda: True)
            self._outputs = call()
        kept = {output.untyped_storage().data_ptr() for output in self._outputs}
        made = itertools.chain.from_iterable(made for *_, made in self._kernels)
        self._left_over = [tensor for tensor in made if tensor.untyped_storage().data_ptr() not in kept]
        return self._outputs

    @torch.inference_mode()
    def replay(self) -> None:
        """Run the kernels again, and overwrite all that the call made but its outputs: floats by NaN, whole numbers by
        −1 (255 without a sign), bools by True.

        Raises:
            UnsupportedError: If something crosses.
        """
        if self.crossings:
            raise UnsupportedError(f"What crosses cannot be replayed: {self.crossings[0]}. Record with strict=True.")
        for kernel, args, kwargs, made in self._kernels:
            again = kernel(*args, **kwargs)
            if isinstance(again, Tensor) and made:
                made[0].copy_(again)
            else:
                for old, new in zip(made, _tensors(again), strict=False):
                    old.copy_(new)
        for tensor in self._left_over:
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)

    def note(self, kind: str, name: str) -> None:
        """Write a crossing down with the place that it is at."""
        frames = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(PASSED_OVER)]
        here, caller = (f"{Path(frame.filename).name}:{frame.lineno}" for frame in (frames[-1], frames[-2]))
        self.crossings.append(f"{kind}: {name} at {here} < {caller}")
        if self._strict:
            raise UnsupportedError(f"A graph cannot hold what crosses between host and device. {self.crossings[-1]}")

    def __torch_dispatch__(self, kernel: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # kernels made of others are not taken apart before they come here
            with self:
                made = kernel.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = kernel(*args, **kwargs)
        if self.on_host:  # a graph knows nothing of it
            return made
        # Whether the host must wait for the numbers that a kernel makes.
        decides = not DECIDING.isdisjoint(kernel.tags) and kwargs.get("output_size") is None
        if kernel.__name__.startswith(("index.", "index_put")):
            decides = any(place is not None and place.dtype in (torch.bool, torch.uint8) for place in args[1])
        if decides:
            self.note("read", kernel.__name__)
        # Attention may drop out, so it has this tag too.
        if torch.Tag.nondeterministic_seeded in kernel.tags and "attention" not in kernel.__name__:
            self.note("draw", kernel.__name__)
        # A view needs no replay, and what was written into is no new tensor.
        is_new = not any(value.alias_info for value in kernel._schema.returns)
        if is_new or kernel._schema.is_mutable:
            self._kernels.append((kernel, args, kwargs, _tensors(made) if is_new else []))
        return made


class Sides(TorchFunctionMode):
    """While it is on, it is followed which tensors lie on the host.

    A recorder does so of what is made in its call. Around more than the call it tells the recorder of what was there:

        with Sides():
            model(**inputs)  # somewhere within, tape.record(…)

    Args:
        tape: Is told of what crosses; None: one that nobody reads.

    Attributes:
        only_follows: Whether calls that a replay leaves out need not come here.
    """

    only_follows = True

    def __init__(self, tape: Recorder | None = None) -> None:
        super().__init__()
        self._tape = tape or Recorder(strict=False)
        self._patches = Patcher()

    def __enter__(self) -> Any:
        # Of this function no mode is told.
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
        beside = all(map(_is_on_host, _tensors((args, kwargs))))
        lands = name in UNSEEN_READS or target == HOST or (target is None and beside)
        crossing = _crossing(name, args, kwargs, lands)
        if crossing is not None:
            self._tape.note(crossing, name)
        self._tape.on_host = lands
        made = function(*args, **kwargs)
        self._tape.on_host = False
        if crossing is not None and made is args[0] and name in SAME:
            made = made.clone()  # as a move to another device makes a tensor of its own
        for tensor in _tensors(made) if lands else ():
            _put_on_host(tensor)
        return made


def _crossing(name: str, args: Any, kwargs: Any, lands: bool) -> str | None:
    """How a call crosses between host and device, as far as its kernels do not tell; None: not.

    Args:
        name: Of torch's function.
        args, kwargs: Of the call.
        lands: Whether what it makes lies on the host.
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
        if any(isinstance(part, list) for part in parts):
            return "copy"
    # Other kernels take a single number of the host as it is.
    near = [tensor for tensor in _tensors((args, kwargs)) if _is_on_host(tensor)]
    return "mix" if any(tensor.dim() or name in MOVED_INTO for tensor in near) else None


def _tensors(nest: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(nest) if isinstance(leaf, Tensor)]


def _is_on_host(tensor: Tensor) -> bool:
    return getattr(tensor, "_foveate_on_host", False)


def _put_on_host(tensor: Tensor) -> Tensor:
    tensor._foveate_on_host = True  # type: ignore[attr-defined]
    return tensor
