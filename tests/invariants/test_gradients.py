"""Gradients under dropping are those of a full-length run whose masks hide what has left, or finite differences."""

import gc
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

import foveate as fv
from foveate.contract import CacheStage, ImageStage, LayerStage
from tests.gradients import (
    Float64,
    assert_alike,
    float64_model,
    gradients_of,
    in_float64,
    pad_right,
    step,
    text_labels,
)
from tests.invariants.settings import EVERYTHING, EXAMPLES, STAGES, runs_on, works
from tests.models import FAMILIES, TINY, batch, is_vision, made_of

CHOSEN = ("v2drop-0", "fastv-0", "divprune-1", "vidcom2-0", "random-0", "image cut", "layer cut")
"""Settings that must have the masks for reference."""


def pairs():
    """Every setting on every family, with labels on the answer and on all text; in the gate each on one family."""
    for name in EXAMPLES:
        families = [family for family in FAMILIES if runs_on(name, family)]
        if EVERYTHING:
            yield from ((name, family, last, side) for family in families for last, side in PLACES)
        else:
            place = list(EXAMPLES).index(name)
            yield name, families[place % len(families)], *PLACES[place // len(families) % len(PLACES)]


PLACES = [(None, "left"), (2, "right")]
"""The last tokens that have labels, None for all text; and where the padding is."""


def masked_loss(model, inputs, labels, trace):
    """The loss of a full-length run in which the mask of each layer hides the columns that have left."""
    layers, ids = model.get_decoder().layers, inputs["input_ids"]
    gone = torch.zeros(len(layers) + 1, *ids.shape, dtype=torch.bool)  # of those that arrive at a layer
    for stage in trace.stages:
        if stage.where == "kv":
            continue
        for sample, kept in enumerate(stage.kept):
            columns = is_vision(ids[sample]).nonzero()[:, 0]
            left = torch.ones(len(columns), dtype=torch.bool)
            left[kept] = False
            gone[stage.layer or 0 :, sample, columns[left]] = True
    # A layer that carries a state has no mask, so columns that have left, and padding, go behind all others.
    orders = (gone | (inputs["attention_mask"] == 0)).long().argsort(dim=-1, stable=True)[..., None]
    identity = torch.eye(ids.shape[1], dtype=torch.bool)

    def hide(layer, args, settings, index):
        mask = settings["attention_mask"]
        mask = torch.ones_like(identity).tril() if mask is None else mask
        seen = mask if mask.dtype == torch.bool else mask == 0
        return args, {**settings, "attention_mask": seen & ~gone[index][:, None, None] | identity}

    def reorder(layer, args, settings, index):
        return (args[0].take_along_dim(orders[index], 1),), {**settings, "attention_mask": None}

    def restore(layer, args, output, index):
        return output.take_along_dim(orders[index].argsort(1), 1)

    hooks = []
    for index, layer in enumerate(layers):
        attends = hasattr(layer, "self_attn")
        change = partial(hide if attends else reorder, index=index)
        hooks.append(layer.register_forward_pre_hook(change, with_kwargs=True))
        if not attends:
            hooks.append(layer.register_forward_hook(partial(restore, index=index)))
    try:
        logits = model(**inputs, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    # The last row that is left at or before a column answers for it.
    answering = torch.arange(ids.shape[1]).masked_fill(gone[-1], -1).cummax(dim=1).values
    logits = logits.take_along_dim(answering[..., None], 1)
    return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def has_masks(name, trace):
    """Whether masks say all that dropping does: nothing is numbered anew, merged, or left out of the tower."""
    kinds = (ImageStage, LayerStage, CacheStage)
    if not all(isinstance(stage, kinds) and stage.positions == "keep" for stage in STAGES[name]):
        return False
    for stage in trace.stages:
        for origin, assign in zip(stage.origin, stage.assign, strict=True):
            if assign is not None and ((origin < 0).any() or (assign >= 0).sum() != len(origin)):
                return False
    return True


def check_difference(model, gradients, loss_at, size=1e-6):
    """The slope of the loss along the gradient and a random direction, of length 1 each, is that of the gradient."""
    weights = {name: weight for name, weight in model.named_parameters() if name in gradients}
    rng = torch.Generator().manual_seed(0)
    steps = [gradients, {name: torch.randn(weight.shape, generator=rng).double() for name, weight in weights.items()}]
    norms = [torch.stack([part.norm() for part in direction.values()]).norm() for direction in steps]
    way = {name: steps[0][name] / norms[0] + steps[1][name] / norms[1] for name in weights}
    slope = sum((gradients[name] * way[name]).sum() for name in weights)
    losses, before = [], {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        for sign in (1, -1):
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(before[name] + sign * size * way[name])
                losses.append(loss_at())
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])
    torch.testing.assert_close((losses[0] - losses[1]) / (2 * size), slope, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("name", "family", "last", "side"), list(pairs()))
def test_gradients_are_those_of_masks_or_of_finite_differences(name, family, last, side):
    model, method = float64_model(family), EXAMPLES[name]
    words = ("titit", "tit") if works(name, family) else ("tvtt", "tvt")
    inputs = in_float64(batch(family, words))
    inputs = pad_right(family, inputs) if side == "right" else inputs
    labels = text_labels(inputs, last)
    with Float64():
        loss, gradients, trace = step(model, inputs, method, labels)
        if has_masks(name, trace):
            expected = masked_loss(model, inputs, labels, trace)
            torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
            assert_alike(gradients, gradients_of(model, expected))
            return
        assert name not in CHOSEN
        kept = [stage.kept for stage in trace.stages]

        def loss_at():
            with fv.drop(model, method) as again:
                loss = model(**inputs, labels=labels, use_cache=False).loss
            for stage, was in zip(again.stages, kept, strict=True):
                assert all(map(torch.equal, stage.kept, was))
            return loss

        check_difference(model, gradients, loss_at)


def test_a_context_holds_no_more_after_500_steps_than_after_100():
    config = TINY["llava"].config()
    config.text_config.num_hidden_layers = 2
    model, inputs = made_of("llava", config), batch("llava", ["tit"])
    labels, optimizer = text_labels(inputs), torch.optim.SGD(model.parameters(), lr=1e-3)
    sizes = {}
    with fv.drop(model, "divprune", retention=0.5) as trace:
        for index in range(1, 501):
            model(**inputs, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if index in (100, 500):
                sizes[index] = live_tensors()
    assert len(trace.history) == 100
    # One tensor held for each step would be 400. What earlier tests left in this process comes and goes.
    tensors, size = (late - early for late, early in zip(sizes[500], sizes[100], strict=True))
    assert tensors < 100
    assert size < 1e6


def live_tensors():
    """How many tensors there are, and their bytes; without those of compilers, which have no size."""
    gc.collect()
    tensors = [thing for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
    return len(tensors), sum(tensor.nbytes for tensor in tensors)
