"""One prefill under a method, and what it left."""

from typing import Any

import torch
from torch import Tensor

import foveate as fv
from foveate.methods.base import Method
from tests.invariants.settings import EXAMPLES

FIRST = {name: example for name, example in EXAMPLES.items() if name.endswith("-0")}
"""One example of each method there is."""
METHOD = fv.V2Drop(layers=(1, 3, 4), keep=(0.6, 0.5, 0.3))


@torch.no_grad()
def prefill(model: Any, inputs: dict[str, Any], method: Method) -> tuple[Tensor, list[list[list[int]]]]:
    """Logits of the last column, (samples, vocabulary), and the tokens each sample kept at each stage."""
    with fv.drop(model, method) as trace:
        logits = model(**inputs).logits[:, -1]
    return logits, [[kept.tolist() for kept in stage.kept] for stage in trace.stages]
