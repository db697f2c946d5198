"""Time the parts of a `generate` call without adding host syncs to it."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from foveate._transformers import PreTrainedModel
from foveate.ask.generation import generate
from foveate.core.patching import Patcher
from foveate.registry import family_for

PARTS = {
    "tower": "vision tower and projector",
    "prefill": "decoder's forward over the prompt",
    "launches": "host's share of the prefill, until all its kernels are launched",
    "ttft": "call to first token",
    "tpot": "each token after the first",
    "whole": "whole call",
}
"""The timed parts, in seconds. "tpot" needs answers of two tokens or more; "launches" is for CUDA only."""
ENCODERS = ("get_image_features", "get_video_features")
"""Methods of a model's core that encode images and videos; a model may lack one."""

Timer = Callable[[], float]


def clock_of(name: str) -> Timer:
    """The clock "wall", or "cpu": processor time of all threads, for a busy machine without an accelerator."""
    return {"wall": time.perf_counter, "cpu": time.process_time}[name]


def time_parts(
    model: PreTrainedModel, inputs: Mapping[str, object], new_tokens: int, clock: Timer = time.perf_counter
) -> dict[str, float]:
    """Generate a fixed number of tokens greedily, and return the seconds of each of `PARTS`.

    Call it inside the `drop` context. `generate` itself syncs with the device at each token; the parts before are timed
    with CUDA events, which are read at the end and need no sync.
    """
    family = family_for(model)
    watch = Stopwatch(family.text.device, clock)
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


class Stopwatch:
    """Record when parts begin and end, and when tokens arrive. Pass it to `generate` as the streamer.

    Attributes:
        tokens: The time at which each new token arrived on the host.
    """

    def __init__(self, device: torch.device, clock: Timer) -> None:
        self.tokens: list[float] = []
        self._clock = clock
        self._on_cpu = device.type == "cpu"
        self._has_events = device.type == "cuda"
        self._spans: list[tuple[str, Any, object]] = []
        self._decoder_begins: list[object] = []
        self._launched: float | None = None
        self._encoding = False
        self._prompt_seen = False

    def wait(self) -> None:
        """Wait until the device has finished all its work."""
        if not self._on_cpu:
            torch.accelerator.synchronize()

    def put(self, value: Tensor) -> None:
        """Receive the prompt, then each token (the streamer's interface)."""
        if self._prompt_seen:
            self.tokens.append(self._clock())
        self._prompt_seen = True

    def end(self) -> None:
        """Do nothing: a streamer may hold text back until the end, but this one does not."""

    @contextmanager
    def watching(self, core: object, text: Any) -> Iterator[None]:
        """Record the functions that encode images and videos, and the decoder's first forward, inside this context."""
        with Patcher() as patches:
            for name in ENCODERS:
                if hasattr(core, name):
                    patches.wrap(core, name, self._encode)
            patches.hook(text, "before", self._before_decoder, prepend=True)
            patches.hook(text, "after", self._after_decoder)
            yield

    def _encode(self, original: Callable[..., object], *args: object, **kwargs: object) -> object:
        """Record an encoding call. Ignores nested calls: a model may encode a video with its function for images."""
        if self._encoding:
            return original(*args, **kwargs)
        self._encoding = True
        start = self._mark()
        try:
            return original(*args, **kwargs)
        finally:
            self._spans.append(("tower", start, self._mark()))
            self._encoding = False

    def _before_decoder(self, *_: object) -> None:
        self._decoder_begins.append(self._mark())
        if self._has_events and self._launched is None:
            self._launched = -self._clock()

    def _after_decoder(self, *_: object) -> None:
        if len(self._decoder_begins) != 1:
            return
        if self._launched is not None:
            self._launched += self._clock()
        self._spans.append(("prefill", self._decoder_begins[0], self._mark()))

    def _mark(self) -> object:
        """The present time: a CUDA event, or elsewhere the clock's seconds after a sync."""
        if not self._has_events:
            self.wait()
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def parts(self) -> dict[str, float]:
        """Seconds of each part. Call `wait` first."""
        parts = {}
        if self._launched is not None:
            parts = {"launches": self._launched}
        for part, start, end in self._spans:
            if self._has_events:
                seconds = start.elapsed_time(end) / 1000
            else:
                seconds = end - start
            parts[part] = parts.get(part, 0.0) + float(seconds)
        return parts
