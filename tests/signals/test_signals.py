"""What a stage reads is what the model itself computes, on every family, with one kernel or the other.

The plain recompute is the untouched model's own `output_attentions`, and what enters its layers. What families show of
their towers, tiles and windows has its tests in tests/families/test_*_towers.py.
"""

import itertools
import math

import pytest
import torch

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.contract import (
    Attention,
    Cells,
    Columns,
    Hidden,
    ImageStage,
    KeyNorms,
    Keys,
    LayerStage,
    LayerView,
    Normed,
    Pivots,
    TowerAttention,
    TowerKeys,
)
from tests import oracle
from tests.invariants.settings import kernel_of
from tests.models import DEPTH, FAMILIES, TINY, always_kept, batch, is_vision, tiny
from tests.signals import handed

LAYER, BACK, CLIP_HEADS = 3, 2, 2
CLOSE = {"atol": 2e-6, "rtol": 1e-4}
WAYS = tuple(
    Attention(rows=rows, layer=layer, heads=heads, over=over, renormalise=renormalise, without_distance=without)
    for rows, layer, (heads, over, renormalise, without) in itertools.product(
        ("last", "after", "but_last", "null", "raters", "vision"),
        ("ran", "next"),
        (
            ("mean", "mean", False, False),
            ("mean", "share", False, False),
            ("mean", "sum", True, False),
            ("max", "max", False, False),
            ("max", "mean", False, False),
            ("max", "share", True, False),
            ("mean", "share", True, True),
            ("busiest", "sum", False, False),
            ("busiest", "mean", False, True),
        ),
    )
)
WAYS += (Attention(rows="after", heads="busiest", busiest=1), Attention(rows="raters", heads="busiest", busiest=3))


TEXTUAL = ("after", "but_last", "null", "raters")
MANY, FEW = Pivots(count=9), Pivots(count=2)
PLACED = Columns(pivots=9)
NORMS = (KeyNorms(), Normed(), MANY, FEW, PLACED)


class Reading(fv.Method):
    """Reads everything, drops nothing."""

    name = "reading"

    def stages(self, shape):
        paid = [TowerAttention(by="cls" if shape.cls else "patches", layer=layer) for layer in (0, 1)]
        keys = [TowerKeys(layer=layer) for layer in (0, 1)]
        return (
            ImageStage(reads=(*paid, *keys), choose=self.note, count=lambda here: here.tokens),
            LayerStage(LAYER, reads=(*WAYS, *NORMS, Keys(), Hidden(back=BACK)), choose=self.note),
        )

    @staticmethod
    def note(view, _):
        for signal in view._signals:
            SEEN[signal] = view[signal]
        if isinstance(view, LayerView):
            SEEN["hidden"], SEEN["before"] = view.hidden, view.hidden_before


SEEN = {}


def read(model, inputs, method=None):
    SEEN.clear()
    with fv.drop(model, method or Reading()), torch.no_grad():
        model(**inputs)
    return dict(SEEN)


def computed(family, inputs):
    """The untouched eager model's attentions by layer, and what entered each: (rows, width), (cos, sin)."""
    model = tiny(family, "eager")
    layers = model.get_decoder().layers
    with handed(*layers) as calls, torch.no_grad():
        expected = model(**inputs, output_attentions=True).attentions
    entered = [(calls[layer][0][0][0], calls[layer][1]["position_embeddings"]) for layer in layers]
    # transformers lists the attentions of those layers alone that have any.
    attending = [layer for layer in range(DEPTH) if layer not in TINY[family].recurrent]
    return dict(zip(attending, (one[0] for one in expected), strict=True)), entered


def raters(embeddings, vision, behind):
    """Of the rows of text behind the image those that resemble it, word by word."""
    image, words = embeddings[vision].double(), embeddings[behind].double()
    shares = [0.0] * len(words)
    for token in image:
        weights = torch.stack([(token * word).sum() for word in words]).softmax(dim=0)
        shares = [share + float(weight) / len(image) for share, weight in zip(shares, weights, strict=True)]
    mean = sum(shares) / len(shares)
    return [row for row, share in zip(behind, shares, strict=True) if share > mean]


def near(family, layer, rotary):
    """The mean cosine of the angles between two rows in all numbers of a head, 1 where RoPE leaves one alone; at least
    0.05: (rows, rows)."""
    cos, sin = (table[..., 0, :, :].double() for table in rotary)
    angles = torch.atan2(sin, cos)
    if angles.dim() == 3:  # M-RoPE's axes, which layers combine
        sections = tiny(family).get_decoder().config.rope_parameters["mrope_section"] * 2
        parts = enumerate(angles.split(sections, dim=-1))
        angles = torch.cat([part[index % 3] for index, part in parts], dim=-1)
    turned = (angles[:, None] - angles[None]).cos()  # (rows, rows, numbers)
    alone = tiny(family).get_decoder().layers[layer].self_attn.head_dim - turned.shape[-1]
    return ((turned.sum(dim=-1) + alone) / (turned.shape[-1] + alone)).clamp(min=0.05).float()


def busiest(paid, count):
    """Of (heads, rows, tokens) the heads that pay most, half of them if no count is given."""
    mass = [float(head.double().sum()) for head in paid]
    order = sorted(range(len(mass)), key=lambda head: -mass[head])
    return paid[order[: count or math.ceil(len(mass) / 2)]]


def reduced(signal, attention, vision, embeddings, text, nearness):
    """A signal of an image from a layer's whole attention matrix, (heads, rows, columns), in other words."""
    last = int(vision.nonzero()[-1])
    behind = [row for row in text.nonzero()[:, 0].tolist() if row > last]
    rows = {
        "last": slice(-1, None),
        "after": behind,
        "but_last": behind[:-1],
        "null": behind[:1],
        "raters": raters(embeddings, vision, behind),
        "vision": vision,
    }[signal.rows]
    if signal.without_distance:
        attention = attention / nearness
    paid = attention[:, rows][:, :, vision]
    if signal.heads == "busiest":
        paid = busiest(paid, signal.busiest)
    heads = list(paid) if signal.heads == "max" else [paid.mean(dim=0)]
    return torch.stack([over_rows(signal, head) for head in heads]).amax(dim=0)


def over_rows(signal, paid):
    """What attention of one head, or of all as one, comes to: (rows, tokens) -> (tokens,)."""
    if signal.renormalise:
        paid = torch.nn.functional.normalize(paid, p=1, dim=-1)
    if signal.over == "max":
        return paid.max(dim=0).values
    total = torch.stack(list(paid)).sum(dim=0)
    return {"sum": total, "mean": total / len(paid), "share": total / total.sum()}[signal.over]


@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_signals_are_the_models_own(family):
    inputs = batch(family, ["titt"])
    attentions, entered = computed(family, inputs)
    vision = is_vision(inputs["input_ids"][0])
    seen = read(tiny(family, kernel_of(family)), inputs)
    for signal in WAYS:
        at = LAYER - 1 if signal.layer == "ran" else LAYER
        wanted = reduced(signal, attentions[at], vision, entered[0][0], ~vision, near(family, at, entered[at][1]))
        torch.testing.assert_close(seen[signal], wanted, **CLOSE, msg=lambda text, signal=signal: f"{signal}\n{text}")
    torch.testing.assert_close(seen["hidden"], entered[LAYER][0][vision], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen["before"], entered[LAYER - BACK][0][vision], atol=1e-5, rtol=1e-4)
    rows, rotary = entered[LAYER]
    layer = tiny(family, "eager").get_decoder().layers[LAYER]
    with torch.no_grad():
        keys = oracle.keys_after_rope(layer, rows, tuple(table[..., 0, :, :] for table in rotary))
    torch.testing.assert_close(seen[Keys()], keys[vision], atol=1e-5, rtol=1e-4)


def key_norms(family, entered, layer):
    """L1 norms of every row's keys after RoPE in a layer, all heads together: (rows,)."""
    rows, rotary = entered[layer]
    module = tiny(family, "eager").get_decoder().layers[layer]
    with torch.no_grad():
        keys = oracle.heads_after_rope(module, rows, tuple(table[..., 0, :, :] for table in rotary))
    return keys.abs().sum(dim=(0, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_key_norms_and_what_is_made_of_them_are_the_models_own(family):
    inputs = batch(family, ["titt"])  # six tokens of text behind the image
    _, entered = computed(family, inputs)
    vision = is_vision(inputs["input_ids"][0])
    seen = read(tiny(family, kernel_of(family, 1)), inputs)
    norms = key_norms(family, entered, LAYER - 1)
    torch.testing.assert_close(seen[KeyNorms()], norms[vision], atol=1e-4, rtol=1e-4)
    assert seen[KeyNorms()].dtype == torch.float32
    with torch.no_grad():
        normed = tiny(family).get_decoder().norm(entered[LAYER][0])
    torch.testing.assert_close(seen[Normed()], normed[vision], atol=1e-5, rtol=1e-4)
    behind = list(range(int(vision.nonzero()[-1]) + 1, len(vision)))
    by_norm = sorted(behind, key=lambda row: -float(norms[row]))
    torch.testing.assert_close(seen[FEW], normed[by_norm[:2]], atol=1e-5, rtol=1e-4)
    again = [by_norm[place % len(by_norm)] for place in range(9)]  # from the first on, where there is less text
    torch.testing.assert_close(seen[MANY], normed[again], atol=1e-5, rtol=1e-4)
    assert seen[PLACED].tolist() == vision.nonzero()[:, 0].tolist() + again


def test_columns_go_on_behind_earlier_turns_and_padding_does_not_count():
    model, whole = tiny("llava"), batch("llava", ["tittt", "tit"])
    ids, mask, rest = whole.pop("input_ids"), whole.pop("attention_mask"), []
    for start in (0, 8):  # the picture of the shorter sample, padded by six, begins in column 10
        with fv.drop(model, Reading()), torch.no_grad():
            past = None
            if start:
                past = cache_in(model(input_ids=ids[1:, :start], attention_mask=mask[1:, :start]))
            pixels = {name: tensor[1:] for name, tensor in whole.items()}
            model(input_ids=ids[1:, start:], attention_mask=mask[1:], **with_cache(past), **pixels)
        rest.append(SEEN[PLACED].tolist())
    assert rest[0][:25] == list(range(4, 29))
    assert rest[0] == rest[1]


class Standing(fv.Method):
    """Reads where tokens stand, before and behind a cut by which each image loses some."""

    name = "standing"

    def stages(self, shape):
        reads = (Cells(),)
        return (
            LayerStage(1, reads=reads, choose=self.note, unit="image"),
            LayerStage(2, keep=0.5, score=lambda view: view.tokens % 3, unit="image"),
            LayerStage(3, reads=reads, choose=self.note, unit="image"),
        )

    @staticmethod
    def note(view, _):
        STOOD.append((view.tokens, view[Cells()], view.arriving.grids))


STOOD = []


@pytest.mark.parametrize("family", [family for family in FAMILIES if fv.families()[family].defines("pictures")])
def test_cells_are_where_the_boxes_of_the_tokens_are(family):
    """Of two pictures, one of them a video where there are videos that can be beside pictures."""
    word = "titvt" if TINY[family].videos and not TINY[family].apart else "titit"
    STOOD.clear()
    with fv.drop(tiny(family), Standing()) as trace, torch.no_grad():
        tiny(family)(**batch(family, [word]))
    images = len(trace.latest.boxes[0])  # some families have an image for each frame
    whole, left = STOOD[:images], STOOD[images:]
    for (_, cells, grids), boxes in zip(whole, trace.latest.boxes[0], strict=True):
        boxes = boxes[[place for place in range(len(boxes)) if place not in always_kept(family, len(boxes))]]
        inside = ~boxes.isnan().any(dim=1)
        assert (cells[~inside] == -1).all()
        assert [tuple(cell) for cell in cells[inside].tolist()] == [
            (frame, row, column)
            for frame, (rows, columns) in enumerate(grids)
            for row in range(rows)
            for column in range(columns)
        ]
        for frame in range(len(grids)):
            mine = cells[:, 0] == frame
            for axis, side in ((1, 1), (2, 0)):  # rows go down, columns go right, all alike
                edges = [boxes[mine & (cells[:, axis] == at), side] for at in range(grids[frame][axis - 1])]
                assert all(len(edge.unique()) == 1 for edge in edges)
                assert all(first[0] < second[0] for first, second in itertools.pairwise(edges))
    first = 0
    for (tokens, cells, grids), (_, every, _) in zip(left, whole, strict=True):
        assert 0 < len(tokens) < len(every)
        assert cells.tolist() == every[tokens - first].tolist()
        assert grids == ()
        first += len(every)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_tower_signals_are_the_towers_own(attention):
    """A CLIP's: the CLS row summed over heads, and keys before RoPE, of the feature layer and the one behind it."""
    inputs = batch("llava", ["titt"])
    seen, tower = read(tiny("llava", attention), inputs), tiny("llava", "eager").model.vision_tower
    layers = tower.vision_model.encoder.layers if hasattr(tower, "vision_model") else tower.encoder.layers
    with torch.no_grad():
        out = tower(inputs["pixel_values"], output_attentions=True, output_hidden_states=True)
        for ahead in (0, 1):
            at = len(layers) - 2 + ahead
            paid = out.attentions[at][0].sum(dim=0)[0, 1:]
            torch.testing.assert_close(seen[TowerAttention(by="cls", layer=ahead)], paid, **CLOSE)
            keys = layers[at].self_attn.k_proj(layers[at].layer_norm1(out.hidden_states[at]))[0, 1:]
            keys = keys.unflatten(-1, (CLIP_HEADS, -1)).mean(dim=1)
            torch.testing.assert_close(seen[TowerKeys(layer=ahead)], keys, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "llava_onevision"])
def test_attention_of_the_text_behind_is_of_each_image_apart(family):
    """Behind the second image stands less text than behind the first."""
    inputs = batch(family, ["titit"])
    attentions, entered = computed(family, inputs)
    vision = is_vision(inputs["input_ids"][0])
    columns = vision.nonzero()[:, 0]
    second = int((columns.diff() > 1).nonzero()[-1]) + 1
    seen = read(tiny(family), inputs)
    for layer, at in (("ran", LAYER - 1), ("next", LAYER)):
        nearness = near(family, at, entered[at][1])
        for part in (slice(0, second), slice(second, None)):
            own = torch.zeros_like(vision)
            own[columns[part]] = True
            for by in TEXTUAL:
                for signal in (
                    Attention(rows=by, layer=layer),
                    Attention(rows=by, layer=layer, heads="busiest", without_distance=True),
                ):
                    wanted = reduced(signal, attentions[at], own, entered[0][0], ~vision, nearness)
                    torch.testing.assert_close(seen[signal][part], wanted, **CLOSE)
