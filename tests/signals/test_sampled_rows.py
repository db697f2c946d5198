"""Attention that a sample of an image's vision rows pays: which rows these are, against a plain recompute."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from foveate.contract import Attention
from tests import oracle
from tests.models import batch, is_vision, tiny
from tests.signals import handed, read

CLOSE = {"atol": 2e-6, "rtol": 1e-4}
LAYER, FEW = 3, 3
KINDS = ["llava", "llava_onevision", "qwen2_5_vl", "gemma3"]


def ways(sample=FEW, both_ways=False):
    """Every way to reduce what these rows pay, before and behind the layer that pays."""
    return tuple(
        Attention(rows="vision", over=over, renormalise=renormalise, sample=sample, both_ways=both_ways, **options)
        for over in ("mean", "sum", "max", "share")
        for renormalise in (False, True)
        for options in ({"layer": "next"}, {"layer": "ran"}, {"layer": "next", "heads": "max"})
    )


def middles(columns, count):
    """Of an image's columns those in the middle of `count` equal parts, all if there are no more."""
    if count >= len(columns):
        return columns
    return [columns[math.floor((part + 0.5) * len(columns) / count)] for part in range(count)]


def images_of(inputs):
    """Columns of each image of the only sample: text stands between them."""
    columns = is_vision(inputs["input_ids"][0]).nonzero()[:, 0].tolist()
    images = [[columns[0]]]
    for before, column in itertools.pairwise(columns):
        if column > before + 1:
            images.append([])
        images[-1].append(column)
    return images


def plain(signal, attention, columns):
    """The signal of an image from a whole attention matrix, (heads, rows, columns), row by row."""
    if signal.heads == "max":  # of what each head comes to
        each = [plain(replace(signal, heads="mean"), head[None], columns) for head in attention]
        return torch.stack(each).amax(dim=0)
    paid = attention.mean(dim=0)
    rows = [paid[row][columns] for row in middles(columns, signal.sample)]
    if signal.renormalise:
        rows = [row / row.sum() for row in rows]
    total = sum(rows)
    if signal.over == "max":
        return torch.stack(rows).amax(dim=0)
    return {"sum": total, "mean": total / len(rows), "share": total / total.sum()}[signal.over]


@pytest.mark.parametrize("family", KINDS)
def test_so_many_rows_of_each_image_pay(family):
    word = "titit"
    inputs = batch(family, [word])
    with torch.no_grad():
        attentions = tiny(family, "eager")(**inputs, output_attentions=True).attentions
    images = images_of(inputs)
    assert len(images) == word.count("i")
    assert all(len(image) > FEW for image in images)
    (seen,) = read(tiny(family), inputs, ways())
    for signal, got in seen.items():
        attention = attentions[LAYER - 1 if signal.layer == "ran" else LAYER][0]
        wanted = torch.cat([plain(signal, attention, image) for image in images])
        torch.testing.assert_close(got, wanted, **CLOSE, msg=lambda text, signal=signal: f"{signal}\n{text}")


@pytest.mark.parametrize("family", ["llava", "llava_onevision"])
def test_sampled_rows_may_see_all_of_their_image(family):
    model, inputs = tiny(family), batch(family, ["titt"])
    layer = model.get_decoder().layers[LAYER]
    with handed(layer) as calls, torch.no_grad():
        model(**inputs)
    (hidden, *_), kwargs = calls[layer]
    rows, rotary = hidden[0], [table[0] for table in kwargs["position_embeddings"]]
    (image,) = images_of(inputs)
    sees = torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
    sees[image, image[0] : image[-1] + 1] = True
    with torch.no_grad():
        dense = oracle.dense_attention(layer, rows, rotary, sees)[None]
    signals = tuple(way for way in ways(both_ways=True) if way.layer == "next" and way.heads == "mean")
    (seen,) = read(model, inputs, signals)
    for signal, got in seen.items():
        torch.testing.assert_close(got, plain(signal, dense, image), **CLOSE)
