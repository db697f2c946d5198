"""Invariant 8: the authors' own code, vector by vector."""

import pytest
import torch

import foveate as fv
from tests.golden import TOLERANCE, cases, generate


@pytest.mark.parametrize("case", cases("full"), ids=lambda case: case.name)
def test_the_untouched_model(case):
    tokens, logits, _ = generate(case.model, case.inputs)
    assert tokens.tolist() == case.tensors["tokens"].tolist()
    torch.testing.assert_close(logits, case.tensors["logits"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", cases("v2drop"), ids=lambda case: case.name)
def test_v2drop(case, attention):
    model, facts, tensors = case.model, case.facts, case.tensors
    text = model.model.language_model
    seen, positions = {}, []

    def note_input(index, args):
        seen.setdefault(index, args[0][0])

    def note_positions(_, args, kwargs):
        positions.append(kwargs["position_ids"] if "position_ids" in kwargs else args[1])

    hooks = [
        layer.register_forward_pre_hook(lambda _, args, index=index: note_input(index, args))
        for index, layer in enumerate(text.layers)
    ]
    hooks.append(text.rotary_emb.register_forward_pre_hook(note_positions, with_kwargs=True))
    model.set_attn_implementation(attention)
    try:
        with fv.drop(model, fv.V2Drop(layers=facts["layers"], keep=facts["keep_ratios"])) as trace:
            tokens, logits, cache = generate(model, case.inputs)
    finally:
        for hook in hooks:
            hook.remove()
        model.set_attn_implementation("sdpa")
    assert tokens.tolist() == tensors["tokens"].tolist()
    torch.testing.assert_close(logits, tensors["logits"], atol=TOLERANCE, rtol=0)
    for index, (stage, fact) in enumerate(zip(trace.stages, facts["stages"], strict=True)):
        assert (stage.layer, stage.before, stage.after) == (fact["layer"], (fact["n_before"],), (fact["n_kept"],))
        assert stage.kept[0].tolist() == tensors[f"stage{index}.kept_patches"].tolist()
    last = torch.stack([seen[index][-1] for index in range(len(text.layers))])
    torch.testing.assert_close(last, tensors["prefill.layer_last_token"], atol=TOLERANCE, rtol=0)
    assert [layer[0] for layer in trace.kv_lengths] == facts["kv_len_after_prefill"]
    assert [layer.keys.shape[-2] for layer in cache.layers] == facts["kv_len_after_8_tokens"]
    # One rotary call serves all layers of a step: every layer decodes at the recorded position.
    recorded = tensors["decode.position_ids"]
    for step, given in enumerate(positions[1:]):
        wanted = recorded[step].reshape(len(text.layers), -1).long()
        assert (given.reshape(-1) == wanted).all(), step
