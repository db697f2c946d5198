"""Qwen3-VL-MoE's tiny model."""

from typing import Any

import pytest
import torch
import transformers

import foveate as fv
from tests import models, tiny_others
from tests.families.qwens import other, other_qwen3_tower, qwen, qwen3_tower, rope
from tests.tiny import TEXT


def config() -> Any:
    positions = rope(4, 2, 2, mrope_interleaved=True)
    return transformers.Qwen3VLMoeConfig(
        text_config={
            **TEXT, "num_key_value_heads": 1, "head_dim": 16, "rope_parameters": positions, "num_experts": 5,
            "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [3],
        },
        vision_config=qwen3_tower(deepstack_visual_indexes=[1]), **tiny_others.QWEN,
    )  # fmt: skip


TINY = qwen(config, "Qwen3VLMoe")


def other_config() -> Any:
    experts = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 12, "decoder_sparse_step": 2}
    positions = tiny_others.mrope(2, 1, 1, mrope_interleaved=True)
    return transformers.Qwen3VLMoeConfig(
        text_config=tiny_others.text(3, 4, 2, 28, head_dim=8, rope_parameters=positions, **experts),
        vision_config=other_qwen3_tower(28, 1, deepstack_visual_indexes=[0, 3]), **tiny_others.QWEN,
    )  # fmt: skip


OTHER = other(TINY, other_config)


def test_router_logits_are_of_whole_prompts_alone():
    model, inputs = models.tiny("qwen3_vl_moe"), models.batch("qwen3_vl_moe", ["tit"])
    with fv.drop(model, fv.V2Drop(layers=(1,), keep=(0.5,))), torch.no_grad():
        with pytest.raises(fv.UnsupportedError, match="False"):
            model(**inputs, output_router_logits=True)
        assert model(**inputs, output_router_logits=False).logits.isfinite().all()
    with fv.drop(model, fv.V2Drop(layers=(1,), keep=(1.0,))), torch.no_grad():
        whole = model(**inputs, output_router_logits=True)
    assert [len(one) for one in whole.router_logits] == [inputs["input_ids"].shape[1]] * 5  # layer 3 is dense
