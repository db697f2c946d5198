"""A bench run: what every candidate holds and processes, then interleaved rounds of all of them."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from foveate._greedy import generate
from foveate.bench.bare import bare, obstacle
from foveate.bench.counting import Memory
from foveate.bench.stopwatch import timed
from foveate.bench.timing import rounds
from foveate.bench.workload import Workload
from foveate.engine.session import drop
from foveate.engine.trace import Trace
from foveate.errors import UnsupportedError
from foveate.methods.base import Method
from foveate.methods.finalkv import FinalKV
from foveate.methods.follow import cached_layers, in_order
from foveate.methods.random import Random
from foveate.methods.stages import Shape
from foveate.methods.uniform import Uniform
from foveate.registry import family_for

__all__ = ["AGAIN", "EAGER", "FULL", "KEEP_ALL", "Candidate", "Held", "Session", "same_schedule"]

FULL, AGAIN, KEEP_ALL, EAGER = "untouched", "untouched again", "keep-all", "eager attention"
BARE_PARTS = ("tower", "prefill", "ttft")  # what bare layers are timed in


@dataclass(frozen=True, slots=True)
class Held:
    """What a candidate processes and holds, found in one prompt before any timing.

    Attributes:
        tokens: Vision tokens each decoder layer processes: of the sample with most, to which a batch is padded.
        retention: Mean over samples of what the trace says.
        kv_bytes: Of the whole batch's cache after the prompt, read off its tensors.
        kv_rows: Rows each layer's cache has.
        peak: Bytes at the most, without weights and inputs: what the accelerator's allocator says, or on a CPU the
            tensors that live at once.
    """

    tokens: tuple[int, ...]
    retention: float
    kv_bytes: int
    kv_rows: tuple[int, ...]
    peak: int


@dataclass(slots=True)
class Candidate:
    """What is timed.

    Attributes:
        name: Of its row.
        method: What drops; None for the untouched model.
        control: The name of the candidate that drops by lot at the same schedule.
        bare: The name of the candidate that runs the layers alone on as many rows, if there is one.
        rows: Of each layer, for such a candidate; see `foveate.bench.bare`. What it holds is that of the first method
            with this schedule.
        kernel: The attention implementation it runs with, where that is not the model's own.
        held: See `Held`, once it is known.
        failed: Why it cannot run here, such as for want of memory.
    """

    name: str
    method: Method | None = None
    control: str | None = None
    bare: str | None = None
    rows: tuple[int, ...] | None = None
    kernel: str | None = None
    held: Held | None = None
    failed: str = ""


@dataclass(slots=True)
class Session:
    """A model, a prompt, and the candidates.

    Attributes:
        model: In evaluation mode.
        workload: What it is given.
        new_tokens: Length of every answer.
        candidates: By name, the untouched model first and again last.
        times: Of each candidate, a mapping of parts to seconds for every finished round.
        obstacle: Why there are no bare layers beside the methods, if they were asked for and cannot be run.
    """

    model: Any
    workload: Workload
    new_tokens: int
    clock: Callable[[], float] = time.perf_counter
    candidates: dict[str, Candidate] = field(default_factory=dict)
    times: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    obstacle: str = ""

    def prepare(
        self, methods: Mapping[str, Method], *, bare: bool = True, eager: bool = False, told: Callable[[str], None]
    ) -> None:
        """Find out what every candidate holds, and put the controls beside them.

        Args:
            methods: By the names of their rows.
            bare: Whether the layers alone are run on as many rows too, wherever they can be.
            eager: Whether the first method's schedule is run once more by lot under eager attention: what a method
                that needs attention matrices pays for them.
            told: Called with the name of each candidate before it runs.
        """
        family = family_for(self.model)
        depth = len(family.layers)
        self.obstacle = obstacle(family, self.workload.inputs) if bare else ""
        self._add(Candidate(FULL), told)
        self._add(Candidate(KEEP_ALL, Uniform(layers=(0,), keep=(1.0,))), told)
        for name, method in methods.items():
            own = self._add(Candidate(name, method), told)
            if own.held is None:
                continue
            if not isinstance(method, Random):
                cached = cached_layers(in_order(method.stages(Shape(depth))))
                twin = same_schedule(own.held.tokens, self.workload.vision_tokens, cached)
                same = next((one for one in self.candidates.values() if one.method == twin), None)
                own.control = (same or self._add(Candidate(f"{name}: random", twin), told)).name
            if bare and not self.obstacle and min(own.held.tokens) < self.workload.vision_tokens:
                own.bare = self._bare(own)
                if own.control:
                    self.candidates[own.control].bare = own.bare
        if eager:
            first = next((one for one in self.candidates.values() if one.control), None)
            schedule = None if first is None else self.candidates[str(first.control)].method
            self._add(Candidate(EAGER, schedule, kernel="eager"), told)
        self.candidates[AGAIN] = Candidate(AGAIN, held=self.candidates[FULL].held)

    def _bare(self, own: Candidate) -> str:
        """The candidate that runs the layers alone at the schedule of another: made unless it is there."""
        assert own.held is not None
        rows = tuple(self.workload.text_tokens + tokens for tokens in own.held.tokens)
        name = next((one.name for one in self.candidates.values() if one.rows == rows), f"{own.name}: bare")
        self.candidates.setdefault(name, Candidate(name, rows=rows, held=own.held))
        return name

    def _add(self, candidate: Candidate, told: Callable[[str], None]) -> Candidate:
        told(candidate.name)
        self.candidates[candidate.name] = candidate
        try:
            with self._context(candidate) as trace:
                candidate.held = hold(self.model, self.workload, trace if candidate.method else None)
        except torch.OutOfMemoryError:
            candidate.failed = "out of memory"
        except UnsupportedError as error:
            candidate.failed = str(error)
        return candidate

    def run(self, pairs: int, seed: int = 0, after: Callable[[], object] = lambda: None) -> Iterator[int]:
        """Time every candidate once a round; yields how many rounds are finished, after each.

        `after` is called after every round, that of warm-up included.
        """
        able = [one for one in self.candidates.values() if not one.failed]
        calls = {one.name: partial(self._time, one) for one in able}
        self.times = {name: [] for name in calls}
        gc.collect()
        gc.disable()  # collected between rounds
        try:
            for found in rounds(calls, pairs, seed, after, self._beside()):
                for name, parts in found.items():
                    self.times[name].append(parts)
                gc.collect()
                yield self.finished
        finally:
            gc.enable()

    def _beside(self) -> dict[str, str]:
        """Whom each candidate is timed right beside: a method's controls beside it, keep-all beside the untouched."""
        beside = {KEEP_ALL: FULL}
        for one in self.candidates.values():
            for control in (one.control, one.bare):
                if control is not None:
                    beside.setdefault(control, beside.get(one.name, one.name))
        return beside

    @property
    def finished(self) -> int:
        """Rounds that every candidate has run."""
        return len(self.times.get(FULL, ()))

    def _time(self, candidate: Candidate) -> dict[str, float]:
        with self._context(candidate):
            if candidate.rows is None:
                return timed(self.model, self.workload.inputs, self.new_tokens, self.clock)
            parts = timed(self.model, self.workload.inputs, 1, self.clock)  # no token can follow the first
            return {part: parts[part] for part in BARE_PARTS if part in parts}

    @contextmanager
    def _context(self, candidate: Candidate) -> Iterator[Trace]:
        """The model as the candidate runs it; entering and leaving is not timed."""
        family = family_for(self.model)
        text = family.text
        own = text.config._attn_implementation
        if candidate.kernel is not None:
            text.set_attn_implementation(candidate.kernel)
        try:
            alone = nullcontext() if candidate.rows is None else bare(family, candidate.rows)
            with (
                alone,
                nullcontext(Trace()) if candidate.method is None else drop(self.model, candidate.method) as trace,
            ):
                yield trace
        finally:
            if candidate.kernel is not None:
                text.set_attn_implementation(own)


def same_schedule(tokens: Sequence[int], entered: int, kv_layers: Sequence[int] = ()) -> Method:
    """Random with as many vision tokens in every layer, and caches cut where the other's are.

    Args:
        tokens: Of one sample, in each decoder layer.
        entered: As they enter the model.
        kv_layers: Layers whose cache is cut to the final tokens after the prompt.
    """
    before, layers, keep = entered, [], []
    for layer, count in enumerate(tokens):
        if count < before:
            layers.append(layer)
            keep.append((count + 0.5) / before)  # truncated to the count
            before = count
    plain = Random(layers=tuple(layers), keep=tuple(keep), min_keep=0)
    cuts_caches = kv_layers and layers and layers[-1] > kv_layers[0]
    return FinalKV(inner=plain, first_layer=kv_layers[0]) if cuts_caches else plain


def hold(model: Any, workload: Workload, trace: Trace | None) -> Held:
    """Run the prompt once and see what it holds; inside the dropping context whose trace is given, if any."""
    cuda = model.device.type == "cuda"
    memory = Memory()
    if cuda:
        generate(model, workload.inputs, 1)  # libraries take their workspaces once, and keep them
        torch.cuda.synchronize()
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    with nullcontext() if cuda else memory:
        cache = generate(model, workload.inputs, 1).past_key_values
    peak = torch.cuda.max_memory_allocated() - before if cuda else memory.peak
    layers = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    depth, entered = len(family_for(model).layers), workload.vision_tokens
    if trace is None:
        tokens, retention = (entered,) * depth, 1.0
    else:
        tokens = tuple(max(samples) for samples in trace.latest.per_layer)
        retention = sum(trace.retention) / len(trace.retention)
    return Held(
        tokens=tokens,
        retention=retention,
        kv_bytes=sum(part.nbytes for layer in layers for part in (layer.keys, layer.values)),
        kv_rows=tuple(layer.keys.shape[-2] for layer in layers),
        peak=peak,
    )
