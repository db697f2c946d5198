"""The times of one `generate` call, part by part, without a wait that it does not have by itself."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from foveate.ask.generation import generate
from foveate.bench.encoders import around_encoders
from foveate.core.patching import Patcher
from foveate.registry import family_for

__all__ = ["PARTS", "Clock", "clock_of", "timed"]

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
    with watch.watching(family.core, family.text):
        watch.wait()
        start = clock()
        generate(model, inputs, new_tokens, exactly=True, streamer=watch)
        watch.wait()
        end = clock()
    first, last = watch.tokens[0], watch.tokens[-1]
    seconds = {**watch.parts(), "ttft": first - start, "whole": end - start}
    if new_tokens > 1:
        seconds["tpot"] = (last - first) / (new_tokens - 1)
    return {part: seconds[part] for part in PARTS if part in seconds}


class _Stopwatch:
    """Marks when parts begin and end, and when tokens arrive. It is the streamer of `generate`.

    Attributes:
        tokens: When each new token was on the host.
    """

    def __init__(self, device: torch.device, clock: Clock) -> None:
        self.tokens: list[float] = []
        self._clock = clock
        self._on_cpu = device.type == "cpu"
        self._has_events = device.type == "cuda"
        self._spans: list[tuple[str, Any, Any]] = []
        self._decoder_begins: list[Any] = []
        self._prompt_seen = False

    def wait(self) -> None:
        """Until the device has done all it was asked for."""
        if not self._on_cpu:
            torch.accelerator.synchronize()

    def put(self, value: Tensor) -> None:
        """What a streamer receives: the prompt, then token after token."""
        if self._prompt_seen:
            self.tokens.append(self._clock())
        self._prompt_seen = True

    def end(self) -> None:
        """A streamer may hold text back until the end; nothing is held back here."""

    @contextmanager
    def watching(self, core: Any, text: Any) -> Iterator[None]:
        """Mark the functions that encode pictures, and the decoder's first forward."""
        with Patcher() as patches, around_encoders(core, self._tower):
            patches.hook(text, "before", self._before_decoder, prepend=True)
            patches.hook(text, "after", self._after_decoder)
            yield

    def _before_decoder(self, *_: Any) -> None:
        self._decoder_begins.append(self._mark())

    def _after_decoder(self, *_: Any) -> None:
        if len(self._decoder_begins) == 1:
            self._spans.append(("prefill", self._decoder_begins[0], self._mark()))

    @contextmanager
    def _tower(self) -> Iterator[None]:
        start = self._mark()
        yield
        self._spans.append(("tower", start, self._mark()))

    def _mark(self) -> Any:
        """Now: an accelerator's event, or seconds once it has done all it was asked for."""
        if not self._has_events:
            self.wait()
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def parts(self) -> dict[str, float]:
        """Seconds of each part, after `wait`."""
        parts: dict[str, float] = {}
        for part, start, end in self._spans:
            parts[part] = parts.get(part, 0.0) + self._seconds(start, end)
        return parts

    def _seconds(self, start: Any, end: Any) -> float:
        if self._has_events:
            return float(start.elapsed_time(end)) / 1000
        return float(end - start)
