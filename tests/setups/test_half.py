"""bf16 and fp16 weights: what is kept is what scores in float64 of the same hidden states keep."""

import copy
import sys

import pytest
import torch

import foveate as fv
from foveate.contract import Attention, LayerView, Shape
from foveate.core.attention import attention_rows
from foveate.engine.cutting import SampleRows
from tests.invariants.settings import EXAMPLES, PAIRS
from tests.models import batch, tiny
from tests.setups.running import SETUPS, prefill

DTYPES = [torch.bfloat16, torch.float16]


def half(family, dtype, words=("titit",)):
    model, inputs = copy.deepcopy(tiny(family)).to(dtype), batch(family, words)
    return model, {name: one.to(dtype) if one.is_floating_point() else one for name, one in inputs.items()}


def exact_rows(queries, keys, scaling, columns=slice(None), block=None, visible=None, softcap=None, samples=1):
    """`attention_rows` as one formula, in float64, for one sample."""
    assert samples == 1
    keys = keys.double().repeat_interleave(queries.shape[0] // keys.shape[0], dim=0)
    logits = queries.double() @ keys.transpose(1, 2) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if visible is not None:
        seen = visible(slice(None))
        logits = logits.masked_fill(~seen.view(seen.shape[-3:]), float("-inf"))
    yield logits.softmax(dim=-1)[..., columns]


def in_float64(monkeypatch):
    for name, module in list(sys.modules.items()):
        if name.startswith("foveate.") and getattr(module, "attention_rows", None) is attention_rows:
            monkeypatch.setattr(module, "attention_rows", exact_rows)
    entering = SampleRows.hidden.fget
    monkeypatch.setattr(SampleRows, "hidden", property(lambda rows: entering(rows).double()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "family"), [pair for pair in PAIRS if pair in SETUPS or pair[1] == "llava"])
def test_what_is_kept_is_what_exact_scores_keep(name, family, dtype, monkeypatch):
    model, inputs = half(family, dtype)
    logits, kept = prefill(model, inputs, EXAMPLES[name])
    in_float64(monkeypatch)
    exact_logits, exact = prefill(model, inputs, EXAMPLES[name])
    assert kept == exact
    assert kept
    assert logits.dtype == dtype
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, exact_logits)


AFTER = tuple(Attention(rows="after", layer="next", over=over) for over in ("mean", "max"))


def test_scores_that_half_precision_cannot_tell_apart():
    """700 keys whose probabilities differ by a thousandth, which bf16 rounds to one and the same number."""
    keys = torch.zeros(1, 700, 1)
    keys[0, 500] = 1.0
    queries = torch.full((1, 1, 1), 1e-3)
    (row,) = attention_rows(queries.bfloat16(), keys.bfloat16(), 1.0)
    assert row.dtype == torch.float32
    assert row[0, 0].argmax() == 500
    assert len(row.bfloat16().unique()) == 1
    before, hidden = torch.zeros(8, 64).bfloat16(), torch.ones(8, 64).bfloat16()
    hidden[5, 0] = 1.0078125
    (stage,) = fv.V2Drop(layers=(3,), keep=(0.25,)).stages(Shape(depth=32))
    assert stage.cut(LayerView(hidden=hidden, hidden_before=before)).source.tolist() == [0, 5]
