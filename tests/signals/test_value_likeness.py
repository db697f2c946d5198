"""`ValueLikeness`: the model's own values of the layer that ran, compared in plain Python."""

import pytest
import torch

from foveate.contract import ValueLikeness
from foveate.families.tap import tapped_layer
from tests.models import FAMILIES, TINY, batch, is_vision, tiny
from tests.signals import read

LAYER = 3
WAYS = (
    ValueLikeness(),
    ValueLikeness(skip=0, seeds=0.2),
    ValueLikeness(skip=99, among="all"),
    ValueLikeness(skip=1, seeds=0.1, among="all"),
)


def by_hand(values, own, behind, signal):
    """(tokens, 2) of (heads, rows, size) values in double precision."""

    def mean(rows):
        total = torch.zeros(len(own), dtype=torch.float64)
        for row in rows:
            for head in values:
                whom = own if signal.among == "image" else range(len(head))
                products = torch.stack([head[row] @ head[other] for other in whom]) / head.shape[1] ** 0.5
                shares = dict(zip(whom, products.softmax(dim=0).tolist(), strict=True))
                total += torch.tensor([shares[token] for token in own], dtype=torch.float64) / len(values)
        return total / len(rows)

    asking = behind[signal.skip :] or behind
    first = mean(asking)
    seeds = sorted(range(len(own)), key=lambda token: -float(first[token]))[: signal.seed_count(len(own))]
    return torch.stack((first, mean([*asking, *(own[token] for token in seeds)])), dim=1)


@pytest.mark.parametrize("family", [family for family in FAMILIES if LAYER - 1 not in TINY[family].recurrent])
def test_it_is_made_of_the_models_own_values(family):
    model, inputs, projected = tiny(family), batch(family, ["titt"]), {}
    of_samples = read(model, inputs, WAYS, unit="image")
    layer = model.get_decoder().layers[LAYER - 1]
    with tapped_layer(layer, lambda *heads: projected.update(values=heads[3])), torch.no_grad():
        model(**inputs)
    columns = is_vision(inputs["input_ids"][0]).nonzero()[:, 0].tolist()
    start, values = 0, projected["values"][0].double()
    fixed = len(columns) - sum(len(image[WAYS[0]]) for image in of_samples)
    if fixed:  # some of its tokens always stay, and are text to foveate
        return
    for image in of_samples:
        own = columns[start : start + len(image[WAYS[0]])]
        start += len(own)
        text = [row for row in range(own[-1] + 1, values.shape[1]) if row not in columns]
        for signal, likeness in image.items():
            assert likeness.dtype == torch.float32
            torch.testing.assert_close(likeness.double(), by_hand(values, own, text, signal), atol=1e-6, rtol=1e-4)


def test_without_text_behind_it_is_zero():
    (of_sample,) = read(tiny("llava"), batch("llava", ["ti"]), WAYS, unit="image")
    assert all(not likeness.any() for likeness in of_sample.values())
