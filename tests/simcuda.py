"""A CUDA device simulated on a CPU build of torch, so that code under test takes its own CUDA path.

    with simulated() as sim:
        model, inputs = to_cuda(model), to_cuda(inputs)
        ...

Tensors are wrappers that say cuda:0 and hold numbers on the CPU; a dispatch mode runs every kernel, so host and device
never mix unseen. `torch.cuda.CUDAGraph`, streams and memory pools are replaced while the device is open, and follow
CUDAGraph.cpp and CUDACachingAllocator.cpp:

- In a capture, copies from the host and reads raise. A read also invalidates the capture: `capture_end` then raises and
  leaves the pool recording, and with rules="old" (before torch 2.12) random numbers fail until another capture ends.
- No kernel runs in a capture: memory from before it is restored at its end. A replay runs kernels only.
- A graph does not hold its inputs; reading memory that was freed raises ("dangling").
- What a capture has allocated and Python no longer holds is 0xFF (NaN, -1) before and after each replay.

Not simulated: cuBLAS, cuDNN, speed, and the order of streams.
"""

import contextlib
import ctypes
import functools
import gc
import hashlib
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from foveate.bench.peaks import tensors_in

aten = torch.ops.aten
GUARD = Path(__file__).with_name("guard.cpp")


def guard():
    """Load a guard of CUDA devices, which a CPU build of torch lacks and indexing asks for. Built once a machine.

    Without a compiler the tests that need it are skipped, and fail in the gate (`conftest.told`).
    """
    if torch.backends.cuda.is_built():
        pytest.skip("a simulated CUDA device needs a CPU build of torch", allow_module_level=True)
    source = GUARD.read_bytes() + torch.__version__.encode()
    library = Path(tempfile.gettempdir()) / f"foveate-guard-{hashlib.sha256(source).hexdigest()[:16]}.so"
    if not library.exists():
        torch_home, half = Path(torch.__file__).parent, library.with_suffix(f".{os.getpid()}")
        command = ["g++", "-std=c++20", "-shared", "-fPIC", "-O0", f"-I{torch_home / 'include'}", str(GUARD)]
        try:
            subprocess.run(
                [*command, "-o", str(half), f"-L{torch_home / 'lib'}", "-lc10"], check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            why = f"a simulated CUDA device needs g++ with C++20, see make setup: {error}"
            pytest.skip(why, allow_module_level=True)
        half.rename(library)
    ctypes.CDLL(str(library))


guard()
CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
DECIDING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
GEMMS = ("mm", "addmm", "bmm", "baddbmm")
SUMS = ("scatter_add", "index_add", "scatter_reduce")
"""Kernels that add in any order."""


class CudaError(RuntimeError):
    """What CUDA or torch would raise."""


class CudaTensor(Tensor):
    """A tensor that says cuda:0; `inner` has its numbers on the CPU."""

    @staticmethod
    def __new__(cls, inner):
        tensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CUDA,
            requires_grad=False,
        )
        tensor.inner = inner
        if SIM is not None and SIM.capture is not None:
            SIM.capture.wrappers.append((weakref.ref(tensor), inner.untyped_storage().data_ptr()))
        return tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return SIM.run(func, args, kwargs or {})

    def data_ptr(self):
        return self.inner.data_ptr()

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def tolist(self):
        SIM.sync("tolist")
        return self.inner.tolist()

    def __repr__(self):
        return f"CudaTensor({self.inner})"

    def __deepcopy__(self, memo):
        return CudaTensor(self.inner.clone())

    def __reduce_ex__(self, protocol):
        return CudaTensor, (self.inner,)


class Stream:
    numbers = itertools.count(1)

    def __init__(self, device=None, **_):
        # torch hands out 32 streams, round robin
        self.number = (next(Stream.numbers) - 1) % 32 + 1

    def wait_stream(self, other):
        pass

    def synchronize(self):
        SIM.sync("synchronize")

    def __eq__(self, other):
        return isinstance(other, Stream) and self.number == other.number

    def __hash__(self):
        return hash(self.number)


DEFAULT = Stream()
DEFAULT.number = 0


class Pool:
    """What the allocator knows of a pool."""

    def __init__(self):
        self.use_count, self.recording = 0, False


class MemPool:
    """A pool that stays usable without graphs, as `torch.cuda.MemPool`."""

    def __init__(self):
        self.id, self.sim = (0, next(SIM.ids)), SIM
        self.sim.pools[self.id] = Pool()
        self.sim.pools[self.id].use_count = 1

    def use_count(self):
        return self.sim.pools[self.id].use_count

    def __del__(self):
        pool = self.sim.pools[self.id]
        if pool.use_count != 1:  # older torch asserts it
            self.sim.fault("pool", f"a MemPool goes while {pool.use_count - 1} graphs use it")
        pool.use_count -= 1


def end_allocate(device, pool):
    if not SIM.pools[pool].recording:
        raise CudaError("endAllocatePool: not currently recording to mempool_id")
    SIM.pools[pool].recording = False


def release_pool(device, pool):
    SIM.pools[pool].use_count -= 1
    assert SIM.pools[pool].use_count >= 0, "uc >= 0 INTERNAL ASSERT FAILED"


class CUDAGraph:
    """Rules of CUDAGraph.cpp and CUDACachingAllocator.cpp (torch 2.11 to 2.13), as far as Python sees them."""

    def __init__(self, keep_graph=False):
        self.kernels, self.storages, self.wrappers = [], {}, []
        self.before, self.pool_id, self.stream, self.ended, self.invalid = {}, None, None, False, None
        self.replays, self.sim = 0, SIM

    def capture_begin(self, pool=None, capture_error_mode="global"):
        if SIM.stream == DEFAULT:
            raise CudaError("CUDA graphs must be captured on a non-default stream.")
        if SIM.rules == "old":
            SIM.rng_capturing = True  # capture_prologue of the default generator comes first
        self.pool_id, self.stream = pool or (next(SIM.ids), 0), SIM.stream
        self.warmed, self.collects = SIM.ran[SIM.stream.number], gc.isenabled()
        known = SIM.pools.setdefault(self.pool_id, Pool())
        if known.use_count <= 0 and self.pool_id in SIM.used:
            SIM.fault("pool", "INTERNAL ASSERT: it->second->use_count > 0: all graphs of this pool were destroyed")
            raise CudaError("it->second->use_count > 0 INTERNAL ASSERT FAILED")
        known.use_count += 1
        SIM.used.add(self.pool_id)
        if known.recording:
            SIM.fault("pool", "beginAllocateToPool: already recording to mempool_id")
            raise CudaError("beginAllocateToPool: already recording to mempool_id")
        known.recording = True
        SIM.capture = self

    def capture_end(self):
        if SIM.capture is not self:
            raise CudaError("capture_end() called before capture_begin().")
        SIM.capture = None
        for storage, old in self.before.values():
            storage.copy_(old)  # no kernel runs in a capture
        self.before = {}
        if self.invalid is not None:  # cudaStreamEndCapture raises before endAllocateToPool and capture_epilogue
            raise CudaError("CUDA error: operation failed due to a previous error during capture")
        SIM.pools[self.pool_id].recording = False
        SIM.rng_capturing, SIM.captures = False, SIM.captures + 1
        self.ended = True
        self.poison()
        SIM.graphs.append(weakref.ref(self))

    def poison(self):
        self.wrappers = [(ref, pointer) for ref, pointer in self.wrappers if ref() is not None]
        alive = {pointer for _, pointer in self.wrappers}
        for pointer, storage in self.storages.items():
            if pointer not in alive:
                ctypes.memset(pointer, 0xFF, storage.nbytes())  # NaN, -1, True

    @property
    def nbytes(self):
        return sum(storage.nbytes() for storage in self.storages.values())

    def replay(self):
        SIM.count["replays"] += 1
        if SIM.capture is not None:
            SIM.capture.invalid = "replay"
            raise CudaError("replay in a capture")
        self.replays += 1
        self.poison()
        with torch.inference_mode(False), torch.no_grad():
            for func, args, kwargs, outs in self.kernels:
                output = func(*changed(self.real, args), **changed(self.real, kwargs))
                for old, new in zip(outs, tensors_in(output), strict=False):
                    if old is not None and old.numel():
                        old.copy_(new)
        self.poison()

    def real(self, one):
        return one.tensor() if isinstance(one, Outside) else one

    def reset(self):
        if self.ended:
            self.sim.pools[self.pool_id].use_count -= 1
            self.ended, self.kernels, self.storages = False, [], {}

    def __del__(self):
        self.reset()


class Outside:
    """A kernel's argument in memory from before the capture. The graph has its address, but does not hold it."""

    def __init__(self, tensor):
        self.storage = StorageWeakRef(tensor.untyped_storage())
        self.how = tensor.dtype, tensor.storage_offset(), tensor.size(), tensor.stride()
        self.made = SIM.where()

    def tensor(self):
        storage = None if self.storage.expired() else torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            SIM.fault("dangling", f"a kernel reads freed memory {self.how[2]} {self.how[0]}, captured at {self.made}")
            raise CudaError("dangling input")
        dtype, offset, size, stride = self.how
        return torch.empty(0, dtype=dtype).set_(storage, offset, size, stride)


def of_thread(name, default):
    """An attribute of `Sim` whose value each thread has for itself."""
    return property(lambda sim: getattr(sim.mine, name, default), lambda sim, value: setattr(sim.mine, name, value))


def changed(change, values):
    """A kernel's arguments or results, each of them changed, also in lists."""
    if isinstance(values, dict):
        return dict(zip(values, changed(change, values.values()), strict=True))
    return [type(one)(map(change, one)) if isinstance(one, (list, tuple)) else change(one) for one in values]


@functools.cache
def schema_of(func):
    """A kernel's name, the arguments that it writes, by name and place, and whether it returns another's memory."""
    schema = func._schema
    aliases = ((one.name, place, one.alias_info) for place, one in enumerate(schema.arguments))
    written = {name: place for name, place, alias in aliases if alias is not None and alias.is_write}
    return schema.name.partition("::")[2], written, any(one.alias_info is not None for one in schema.returns)


class Sim(TorchDispatchMode):
    """The device.

    Attributes:
        faults: What CUDA would refuse or get silently wrong.
        count: Of kernels, syncs, copies and replays; `syncs` by place, `ran` kernels by stream.
        graphs: Weak references to captured graphs. They know their stream, pool and kernels.
        rounding: Relative noise of matrix products that depends on their shapes, as other shapes run other kernels.
        disorder: Relative noise of sums in any order, another each time.
        most: Bytes that graphs may hold; a capture that needs more runs out of memory.
        fails: Called with the kernel's name before each kernel of a capture; may raise.
    """

    only_follows = True

    def __init__(self, rules="new"):
        super().__init__()
        self.rounding = self.disorder = 0.0
        self.most, self.fails, self.captures = None, None, 0
        self.used, self.ran, self.runs = set(), Counter(), itertools.count()
        self.mine, self.pools, self.rules = threading.local(), {}, rules
        self.ids, self.graphs, self.faults, self.count = itertools.count(1), [], [], Counter()
        self.syncs, self.rng_capturing = Counter(), False

    capture = of_thread("capture", None)
    """The graph that this thread captures."""
    stream = of_thread("stream", DEFAULT)
    """The stream of this thread."""

    # -- what the host does ----------------------------------------------------------------------------------------

    def bytes(self):
        """What graphs hold now."""
        graphs = [graph for graph in (one() for one in self.graphs) if graph is not None]
        return sum(graph.nbytes for graph in (*graphs, *([self.capture] if self.capture else ())))

    def where(self):
        """The three innermost lines outside torch and this file."""
        frame, lines = sys._getframe(1), []
        while frame is not None and len(lines) < 3:
            file = frame.f_code.co_filename
            if "/torch/" not in file and file != __file__:
                lines.append(f"{file.rpartition('/')[2]}:{frame.f_lineno}")
            frame = frame.f_back
        return " < ".join(lines)

    def fault(self, kind, what):
        self.faults.append((kind, what, self.where()))

    def rounded(self, name, func):
        """A kernel as this device rounds."""

        def noisy(seed, output):
            noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed))
            eps = self.rounding if name in GEMMS else self.disorder
            return (output.float() * (1 + eps * noise)).to(output.dtype)

        def run(*args, **kwargs):
            output = func(*args, **kwargs)
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return output
            if self.rounding and name in GEMMS:
                shape = [tuple(one.shape) for one in args if isinstance(one, Tensor)]
                return noisy(int(hashlib.sha256(repr(shape).encode()).hexdigest()[:8], 16), output)
            if self.disorder and name in SUMS:
                return noisy(next(self.runs), output)
            return output

        if name == "histc":  # a CPU counts no integers
            return lambda numbers, *args: func(numbers.float(), *args).to(numbers.dtype)
        return run if name in GEMMS or name in SUMS else func

    def sync(self, what):
        """The host waits."""
        if self.capture is not None:
            self.capture.invalid = what
            self.fault("read in capture", what)
            raise CudaError(f"CUDA error: operation not permitted when stream is capturing ({what})")
        self.count["syncs"] += 1
        self.syncs[self.where()] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.run(func, args, kwargs or {})

    def run(self, func, args, kwargs):
        (name, written, is_alias), capture = schema_of(func), self.capture
        leaves = tensors_in((args, kwargs))
        near = [one for one in leaves if not isinstance(one, CudaTensor)]
        far = [one for one in leaves if isinstance(one, CudaTensor)]
        device = kwargs.get("device")
        device = None if device is None else torch.device(device)
        target = bool(far) if device is None else device.type == "cuda"
        if not far and not target:
            return func(*args, **kwargs)
        if torch.is_inference_mode_enabled():
            with self:
                output = func.decompose(*args, **kwargs)
            if output is not NotImplemented:
                return output
        if name in ("_to_copy", "copy_", "to", "_pin_memory"):
            if name == "copy_":
                into, of = args[0], args[1]
                crosses = isinstance(into, CudaTensor) != isinstance(of, CudaTensor)
                down = crosses and not isinstance(into, CudaTensor)
            else:
                crosses, down = target != bool(far), bool(far) and not target
            if crosses and args[0].numel():
                if down:
                    self.sync(f"{name} to the host")
                elif capture is not None:
                    self.fault("copy in capture", name)
                    raise CudaError(
                        "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU "
                        "tensor is pinned."
                    )
                self.count["copies"] += 1
        elif near:
            loose = [one for one in near if one.dim() or name in ("cat", "stack", "index_put", "index_put_", "index")]
            if name.startswith(("index", "_index_put", "_unsafe_index")) and name not in (
                "index_select",
                "index_copy",
                "index_copy_",
                "index_add",
                "index_add_",
                "index_fill",
                "index_fill_",
            ):
                if loose and capture is not None:
                    self.fault("copy in capture", f"{name} with places on the host")
                    raise CudaError("Cannot copy between CPU and CUDA tensors during CUDA graph capture")
            elif loose:
                self.fault("mix", name)
                raise CudaError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({name})")
        if name in ("_local_scalar_dense", "equal", "is_nonzero", "allclose") or (
            not DECIDING.isdisjoint(func.tags)
            and kwargs.get("output_size") is None
            and not name.startswith(("index", "_unsafe_index"))  # tagged because of masks, which are looked at below
        ):
            self.sync(name)
        places = args[1] if name.startswith(("index", "_unsafe_index")) and len(args) > 1 else ()
        if isinstance(places, (list, tuple)) and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in places
        ):
            self.sync(f"{name} by a mask")
        draws = torch.Tag.nondeterministic_seeded in func.tags and "attention" not in name
        if draws and self.rng_capturing and capture is None:
            self.fault("rng", "Offset increment outside graph capture encountered unexpectedly.")
            raise CudaError("Offset increment outside graph capture encountered unexpectedly.")
        self.count["kernels"] += 1
        if capture is not None and self.fails is not None:
            self.fails(name)
        if capture is not None and self.most is not None and self.bytes() > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        self.ran[self.stream.number] += capture is None
        func = self.rounded(name, func)

        def inner(one):
            return one.inner if isinstance(one, CudaTensor) else one

        plain, named = changed(inner, args), changed(inner, kwargs)
        if device is not None and device.type == "cuda":
            named = {**named, "device": CPU}
        named.pop("pin_memory", None)
        if named.get("non_blocking"):
            named["non_blocking"] = False
        if name == "_to_copy":
            output = plain[0].clone() if not named.get("dtype") else plain[0].to(named["dtype"], copy=True)
            if named.get("memory_format") not in (None, torch.preserve_format):
                output = output.contiguous(memory_format=named["memory_format"])
        writes = [kwargs[key] for key in written if key in kwargs]
        writes += [args[index] for index in written.values() if index < len(args)]
        writes = [one for one in tensors_in(writes) if isinstance(one, CudaTensor)]
        if capture is not None:
            for one in writes:
                storage = one.inner.untyped_storage()
                if storage.data_ptr() not in capture.storages and storage.data_ptr() not in capture.before:
                    capture.before[storage.data_ptr()] = storage, storage.clone()
        if name != "_to_copy":
            output = func(*plain, **named)
        is_view = is_alias and not writes
        known = {id(one.inner): one for one in far}
        if capture is not None and not is_view:
            outs = [] if writes else tensors_in(output)

            def held(one):
                if not isinstance(one, Tensor):
                    return one
                pointer = one.untyped_storage().data_ptr()
                return (
                    one
                    if pointer in capture.storages or not one.numel() or not one.untyped_storage().nbytes()
                    else Outside(one)
                )

            if name == "_to_copy":
                func, named = aten._to_copy.default, {**named}
            capture.kernels.append((func, changed(held, plain), changed(held, named), outs))
            for one in outs:
                capture.storages[one.untyped_storage().data_ptr()] = one.untyped_storage()
        if name == "_to_copy" and not target:
            return output

        def wrap(one):
            if not isinstance(one, Tensor):
                return one
            return known[id(one)] if id(one) in known else CudaTensor(one)

        return changed(wrap, [output])[0]


SIM = None


@contextlib.contextmanager
def stream(one):
    before, SIM.stream = SIM.stream, one or SIM.stream
    try:
        yield
    finally:
        SIM.stream = before


class Event:
    def __init__(self, *_, **__):
        pass

    def record(self, *_):
        pass

    def synchronize(self):
        SIM.sync("event")

    def elapsed_time(self, other):
        return 1.0


@contextlib.contextmanager
def simulated(rules="new"):
    """Open the device. `rules`: "old" for torch before 2.12's RNG state per capture."""
    global SIM
    SIM = sim = Sim(rules)
    cuda = torch.cuda
    puts = {
        "current_stream": lambda device=None: SIM.stream,
        "Stream": Stream,
        "stream": stream,
        "CUDAGraph": CUDAGraph,
        "graph_pool_handle": lambda: (0, next(SIM.ids)),
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "is_current_stream_capturing": lambda: SIM.capture is not None,
        "Event": Event,
        "MemPool": MemPool,
        "get_device_capability": lambda device=None: (8, 0),
        "synchronize": lambda device=None: SIM.sync("synchronize"),
        "empty_cache": lambda: SIM.count.update(["emptied"]),
    }
    before = {name: getattr(cuda, name) for name in puts}
    for name, put in puts.items():
        setattr(cuda, name, put)
    pools = {"_cuda_endAllocateToPool": end_allocate, "_cuda_releasePool": release_pool}
    dummies = {name: getattr(torch._C, name) for name in pools}
    for name, put in pools.items():
        setattr(torch._C, name, put)

    def of_data(make):
        """`torch.tensor` goes through C++ that a CPU build lacks: make it on the host, then copy."""

        def made(data, *args, device=None, **kwargs):
            if device is None or torch.device(device).type != "cuda":
                return make(data, *args, **kwargs) if device is None else make(data, *args, device=device, **kwargs)
            if isinstance(data, CudaTensor):
                return data.to(kwargs["dtype"]) if kwargs.get("dtype") else data
            numbers = tree_map(
                lambda one: one.item() if isinstance(one, CudaTensor) else one, data
            )  # waits, as CUDA does
            return make(numbers, *args, **kwargs).to(CUDA)

        return made

    def new_tensor(self, data, *, dtype=None, device=None, **_):
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.device)

    makers = {name: getattr(torch, name) for name in ("tensor", "as_tensor", "asarray")}
    for name, make in makers.items():
        setattr(torch, name, of_data(make))
    Tensor.new_tensor = new_tensor
    try:
        with sim:
            yield sim
    finally:
        for name, make in makers.items():
            setattr(torch, name, make)
        del Tensor.new_tensor
        for name, old in before.items():
            setattr(cuda, name, old)
        for name, old in dummies.items():
            setattr(torch._C, name, old)
        SIM = None


def to_cuda(value):
    """A model with its weights, or a nest of tensors, on the device."""
    if isinstance(value, torch.nn.Module):
        for module in value.modules():
            for name, one in list(module._parameters.items()):
                if one is not None:
                    module._parameters[name] = torch.nn.Parameter(CudaTensor(one.data), requires_grad=False)
            for name, one in list(module._buffers.items()):
                if one is not None:
                    module._buffers[name] = CudaTensor(one)
        return value
    return tree_map(lambda one: CudaTensor(one.clone()) if isinstance(one, Tensor) else one, value)


def to_host(value):
    return tree_map(lambda one: one.inner.clone() if isinstance(one, CudaTensor) else one, value)
