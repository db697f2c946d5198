"""The times of one `generate` call, part by part, without a wait that it does not have by itself."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from foveate._greedy import generate
from foveate.bench.around import ENCODERS, around
from foveate.registry import family_for

__all__ = ["PARTS", "clock_of", "timed"]

PARTS = {
    "tower": "vision tower and projector",
    "prefill": "decoder's forward over the prompt",
    "ttft": "call to first token",
    "tpot": "each token after the first",
    "whole": "whole call",
}
"""What is timed, in seconds; "tpot" where an answer has two tokens or more."""

Clock = Callable[[], float]


def clock_of(name: str) -> Clock:
    """Wall time, or the processor time of all threads, for a busy machine without an accelerator."""
    return {"wall": time.perf_counter, "cpu": time.process_time}[name]


def timed(model: Any, inputs: Mapping[str, Any], new_tokens: int, clock: Clock = time.perf_counter) -> dict[str, float]:
    """Generate a fixed number of tokens greedily: seconds of each of `PARTS`.

    To be called inside the dropping context. Where tokens arrive, `generate` itself waits for the device; between, an
    accelerator's own events are read afterwards, which wait for nothing.
    """
    family = family_for(model)
    watch = _Stopwatch(family.text.device, clock)
    with watch.around(family.core, family.text):
        watch.wait()
        start = clock()
        generate(model, inputs, new_tokens, exactly=True, streamer=watch)
        watch.wait()
        end = clock()
    first, last = watch.tokens[0], watch.tokens[-1]
    found = {**watch.parts(), "ttft": first - start, "whole": end - start}
    if new_tokens > 1:
        found["tpot"] = (last - first) / (new_tokens - 1)
    return {part: found[part] for part in PARTS if part in found}


class _Stopwatch:
    """Marks when parts begin and end, and when tokens arrive.

    Attributes:
        tokens: When each new token was on the host.
    """

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self.tokens: list[float] = []
        self._clock = clock
        self._device, self._events = device.type, device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []
        self._prompt_seen = False

    def wait(self) -> None:
        """Until the device has done all it was asked for."""
        if self._device != "cpu":
            torch.accelerator.synchronize()

    def put(self, value: Tensor) -> None:
        """What a streamer is given: the prompt, then token after token."""
        if self._prompt_seen:
            self.tokens.append(self._clock())
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing is held back."""

    @contextmanager
    def around(self, core: Any, text: Any) -> Iterator[None]:
        """Stand around the functions that encode pictures, and around the decoder's first forward."""
        begun: list[Any] = []

        def before(*_: Any) -> None:
            begun.append(self._mark())

        def after(*_: Any) -> None:
            if len(begun) == 1:
                self._spans.append(("prefill", begun[0], self._mark()))

        with ExitStack() as stack:
            stack.callback(text.register_forward_pre_hook(before, prepend=True).remove)
            stack.callback(text.register_forward_hook(after).remove)
            stack.enter_context(around(core, ENCODERS, self._tower))
            yield

    @contextmanager
    def _tower(self) -> Iterator[None]:
        start = self._mark()
        yield
        self._spans.append(("tower", start, self._mark()))

    def _mark(self) -> Any:
        if not self._events:
            self.wait()
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def parts(self) -> dict[str, float]:
        """Seconds of each part, after `wait`."""
        found: dict[str, float] = {}
        for part, start, end in self._spans:
            seconds = start.elapsed_time(end) / 1000 if self._events else end - start
            found[part] = found.get(part, 0.0) + seconds
        return found
