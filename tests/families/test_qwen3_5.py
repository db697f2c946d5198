"""Qwen3.5's tiny model, and its layers that carry a state in the place of attention."""

from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache

import foveate as fv
from foveate._transformers import cache_in, with_cache
from tests import models, oracle, tiny_others
from tests.families.qwens import FULL, LINEAR, other, other_qwen3_tower, other_states, qwen, qwen3_tower, rope
from tests.tiny import IMAGE, TEXT, VIDEO


def config() -> Any:
    positions = rope(2, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.5)
    return transformers.Qwen3_5Config(
        text_config={
            **TEXT, "head_dim": 16, "rope_parameters": positions, "layer_types": [LINEAR, *[FULL] * 4, LINEAR],
            "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
            "linear_value_head_dim": 12,
        },
        vision_config=qwen3_tower(), **tiny_others.QWEN,
    )  # fmt: skip


TINY = qwen(config, "Qwen3_5", recurrent=(0, 5))


def other_config() -> Any:
    positions = tiny_others.mrope(1, 1, 1, mrope_interleaved=True, partial_rotary_factor=0.25)
    kinds = [LINEAR, LINEAR, FULL, LINEAR, FULL, FULL, LINEAR]
    return transformers.Qwen3_5Config(
        text_config=other_states(7, 3, 1, 20, rope_parameters=positions, layer_types=kinds),
        vision_config=other_qwen3_tower(20, 3), **tiny_others.QWEN,
    )  # fmt: skip


OTHER = other(TINY, other_config, recurrent=(0, 1, 3, 6))
CLOSE = {"atol": 5e-5, "rtol": 1e-4}


def test_a_state_is_that_of_a_prompt_without_the_rows_that_left():
    model, inputs = models.tiny("qwen3_5"), models.batch("qwen3_5", ["titt"])
    with fv.drop(model, fv.Uniform(layers=(0,), keep=(0.5,))) as trace, torch.no_grad():
        cache = cache_in(model(**inputs))
    with torch.no_grad():
        embeds, picture, _ = oracle.embed(model, inputs)
        vision = (picture >= 0).nonzero()[:, 0][trace.stages[0].kept[0]]
        rows = torch.cat(((picture < 0).nonzero()[:, 0], vision)).sort().values
        short = DynamicCache(config=model.config.get_text_config())
        positions = oracle.positions(model, inputs, 0)[..., rows]
        model.model.language_model(inputs_embeds=embeds[:, rows], position_ids=positions, **with_cache(short))
    for ours, theirs in zip(cache.layers, short.layers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(models.cached(ours), models.cached(theirs), strict=True))
    assert [lengths[0] for lengths in trace.kv_lengths] == [0, *[len(rows)] * 4, 0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_cuts_right_before_states_in_the_released_pattern(attention):
    """Three layers with a state to one that attends, as in the checkpoints; in a ragged batch too."""
    settings = config().to_dict()
    settings["text_config"] |= {"num_hidden_layers": 8, "layer_types": None, "num_key_value_heads": 4}
    torch.manual_seed(1)
    tiny_config = transformers.Qwen3_5Config(**settings)
    tiny_config._attn_implementation = attention
    model = transformers.Qwen3_5ForConditionalGeneration(tiny_config).eval()
    model.generation_config.pad_token_id = 0
    kinds = model.config.text_config.layer_types
    assert [index for index, kind in enumerate(kinds) if kind == "full_attention"] == [3, 7]
    method, words = fv.V2Drop(layers=(1, 2, 5), keep=(0.7, 0.6, 0.4)), ("titt", "titit", "tvt", "tt")
    with fv.drop(model, method):
        together = models.generate(model, models.batch("qwen3_5", words), new_tokens=4)
    for index, word in enumerate(words):
        inputs = models.batch("qwen3_5", [word])
        with fv.drop(model, method) as trace:
            alone = models.generate(model, inputs, new_tokens=4)
        torch.testing.assert_close(
            torch.cat([a[index, None] for a in together.logits]), torch.cat(alone.logits), **CLOSE
        )
        cuts = {stage.layer: stage.kept[0] for stage in trace.stages}
        logits, _ = oracle.recomputed(model, inputs, alone, cuts, [IMAGE, VIDEO, 93, 94])
        torch.testing.assert_close(torch.cat(alone.logits), logits, **CLOSE)


def test_a_batch_that_gets_ragged_without_any_padding_before():
    """As many tokens in each sample, more of them in pictures in one: the model itself makes no mask."""
    model, method = models.tiny("qwen3_5"), fv.V2Drop(layers=(1,), keep=(0.4,))
    singles = [models.batch("qwen3_5", [word]) for word in ("titit", "ttttttttit")]
    start = min(one["input_ids"].shape[1] for one in singles)
    for one in singles:
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            one[name] = one[name][:, -start:]
    together = {name: torch.cat([one[name] for one in singles]) for name in singles[0]}
    assert together["attention_mask"].all()
    with fv.drop(model, method) as trace, torch.no_grad():
        logits = model(**together, logits_to_keep=1).logits
        assert len(set(trace.stages[0].after)) == 2
        for index, one in enumerate(singles):
            torch.testing.assert_close(model(**one, logits_to_keep=1).logits[0], logits[index], **CLOSE)


def test_attention_cannot_be_read_where_a_state_is():
    method = fv.VisionDrop(dominant=0, contextual=0, layer_list=(5,), image_token_list=((3, 1),))
    with fv.drop(models.tiny("qwen3_5"), method), pytest.raises(fv.UnsupportedError, match="Layer 5"):
        models.generate(models.tiny("qwen3_5"), models.batch("qwen3_5", ["tit"]))


def test_a_ragged_batch_does_not_go_on_from_a_state():
    """Its padding would stand between the state and the rows, and make the state fade."""
    model, inputs = models.tiny("qwen3_5"), models.batch("qwen3_5", ["tit", "titt"])
    cache, first = DynamicCache(config=model.config.get_text_config()), torch.full((2, 3), 5)
    mask = torch.cat((torch.ones_like(first), inputs["attention_mask"]), dim=1)
    places = torch.arange(mask.shape[1]).expand(3, 2, -1)
    with fv.drop(model, fv.Uniform(layers=(2,), keep=(0.5,))), torch.no_grad():
        model(input_ids=first, position_ids=places[..., :3], **with_cache(cache))
        with pytest.raises(fv.UnsupportedError, match="padding"):
            model(**{**inputs, "attention_mask": mask}, position_ids=places[..., 3:], **with_cache(cache))


def test_the_final_cache_leaves_states_as_they_are():
    """They cannot forget a token; keys and values of the other layers go."""
    model, inputs = models.tiny("qwen3_5"), models.batch("qwen3_5", ["titt"])
    inner = fv.V2Drop(layers=(2, 4), keep=(0.5, 0.4))
    with fv.drop(model, inner) as bare, torch.no_grad():
        before = cache_in(model(**inputs))
    with fv.drop(model, inner + fv.FinalKV()) as cut, torch.no_grad():
        after = cache_in(model(**inputs))
    for index in (0, 5):
        pairs = zip(models.cached(before.layers[index]), models.cached(after.layers[index]), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    final = bare.kv_lengths[4]
    assert bare.kv_lengths[1] > final
    assert cut.kv_lengths[2:] == [final] * 3 + [[0]]
