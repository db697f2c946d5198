"""A process that runs whole `generate` calls on request, a line of JSON each. Both environments import this file.

A request names an `arm` and may have `tokens` (how many to generate), `pictures` (which, one a sample), `append` (ids
behind the prompt), `logits` (return the first and the last ones) and `calls` (count Python's in a step). Times are
processor seconds.
"""

import cProfile
import ctypes
import gc
import json
import os
import pstats
import sys
import traceback
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from time import process_time
from typing import Any, NamedTuple, TextIO

import torch

LAYERS, WIDTH, HEADS, MLP, VOCABULARY = 32, 768, 6, 2064, 8192
TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 24,
    "num_attention_heads": 4,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 64,
}
SYSTEM, VISION, QUESTION = 35, 576, 5
"""Tokens of the prompt. The authors' code has the first two numbers built in."""
IMAGE = VOCABULARY - 1
"""The id of an image in the models of transformers."""


PROFILED = (2, 14)
"""Tokens between which the calls of Python are counted."""


class Call(NamedTuple):
    """A prompt, and how many tokens to generate.

    Attributes:
        system, question: (samples, tokens) ids before and behind the picture.
        pixels: (samples, 3, 336, 336).
        tokens: How many tokens to generate.
    """

    system: torch.Tensor
    question: torch.Tensor
    pixels: torch.Tensor
    tokens: int

    def ids(self, image: int, count: int) -> torch.Tensor:
        """The prompt's ids with the picture as `count` times the id `image`."""
        return torch.cat([self.system, self.system.new_full((len(self.system), count), image), self.question], 1)


class Arm(NamedTuple):
    """A model, and how to run it.

    Attributes:
        generate: Generates greedily, with the marks as logits processor. May return more columns of the answer.
        projector: The decoder's time begins when this module returns,
        norm: and ends when this one returns.
    """

    generate: Callable[[Call, "Marks"], Mapping[str, Any] | None]
    projector: torch.nn.Module
    norm: torch.nn.Module


class Marks:
    """When the decoder begins and ends, and when each token's logits are there (a logits processor).

    Attributes:
        profile: Counts the calls of Python in some steps, if it is set.
        faults: Page faults of the decoder's prefill: pages of memory that the system gave to the process in it.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.encoded = self.prefilled = 0.0
        self.faults = 0
        self.profile: cProfile.Profile | None = None
        self.times: list[float] = []
        self.logits: list[torch.Tensor] = []

    def watch(self, arm: Arm) -> None:
        """Mark the arm's first pass through the decoder in each call."""
        arm.projector.register_forward_hook(self._encoded)
        arm.norm.register_forward_hook(self._prefilled)

    def _encoded(self, *_: object) -> None:
        self.faults = -getrusage(RUSAGE_SELF).ru_minflt
        self.encoded = process_time()

    def _prefilled(self, *_: object) -> None:
        if not self.prefilled:
            self.prefilled = process_time()
            self.faults += getrusage(RUSAGE_SELF).ru_minflt

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.times.append(process_time())
        self.logits.append(scores.clone())
        if self.profile is not None and len(self.times) == PROFILED[0]:
            self.profile.enable()
        if self.profile is not None and len(self.times) == PROFILED[1]:
            self.profile.disable()
        return scores


def call_of(request: Mapping[str, Any]) -> Call:
    """The prompt of a request. Both sides draw the same."""
    random = torch.Generator().manual_seed(1)
    system = torch.randint(3, VOCABULARY - 192, (1, SYSTEM), generator=random)
    question = torch.randint(3, VOCABULARY - 192, (1, QUESTION), generator=random)
    pixels = torch.randn(2, 3, TOWER["image_size"], TOWER["image_size"], generator=random)
    pictures = request.get("pictures", [0])
    appended = torch.tensor([request.get("append", [])], dtype=torch.long)
    question = torch.cat([question, appended], 1)
    samples = len(pictures)
    return Call(system.repeat(samples, 1), question.repeat(samples, 1), pixels[pictures], request.get("tokens", 17))


def answer(arm: Arm, marks: Marks, request: Mapping[str, Any]) -> dict[str, Any]:
    """Run a call: seconds to the first token, in the decoder and of a step, and the peak of resident memory in MiB."""
    call = call_of(request)
    gc.collect()
    if not keeps_memory():
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    resident = status("VmRSS")
    marks.clear()
    if request.get("calls"):
        marks.profile = cProfile.Profile()
    start = process_time()
    more = arm.generate(call, marks) or {}
    steps = sorted(after - before for before, after in pairwise(marks.times))
    result = {
        "ttft": marks.times[0] - start,
        "decoder": marks.prefilled - marks.encoded,
        "step": steps[len(steps) // 2] if steps else None,
        "faults": marks.faults,
        "peak": status("VmHWM") - resident,
        "tokens": [int(logits[-1].argmax()) for logits in marks.logits],
        "largest": [float(marks.logits[place][0].max()) for place in (0, -1)],
        **more,
    }
    if marks.profile is not None:
        first, last = PROFILED
        result["calls"] = pstats.Stats(marks.profile).total_calls / (last - first)
    if request.get("logits"):
        result["logits"] = [marks.logits[place].tolist() for place in (0, -1)]
    return result


KEEP = {name: str(2**33) for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")}
"""Variables of the environment with which a process keeps the memory that it frees. Peaks are then not measured."""


def keeps_memory() -> bool:
    """Whether this process keeps the memory that it frees."""
    return all(os.environ.get(name) == value for name, value in KEEP.items())


def status(name: str) -> float:
    """A line of the process's status, in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


def answers() -> TextIO:
    """Standard output, from now on only for answers: what the authors' code prints goes to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def serve(arms: Mapping[str, Arm], versions: Mapping[str, str], out: TextIO) -> None:
    """Answer requests until standard input ends. The first line has the versions. Errors are answers too."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    marks = {name: Marks() for name in arms}
    for name, arm in arms.items():
        marks[name].watch(arm)
    print(json.dumps(versions), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        name = request["arm"]
        try:
            result = answer(arms[name], marks[name], request)
        except Exception as error:
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=out, flush=True)
