"""Extensions in any order that their list allows do the same, bit for bit."""

import itertools
import random

import pytest
import torch

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.engine import extensions
from tests.models import FAMILIES, TINY, batch, cached, generate, tiny

METHODS = {
    "kept": fv.Random(layers=(1, 3), keep=(0.6, 0.5)),
    "numbered": fv.V2Drop(layers=(1, 3, 4), keep=(0.6, 0.5, 0.3)),
    "numbered, caches cut": "v2drop:layers=1,3,4;keep=0.6,0.5,0.3+finalkv",
    "steps read less": "v2drop:layers=1,3;keep=0.6,0.5+finalkv+read:keep=0.4;layer=2",
    "merged": fv.VisionDrop(
        dominant=14, contextual=3, layer_list=(2, 4), image_token_list=((9, 2), (5, 1)), reference=25
    ),
    "tower, caches cut": fv.MustDrop(
        pruning_layers=(1, 3), global_thr=0.2, individual_thr=0.2, merge_threshold=0.3, merge_window=2
    ),
}
NAMES = tuple(extensions.NEEDED)


def is_allowed(order):
    pairs = [pair for pair in extensions.ORDERED if set(pair) <= {*order}]
    return all(order.index(first) < order.index(second) for first, second in pairs)


ORDERS = [order for order in itertools.permutations(NAMES) if is_allowed(order) and order != NAMES]
CASES = list(itertools.product(METHODS, FAMILIES, ("sdpa", "eager")))
DRAWN = random.Random(0).sample(CASES, 24)


def put_in(order, patch):
    patch.setattr(extensions, "NEEDED", {name: extensions.NEEDED[name] for name in order})


def outcome(name, family, attention):
    """All that a ragged batch, a second turn and beams leave."""
    model, inputs = tiny(family, attention), batch(family, ["titt", "tit"])
    with fv.drop(model, METHODS[name]) as trace, torch.no_grad():
        first = model(**inputs, use_cache=True)
        beams = generate(model, inputs, num_beams=2)
        turn = first
        if not TINY[family].mrope:  # these count a turn's positions from the inputs of the first
            text = torch.full_like(inputs["input_ids"][:, :2], 7)
            mask = torch.cat((inputs["attention_mask"], torch.ones_like(text)), 1)
            turn = model(input_ids=text, attention_mask=mask, **with_cache(cache_in(first)), use_cache=True)
    layers = itertools.chain(*map(cached, cache_in(turn).layers))
    return first.logits, turn.logits, beams.sequences, *beams.logits, *layers, trace.to_json()


@pytest.mark.parametrize(("name", "family", "attention"), DRAWN)
def test_an_order_that_is_drawn_changes_no_bit(name, family, attention, monkeypatch):
    expected = outcome(name, family, attention)
    put_in(random.Random(f"{name} {family}").choice(ORDERS), monkeypatch)
    for one, other in zip(outcome(name, family, attention), expected, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("pair", [pair for pair in extensions.ORDERED if {*pair} <= {*NAMES}])
def test_a_pair_that_is_listed_matters(pair, monkeypatch):
    assert len(extensions.ORDERED) <= 5
    expected = outcome("steps read less", "llava", "sdpa")
    first = NAMES.index(pair[0])
    order = [*NAMES[:first], *(name for name in NAMES[first:] if name != pair[0])]
    order.insert(order.index(pair[1]) + 1, pair[0])
    put_in(order, monkeypatch)
    got = outcome("steps read less", "llava", "sdpa")
    pairs = zip(got, expected, strict=True)
    assert not all(torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two for one, two in pairs)
