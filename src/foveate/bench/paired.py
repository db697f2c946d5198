"""A paired run: what every candidate holds and processes, then interleaved rounds of all of them."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch

from foveate._transformers import PreTrainedModel
from foveate.ask.generation import generate
from foveate.bench.bare import bare, obstacle
from foveate.bench.memory import Held, hold
from foveate.bench.stopwatch import PARTS, Clock, time_parts
from foveate.bench.timing import Ratio, ratio, rounds
from foveate.bench.workload import Workload
from foveate.contract.method import Method
from foveate.engine.replay import MOST_TAPES
from foveate.engine.session import drop_or_not
from foveate.engine.trace import Trace
from foveate.errors import BudgetError, InputError, UnsupportedError
from foveate.methods.random import Random, same_schedule
from foveate.methods.uniform import Uniform
from foveate.registry import family_for

FULL, AGAIN, KEEP_ALL = "untouched", "untouched again", "keep-all"
GRAPH = "{} as a graph"
"""The name of the candidate that runs another's tower, prompt and steps as CUDA graphs."""


@dataclass(slots=True)
class Candidate:
    """What is timed.

    Attributes:
        name: Of its row.
        method: What drops; None for the untouched model.
        control: The name of the candidate with random dropping at the same schedule.
        bare: The name of the candidate that runs the layers alone on as many rows, if there is one.
        rows: Of each layer, for such a candidate; see `foveate.bench.bare`. What it holds is that of the first method
            with this schedule.
        held: What it holds, once that is measured; of a graph, what it holds where it runs plainly.
        graphs: Whether its tower, prompt and steps run as CUDA graphs.
        tower: How its tower then ran: "replayed", or why not.
        failed: Why it cannot run here, such as for want of memory.
    """

    name: str
    method: Method | None = None
    control: str | None = None
    bare: str | None = None
    rows: tuple[int, ...] | None = None
    held: Held | None = None
    graphs: bool = False
    tower: str = ""
    failed: str = ""


@dataclass(slots=True)
class PairedRun:
    """A model, a prompt, and the candidates.

        run = PairedRun(model, workload, new_tokens=16)
        run.prepare(methods)
        for finished in run.run(pairs=30): ...
        rows = rows_of(run)

    Attributes:
        model: In evaluation mode.
        workload: What it is given.
        new_tokens: Length of every answer.
        clock: What tells seconds.
        candidates: By name, the untouched model first and again last.
        rounds: Of each finished round, seconds by candidate and part.
        obstacle: Why there are no bare layers beside the methods, if they were asked for and cannot be run.
    """

    model: PreTrainedModel
    workload: Workload
    new_tokens: int
    clock: Clock = time.perf_counter
    candidates: dict[str, Candidate] = field(default_factory=dict)
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)
    obstacle: str = ""

    # -- who runs ---------------------------------------------------------------------------------------------

    def prepare(
        self,
        methods: Mapping[str, Method],
        *,
        controls: bool = True,
        bare: bool = True,
        cuda_graphs: bool = False,
        starting: Callable[[str], object] = lambda name: None,
    ) -> None:
        """Measure what every candidate holds, and put the controls beside them.

        Args:
            methods: By the names of their rows.
            controls: Whether keep-all runs too, and random dropping beside every method.
            bare: Whether the layers alone are run on as many rows too, wherever they can be.
            cuda_graphs: Whether the untouched model and every method run as CUDA graphs too.
            starting: Called with the name of each candidate before it runs.
        """
        if bare:
            self.obstacle = obstacle(family_for(self.model), self.workload.inputs)
        full = self._add(Candidate(FULL), starting)
        if controls:
            self._add(Candidate(KEEP_ALL, Uniform(layers=(0,), keep=(1.0,))), starting)
        for name, method in methods.items():
            candidate = self._add(Candidate(name, method), starting)
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
        """The candidate that drops at random at a method's schedule: made unless there is one."""
        control = same_schedule(method, held.tokens, self.workload.vision_tokens)
        for candidate in self.candidates.values():
            if candidate.method == control:
                return candidate.name
        return self._add(Candidate(f"{name}: random", control), starting).name

    def _add_bare(self, candidate: Candidate, held: Held) -> None:
        """Let the layers alone run beside a candidate and its control, if it drops at all."""
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
        """Let candidates run as graphs too, which are recorded here: timed rounds only replay them."""
        graphs = []
        for name in names:
            plain = self.candidates[name]
            graph = Candidate(GRAPH.format(name), plain.method, held=plain.held, graphs=True)
            self.candidates[graph.name] = graph
            graphs.append(graph)
        for graph in 3 * graphs:  # seen, recorded, replayed
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
                candidate.held = hold(self.model, self.workload, trace)
        except torch.OutOfMemoryError:
            candidate.failed = "out of memory"
        except (UnsupportedError, BudgetError) as error:
            candidate.failed = str(error)
        return candidate

    # -- how they run -----------------------------------------------------------------------------------------

    def run(self, pairs: int, seed: int = 0, after: Callable[[], object] = lambda: None) -> Iterator[int]:
        """Time every candidate once a round; yields how many rounds are finished, after each.

        Args:
            pairs: Rounds, after one of warm-up.
            seed: Of the order.
            after: Called after every round, that of warm-up included.

        Raises:
            InputError: If memory runs out; finished rounds stay.
        """
        calls: dict[str, Callable[[], dict[str, float]]] = {}
        for candidate in self.candidates.values():
            if not candidate.failed:
                calls[candidate.name] = partial(self._time, candidate)
        neighbours = {KEEP_ALL: FULL}  # a method's controls are timed right beside it
        for candidate in self.candidates.values():
            for control in filter(None, (candidate.control, candidate.bare)):
                neighbours.setdefault(control, neighbours.get(candidate.name, candidate.name))
        self.rounds = []
        gc.collect()
        gc.disable()  # collected between rounds
        try:
            for seconds in rounds(calls, pairs, seed, after, neighbours):
                self.rounds.append(seconds)
                gc.collect()
                yield len(self.rounds)
        except torch.OutOfMemoryError as error:
            raise InputError(
                "Out of memory while timing. Take a smaller batch, fewer images or fewer new tokens."
            ) from error
        finally:
            gc.enable()

    def _time(self, candidate: Candidate) -> dict[str, float]:
        tokens = self.new_tokens if candidate.rows is None else 1  # no token can follow the first of bare layers
        began = self.clock()
        with self._context(candidate):
            opened = self.clock()
            parts = time_parts(self.model, self.workload.inputs, tokens, self.clock)
            answered = self.clock()
        if candidate.rows is not None:
            return {part: parts[part] for part in ("tower", "prefill", "ttft") if part in parts}
        if candidate.method is None and not candidate.graphs:
            return parts
        return {**parts, "context": opened - began + self.clock() - answered}

    def _context(self, candidate: Candidate) -> AbstractContextManager[Trace | None]:
        """The model as the candidate runs it, and the trace of what it drops."""
        if candidate.method is not None or candidate.graphs:
            return drop_or_not(self.model, candidate.method, candidate.graphs)
        if candidate.rows is not None:
            return bare(family_for(self.model), candidate.rows)
        return nullcontext()

    # -- what they took ---------------------------------------------------------------------------------------

    def times(self, name: str | None) -> dict[str, list[float]]:
        """Seconds of each part in every finished round; nothing for one that did not run, or before any round."""
        if not self.rounds or name not in self.rounds[0]:
            return {}
        return {part: [seconds[name][part] for seconds in self.rounds] for part in self.rounds[0][name]}

    def ratios(self, name: str, base: str | None) -> dict[str, Ratio]:
        """A candidate's times over those of another, of the parts that both have."""
        times, others = self.times(name), self.times(base)
        return {part: ratio(times[part], others[part]) for part in PARTS if part in times and part in others}


def race(
    model: PreTrainedModel,
    inputs: Mapping[str, object],
    methods: Mapping[str, Method],
    new_tokens: int,
    pairs: int,
    after: Callable[[], object] = lambda: None,
) -> dict[str, Ratio]:
    """Whole `generate` calls of methods over the untouched model's: a paired run of one part, without controls.

    Args:
        model: Of transformers.
        inputs: What it is given.
        methods: By name.
        new_tokens: The length of every answer; fixed, so that no method wins by a short one.
        pairs: Rounds, 2 or more, after one of warm-up.
        after: Called after every round, that of warm-up included.

    Returns:
        By name; under `AGAIN` the untouched model over itself: how far from 1 noise alone goes.
    """
    run = PairedRun(model, Workload(inputs, batch=1, text_tokens=0, sizes=()), new_tokens)
    for name, method in {FULL: None, **methods, AGAIN: None}.items():
        run.candidates[name] = Candidate(name, method)
    for _ in run.run(pairs, after=after):
        pass
    return {name: run.ratios(name, FULL)["whole"] for name in (*methods, AGAIN)}
