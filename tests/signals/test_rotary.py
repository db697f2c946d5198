"""`Rotary`: what RoPE makes of the places that tokens entered with, whatever was dropped, padded or asked before."""

import pytest
import torch

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.contract import LayerStage, Rotary
from foveate.errors import UnsupportedError
from foveate.methods.coordinates import Coordinates
from foveate.registry import family_for
from tests.models import DEPTH, FAMILIES, TINY, batch, is_vision, tiny
from tests.signals import handed
from tests.tiny_derived import make

SEEN = []
LAYERS = (0, 1, 2, 4)


class Turned(fv.Method):
    """Notes what RoPE makes of positions before some layers, of each image, and drops half before the third."""

    name = "turned"

    def stages(self, shape):
        half = LayerStage(2, keep=0.5, score=lambda view: view.tokens % 3, unit="image")
        noting = [LayerStage(layer, reads=(Rotary(),), choose=note, unit="image") for layer in LAYERS]
        return (*noting, half)


def note(view, _):
    SEEN.append((view.tokens, view[Rotary()]))


def seen(model, inputs, **more):
    """Tokens and their numbers, stage by stage, image by image."""
    SEEN.clear()
    with fv.drop(model, Turned()), torch.no_grad():
        output = model(**inputs, **more)
    return list(SEEN), output


def by_hand(family, layer, places):
    """The mean cosine and sine over axes and pairs, of (axes, tokens) positions, in double precision, one by one."""
    rotary, config = tiny(family).get_decoder().rotary_emb, tiny(family).get_decoder().config
    kind = config.layer_types[layer] if hasattr(rotary, "layer_types") else None
    frequencies = getattr(rotary, f"{kind}_inv_freq" if kind else "inv_freq").double()
    frequencies = [frequency for frequency in frequencies if frequency > 0]
    angles = torch.stack([axis[:, None] * frequency for axis in places.double() for frequency in frequencies])
    return torch.stack([angles.cos().mean(dim=0)[:, 0], angles.sin().mean(dim=0)[:, 0]], dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_made_of_the_positions_that_the_model_gives(family):
    """Two images, each by itself; behind a cut the rows that are left have what they had."""
    model, inputs = tiny(family), batch(family, ["titit"])
    rotary_emb = model.get_decoder().rotary_emb
    with handed(rotary_emb) as calls:
        tables, _ = seen(model, inputs)
    args, kwargs = calls[rotary_emb]
    positions = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
    ids = positions[:, 0] if positions.dim() == 3 else positions - positions[:, :1]
    vision, images = is_vision(inputs["input_ids"][0]), len(tables) // len(LAYERS)
    for place, (tokens, rotary) in enumerate(tables):
        layer = LAYERS[place // images]
        turning = next(at for at in range(layer, DEPTH) if at not in TINY[family].recurrent)
        wanted = by_hand(family, turning, ids[:, vision][:, tokens])
        torch.testing.assert_close(rotary, wanted, atol=1e-9, rtol=0)
        assert rotary.dtype == torch.float64
        assert torch.equal(rotary * 2**40, (rotary * 2**40).round())
    assert sum(len(tokens) for tokens, _ in tables[-images:]) < sum(len(tokens) for tokens, _ in tables[:images])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_does_not_count(family):
    """A plain forward without position ids numbers padding too."""
    alone, _ = seen(tiny(family), batch(family, ["tit"]))
    together, _ = seen(tiny(family), batch(family, ["tit", "titttt", "t"]))
    samples = len(together) // len(alone)
    for place, (_, rotary) in enumerate(alone):
        of_samples = [one for _, one in together[place * samples : (place + 1) * samples]]
        assert any(torch.equal(rotary, one) for one in of_samples), place


def test_earlier_turns_count():
    model, whole = tiny("llava"), batch("llava", ["tittt", "tit"])
    ids, mask, rest = whole.pop("input_ids"), whole.pop("attention_mask"), []
    pixels = {name: tensor[1:] for name, tensor in whole.items()}
    for start in (0, 8):  # the picture of the shorter sample, padded by six, begins in column 10
        past = None
        if start:
            with fv.drop(model, Turned()), torch.no_grad():
                past = cache_in(model(input_ids=ids[1:, :start], attention_mask=mask[1:, :start]))
        later = {"input_ids": ids[1:, start:], "attention_mask": mask[1:], **pixels}
        tables, _ = seen(model, later, **with_cache(past))
        rest.append(tables[0][1])
    assert torch.equal(*rest)
    torch.testing.assert_close(rest[0], by_hand("llava", 0, torch.arange(4, 29)[None]), atol=1e-9, rtol=0)


def test_a_layer_without_rope_has_that_of_the_next_and_where_there_is_none_it_is_refused():
    model, _ = make("cohere2_vision")
    family = family_for(model)
    turning = [layer.self_attn.sliding_window is not None for layer in family.layers]
    assert turning[-1] is False
    assert family.frequencies(0) is family.frequencies(turning.index(True)) is not None
    assert family.frequencies(len(turning) - 1) is None
    with pytest.raises(UnsupportedError, match=f"before layer {len(turning) - 1}, and foveate finds no RoPE"):
        fv.apply(model, fv.Random(layers=(len(turning) - 1,), keep=(0.5,)) + Coordinates())
