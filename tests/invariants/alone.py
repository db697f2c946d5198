"""A batch against its samples run alone."""

import torch

import foveate as fv
from tests.models import batch, generate

__all__ = ["check_alone", "left"]


def check_alone(model, family, method, words, new_tokens=3, *, atol=1e-4, rtol=1e-4):
    """Tokens, logits (nearly), who was left where, what the caches hold and the retention are the same."""
    inputs = batch(family, words)
    with fv.drop(model, method) as together:
        out = generate(model, inputs, new_tokens)
    start = inputs["input_ids"].shape[1]
    for index, word in enumerate(words):
        one = batch(family, [word])
        with fv.drop(model, method) as alone:
            single = generate(model, one, new_tokens)
        assert torch.equal(out.sequences[index, start:], single.sequences[0, one["input_ids"].shape[1] :])
        for a, b in zip(out.logits, single.logits, strict=True):
            torch.testing.assert_close(a[index], b[0], atol=atol, rtol=rtol)
        assert left(together, index) == left(alone, 0)
        assert [layer[index] for layer in together.kv_lengths] == [layer[0] for layer in alone.kv_lengths]
        assert together.retention[index] == alone.retention[0]


def left(trace, sample):
    """Who was left after each stage at which anybody left."""
    return {
        (stage.where, stage.layer): stage.kept[sample].tolist()
        for stage in trace.stages
        if stage.before[sample] != stage.after[sample]
    }
