"""A paired run: measure the tokens and memory of every candidate, then time all of them in interleaved rounds."""

import copy
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import Parameter

from foveate._transformers import PreTrainedModel
from foveate.ask.generation import generate
from foveate.bench.bare import bare, obstacle
from foveate.bench.peaks import Held, hold
from foveate.bench.stopwatch import PARTS, Timer, time_parts
from foveate.bench.timing import Ratio, ratio, rounds
from foveate.bench.workload import Workload
from foveate.contract.method import Method
from foveate.contract.settings import AtLeastOne
from foveate.core.fields import check_call
from foveate.engine.doors import drop_or_not
from foveate.engine.trace import Trace
from foveate.errors import BudgetError, InputError, UnsupportedError
from foveate.methods.random import Random, same_schedule
from foveate.methods.uniform import Uniform
from foveate.registry import family_for

FULL, AGAIN, KEEP_ALL = "untouched", "untouched again", "keep-all"
GRAPH = "{} as a graph"
"""Name of the candidate that runs another one with CUDA graphs for the tower, the prompt and decode steps."""
CAST = "untouched in {}"
"""Name of the untouched model's copy in another dtype."""


@dataclass(slots=True)
class Candidate:
    """One variant of the model that is timed: untouched, with a method, or with its bare layers.

    Attributes:
        name: Name of its row.
        method: The method that drops; None for the untouched model.
        control: Name of the candidate that drops at random with the same schedule.
        bare: Name of the candidate that runs only the layers, on as many rows, if there is one.
        rows: Rows of each layer, for a candidate of bare layers; see `foveate.bench.bare`. Its `held` is that of the
            first method with this schedule.
        held: Its tokens and memory, once measured; for a candidate with graphs, those of a run without.
        graphs: True if its tower, prompt and decode steps run as CUDA graphs.
        cast: True if it runs on a copy of the model in another dtype; see `PairedRun.prepare`.
        tower: With graphs, how its tower ran: "replayed", or the reason why not.
        failed: Why it cannot run here, such as "out of memory". Empty if it can.
    """

    name: str
    method: Method | None = None
    control: str | None = None
    bare: str | None = None
    rows: tuple[int, ...] | None = None
    held: Held | None = None
    graphs: bool = False
    cast: bool = False
    tower: str = ""
    failed: str = ""


@dataclass(slots=True)
class PairedRun:
    """A model, a prompt, and the candidates to compare.

        run = PairedRun(model, workload, new_tokens=16)
        run.prepare(methods)
        for finished in run.run(pairs=30): ...
        rows = rows_of(run)

    Attributes:
        model: In evaluation mode.
        workload: The batch of prompts.
        new_tokens: Length of every answer, in tokens.
        clock: Returns the time in seconds.
        candidates: Candidates by name; the untouched model is the first and again the last.
        rounds: For each finished round, seconds by candidate and part.
        obstacle: Why bare layers cannot run for this model, if they were asked for. Empty otherwise.
        recast: The model in another dtype, if it was asked for. None otherwise.
    """

    model: PreTrainedModel
    workload: Workload
    new_tokens: int
    clock: Timer = time.perf_counter
    candidates: dict[str, Candidate] = field(default_factory=dict)
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)
    obstacle: str = ""
    recast: PreTrainedModel | None = None

    # -- candidates -------------------------------------------------------------------------------------------

    def prepare(
        self,
        methods: Mapping[str, Method],
        *,
        controls: bool = True,
        bare: bool = True,
        cuda_graphs: bool = False,
        dtype: torch.dtype | None = None,
        starting: Callable[[str], object] = lambda name: None,
    ) -> None:
        """Add the candidates and their controls, and measure the tokens and memory of each.

        Args:
            methods: Methods by the names of their rows.
            controls: Add keep-all, and random dropping with the schedule of each method.
            bare: Add the bare layers with the schedule of each method, if the model's layers can be run alone.
            cuda_graphs: Add the untouched model and every method with CUDA graphs.
            dtype: Add a copy of the untouched model in this dtype, on which the methods then run. Without controls.
            starting: Called with the name of each candidate before it runs.
        """
        if bare:
            self.obstacle = obstacle(family_for(self.model), self.workload.inputs)
        full = self._add(Candidate(FULL), starting)
        if controls:
            self._add(Candidate(KEEP_ALL, Uniform(layers=(0,), keep=(1.0,))), starting)
        if dtype is not None:
            self.recast = in_dtype(self.model, dtype)
            self._add(Candidate(CAST.format(str(dtype).removeprefix("torch.")), cast=True), starting)
        for name, method in methods.items():
            candidate = self._add(Candidate(name, method, cast=dtype is not None), starting)
            if candidate.held is None:
                continue
            if controls and not isinstance(method, Random):
                candidate.control = self._control(name, method, candidate.held, starting)
            if bare and not self.obstacle:
                self._add_bare(candidate, candidate.held)
        if cuda_graphs:
            self._add_graphs([name for name in (FULL, *methods) if not self.candidates[name].failed], starting)
        self.candidates[AGAIN] = Candidate(AGAIN, held=full.held)

    def _control(self, name: str, method: Method, held: Held, starting: Callable[[str], object]) -> str:
        """Name of the candidate that drops at random with a method's schedule. Adds it if there is none yet."""
        control = same_schedule(method, held.tokens, self.workload.vision_tokens)
        for candidate in self.candidates.values():
            if candidate.method == control:
                return candidate.name
        return self._add(Candidate(f"{name}: random", control), starting).name

    def _add_bare(self, candidate: Candidate, held: Held) -> None:
        """Add bare layers for a candidate and its control, unless it drops nothing."""
        if min(held.tokens) == self.workload.vision_tokens:
            return
        rows = tuple(self.workload.text_tokens + tokens for tokens in held.tokens)
        names = [other.name for other in self.candidates.values() if other.rows == rows]
        if not names:
            names = [f"{candidate.name}: bare"]
            self.candidates[names[0]] = Candidate(names[0], rows=rows, held=held)
        candidate.bare = names[0]
        if candidate.control:
            self.candidates[candidate.control].bare = names[0]

    def _add_graphs(self, names: Sequence[str], starting: Callable[[str], object]) -> None:
        """Add candidates with CUDA graphs. Records the graphs here, so that timed rounds only replay them."""
        from foveate.engine.extensions.replays.recordings import MOST_TAPES

        graphs = []
        for name in names:
            plain = self.candidates[name]
            graph = Candidate(GRAPH.format(name), plain.method, held=plain.held, graphs=True)
            self.candidates[graph.name] = graph
            graphs.append(graph)
        for graph in 3 * graphs:  # the first call counts the shapes, the second records, the third replays
            starting(graph.name)
            with drop_or_not(self.model, graph.method, cuda_graphs=True) as trace:
                generate(self.model, self.workload.inputs, 4)
            assert trace.graphs is not None
            graph.tower, graph.failed = trace.graphs.tower.latest, trace.graphs.decoder.latest
        for graph in graphs:
            if graph.failed == "replayed":
                graph.failed = ""
            else:
                graph.held, graph.failed = None, f"not replayed: {graph.failed}; a model keeps {MOST_TAPES} graphs"

    def _add(self, candidate: Candidate, starting: Callable[[str], object]) -> Candidate:
        starting(candidate.name)
        self.candidates[candidate.name] = candidate
        try:
            with self._context(candidate) as trace:
                candidate.held = hold(self.model_of(candidate), self._workload_of(candidate), trace)
        except torch.OutOfMemoryError:
            candidate.failed = "out of memory"
        except (UnsupportedError, BudgetError) as error:
            candidate.failed = str(error)
        return candidate

    # -- rounds -----------------------------------------------------------------------------------------------

    def run(self, pairs: int, seed: int = 0, after: Callable[[], object] = lambda: None) -> Iterator[int]:
        """Time every candidate once per round. Yields the number of finished rounds after each.

        Args:
            pairs: Number of rounds, after one warm-up round.
            seed: Seed of the order of candidates.
            after: Called after every round, including the warm-up.

        Raises:
            InputError: If memory runs out. Finished rounds are kept.
        """
        calls: dict[str, Callable[[], dict[str, float]]] = {}
        for candidate in self.candidates.values():
            if not candidate.failed:
                calls[candidate.name] = partial(self._time, candidate)
        neighbours = {KEEP_ALL: FULL}  # controls are timed next to their method
        for candidate in self.candidates.values():
            for control in filter(None, (candidate.control, candidate.bare)):
                neighbours.setdefault(control, neighbours.get(candidate.name, candidate.name))
        self.rounds = []
        gc.collect()
        gc.disable()  # collect between rounds instead
        try:
            for seconds in rounds(calls, pairs, seed, after, neighbours):
                self.rounds.append(seconds)
                gc.collect()
                yield len(self.rounds)
        except torch.OutOfMemoryError as error:
            raise InputError(
                "Out of memory while timing. Use a smaller batch, fewer images or fewer new tokens."
            ) from error
        finally:
            gc.enable()

    def _time(self, candidate: Candidate) -> dict[str, float]:
        tokens = self.new_tokens if candidate.rows is None else 1  # bare layers leave no usable KV cache
        began = self.clock()
        with self._context(candidate):
            opened = self.clock()
            inputs = self._workload_of(candidate).inputs
            parts = time_parts(self.model_of(candidate), inputs, tokens, self.clock)
            answered = self.clock()
        if candidate.rows is not None:
            return {part: parts[part] for part in ("tower", "prefill", "ttft") if part in parts}
        if candidate.method is None and not candidate.graphs:
            return parts
        return {**parts, "context": opened - began + self.clock() - answered}

    def _context(self, candidate: Candidate) -> AbstractContextManager[Trace | None]:
        """A context in which the model runs as the candidate does. Yields the trace, or None if nothing is dropped."""
        if candidate.method is not None or candidate.graphs:
            return drop_or_not(self.model_of(candidate), candidate.method, candidate.graphs)
        if candidate.rows is not None:
            return bare(family_for(self.model), candidate.rows)
        return nullcontext()

    def model_of(self, candidate: Candidate) -> PreTrainedModel:
        """The model that a candidate runs: this, or its copy in another dtype."""
        if candidate.cast and self.recast is not None:
            return self.recast
        return self.model

    def _workload_of(self, candidate: Candidate) -> Workload:
        """The workload, with pixels in the dtype of the candidate's model."""
        if not candidate.cast:
            return self.workload
        dtype = self.model_of(candidate).dtype
        inputs = dict(self.workload.inputs)
        for name, value in inputs.items():
            if isinstance(value, Tensor) and value.is_floating_point():
                inputs[name] = value.to(dtype)
        return replace(self.workload, inputs=inputs)

    # -- times ------------------------------------------------------------------------------------------------

    def times(self, name: str | None) -> dict[str, list[float]]:
        """Seconds of each part in every finished round. Empty for a candidate that did not run."""
        if not self.rounds or name not in self.rounds[0]:
            return {}
        return {part: [seconds[name][part] for seconds in self.rounds] for part in self.rounds[0][name]}

    def ratios(self, name: str, base: str | None) -> dict[str, Ratio]:
        """Ratios of a candidate's times to another's, for each part that both have."""
        times, others = self.times(name), self.times(base)
        return {part: ratio(times[part], others[part]) for part in PARTS if part in times and part in others}


def in_dtype(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy of a model with its weights in this dtype. As after loading, buffers that are not saved keep their own.

    No copy in the old dtype is made on the way.
    """
    cast = {
        id(tensor): _retyped(tensor, dtype)
        for tensor in model.state_dict(keep_vars=True).values()
        if tensor.is_floating_point()
    }
    return copy.deepcopy(model, cast)  # `deepcopy` takes what is in its memo for the copy of what has this id


def _retyped(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    retyped = tensor.detach().to(dtype)
    if isinstance(tensor, Parameter):
        return Parameter(retyped, requires_grad=tensor.requires_grad)
    return retyped


@check_call("bench")
def race(
    model: PreTrainedModel,
    inputs: Mapping[str, object],
    methods: Mapping[str, Method],
    new_tokens: AtLeastOne,
    pairs: AtLeastOne,
    after: Callable[[], object] = lambda: None,
) -> dict[str, Ratio]:
    """Compare the time of whole `generate` calls with that of the untouched model, in paired rounds without controls.

    Args:
        model: A model of transformers.
        inputs: The model's inputs, as for `generate`.
        methods: Methods by name.
        new_tokens: Length of every answer, in tokens. It is fixed, so that no method gains by a short answer.
        pairs: Number of rounds, 2 or more, after one warm-up round.
        after: Called after every round, including the warm-up.

    Returns:
        Time ratios by name. `AGAIN` is the untouched model over itself, and shows the noise.
    """
    run = PairedRun(model, Workload(inputs, batch=1, text_tokens=0, sizes=()), new_tokens)
    for name, method in {FULL: None, **methods, AGAIN: None}.items():
        run.candidates[name] = Candidate(name, method)
    for _ in run.run(pairs, after=after):
        pass
    return {name: run.ratios(name, FULL)["whole"] for name in (*methods, AGAIN)}
