from dataclasses import replace

import pytest
import torch

import foveate as fv
from foveate.contract import Arriving, Hidden, LayerView, Shape, follow
from foveate.methods.v2drop import V2Drop, variation

LAYERS = (1, 3, 4)
EXAMPLES = [
    V2Drop(layers=LAYERS, keep=(0.6, 0.5, 0.3)),
    V2Drop(layers=(2, 4), keep=(0.5, 0.4), metric="cosine", scope="image"),
    V2Drop(layers=LAYERS, keep=(0.7, 0.5, 0.0), over="path", min_keep=0),
]
KEEP_ALL = V2Drop(layers=LAYERS, keep=(1.0, 1.0, 1.0))
SMALLEST = V2Drop(layers=LAYERS, keep=(0.3, 0.3, 0.0))


def select(method, hidden, before, count):
    (stage,) = replace(method, layers=(3,), keep=(count / len(hidden) + 1e-9,)).stages(Shape(depth=32))
    return stage.cut(LayerView(hidden=hidden, hidden_before=before)).source.tolist()


def test_metrics_by_hand():
    before = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    now = torch.tensor([[6.0, 8.0], [0.0, 2.0]])
    assert variation(now, before).tolist() == pytest.approx([5.0, 5.0**0.5])
    assert variation(now, before, "l1").tolist() == pytest.approx([7.0, 3.0])
    assert variation(now, before, "cosine").tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert variation(now, before, "relative").tolist() == pytest.approx([1.0, 5.0**0.5])


def test_relative_survives_a_zero_start():
    assert torch.isfinite(variation(torch.ones(2, 3), torch.zeros(2, 3), "relative")).all()


def test_scores_are_float32_in_half_precision():
    before = torch.zeros(3, 1, dtype=torch.bfloat16)
    now = torch.tensor([[50.0], [50.25], [49.75]], dtype=torch.bfloat16)
    assert variation(now, before).dtype == torch.float32
    # 256 units and one more: a tie once the norm is rounded to bfloat16's eight bits, no tie in float32.
    wide = torch.full((2, 256), 16.0, dtype=torch.bfloat16)
    wide[1, 0] = 16.5
    zero = torch.zeros_like(wide)
    assert select(V2Drop(), wide, zero, 1) == [1]


def test_shapes_that_differ_are_refused():
    with pytest.raises(fv.ShapeError, match="hidden is"):
        variation(torch.zeros(3, 2), torch.zeros(2, 2))


def test_an_unknown_preset_names_the_near_ones():
    with pytest.raises(fv.UnknownNameError, match=r"v2drop/llava-1\.5-7b/192"):
        fv.preset("v2drop/llava-1.5-7b/193")


def run(method, streams):
    """Walk a method's stages by hand over one sample's streams (layers, tokens, width): which ordinals are left."""
    depth, entered, _ = streams.shape
    tokens = torch.arange(entered)
    notes: dict[str, torch.Tensor] = {}
    for stage in follow.in_order(method.stages(Shape(depth))):
        (back,) = [signal.back for signal in stage.reads if isinstance(signal, Hidden)] or [0]
        view = LayerView(
            hidden=streams[stage.layer][tokens],
            hidden_before=streams[stage.layer - back][tokens],
            tokens=tokens,
            arriving=Arriving(len(tokens), entered, entered),
            notes=notes,
        )
        cut = stage.cut(view)
        if cut is not None:
            tokens = tokens[cut.source]
            notes = {name: note[cut.source] for name, note in notes.items()} | dict(cut.notes)
    return tokens.tolist()


def test_the_last_move_and_the_path_by_hand():
    # Token 0 moves out and back; token 1 moves little, but stays; token 2 moves late.
    position = torch.tensor([[0.0, 0, 0], [5, 1, 0], [0, 2, 0], [0, 2, 3]])  # (layers, tokens)
    streams = position[:, :, None] * torch.ones(2) / 2**0.5
    settings = {"layers": (3,), "keep": (0.34,)}
    assert run(V2Drop(**settings), streams) == [2]  # moves 0, 0, 3 through the last layer
    assert run(V2Drop(**settings, over="path"), streams) == [0]  # 10, 2, 3 in all


def test_a_path_starts_anew_at_every_cut():
    position = torch.tensor([[0.0, 0, 0], [9, 1, 8], [9, 1, 8], [9, 3, 8], [9, 3, 9]])
    streams = position[:, :, None] * torch.ones(1)
    # The cut before layer 2 drops token 1, which moved least; from there on token 2 moves more than token 0.
    assert run(V2Drop(layers=(2, 4), keep=(0.67, 0.5), over="path"), streams) == [2]


@pytest.mark.parametrize(
    ("method", "share", "says"),
    [
        (V2Drop(tokens=64), 0.11, True),
        (V2Drop(metric="l1", retention=0.1), 0.1, True),
        (V2Drop(), 0.2, False),
        (V2Drop(layers=(1, 2), keep=(0.1, 0.1)), 0.1, False),
        (V2Drop(layers=(1, 2), tokens=64), 0.1, False),
        (fv.DivPrune(tokens=64), 0.11, False),
    ],
)
def test_untuned_it_says_that_others_are_better_below_a_fifth(method, share, says):
    assert ("divprune" in (method.caution(share) or "")) == says
