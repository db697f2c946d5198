"""Gemma 4's tiny model: pictures of any shape, videos, and a window shorter than its prompts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.engine.copies import compact, copy_of
from foveate.families.gemma import Gemma4
from foveate.methods.resize import Resize
from foveate.registry import family_for
from tests import models, tiny_others
from tests.tiny import IMAGE, TEXT, VIDEO, Picture, Tiny, qwen_types

WINDOW = 14
LOCAL, GLOBAL = "sliding_attention", "full_attention"
LAYERS = (LOCAL, GLOBAL, LOCAL, LOCAL, LOCAL, GLOBAL)
PATCHES = 64
FILM = "pixel_values_videos", "video_position_ids", "num_frames_per_video"


def config(**changed: Any) -> Any:
    text = {
        **TEXT, "head_dim": 8, "global_head_dim": 12, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
        "sliding_window": WINDOW, "hidden_size_per_layer_input": 0, "use_bidirectional_attention": "vision", **changed,
    }  # fmt: skip
    return transformers.Gemma4Config(
        text_config=transformers.Gemma4TextConfig(**{"layer_types": list(LAYERS), **text}),
        vision_config=transformers.Gemma4VisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=2,
            head_dim=8, patch_size=4, pooling_kernel_size=2, position_embedding_size=16, initializer_range=0.2,
        ),
        image_token_id=IMAGE, video_token_id=VIDEO,
    )  # fmt: skip


def patches(sizes: list[tuple[int, int]], rng: torch.Generator, most: int = PATCHES, each: int = 48) -> Any:
    """Pictures of so many rows and columns of patches, padded as the processor pads them, and where patches are."""
    pixels, places = torch.zeros(len(sizes), most, each), torch.full((len(sizes), most, 2), -1)
    for index, (rows, columns) in enumerate(sizes):
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        places[index, : rows * columns] = torch.stack((x, y), dim=-1).view(-1, 2)
        pixels[index, : rows * columns] = torch.rand(rows * columns, each, generator=rng)
    return pixels, places


def pictures(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    inputs_of = [patches([[(6, 8), (8, 8), (4, 6), (2, 10)][index % 4]], rng) for index in range(count)]
    return [{"pixel_values": pixels, "image_position_ids": places} for pixels, places in inputs_of]


def videos(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    pictures = [patches([(4, 6), (6, 4)][index % 2 : index % 2 + 1] * (3 - index % 2), rng) for index in range(count)]
    return [dict(zip(FILM, (*pair, torch.tensor([len(pair[0])])), strict=True)) for pair in pictures]


def sees(layer: int, columns: Tensor, picture: Tensor, prompt: int, counts: Tensor | None = None) -> Tensor:
    """Up to itself; in local layers no further back than the window, and all of its own picture."""
    row, key = columns[:, None], columns
    reach, counts = window(layer), columns if counts is None else counts
    if reach is None:
        return key <= row
    seen = (key <= row) | ((picture[:, None] == picture) & (picture >= 0))
    return seen & (counts[:, None] - counts < reach)


def window(layer: int) -> int | None:
    return WINDOW if LAYERS[layer] == LOCAL else None


KIND = "Gemma4ForConditionalGeneration"
TINY = Tiny(config, KIND, pictures, videos, extra=qwen_types, from_start=True, sees=sees, window=window)


def other_config() -> Any:
    known = {
        "head_dim": 12, "global_head_dim": 8, "num_global_key_value_heads": 2, "attention_k_eq_v": False,
        "sliding_window": 6, "hidden_size_per_layer_input": 0, "use_bidirectional_attention": None,
        "enable_moe_block": True, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 20,
        "layer_types": [GLOBAL, LOCAL, LOCAL, GLOBAL],
    }  # fmt: skip
    return transformers.Gemma4Config(
        text_config=transformers.Gemma4TextConfig(**tiny_others.text(4, 2, 2, 28), **known),
        vision_config=transformers.Gemma4VisionConfig(
            hidden_size=24, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3,
            head_dim=8, patch_size=2, pooling_kernel_size=3, position_embedding_size=16, initializer_range=0.2,
        ),
        image_token_id=IMAGE, video_token_id=VIDEO,
    )  # fmt: skip


def other_window(layer: int) -> int | None:
    return 6 if layer in (1, 2) else None


def other_pictures(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    films = [patches([[(9, 12), (3, 3), (6, 15)][index % 3]], rng, 108, 12) for index in range(count)]
    return [{"pixel_values": pixels, "image_position_ids": places} for pixels, places in films]


def other_videos(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Of four frames."""
    films = [patches([(3, 9)] * 4, rng, 108, 12) for _ in range(count)]
    return [dict(zip(FILM, (*pair, torch.tensor([4])), strict=True)) for pair in films]


OTHER = replace(
    TINY, config=other_config, pictures=other_pictures, videos=other_videos, window=other_window,
    sees=tiny_others.behind(other_window),
)  # fmt: skip


# What is special about it.


def test_local_layers_see_images_both_ways_and_global_ones_do_not():
    model, inputs, seen = models.tiny("gemma4"), models.batch("gemma4", ["titvt"]), {}
    ids, types = inputs["input_ids"][0], inputs["mm_token_type_ids"][0]
    picture = torch.where(types > 0, types - 1, -1)
    handles = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs, index=index: seen.update({index: kwargs["attention_mask"]}), with_kwargs=True
        )
        for index, layer in enumerate(model.model.language_model.layers)
    ]
    with fv.drop(model, fv.Uniform(layers=(1,), keep=(0.5,))) as trace, torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    vision = (picture >= 0).nonzero()[:, 0][trace.stages[0].kept[0]]
    rows = torch.cat(((picture < 0).nonzero()[:, 0], vision)).sort().values
    for layer in range(1, 6):
        wanted = sees(layer, rows, picture[rows], len(ids))
        mask = torch.ones(len(rows), len(rows)).tril().bool() if seen[layer] is None else seen[layer][0, 0]
        assert torch.equal(mask, wanted)
        assert bool(wanted.triu(1).any()) == (window(layer) is not None)


EDGE = {
    "num_hidden_layers": 8, "num_kv_shared_layers": 3, "hidden_size_per_layer_input": 4,
    "vocab_size_per_layer_input": 96,
}  # fmt: skip


@pytest.fixture(scope="module")
def edge():
    """A model as E2B is: its last layers borrow keys, and every layer gets more of each token."""
    return models.made_of("gemma4", config(**EDGE, layer_types=[LOCAL, GLOBAL] * 4))


def test_layers_that_borrow_keys_see_what_is_left(edge):
    assert family_for(edge).lenders == {5: 3, 6: 4, 7: 3}
    checked = fv.testing.check(edge, models.batch("gemma4", ["ttit"]))
    assert checked.passed, checked
    assert [row.verdict for row in checked.rows].count("passed") >= 11


@pytest.mark.parametrize("layers", [(1,), (1, 4), (4,)])
def test_a_batch_of_those_is_its_samples(edge, layers):
    method = fv.Random(layers=layers, keep=(0.6, 0.4)[: len(layers)])

    def said(words):
        with fv.drop(edge, method) as trace:
            out = edge.generate(
                **models.batch("gemma4", words), max_new_tokens=9, do_sample=False, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
        assert all(count == 0 for rows in trace.kv_lengths[5:] for count in rows)
        return torch.stack(out.logits, dim=1)

    together = said(["ttit", "titit"])
    for index, word in enumerate(["ttit", "titit"]):
        torch.testing.assert_close(together[index], said([word])[0], atol=2e-3, rtol=1e-3)


def test_questions_go_on_from_what_those_have_seen(edge):
    whole = models.batch("gemma4", ["tittt"])
    seen = whole["input_ids"].shape[1] - 6  # without the last two pieces of text
    types = "mm_token_type_ids"
    looked = {name: whole[name][:, :seen] for name in ("input_ids", "attention_mask", types)}
    pixels = {name: value for name, value in whole.items() if name not in looked}
    rest = whole["input_ids"][:, seen:]
    texts = torch.cat((rest, rest.flip(1)))
    with fv.drop(edge, fv.Uniform(layers=(1, 4), keep=(0.6, 0.4))), torch.no_grad():
        cache = compact(cache_in(edge(**looked, **pixels, use_cache=True)))
        both = edge(
            input_ids=texts, attention_mask=torch.ones(2, seen + 6, dtype=torch.long), **with_cache(copy_of(cache, 2)),
            **{types: torch.zeros_like(texts)},
        )  # fmt: skip
        for sample, text in enumerate(texts):
            ids = torch.cat((whole["input_ids"][0, :seen], text))[None]
            alone = edge(**{**whole, "input_ids": ids})
            torch.testing.assert_close(both.logits[sample], alone.logits[0, -6:], atol=2e-3, rtol=1e-3)


def test_those_read_a_lender_that_ran_on_all_rows_without_a_cache_too(edge):
    inputs = models.batch("gemma4", ["ttit"])
    with fv.drop(edge, fv.Random(layers=(4,), keep=(0.5,), seed=1)), torch.no_grad():
        torch.testing.assert_close(edge(**inputs, use_cache=False).logits, edge(**inputs).logits, atol=2e-3, rtol=1e-3)


def test_no_cut_goes_behind_their_lenders(edge):
    for method in (fv.Random(layers=(5,), keep=(0.5,)), fv.Read(keep=0.5)):
        with pytest.raises(fv.UnsupportedError, match="ayers 5 to 7"):
            fv.apply(edge, method)


def test_where_only_the_last_row_is_computed_it_must_be_text(edge):
    inputs = models.batch("gemma4", ["tti"])
    with fv.drop(edge, fv.Random(layers=(1,), keep=(0.5,))), torch.no_grad():
        with pytest.raises(fv.UnsupportedError, match="computes"):
            edge(**inputs, logits_to_keep=1)
        edge(**inputs)


def test_a_smaller_picture_is_cut_into_patches_as_the_processor_cuts_it():
    family = Gemma4(models.tiny("gemma4"))
    picture = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(0))

    def cut(image):
        _, height, width = image.shape
        return torch.stack(
            [
                image[:, y : y + 4, x : x + 4].permute(1, 2, 0).flatten()
                for y in range(0, height, 4)
                for x in range(0, width, 4)
            ]
        )

    pixels = torch.cat((cut(picture), torch.zeros(PATCHES - 48, 48)))
    got, places = family._resize(pixels, (3, 4), (2, 3))
    small = torch.nn.functional.interpolate(picture[None], (16, 24), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(got[:24], cut(small))
    assert not got[24:].any()
    assert places[:24].tolist() == [[x, y] for y in range(4) for x in range(6)]
    assert (places[24:] == -1).all()


def test_a_smaller_video_keeps_its_frames():
    model, inputs = models.tiny("gemma4"), models.batch("gemma4", ["tvt"])
    with fv.drop(model, Resize(keep=0.4)), torch.no_grad():
        (features,) = model.model.get_video_features(**models.given(model, inputs, "video")).pooler_output
    cut = features._foveate.cut
    assert len(features) == 18
    assert len(cut.source) == 3 * 2  # of 2 x 3 tokens a frame, two of them
    assert [int(token) // 6 for token in cut.source] == [0, 0, 1, 1, 2, 2]
    assert not features[6:].any()
