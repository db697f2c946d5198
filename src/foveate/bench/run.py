"""A bench run: what every candidate holds and processes, then interleaved rounds of all of them."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from foveate.bench.bare import bare, obstacle
from foveate.bench.held import Held, hold
from foveate.bench.stopwatch import Clock, timed
from foveate.bench.timing import rounds
from foveate.bench.workload import Workload
from foveate.contract.follow import cached_layers, in_order
from foveate.contract.method import Method
from foveate.contract.stages import Shape
from foveate.engine.session import drop
from foveate.engine.trace import Trace
from foveate.errors import BudgetError, InputError, UnsupportedError
from foveate.methods.random import Random, same_schedule
from foveate.methods.uniform import Uniform
from foveate.registry import family_for

__all__ = ["AGAIN", "EAGER", "FULL", "KEEP_ALL", "Candidate", "Session"]

FULL, AGAIN, KEEP_ALL, EAGER = "untouched", "untouched again", "keep-all", "eager attention"
BARE_PARTS = ("tower", "prefill", "ttft")  # what bare layers are timed in


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
        kernel: The attention implementation it runs with, where that is not the model's own.
        held: What it holds, once that is measured.
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

    @property
    def is_untouched(self) -> bool:
        """Whether it is the base of every ratio."""
        return self.name == FULL


@dataclass(slots=True)
class Session:
    """A model, a prompt, and the candidates.

        session = Session(model, workload, new_tokens=16)
        session.prepare(methods)
        for finished in session.run(pairs=30): ...
        summary = summarise(session)

    Attributes:
        model: In evaluation mode.
        workload: What it is given.
        new_tokens: Length of every answer.
        clock: What tells seconds.
        candidates: By name, the untouched model first and again last.
        times: Of each candidate, a mapping of parts to seconds for every finished round.
        asked: How many rounds were asked for.
        obstacle: Why there are no bare layers beside the methods, if they were asked for and cannot be run.
        measures_peak: Whether the most bytes at once are measured.
    """

    model: Any
    workload: Workload
    new_tokens: int
    clock: Clock = time.perf_counter
    candidates: dict[str, Candidate] = field(default_factory=dict)
    times: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    asked: int = 0
    obstacle: str = ""
    measures_peak: bool = True

    @property
    def finished(self) -> int:
        """Rounds that every candidate has run."""
        return len(self.times.get(FULL, ()))

    # -- who runs ---------------------------------------------------------------------------------------------

    def prepare(
        self,
        methods: Mapping[str, Method],
        *,
        bare: bool = True,
        eager: bool = False,
        checks: bool = True,
        peak: bool = True,
        starting: Callable[[str], object] = lambda name: None,
    ) -> None:
        """Measure what every candidate holds, and put the controls beside them.

        Args:
            methods: By the names of their rows.
            bare: Whether the layers alone are run on as many rows too, wherever they can be.
            eager: Whether the first method's schedule is run once more at random under eager attention: what a method
                that needs attention matrices pays for them.
            checks: Whether the untouched model runs a second time, and keep-all once.
            peak: Whether the most bytes at once are measured.
            starting: Called with the name of each candidate before it runs.
        """
        self.measures_peak = peak
        if bare:
            self.obstacle = obstacle(family_for(self.model), self.workload.inputs)
        self._add(Candidate(FULL), starting)
        if checks:
            self._add(Candidate(KEEP_ALL, Uniform(layers=(0,), keep=(1.0,))), starting)
        for name, method in methods.items():
            candidate = self._add(Candidate(name, method), starting)
            if candidate.held is None:
                continue
            if not isinstance(method, Random):
                candidate.control = self._control(name, method, candidate.held, starting)
            if bare and not self.obstacle:
                self._add_bare(candidate, candidate.held)
        if eager:
            self._add(Candidate(EAGER, self._first_schedule(), kernel="eager"), starting)
        if checks:
            self.candidates[AGAIN] = Candidate(AGAIN, held=self.candidates[FULL].held)

    def _control(self, name: str, method: Method, held: Held, starting: Callable[[str], object]) -> str:
        """The candidate that drops at random at a method's schedule: made unless there is one."""
        depth = len(family_for(self.model).layers)
        cached = cached_layers(in_order(method.stages(Shape(depth))))
        control = same_schedule(held.tokens, self.workload.vision_tokens, cached)
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

    def _first_schedule(self) -> Method | None:
        """The first method's schedule, at random."""
        for candidate in self.candidates.values():
            if candidate.control:
                return self.candidates[candidate.control].method
        return None

    def _add(self, candidate: Candidate, starting: Callable[[str], object]) -> Candidate:
        starting(candidate.name)
        self.candidates[candidate.name] = candidate
        try:
            with self._context(candidate) as trace:
                candidate.held = hold(self.model, self.workload, trace, self.measures_peak)
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
            InputError: If memory runs out; finished rounds stay in `times`.
        """
        self.asked = pairs
        calls: dict[str, Callable[[], dict[str, float]]] = {}
        for candidate in self.candidates.values():
            if not candidate.failed:
                calls[candidate.name] = partial(self._time, candidate)
        self.times = {name: [] for name in calls}
        gc.collect()
        gc.disable()  # collected between rounds
        try:
            for answers in rounds(calls, pairs, seed, after, self._neighbours()):
                for name, parts in answers.items():
                    self.times[name].append(parts)
                gc.collect()
                yield self.finished
        except torch.OutOfMemoryError as error:
            raise InputError(
                "Out of memory while timing. Take a smaller batch, fewer images or fewer new tokens."
            ) from error
        finally:
            gc.enable()

    def _neighbours(self) -> dict[str, str]:
        """Whom each candidate is timed right beside: a method's controls beside it, keep-all beside the untouched."""
        neighbours = {KEEP_ALL: FULL}
        for candidate in self.candidates.values():
            for control in (candidate.control, candidate.bare):
                if control is not None:
                    neighbours.setdefault(control, neighbours.get(candidate.name, candidate.name))
        return neighbours

    def _time(self, candidate: Candidate) -> dict[str, float]:
        with self._context(candidate):
            if candidate.rows is None:
                return timed(self.model, self.workload.inputs, self.new_tokens, self.clock)
            parts = timed(self.model, self.workload.inputs, 1, self.clock)  # no token can follow the first
            return {part: parts[part] for part in BARE_PARTS if part in parts}

    @contextmanager
    def _context(self, candidate: Candidate) -> Iterator[Trace | None]:
        """The model as the candidate runs it, and the trace of what it drops; entering and leaving is not timed."""
        with self._attending(candidate.kernel):
            if candidate.method is not None:
                with drop(self.model, candidate.method) as trace:
                    yield trace
                return
            alone = nullcontext() if candidate.rows is None else bare(family_for(self.model), candidate.rows)
            with alone:
                yield None

    @contextmanager
    def _attending(self, kernel: str | None) -> Iterator[None]:
        """The decoder with another attention implementation, if one is given."""
        text = family_for(self.model).text
        before = text.config._attn_implementation
        if kernel is not None:
            text.set_attn_implementation(kernel)
        try:
            yield
        finally:
            if kernel is not None:
                text.set_attn_implementation(before)
