"""What a stage reads of a vision tower is what a plain recompute gives: any block, any payer, heads split or joined."""

import sys
from typing import Any, ClassVar

import pytest
import torch

import foveate as fv
from foveate.contract import Features, ImageStage, TowerAttention, TowerKeys
from foveate.families.tower import block_of
from foveate.registry import family_for
from tests.families import test_qwen2_5_vl as windowed
from tests.families.shown import Shown
from tests.families.test_tower import llava, prompt
from tests.models import batch, tiny
from tests.signals.test_signals import CLOSE

SIGNALS = [
    kind(**place, **heads)
    for kind in (TowerAttention, lambda **options: TowerAttention("patches", **options), TowerKeys)
    for place in ({"layer": 0}, {"layer": 1}, {"block": 0}, {"block": 1})
    for heads in ({"heads": "split"}, {"heads": "joined"})
]


class Reading(fv.Method):
    """Reads some signals of the tower, drops nothing."""

    name = "reading-tower"
    seen: ClassVar[list[dict[Any, torch.Tensor]]] = []

    def stages(self, shape):
        self.seen.clear()
        reads = tuple(signal for signal in SIGNALS if shape.cls or getattr(signal, "by", "") != "cls")

        def look(view):
            self.seen.append({signal: view[signal] for signal in reads})
            return {}

        return (ImageStage(reads=reads, look=look),)


def recomputed(signal, layer, entered, cls):
    """A signal of an image from what enters a layer, (tokens, width), by the layer's own weights; no foveate here."""
    attention = layer.self_attn
    normed = layer.layer_norm1(entered)
    queries, keys = attention.q_proj(normed), attention.k_proj(normed)
    heads = 1 if signal.heads == "joined" else attention.num_heads
    queries, keys = (states.unflatten(-1, (heads, -1)).transpose(0, 1) for states in (queries, keys))
    if isinstance(signal, TowerKeys):
        return keys.mean(dim=0)[cls:]
    paid = (queries @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5).softmax(dim=-1)
    if signal.by == "cls":
        return paid[:, 0, cls:].sum(dim=0)
    return paid.mean(dim=0).mean(dim=0)[cls:]


@pytest.mark.parametrize(("tower", "strategy"), [("clip", "default"), ("siglip", "full")])
def test_of_any_block_of_a_tower_of_patches(tower, strategy):
    model, cls = llava(tower, strategy), int(strategy == "default")
    pixels = torch.randn(2, 3, 70, 70, generator=torch.Generator().manual_seed(0))
    with fv.drop(model, Reading()), torch.no_grad():
        model(**prompt(pixels, 50))
    seen = list(Reading.seen)
    vision = model.model.vision_tower
    layers = next(part for name, part in vision.named_modules() if name.split(".")[-2:] == ["encoder", "layers"])
    with torch.no_grad():
        states = vision(pixels, output_hidden_states=True).hidden_states
    assert len(seen) == 2
    for image, values in enumerate(seen):
        assert len(values) == (24 if cls else 16)
        for signal, value in values.items():
            # The projector reads the last layer here, so there is none after it.
            at = signal.block if signal.block is not None else len(layers) - 1
            with torch.no_grad():
                wanted = recomputed(signal, layers[at], states[at][image], cls)
            text = f"{signal}"
            torch.testing.assert_close(value, wanted, **CLOSE, msg=lambda found, text=text: f"{text}\n{found}")


@pytest.mark.parametrize("family", ["llava", "llava_next", "llava_onevision", "qwen2_vl"])
def test_features_are_the_towers_where_the_family_shows_them(family):
    """Packed as the tokens are: the projector makes these of them."""
    model, views = tiny(family), []

    class Seeing(fv.Method):
        name = "seeing"

        def stages(self, shape):
            return (ImageStage(reads=(Features(),), look=self.look),)

        @staticmethod
        def look(view):
            views.append((view[Features()], view.features))
            return {}

    with fv.drop(model, Seeing()), torch.no_grad():
        model(**batch(family, ["titit"]))
    assert len(views) >= 2
    for shown, tokens in views:
        if family in ("llava", "qwen2_vl"):
            assert torch.equal(shown, tokens)
        else:
            assert shown.shape[1] == model.config.vision_config.hidden_size != tokens.shape[1]
            with torch.no_grad():
                projected = model.model.multi_modal_projector(shown)
            torch.testing.assert_close(projected, tokens, **CLOSE)


def rotated(attention, queries, keys, rotary):
    return sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision(queries, keys, *rotary)


def test_a_block_of_windows_is_refused_or_replaced_by_the_nearest_that_sees_all():
    model = tiny("qwen2_5_vl")  # four blocks, of which 0 and 2 look at the whole picture
    known, inputs = family_for(model), windowed.given(tiny("qwen2_5_vl"), "image", windowed.GRIDS["images"])

    def views(*reads):
        reducer = Shown(reads=reads)
        with torch.no_grad():
            known.encode(lambda **new: model.model.get_image_features(**{**inputs, **new}), "image", inputs, reducer)
        return reducer.views

    first, third = TowerAttention("patches", block=0), TowerAttention("patches", block=2)
    scaled = [TowerAttention("patches", block=block, of=of) for block, of in ((0, 4), (1, 4), (3, 4), (0, 8), (8, 24))]
    with pytest.raises(fv.UnsupportedError, match="Blocks 0, 2"):
        views(TowerAttention("patches", block=1))
    with pytest.raises(fv.UnsupportedError, match="4 blocks"):
        views(TowerAttention("patches", block=4))
    pixels = next(iter(inputs.values())).split([t * h * w for t, h, w in windowed.GRIDS["images"]])
    for view, patches, grid in zip(views(first, third, *scaled), pixels, windowed.GRIDS["images"], strict=True):
        with torch.no_grad():
            _, received, _ = windowed.raster_tower(model.model.visual, patches, grid)
        torch.testing.assert_close(view.read(first)[:, 0], received[0], **windowed.CLOSE)
        torch.testing.assert_close(view.read(third)[:, 0], received[2], **windowed.CLOSE)
        blocks = [0 if torch.equal(view.read(signal), view.read(first)) else 2 for signal in scaled]
        assert blocks == [0, 2, 2, 0, 2]  # block 1 is as near to 0 as to 2: the later


def test_places_by_hand():
    eighth = TowerAttention("patches", block=8, of=24)
    assert [block_of(eighth, 22, depth) for depth in (24, 26, 27, 32, 12, 2)] == [8, 9, 9, 11, 4, 0]
    # Qwen2.5-VL: 7, 15, 23 and 31 look at the whole picture, and 11 is as near to 7 as to 15.
    assert block_of(eighth, 31, 32, (7, 15, 23, 31)) == 15
    assert block_of(TowerAttention("patches", block=5, of=24), 31, 32, (7, 15, 23, 31)) == 7
    assert [block_of(TowerKeys(layer=layer), 22, 24) for layer in (0, 1)] == [22, 23]
    assert [block_of(TowerKeys(layer=layer), 23, 24) for layer in (0, 1)] == [23, 23]
    assert block_of(TowerKeys(), 31, 32, (7, 15, 23)) == 23
    assert block_of(TowerKeys(block=23), 22, 24) == 23
