"""One prefill under a method, and what it left."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

import foveate as fv
from foveate.contract.method import Method
from tests.invariants.settings import CORE, EXAMPLES, FIRST as FIRST_PAIRS

SOME = ("llava", "qwen3_vl", "gemma3")  # 1-D and M-RoPE, deepstack, sliding windows
FIRST = EXAMPLES
"""Examples of each kind of stage and of each method there is."""
KINDS = ("v2drop-0", "visiondrop-0", "mustdrop-0")
"""One that reads hidden states, one that reads the tower and attention, one that merges early and reads text."""
MANY = (*CORE, "llava_next", "video_llava", "qwen2_5_vl", "internvl")
SETUPS = [
    (name, family)
    for name, family in FIRST_PAIRS
    if (name in KINDS and family in MANY) or family in ("llava", "qwen3_vl")
]
"""Methods on families: each kind on many families, each method on two."""
METHOD = fv.V2Drop(layers=(1, 3, 4), keep=(0.6, 0.5, 0.3))


@torch.no_grad()
def prefill(model: Any, inputs: dict[str, Any], method: Method) -> tuple[Tensor, list[list[list[int]]]]:
    """Logits of the last column, (samples, vocabulary), and the tokens each sample kept at each stage."""
    with fv.drop(model, method) as trace:
        logits = model(**inputs).logits[:, -1]
    return logits, [[kept.tolist() for kept in stage.kept] for stage in trace.stages]


def same_prefill(model: Any, other: Any, inputs: dict[str, Any], method: Method, **close: float) -> Tensor:
    """The logits of a model that keeps what another one keeps, and computes the same, or nearly."""
    logits, kept = prefill(model, inputs, method)
    expected, known = prefill(other, inputs, method)
    torch.testing.assert_close(logits, expected, **close or {"atol": 0, "rtol": 0})
    assert kept == known
    return logits


def until(happens: Callable[[], Any], seconds: float = 60) -> None:
    """Wait until something happens in another thread."""
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.001)


def elsewhere(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return what a function returns or raises in another thread."""
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(work, *args, **kwargs)
        return call.exception(60) or call.result()
