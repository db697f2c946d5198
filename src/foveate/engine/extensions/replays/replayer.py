"""Each layer, at once: runs a tower, a prefill or a step without a graph, records it, or replays its recording."""

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_flatten
from transformers import DynamicCache

from foveate._transformers import CACHE_NAMES, DynamicLayer, cache_of, with_cache
from foveate.core.tapes import TAPES, copies_of, kind_of_value, line_of, refuse_without_graphs, remember, stream_of
from foveate.core.tensors import PLAIN_VALUES, Change
from foveate.engine.cache import CACHE_LAYERS, PrunedLayer
from foveate.engine.copies import copy_of, tensors_of
from foveate.engine.extension import Context, Extension
from foveate.engine.extensions.replays.modules import Modules, Snapshot, are_same
from foveate.engine.extensions.replays.recordings import MOST_SEEN, MOST_TAPES, Layout, RecordedRegion, tapes_of
from foveate.engine.extensions.replays.regions import (
    DecoderCall,
    Key,
    MadeByDecoder,
    Region,
    StepCall,
    results_with,
    swap,
)
from foveate.engine.extensions.replays.shared_rooms import MORE, power_of_two
from foveate.engine.extensions.replays.twins import held_by, is_unpadded, layout_of, outcome_with, with_pads
from foveate.engine.forward import Forward, Outcome
from foveate.engine.graph_counts import GraphCounts, Graphs
from foveate.engine.lives.shared import SharedLayer
from foveate.engine.lives.tenant import TenantLayer
from foveate.engine.streams import Original
from foveate.plain.upstream import warn_caller

COLUMNS = 32
"""Prompts are padded to multiples of this many columns, if that changes nothing for the others."""
MAY_BE_PADDED = {
    *("inputs_embeds", "attention_mask", "position_ids", "cache_position"),
    *("visual_pos_masks", "deepstack_visual_embeds"),
}
"""Tensors among a decoder's arguments that can be extended to more columns."""
SPANS = (1, 32, 64, 128)
"""Numbers of new rows for which steps are recorded; other numbers are padded to the next of these."""
MAY_STEP = (DynamicLayer, PrunedLayer, SharedLayer, TenantLayer)
"""Kinds of cache layers that may get rooms."""
NOTHING: Mapping[str, Any] = {}
KERNELS = ("sdpa", "eager")
"""Implementations of attention that read nothing on the host."""
CHOICE = r"_get_(.*sdp.*|cublas_allow_.*(reduction|accumulation)|blas_preferred_backend|deterministic_algorithms"
CHOICE += r"|cudnn_(enabled|benchmark|deterministic|allow_tf32))"
CHOICES = [getattr(torch._C, name) for name in sorted(vars(torch._C)) if re.fullmatch(CHOICE, name)]
"""Functions that return global settings by which torch chooses kernels."""
Parts = tuple[Key, list[Tensor], Any]
"""A region's key, tensors, and arguments."""
FIRST = "the first of its layout"
CANNOT = "it cannot be recorded"
WAITS = "its last recording was dropped before it was replayed"
BIASED = "a stage adds to the logits of keys"
TRAINS = "gradients are enabled, or the model is training"
MOST_ROOM = 1024
"""Room for this many answer tokens is reserved; longer answers need more."""
SURPRISE = 0.05
"""Largest KL divergence of the next token, in nats, that the other kernels of a recording may cause."""


class Replayer(Extension):
    """Wraps a tower's call and a decoder's forward, and replays them if there is a recording."""

    def attach(self, context: Context) -> None:
        """Route the calls of towers and the decoder through here.

        Raises:
            SettingError: If the model's device has no graphs.
        """
        self._context, patches = context, context.patches
        self._family, self._program, self._runner = context.family, context.program, context.runner
        family = self._family
        context.trace.graphs = self._graphs = Graphs()
        self._counts = {"tower": self._graphs.tower, "decoder": self._graphs.decoder, "steps": self._graphs.steps}
        self._device = next(family.text.parameters()).device
        refuse_without_graphs(self._device)
        self._tapes = tapes_of(family.core)
        self._generating = context.generating
        # The most columns that a prompt and its answer can have in the running `generate`; 0: no limit is set.
        self._end = 0
        # The states of the towers and decoders that were looked at in the running `generate`, during which they do not
        # change. None outside: every call looks.
        self._states: dict[nn.Module, Hashable | str] | None = None
        self._looks: dict[nn.Module, tuple[Snapshot, int | str]] = {}
        self._empty: Any = None
        modules = family.text, *family.towers
        self._wrapped = [module for module in modules if patches.before(module, "forward") is not None]
        others = family.recurrent or family.lenders or family.indexed
        self._pads_texts = family.shares_prefix and not self._program.reads_text and not others
        family.replay_tower(patches, self.run_tower)
        patches.wrap(family.text, "forward", self.run)

    def _follow_call(self) -> None:
        """Begin anew for another call of `generate`."""
        generating = self._context.generating
        if generating is not self._generating:
            self._generating, self._states = generating, {} if generating.runs else None
            self._end = min(generating.most, generating.inside.stop + MOST_ROOM)

    def run(self, original: Original, *args: Any, **kwargs: Any) -> Any:
        """Run the decoder on a forward that has begun: replay it, or run it without a graph and note why."""
        self._follow_call()
        forward, counts = self._runner.forward, self._graphs.decoder
        if forward is None or args:
            counts.note_plain("this family's pictures are known only inside the decoder")
            return original(*args, **kwargs)
        region: Region | str
        if not forward.is_prefill:
            counts, region = self._graphs.steps, self._step_call(forward, original, kwargs)
        else:
            region = self._decoder_call(forward, original, kwargs)
        if isinstance(region, str):
            counts.note_plain(region)
            return original(**kwargs)
        return self._run(region, counts)

    def run_tower(
        self,
        tower: nn.Module,
        original: Original,
        *args: Any,
        on_host: Mapping[str, Any] = NOTHING,
        held: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Run a vision tower: replay it, or run it without a graph and note why.

        Args:
            tower: The tower.
            original: Its function.
            args: Positional arguments of the call.
            on_host: More arguments by name: tensors and numbers that the host reads.
            held: Tensors computed from these that kernels will read.
            kwargs: The other arguments.
        """
        self._follow_call()
        parts: Parts | str = "a stage acts inside the tower"
        if not self._program.in_tower:
            numbers = [part.numpy().tobytes() if isinstance(part, Tensor) else part for part in on_host.values()]
            sort = "tower", type(self._family), self._family.towers.index(tower), tuple(on_host), tuple(numbers)
            parts = self._parts(tower, sort, (args, kwargs), ())
        original = partial(original, **on_host)
        plain = partial(original, *args, **kwargs)
        if isinstance(parts, str):
            self._graphs.tower.note_plain(parts)
            return plain()
        return self._run(Region(*parts, plain, original, held), self._graphs.tower)

    # -- keys of calls ----------------------------------------------------------------------------------------

    def _decoder_call(self, forward: Forward, original: Original, kwargs: dict[str, Any]) -> DecoderCall | str:
        """Return the decoder's call, or why it runs without a graph."""
        text, cache = self._family.text, cache_of(kwargs)
        if not forward.samples:
            return "a prompt without pictures"
        if self._program.reading is not None:
            return "a stage reads in every step of decoding"
        if self._program.biased:
            return BIASED
        if cache is None and kwargs.get("use_cache", text.config.use_cache):
            cache = self._fresh_cache(text.config)
            kwargs = {**kwargs, **with_cache(cache)}
        if cache is not None and not _is_fresh(cache):
            return "the cache is not an empty DynamicCache"
        cached = {type(layer) for layer in getattr(cache, "layers", ())}
        handed = {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}
        mask = handed.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2 and is_unpadded(forward):
            handed["attention_mask"] = None  # finding that a mask hides nothing would cost a host sync
        pads, shown = 0, forward
        # Text behind everything else changes nothing, if no sample is padded or ends in an image.
        at_end = is_unpadded(forward) and not forward.ends_in_vision
        if self._pads_texts and cached == {DynamicLayer} and at_end and _may_be_padded(handed):
            pads = -forward.span % COLUMNS
        if pads:
            handed, shown = _pad_columns(handed, pads), with_pads(forward, pads)
        sort = "decoder", self._program.method, type(self._family), layout_of(shown), cache is None
        parts = self._parts(text, sort, handed, _tensors_of(shown.outcome, self._device))
        if isinstance(parts, str):
            return parts
        held = held_by(shown)
        plain, runner = partial(original, **kwargs), self._runner
        return DecoderCall(*parts, plain, original, held, forward, runner, cache, shown, pads)

    def _fresh_cache(self, config: Any) -> Any:
        """Return an empty cache. It takes long to make from a config, so later ones are copies of the first."""
        if self._empty is None:
            self._empty = DynamicCache(config=config)
        return copy_of(self._empty)

    def _step_call(self, forward: Forward, original: Original, kwargs: dict[str, Any]) -> StepCall | str:
        """Return the decoder's call on rows that continue from a cache, or why it runs without a graph."""
        cache, mask, family = cache_of(kwargs), kwargs.get("attention_mask"), self._family
        rooms = self._tapes.rooms(self._device)
        are_let = rooms.are_let_to(cache)
        why = self._obstacle_to_steps(forward, cache, are_let, kwargs)
        if why is not None:
            return why
        seen, span = cache.get_seq_length(), next(span for span in SPANS if span >= forward.span)
        if self._end:  # equal for all steps of an answer, so that they share rooms of one size
            self._end = max(self._end, seen + span)
        before = rooms.memory
        try:
            by_layer = rooms.plan(cache, are_let, span, self._end - seen if self._end else max(span, MORE))
        except torch.OutOfMemoryError:
            return "there is no memory for rooms"
        if rooms.memory is not before:
            self._drop("steps")  # they write to memory that is no longer read
        groups = list(dict.fromkeys(by_layer))
        live = None
        if mask is not None:
            width = power_of_two(max(self._end, seen + span, *[shared.places for shared in groups]))
            live = pad(mask != 0, (0, width - mask.shape[1]), value=True)
        handed = {name: value for name, value in kwargs.items() if name not in (*CACHE_NAMES, "attention_mask")}
        if span > forward.span:
            handed = _pad_columns(handed, span - forward.span)
        more = [tensor for shared in groups for tensor in shared.tensors] + ([] if live is None else [live])
        held = rooms.memory, rooms.numbers
        layout = tuple([shared.layout for shared in groups])
        sort = "steps", type(family), id(rooms.memory), layout, forward.backend
        parts = self._parts(family.text, sort, handed, more)
        if isinstance(parts, str):
            return parts
        plain, runner = partial(original, **kwargs), self._runner
        return StepCall(*parts, plain, original, held, forward, runner, cache, rooms, by_layer, live)

    def _obstacle_to_steps(self, forward: Forward, cache: Any, are_let: bool, kwargs: Mapping[str, Any]) -> str | None:
        """Return why rows that continue from a cache run without a graph; None if they may be replayed."""
        family, mask = self._family, kwargs.get("attention_mask")
        if family.recurrent or family.lenders or family.indexed or family.gathers:
            return "layers of this decoder hold more than keys and values"
        if self._generating.beams > 1:
            return "beams change places between steps"
        if forward.span > SPANS[-1] or (forward.span > 1 and not _may_be_padded(kwargs)):
            return f"a text of more than {SPANS[-1]} tokens, or with more than text"
        if self._program.reading is not None:
            return "a stage reads in every step of decoding"
        if self._program.biased:
            return BIASED
        if torch.is_grad_enabled() or family.text.training:
            return TRAINS
        if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
            return "the cache is not a DynamicCache"
        for layer in () if are_let and not family.windows else cache.layers:
            if type(layer) not in MAY_STEP or not layer.is_initialized or family.windows:
                return "a layer of the cache has a window, or holds nothing"
        if not isinstance(kwargs.get("position_ids"), Tensor):
            return "no position ids are passed"
        columns = cache.get_seq_length() + forward.span
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] == columns):
            return "the attention mask is of another shape"
        return None

    def _parts(self, module: Any, sort: tuple[Any, ...], handed: Any, more: Sequence[Tensor]) -> Parts | str:
        """Return the parts of a region that every call has, or why this one runs without a graph.

        Args:
            module: The tower or decoder.
            sort: What two calls must have in common, besides what is true for all modules.
            handed: The arguments, nested.
            more: Further tensors that it reads.
        """
        leaves, spec = tree_flatten(handed)
        tensors = [*[leaf for leaf in leaves if isinstance(leaf, Tensor)], *more]
        if torch.is_grad_enabled() or module.training:
            return TRAINS
        if torch.is_autocast_enabled(self._device.type):
            return "autocast is on"  # it would cache weights that belong to a recording
        others = tuple([leaf for leaf in leaves if not isinstance(leaf, Tensor)])
        if not all(isinstance(leaf, PLAIN_VALUES) for leaf in others):
            return "arguments that graphs do not know"
        if any(tensor.device != self._device for tensor in tensors):
            return "the model is spread over devices"
        kernel = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if kernel not in (None, *KERNELS):
            return f"attention by {kernel} may read on the host; only {' and '.join(KERNELS)} are recorded"
        state = self._state(module)
        if isinstance(state, str):
            return state
        key = (*sort, others, spec, tuple(map(kind_of_value, tensors)), kernel, state, stream_of(self._device))
        try:
            hash(key)
        except TypeError:
            return "settings that cannot be compared"
        return key, tensors, handed

    def _state(self, module: nn.Module) -> Hashable | str:
        """Return all that the decoder's or a tower's forward branches on, or why it runs without a graph.

        Recordings of other modules or weights are dropped.
        """
        tapes, hooks = self._tapes, 0
        if self._states is not None and module in self._states:
            return self._states[module]
        modes = _modes()
        if modes is None:
            return "the forward is being compiled, captured or watched"
        wrappers: list[Original] = []
        kinds = ["tower"]
        if module is self._family.text:
            wrappers, hooks = self._runner.wrappers, int(self._program.renumbers or bool(self._program.turned))
            kinds = ["decoder", "steps"]
        with tapes.lock:
            modules = tapes.modules.get(module)
            before = self._looks.get(module)
            if modules is None or before is None or not are_same(modules.look(), before[0]):
                if modules is None or not modules.read():
                    modules = tapes.modules[module] = Modules(module, modules)
                    for kind in kinds:
                        self._drop(kind)
                version = modules.obstacle(wrappers, hooks) or modules.version
                if module in self._wrapped:
                    version = "another wrapper is on it"
                self._looks[module] = before = modules.look(), version
        state: Hashable | str = before[1] if isinstance(before[1], str) else (before[1], modes)
        if self._states is not None:
            self._states[module] = state
        return state

    # -- record, and replay -----------------------------------------------------------------------------------

    def _run(self, region: Region, counts: GraphCounts) -> Any:
        """Run a region: without a graph at first sight, recorded at the second, then replayed."""
        tapes, key = self._tapes, region.key
        with tapes.lock:  # keep other threads' inputs out
            recording = tapes.recordings[key[0]].get(key)
            if recording is None:
                layout = tapes.seen.get(key) or Layout()
                remember(tapes.seen, key, layout, MOST_SEEN)
                why = layout.why
                if why is None and layout.left:
                    layout.left -= 1
                    why = FIRST if layout.wait == 1 else WAITS
                if why is None:
                    return self._record(region, counts)
                counts.note_plain(why)
                return region.plain()
            try:
                results = self._replay(region, recording)
            except Exception as error:
                self._give_up_for(error, key, counts, "a replay failed")
                return region.plain()
            counts.replayed, counts.latest = counts.replayed + 1, "replayed"
            return region.answer(results)

    def _replay(self, region: Region, recording: RecordedRegion) -> Any:
        """Replay a recording, and return its results in new tensors."""
        if isinstance(region, StepCall):
            region.rooms.lend(region.cache, region.by_layer)
        fresh = recording.replay(region.tensors)
        self._tapes.recordings[region.key[0]].move_to_end(region.key)
        recording.replayed = True
        return region.real(recording.made, swap(recording.tensors, fresh))

    def _record(self, region: Region, counts: GraphCounts) -> Any:
        """Run without a graph, and record a twin of the call.

        The first twin warms up. The tape is kept if its replay leaves the numbers of the second, which also says almost
        the same as the plain run.
        """
        try:
            copies = copies_of(region.tensors)
            tape = TAPES[self._device.type](self._device, self._tapes.lanes)
            warm, run, recorded = [region.twin(copies) for _ in range(3)]  # before the plain run stores rows
        except Exception as error:
            self._give_up_for(error, region.key, counts, CANNOT)
            return region.plain()
        output, captured = region.plain(), []
        try:
            first, twin = self._left_by(region, tape.run(warm)), tape.run(run)
            expected = self._left_by(region, twin)
            memory = self._tapes.memory_like(_tensors_of(twin, self._device), self._device)
            between_two = _distance(first, expected)
            del first
            nats = self._surprise(region, output, twin)

            def call() -> list[Tensor]:
                results = recorded()
                tensors = _tensors_of(results, self._device)
                torch._foreach_copy_(memory, tensors)
                captured.append(results_with(results, swap(tensors, memory)))
                return memory

            why = f"it would change the next token by {nats:.3g} nats" if not nats <= SURPRISE else None
            if between_two and not (_merges(twin) and between_two < math.inf):
                why = "two runs leave different numbers"
            if why is None:
                tape.record(call)
                tape.replay()
                if not _distance(self._left_by(region, captured[0]), expected) <= 2 * between_two:
                    why = "a replay left other numbers than a run without a graph"
        except Exception as error:
            self._give_up_for(error, region.key, counts, CANNOT)
            return output
        if why is not None:
            self._give_up(region.key, counts, why)
            return output
        recording = RecordedRegion(tape, copies, memory, captured[0], region.held)
        kind = self._tapes.recordings[region.key[0]]
        kind[region.key] = recording
        self._drop(region.key[0], max(0, len(kind) - MOST_TAPES))
        counts.recorded, counts.latest = counts.recorded + 1, "recorded"
        return output

    def _left_by(self, region: Region, made: Any) -> list[Tensor]:
        """List what a twin or a recording leaves."""
        return _tensors_of(region.real(made, lambda tensor: tensor), self._device)

    def _surprise(self, region: Region, output: Any, twin: Any) -> float:
        """Return how much a twin changes what the model says next: KL divergence from the plain run, in nats."""
        if not isinstance(region, DecoderCall | StepCall):
            return 0.0
        head = self._family.model.get_output_embeddings() or self._family.core.get_input_embeddings()
        both = region.collect(output), region.real(twin, lambda tensor: tensor)
        rows = [outputs.hidden[:, -1].to(head.weight) for outputs in both]
        # Each is (samples, vocabulary).
        says, would_say = [nn.functional.linear(row, head.weight).float().log_softmax(dim=-1) for row in rows]
        return float((says.exp() * (says - would_say)).sum(dim=-1).max())

    def _drop(self, kind: str, count: int | None = None) -> None:
        """Drop the `count` oldest recordings of a kind, whose layouts then wait; None: all, which are of no use."""
        recordings = self._tapes.recordings[kind]
        for key in list(recordings)[:count]:
            recording, layout = recordings.pop(key), self._tapes.seen.get(key)
            self._counts[kind].evicted += 1
            if layout is not None and count is not None:
                layout.lose(recording.replayed)

    def _give_up_for(self, error: Exception, key: Key, counts: GraphCounts, what: str) -> None:
        """Run a call without a graph because of an error. If memory was short, free some and try again later."""
        why = f"{what} ({line_of(error)})"
        if not isinstance(error, torch.OutOfMemoryError):
            self._give_up(key, counts, why)
            return
        counts.note_failed(why)
        for kind, recordings in self._tapes.recordings.items():
            self._drop(kind, (len(recordings) + 1) // 2)
        self._tapes.seen.setdefault(key, Layout()).lose(replayed=False)
        torch.cuda.empty_cache()

    def _give_up(self, key: Key, counts: GraphCounts, why: str) -> None:
        """Run calls with this key without a graph from now on, and warn once."""
        self._tapes.recordings[key[0]].pop(key, None)
        remember(self._tapes.seen, key, Layout(why), MOST_SEEN)
        counts.note_failed(why)
        warn_caller(f"cuda_graphs: calls of this layout run without a graph: {why}.")


# -- tensors, caches, modes ----------------------------------------------------------------------------------------


def _may_be_padded(handed: Mapping[str, Any]) -> bool:
    """Return whether all tensors among a decoder's arguments can be extended to more columns."""
    return {name for name, value in handed.items() if isinstance(value, Tensor | list | tuple | dict)} <= MAY_BE_PADDED


def _pad_columns(handed: Mapping[str, Any], pads: int) -> dict[str, Any]:
    """Append `pads` columns to a decoder's arguments, at the positions that follow."""
    padded = dict(handed)
    padded["inputs_embeds"] = pad(handed["inputs_embeds"], (0, 0, 0, pads))
    if handed.get("visual_pos_masks") is not None:
        padded["visual_pos_masks"] = pad(handed["visual_pos_masks"], (0, pads))
    for name in ("position_ids", "cache_position"):
        ids = handed.get(name)
        if ids is not None:
            more = torch.arange(1, pads + 1, device=ids.device, dtype=ids.dtype)
            padded[name] = torch.cat((ids, ids[..., -1:] + more), dim=-1)
    return padded


def _tensors_of(value: Any, device: torch.device) -> list[Tensor]:
    """List the tensors on a device, each once, in nested tensors, an outcome, or the results of a decoder."""
    tensors: dict[int, Tensor] = {}
    visit: Callable[[Any, Change], Any] = outcome_with if isinstance(value, Outcome) else results_with
    visit(value, lambda tensor: tensors.setdefault(id(tensor), tensor))
    return [tensor for tensor in tensors.values() if tensor.device == device]


def _is_fresh(cache: Any) -> bool:
    """Return whether a cache is an ordinary DynamicCache that holds nothing yet."""
    if type(cache) is not DynamicCache or getattr(cache, "offloading", False):
        return False
    return all(isinstance(layer, CACHE_LAYERS) and not any(True for _ in tensors_of(layer)) for layer in cache.layers)


def _modes() -> tuple[Any, ...] | None:
    """Return the default devices in force and torch's choices of kernels.

    None if the forward is compiled, captured or watched at every operator.
    """
    if torch.compiler.is_compiling() or torch.nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
        return None
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():  # type: ignore[no-untyped-call]
        return None
    modes = [*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack()]  # type: ignore[no-untyped-call]
    modes = [mode for mode in modes if not getattr(mode, "only_follows", False)]
    if not all(isinstance(mode, DeviceContext) for mode in modes):
        return None
    return (*[str(mode.device) for mode in modes], *[str(choice()) for choice in CHOICES], _precision())


def _precision() -> str:
    """Return how float32 matrices are multiplied."""
    if hasattr(torch._C, "_get_fp32_precision_getter"):  # the older function fails if the newer setting was used
        return torch._C._get_fp32_precision_getter("cuda", "matmul")
    return torch._C._get_float32_matmul_precision()


def _merges(made: Any) -> bool:
    """Return whether a decoder merged rows: CUDA sums them in any order, so two runs may differ."""
    return isinstance(made, MadeByDecoder) and made.outcome.table is not None and made.outcome.table.merged


def _distance(ones: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    """Return the largest difference of floats, as a share of a tensor's largest; 0.0 only if all bits are equal.

    Infinite if shapes, other numbers or their count differ, or if there is a NaN.
    """
    if len(ones) != len(others):
        return math.inf
    distance = 0.0
    for tensor, other in zip(ones, others, strict=True):
        if tensor.shape == other.shape and torch.equal(tensor, other):
            continue
        if tensor.shape != other.shape or not tensor.is_floating_point():
            return math.inf
        share = float((tensor - other).abs().max() / other.abs().max())
        distance = max(distance, math.inf if math.isnan(share) else share)
    return distance
