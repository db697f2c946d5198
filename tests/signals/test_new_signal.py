"""A signal that foveate does not have: its class alone says how it is read, and values are those of plain torch."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import foveate as fv
from foveate.contract import Attention, LayerStage, Signal
from foveate.testing import check_method
from tests.models import batch, is_vision, tiny
from tests.signals import assert_samples_keep_what_they_keep_alone, handed, read
from tests.tiny_derived import make

LAYER = 3
FAMILIES = ("llava", "qwen2_5_vl")
WORDS = ("titit", "it", "titt")


@dataclass(frozen=True)
class Weight(Signal):
    """Values and attention of the layer that ran, beside the stream that enters the next one: (tokens, 3) float32.

    Column 0 is the L1 norm of a token's values, mean over heads, times the last row's attention, column 1 the same norm
    as a share of the mean one in the text behind the image, column 2 the product of token and mean text in the stream.
    """

    kind: ClassVar[str] = "weight"
    of_ran: ClassVar[bool] = True
    by_image: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True

    power: int = 1

    def norms(self, reader):
        return reader.values().float().abs().sum(dim=-1).mean(dim=0) ** self.power

    def read(self, reader, unit):
        norms = self.norms(reader)[reader.vision[unit.rows]]
        return torch.stack((norms * reader.attention(Attention(rows="last"), unit), norms), dim=1)

    def note(self, reader):
        super().note(reader)
        reader.note_text(self, lambda unit: self.norms(reader)[reader.text_behind(unit)[0]].mean())

    def of_rows(self, rows, unit):
        paid, norms = super().of_rows(rows, unit).unbind(dim=1)
        text = rows.stream[rows.text_behind(unit)].float().mean(dim=0)
        return torch.stack((paid, norms / rows.text_note_of(self, unit), unit.of(rows.hidden).float() @ text), dim=1)


@dataclass(frozen=True)
class Likeness(Signal):
    """Product of each token's key in the next layer with the sample's mean one: (tokens,) float32."""

    kind: ClassVar[str] = "likeness"
    ahead: ClassVar[bool] = True

    def read(self, reader, unit):
        keys = reader.keys()[:, reader.vision].float()
        return (keys * keys.mean(dim=1, keepdim=True)).sum(dim=(0, 2))


@dataclass(frozen=True)
class Likened(Likeness):
    """The same, of the layer that ran."""

    ahead: ClassVar[bool] = False
    of_ran: ClassVar[bool] = True


class Weighed(fv.Method):
    """Keeps the tokens of the largest weights."""

    name = "weighed"

    keep: float = 0.4

    def stages(self, shape):
        return (LayerStage(LAYER, reads=(Weight(),), keep=self.keep, score=weight, unit="image"),)


def weight(view):
    return view.weight.sum(dim=1)


def plain(family, word, power):
    """`Weight` of each image of a sample, from what the untouched model computes of it alone."""
    model, inputs, values = tiny(family, "eager"), batch(family, [word]), []
    layers = model.get_decoder().layers
    hook = layers[LAYER - 1].self_attn.v_proj.register_forward_hook(lambda *call: values.append(call[-1][0]))
    with handed(layers[LAYER]) as calls, torch.no_grad():
        paid = model(**inputs, output_attentions=True).attentions[LAYER - 1][0].mean(dim=0)[-1]
    hook.remove()
    args, named = calls[layers[LAYER]]
    entered, vision = (*args, *named.values())[0][0], is_vision(inputs["input_ids"][0])
    norms = (values[0].abs().sum(dim=-1) / model.get_decoder().config.num_key_value_heads) ** power
    columns = vision.nonzero()[:, 0]
    for image in columns.tensor_split((columns.diff() > 1).nonzero()[:, 0] + 1):
        behind = ~vision & (torch.arange(len(vision)) > image[-1])
        products = entered[image] @ entered[behind].mean(dim=0)
        yield torch.stack((norms[image] * paid[image], norms[image] / norms[behind].mean(), products), dim=1)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_images_of_a_padded_batch_have_the_values_of_plain_torch(family, power):
    signal = Weight(power=power)
    seen = read(tiny(family), batch(family, WORDS), (signal, Attention(rows="last")), LAYER, unit="image")
    wanted = [values for word in WORDS for values in plain(family, word, power)]
    assert len(seen) == len(wanted) == 4
    for values, own in zip(seen, wanted, strict=True):
        torch.testing.assert_close(values[signal], own, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_ahead_of_a_layer_is_what_that_layer_then_has(family):
    ahead = read(tiny(family), batch(family, WORDS), (Likeness(),), LAYER)
    ran = read(tiny(family), batch(family, WORDS), (Likened(),), LAYER + 1)
    for before, after in zip(ahead, ran, strict=True):
        torch.testing.assert_close(before[Likeness()], after[Likened()], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_samples_of_a_batch_keep_what_they_keep_alone(family):
    assert_samples_keep_what_they_keep_alone(family, fv.Random(layers=(1,), keep=(0.8,), scope="image") + Weighed())


def test_a_method_that_reads_it_passes_the_checks_of_every_method():
    check_method(Weighed(), keep_all=Weighed(keep=1.0))


@dataclass(frozen=True)
class Silent(Signal):
    """Says nothing of how it is read."""

    kind: ClassVar[str] = "silent"


def test_a_signal_that_does_not_say_how_it_is_read_is_refused():
    with pytest.raises(fv.UnsupportedError, match=r"Silent.*how it is read"):
        read(tiny("llava"), batch("llava", ["titt"]), (Silent(),))


def test_attention_that_queries_and_keys_do_not_show_is_refused():
    """A signal of one's own may read attention, so it is refused where one of foveate's is."""
    model, _ = make("hy_v4_vl")
    with pytest.raises(fv.UnsupportedError, match="sinks"), fv.drop(model, Weighed()):
        pass
