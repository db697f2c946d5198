"""Each layer, at once: the decoder's part of a prefill as one graph, which the second prompt of a layout records.

What the host knows of a prompt before its first layer (where vision tokens are, how many stay) is the same for every
prompt of that layout, and so are the decoder's kernels. A replay runs them on the new prompt's numbers, fills the cache
that was handed in, and leaves the outcome that a plain run would.
"""

import copy
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import DynamicCache

from foveate._transformers import CACHE_NAMES, cache_in, cache_of, with_cache
from foveate.core import graphs
from foveate.core.graphs import Tape, copies_of, kind_of_value, remember
from foveate.core.tensors import Change, Memo
from foveate.engine.cache import CACHE_LAYERS, MEMO_SIZE, PrunedLayer
from foveate.engine.forward import Forward, Outcome
from foveate.engine.handed import Original
from foveate.engine.program import Program
from foveate.engine.runner import LayerRunner
from foveate.engine.trace import GraphCounts, Trace
from foveate.errors import SettingError
from foveate.families.base import Family

MOST_TAPES = 8
"""Layouts of a model whose graphs are kept, the latest: each holds keys and values of a prompt."""
MOST_SEEN = 256
"""Layouts that are remembered without a graph."""
PLAIN_VALUES = (str, int, float, bool, type(None), torch.dtype, torch.device)


@dataclass(slots=True, eq=False)
class Made:
    """What a decoder leaves of a prompt.

    Attributes:
        hidden: Its last hidden states, (samples, columns, width).
        layers: Of its cache.
        outcome: Of the forward.
        answer: The class of what it answers.
    """

    hidden: Tensor
    layers: Sequence[Any]
    outcome: Outcome
    answer: type

    @classmethod
    def of(cls, output: Any, forward: Forward) -> Self:
        """What a decoder has answered, and left in a forward."""
        layers = getattr(cache_in(output), "layers", ())
        return cls(output.last_hidden_state, layers, forward.outcome, type(output))

    def changed(self, change: Change) -> "Made":
        """The same with other tensors."""
        layers = _changed_layers(self.layers, change)
        return Made(change(self.hidden), layers, self.outcome.changed(change), self.answer)

    def tensors(self) -> list[Tensor]:
        """All tensors, each once."""
        return _tensors_of(self.changed, self.hidden.device)


@dataclass(slots=True, eq=False)
class Recording:
    """A prefill on a tape.

    Attributes:
        tape: Its kernels.
        given: What they read of a prompt: a new one's numbers are copied there.
        tensors: What they leave.
        made: The same in its places.
        stands_on: The modules as they were.
        held: Tensors that were made on the way to the decoder, and are the same for every prompt of the layout.
    """

    tape: Tape
    given: tuple[Tensor, ...]
    tensors: list[Tensor]
    made: Made
    stands_on: "Modules"
    held: Any


@dataclass(eq=False)
class Tapes:
    """The recordings of a model, by layout; a text says why there is none."""

    recordings: OrderedDict[Any, Recording] = field(default_factory=OrderedDict)
    seen: OrderedDict[Any, str | None] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    pool: Any = None

    def tape(self, device: torch.device) -> Tape:
        """A new tape; graphs of one model share their memory, since no two run at once."""
        if self.pool is None and device.type == "cuda":
            self.pool = torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]
        return graphs.TAPES[device.type](device, self.pool)


_tapes: "weakref.WeakKeyDictionary[nn.Module, Tapes]" = weakref.WeakKeyDictionary()


class Modules:
    """The modules inside a decoder, their weights and what stands around their forwards, to see whether they changed.

    Args:
        text: The decoder.
        wrappers: What the session has put in the place of its layers' forwards.
        hooks: How many hooks the session has put on modules inside.
    """

    def __init__(self, text: nn.Module, wrappers: Sequence[Original], hooks: int) -> None:
        inside = list(text.modules())[1:]
        self._tables = [table for one in (text, *inside) for table in (one._parameters, one._buffers, one._modules)]
        self._vars = [vars(one) for one in inside]
        self._hooks = [table for one in inside for table in (one._forward_pre_hooks, one._forward_hooks)]
        self._own_hooks = hooks
        self._values = self._now()
        self._tensors = [value for value in self._values if isinstance(value, Tensor)]
        self._pointers = [tensor.data_ptr() for tensor in self._tensors]
        self.obstacle = self._obstacle(wrappers)

    def hold(self, wrappers: Sequence[Original]) -> bool:
        """Whether they are what they were, in a session that has put these wrappers."""
        values, pointers = self._now(), [tensor.data_ptr() for tensor in self._tensors]
        same = len(values) == len(self._values) and list(map(id, values)) == list(map(id, self._values))
        return same and pointers == self._pointers and self._obstacle(wrappers) is None

    def _now(self) -> list[Any]:
        return [value for table in self._tables for value in table.values()]

    def _obstacle(self, wrappers: Sequence[Original]) -> str | None:
        """Why what they do cannot be replayed; None if it can."""
        around = [attributes["forward"] for attributes in self._vars if "forward" in attributes]
        if list(map(id, around)) != list(map(id, wrappers)) or sum(map(len, self._hooks)) != self._own_hooks:
            return "hooks or wrappers of others stand on modules of the decoder"
        if len({tensor.device for tensor in self._tensors}) > 1:
            return "the decoder is spread over devices"
        return None


@dataclass(slots=True, eq=False)
class Call:
    """A decoder's call on a prompt.

    Attributes:
        key: What must be alike for two calls to have the same kernels.
        forward: The forward, which has begun.
        original: The decoder's forward.
        kwargs: Its arguments.
        cache: The empty cache among these; None if it runs without one.
        leaves, spec: The other arguments, flat, as a recording is handed them.
        tensors: All tensors among them, and those of the outcome so far.
    """

    key: Any
    forward: Forward
    original: Original
    kwargs: dict[str, Any]
    cache: Any
    leaves: list[Any]
    spec: Any
    tensors: list[Tensor]

    def twin(self, given: Sequence[Tensor]) -> tuple[Forward, dict[str, Any]]:
        """The forward and the arguments on copies of their tensors, with an empty cache of the same kind."""
        copies = iter(given)
        leaves = [next(copies) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        kwargs = tree_unflatten(leaves, self.spec)
        if self.cache is not None:
            cache = copy.copy(self.cache)
            # What a window's layer holds of its own would be sent to the device when rows come.
            cache.layers = _changed_layers(cache.layers, lambda tensor: tensor.to(given[0].device, copy=True))
            kwargs |= with_cache(cache)
        return self.forward.twin(_swap(self.tensors, given), kwargs), kwargs


class Replayer:
    """Stands around a decoder's forward, and replays it where a graph of the layout is there.

    Args:
        family, program, runner, trace: The session's.

    Raises:
        SettingError: If the model's device has no graphs.
    """

    def __init__(self, family: Family, program: Program, runner: LayerRunner, trace: Trace) -> None:
        self._family = family
        self._program = program
        self._runner = runner
        trace.graphs = self._counts = GraphCounts()
        self._device = next(family.text.parameters()).device
        if self._device.type not in graphs.TAPES:
            raise SettingError(
                f"cuda_graphs=True needs a model on a CUDA device; this one is on {self._device}. Leave it out there."
            )
        self._tapes = _tapes.setdefault(family.core, Tapes())
        self._hooks = int(program.renumbers or bool(program.turned))

    def run(self, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Run the decoder on a forward that has begun: replayed, or plainly and with the reason in the trace."""
        forward = self._runner.forward
        if forward is not None and forward.outcome.record is None:  # a step
            return original(*args, **kwargs)
        call: Call | str
        if forward is None:
            call = "this family's pictures are known inside the decoder alone"
        elif args:
            call = "arguments without a name"
        else:
            call = self._call(forward, original, kwargs)
        if isinstance(call, str):
            self._counts.note_plain(call)
            return original(*args, **kwargs)
        tapes = self._tapes
        with tapes.lock:  # else another thread's numbers come between this one's
            recording = tapes.recordings.get(call.key)
            if recording is not None and not recording.stands_on.hold(self._runner.wrappers):
                del tapes.recordings[call.key]
                recording = None
            if recording is not None:
                try:
                    output = self._replay(call, recording)
                    self._counts.replayed += 1
                    return output
                except Exception as error:
                    self._give_up(call.key, f"a replay failed ({_line(error)})")
            elif call.key not in tapes.seen:
                remember(tapes.seen, call.key, None, MOST_SEEN)
                self._counts.note_plain("the first of its layout")
            elif tapes.seen[call.key] is None:
                return self._record(call)
            else:
                self._counts.note_plain(tapes.seen[call.key])
        return original(**kwargs)

    # -- which ------------------------------------------------------------------------------------------------

    def _call(self, forward: Forward, original: Original, kwargs: dict[str, Any]) -> Call | str:
        """The decoder's call, by what must be alike to replay it; or why it is run plainly."""
        text, cache, device = self._family.text, cache_of(kwargs), self._device
        modes = _modes()
        if torch.is_grad_enabled() or text.training:
            return "gradients are wanted, or the model trains"
        if modes is None:
            return "somebody compiles, captures or watches the forward"
        if not forward.samples:
            return "a prompt without pictures"
        if forward.ends_turn:
            return "a stage reads in every step of decoding"
        if cache is None and kwargs.get("use_cache", text.config.use_cache):
            cache = DynamicCache(config=text.config)
            kwargs = {**kwargs, **with_cache(cache)}
        if cache is not None and not _is_fresh(cache):
            return "the cache is no empty DynamicCache"
        handed = {name: one for name, one in kwargs.items() if name not in CACHE_NAMES}
        mask = handed.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and forward.is_whole:
            handed["attention_mask"] = None  # the host would have to look at a mask to see that it hides nothing
        leaves, spec = tree_flatten(handed)
        others = tuple([leaf for leaf in leaves if not isinstance(leaf, Tensor)])
        if not all(isinstance(leaf, PLAIN_VALUES) for leaf in others):
            return "arguments that graphs do not know"
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)] + _tensors_of(forward.outcome.changed, device)
        if any(tensor.device != device for tensor in tensors):
            return "the decoder is spread over devices"
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        casts = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
        cached = None if cache is None else tuple(map(type, cache.layers))
        alike = tuple(map(kind_of_value, tensors))
        key = (
            self._program.method,
            type(self._family),
            forward.layout,
            alike,
            others,
            spec,
            cached,
            casts,
            modes,
            stream,
        )
        try:
            hash(key)
        except TypeError:
            return "a method whose settings cannot be compared"
        return Call(key, forward, original, kwargs, cache, leaves, spec, tensors)

    # -- record -----------------------------------------------------------------------------------------------

    def _record(self, call: Call) -> Any:
        """Run plainly, and record: the tape is kept if it leaves the same bits."""
        given = copies_of(call.tensors)
        twin, kwargs = call.twin(given)
        output = call.original(**call.kwargs)
        more = {name for name, one in output.items() if one is not None} - {"last_hidden_state", *CACHE_NAMES}
        if more:
            why = f"the decoder answers {', '.join(sorted(more))} too"
        else:
            why = self._try(call, twin, given, kwargs, Made.of(output, call.forward))
        if why is None:
            self._counts.recorded += 1
        else:
            self._give_up(call.key, why)
        return output

    def _try(
        self, call: Call, twin: Forward, given: tuple[Tensor, ...], kwargs: dict[str, Any], plain: Made
    ) -> str | None:
        """Record a prompt's twin; answers why that cannot be used, or None."""
        stands_on = Modules(self._family.text, self._runner.wrappers, self._hooks)
        if stands_on.obstacle is not None:
            return stands_on.obstacle
        made: list[Made] = []

        def run() -> list[Tensor]:
            made.append(Made.of(call.original(**kwargs), twin))
            return made[0].tensors()

        tape = self._tapes.tape(self._device)
        begun, self._runner.forward = self._runner.forward, twin
        try:
            tensors = list(tape.record(run))
            tape.replay()
        except Exception as error:
            return f"it cannot be recorded ({_line(error)})"
        finally:
            self._runner.forward = begun
        expected = plain.tensors()
        same = [torch.equal(one, other) for one, other in zip(tensors, expected, strict=False)]
        if len(tensors) != len(expected) or not all(same):
            return "a replay left other numbers than the plain run"
        held = twin.text, twin.first, twin.live, twin.image_ends, twin.memo
        recording = Recording(tape, given, tensors, made[0], stands_on, held)
        remember(self._tapes.recordings, call.key, recording, MOST_TAPES)
        return None

    def _give_up(self, key: Any, why: str) -> None:
        """From now on run a layout plainly, and say so once."""
        self._tapes.recordings.pop(key, None)
        remember(self._tapes.seen, key, why, MOST_SEEN)
        self._counts.note_plain(why)
        warnings.warn(f"cuda_graphs: prompts of this layout run without a graph: {why}.", stacklevel=2)

    # -- replay -----------------------------------------------------------------------------------------------

    def _replay(self, call: Call, recording: Recording) -> Any:
        """Run a recording on a prompt, and copy what it leaves to where a plain run leaves it."""
        forward, record = call.forward, call.forward.outcome.record
        torch._foreach_copy_(recording.given, call.tensors)
        recording.tape.replay()
        fresh = [torch.empty_like(tensor) for tensor in recording.tensors]
        torch._foreach_copy_(fresh, recording.tensors)
        made = recording.made.changed(_swap(recording.tensors, fresh))
        assert record is not None
        assert made.outcome.record is not None
        record.stages += made.outcome.record.stages[len(record.stages) :]
        made.outcome.record, forward.outcome = record, made.outcome
        remember(self._tapes.recordings, call.key, recording, MOST_TAPES)
        if call.cache is None:
            return made.answer(last_hidden_state=made.hidden)
        call.cache.layers[:] = made.layers
        if forward.drops:
            forward.cache = call.cache
        return made.answer(last_hidden_state=made.hidden, **with_cache(call.cache))


def _swap(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> Change:
    """Puts others in the place of some tensors."""
    places = dict(zip(map(id, tensors), others, strict=True))
    return lambda tensor: places.get(id(tensor), tensor)


def _tensors_of(changed: Callable[[Change], Any], device: torch.device) -> list[Tensor]:
    """What `changed` changes on a device, each once."""
    tensors: dict[int, Tensor] = {}
    changed(lambda tensor: tensors.setdefault(id(tensor), tensor))
    return [tensor for tensor in tensors.values() if tensor.device == device]


def _changed_layers(layers: Sequence[Any], change: Change) -> list[Any]:
    """Layers of a cache with other tensors."""
    memo, changed = Memo(MEMO_SIZE), []
    for layer in layers:
        other = object.__new__(type(layer))
        for name, value in vars(layer).items():
            if isinstance(value, Tensor):
                value = change(value)
            elif isinstance(value, dict):  # states of a recurrent layer
                value = {key: change(one) if isinstance(one, Tensor) else one for key, one in value.items()}
            vars(other)[name] = value
        if type(other) is PrunedLayer:
            other._memo, other._grown = memo, id(other.keys)
        changed.append(other)
    return changed


def _is_fresh(cache: Any) -> bool:
    """Whether a cache is of the usual kind, and holds nothing yet."""
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        return False
    for layer in cache.layers:
        states = [state for value in vars(layer).values() if isinstance(value, dict) for state in value.values()]
        begun = getattr(layer, "is_initialized", False) or any(isinstance(state, Tensor) for state in states)
        if begun or not isinstance(layer, CACHE_LAYERS):
            return False
    return True


def _modes() -> tuple[str, ...] | None:
    """Where tensors are made by default; None where somebody compiles, captures, or watches every operator."""
    if torch.compiler.is_compiling() or torch.nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return None
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return None
    modes = _get_current_function_mode_stack()
    if torch._C._len_torch_dispatch_stack() or not all(isinstance(mode, DeviceContext) for mode in modes):
        return None
    return tuple([str(mode.device) for mode in modes])


def _line(error: Exception) -> str:
    """The first line of an error."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
