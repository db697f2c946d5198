"""Under autocast, products of the model's layers are rounded, and scores are not."""

import pytest
import torch

import foveate as fv
from foveate.engine import runner
from foveate.engine.extensions import step_reads
from foveate.engine.extensions.encoding.reducer import TowerReducer
from foveate.families import tap
from tests.invariants.settings import METHODS
from tests.models import batch, generate, tiny

CUTS = [
    (runner, "cut_before"),
    (runner, "note_attending"),
    (tap.Tapped, "read"),
    *((TowerReducer, name) for name in ("leave", "merge_early", "thin", "reduce")),
]
"""Where the engine reads signals and runs stages."""


def autocast(enabled=True):
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def prefill(model, method):
    with fv.drop(model, method) as trace, torch.no_grad():
        logits = model(**batch("llava", ["titt"])).logits
    return [[kept.tolist() for kept in stage.kept] for stage in trace.stages], logits


def test_a_decode_stage_reads_attention_with_autocast_off(monkeypatch):
    model, real, on = tiny("llava"), step_reads.attention_rows, []

    def rows(*args, **settings):
        on.append(torch.is_autocast_enabled("cpu"))
        return real(*args, **settings)

    monkeypatch.setattr(step_reads, "attention_rows", rows)
    with fv.drop(model, "read"), autocast():
        generate(model, batch("llava", ["titt"]))
    assert on
    assert not any(on)


@pytest.mark.parametrize("name", ["hiprune-0", "prumerge-1", "clse-0"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_changes_nothing(name, dtype):
    kept, logits = prefill(tiny("llava"), METHODS[name])
    torch.set_default_dtype(dtype)
    try:
        same, again = prefill(tiny("llava"), METHODS[name])
    finally:
        torch.set_default_dtype(torch.float32)
    assert same == kept
    assert torch.equal(again, logits)


def test_layers_of_several_dtypes_are_read_as_they_run():
    """Norms in float32 and products in bfloat16, as PEFT prepares models: without autocast they do not multiply."""
    model = tiny("llava").__class__(tiny("llava").config).eval()
    model.model.language_model.bfloat16()
    model.model.language_model.norm.float()
    for layer in model.get_decoder().layers:
        layer.input_layernorm.float()
        layer.post_attention_layernorm.float()
    model.lm_head.bfloat16()
    with autocast(), torch.no_grad():
        expected = model(**batch("llava", ["titt"])).logits.shape
        with fv.drop(model, METHODS["pyramiddrop-0"]) as trace:
            assert model(**batch("llava", ["titt"])).logits.shape == expected
    assert trace.tokens[0] < 25
