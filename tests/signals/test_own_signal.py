"""`OwnSignal`: a function of one's own gets what the layer that ran made of the tokens."""

import pytest
import torch

import foveate as fv
from foveate.contract import LayerStage, OwnSignal
from foveate.families.tap import tapped_layer
from foveate.testing import check_method
from tests.models import FAMILIES, TINY, batch, is_vision, tiny
from tests.signals import assert_samples_keep_what_they_keep_alone, handed, read

LAYER = 3
HEADS = ("queries", "keys", "values")


def whole(*tensors):
    """All that it gets, a row a token."""
    return torch.cat([tensor if tensor.dim() == 2 else tensor.transpose(0, 1).flatten(1) for tensor in tensors], dim=1)


def norms(values):
    return values.float().norm(dim=-1).mean(dim=0)


WHOLE, NORMS = OwnSignal(whole, of=(*HEADS, "hidden")), OwnSignal(norms)


class Normed(fv.Method):
    """Keeps the tokens whose values are largest."""

    name = "value_norms"

    keep: float = 0.4

    def stages(self, shape):
        return (LayerStage(LAYER, reads=(NORMS,), keep=self.keep, score=own, unit="image"),)


def own(view):
    return view.own


@pytest.mark.parametrize("family", [family for family in FAMILIES if LAYER - 1 not in TINY[family].recurrent])
def test_it_gets_the_models_own_tensors(family):
    model, inputs, heads = tiny(family), batch(family, ["titt"]), []
    (signal_values,) = read(model, inputs, (WHOLE, NORMS))
    everything, of_values = signal_values.values()
    layer = model.get_decoder().layers[LAYER - 1]
    with handed(layer) as calls, tapped_layer(layer, lambda *part: heads.extend(part)), torch.no_grad():
        model(**inputs)
    args, named = calls[layer]
    entered = (*args, *named.values())[0]
    columns = is_vision(inputs["input_ids"][0]).nonzero()[:, 0]
    if len(columns) != len(everything):  # some of its tokens always stay, and are text to foveate
        return
    queries, keys, _, values = (part[0, :, columns] if isinstance(part, torch.Tensor) else part for part in heads)
    torch.testing.assert_close(everything, whole(queries, keys, values, entered[0, columns]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(of_values, norms(values), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llava_onevision"])
def test_samples_of_a_batch_keep_what_they_keep_alone(family):
    assert_samples_keep_what_they_keep_alone(family, fv.Random(layers=(1,), keep=(0.8,), scope="image") + Normed())


def test_it_passes_the_checks_of_every_method():
    check_method(Normed(), keep_all=Normed(keep=1.0))


def test_an_image_is_made_by_itself():
    sizes = []

    def counted(values):
        sizes.append(values.shape[1])
        return values[0, :, 0]

    read(tiny("llava"), batch("llava", ["titit"]), (OwnSignal(counted),))
    assert len(sizes) == 2


@pytest.mark.parametrize("make", [lambda values: values.sum(), lambda values: 3.0, lambda values: values])
def test_what_is_no_row_a_token_is_refused(make):
    with pytest.raises(fv.SettingError, match="tokens"):
        read(tiny("llava"), batch("llava", ["titt"]), (OwnSignal(make),))


@pytest.mark.parametrize("given", [{"make": 3}, {"of": ()}, {"of": "values"}, {"of": ("value",)}])
def test_what_no_layer_has_is_refused(given):
    with pytest.raises(fv.SettingError, match="OwnSignal"):
        OwnSignal(**{"make": norms, **given})
