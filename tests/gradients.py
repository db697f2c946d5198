"""Training steps in float64: the same inputs padded on either side, their labels, and the gradients of a loss."""

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import foveate as fv
from tests.models import TINY, is_vision, tiny

Gradients = dict[str, Tensor]
Inputs = dict[str, Any]


class Float64(TorchFunctionMode):
    """Everything in float64, also the norms, softmaxes and losses that models compute in float32."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.float:
            return args[0].double()
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        kwargs = {name: torch.float64 if arg is torch.float32 else arg for name, arg in (kwargs or {}).items()}
        return function(*args, **kwargs)


@cache
def float64_model(family: str) -> Any:
    """In training mode. Experts run one by one, since torch's grouped product knows no float64."""
    model = copy.deepcopy(tiny(family)).double().train()
    model.config.get_text_config()._experts_implementation = "eager"
    return model


def in_float64(inputs: Inputs) -> Inputs:
    return {name: value.double() if torch.is_floating_point(value) else value for name, value in inputs.items()}


def pad_right(family: str, inputs: Inputs) -> Inputs:
    """A left-padded batch with its padding on the right."""
    order = inputs["attention_mask"].argsort(dim=1, descending=True, stable=True)
    ids, mask = (inputs[name].gather(1, order) for name in ("input_ids", "attention_mask"))
    return inputs | {"input_ids": ids, "attention_mask": mask} | (TINY[family].extra(ids) if family in TINY else {})


def text_labels(inputs: Inputs, last: int | None = None) -> Tensor:
    """The text of each sample, or its `last` tokens, without its first token, which a pad may predict."""
    place = inputs["attention_mask"].cumsum(1)  # 0 0 1 2 3, or 1 2 3 3 3
    hidden = is_vision(inputs["input_ids"]) | (inputs["attention_mask"] == 0) | (place == 1)
    if last is not None:
        hidden |= place <= place[:, -1:] - last
    return inputs["input_ids"].masked_fill(hidden, -100)


def gradients_of(model: Any, loss: Tensor) -> Gradients:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return gradients_now(model)


def gradients_now(model: Any) -> Gradients:
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def step(model: Any, inputs: Inputs, method: Any, labels: Tensor, **settings: Any) -> tuple[Tensor, Gradients, Any]:
    """The loss and the gradients of one step, and its trace."""
    with fv.drop(model, method) as trace:
        loss = model(**inputs, labels=labels, **{"use_cache": False, **settings}).loss
    return loss.detach(), gradients_of(model, loss), trace


def assert_alike(gradients: Gradients, expected: Gradients, most: float = 1e-12) -> None:
    """The same weights have gradients, and no gradient is off by more than this part of their common norm."""
    assert gradients.keys() == expected.keys()
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    assert norm > 0
    off = {name: float((gradients[name] - expected[name]).norm() / norm) for name in expected}
    assert max(off.values()) <= most, max(off.items(), key=lambda item: item[1])
