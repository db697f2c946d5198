"""SmolVLM: its tiny model, and what is special: tiles with tags between them, samples padded with empty tiles."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, strategies as st
from torch import Tensor
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

import foveate as fv
from foveate.families.vision import patch_blocks
from foveate.methods.averagepool import AveragePool
from foveate.methods.resize import Resize
from foveate.methods.visiondrop import VisionDrop
from foveate.registry import family_for
from tests import models, tiny_others
from tests.tiny import IMAGE, TEXT, Frames, Picture, Tiny

FENCE, WHOLE, NEWLINE = 93, 94, 95
TOKENS = 9  # of a tile
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 14,
    "image_size": 84, "initializer_range": 0.2,
}  # fmt: skip


def config() -> Any:
    return transformers.SmolVLMConfig(
        text_config=transformers.LlamaConfig(**TEXT), vision_config=VISION, image_token_id=IMAGE, scale_factor=2,
    )  # fmt: skip


def tiles(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Two tiles and the whole, a single one, four and the whole; padded with empty tiles to the same number."""
    counts = torch.tensor([3, 1, 5])[torch.arange(count) % 3]
    pixels = torch.randn(count, 5, 3, 84, 84, generator=rng)
    pixels[torch.arange(5) >= counts[:, None]] = 0
    return [{"pixel_values": one[None]} for one in pixels]


def frames(config: Any, count: int, rng: torch.Generator) -> list[Picture]:
    """Videos of three frames and of two, each a picture in a single tile; padded as `tiles`."""
    pixels = torch.randn(count, 5, 3, 84, 84, generator=rng)
    pixels[torch.arange(5) >= torch.tensor([3, 2])[torch.arange(count) % 2, None]] = 0
    return [Frames(pixel_values=one[None]) for one in pixels]


def tagged(picture: Picture, length: int) -> Tensor:
    """A tag before each tile, a newline behind each row, the tag of the whole; for each frame of a video, with text
    before it."""
    if isinstance(picture, Frames):
        return torch.cat([torch.cat((torch.tensor([5, 6, 7]), tagged({}, TOKENS)))] * (length // TOKENS))
    parts, count = [], length // TOKENS
    for tile in range(count - 1):
        parts += [FENCE, 10 + tile, *[IMAGE] * TOKENS, *[NEWLINE] * (tile % 2)]
    return torch.tensor([*parts, *[NEWLINE] * (count > 1), FENCE, WHOLE, *[IMAGE] * TOKENS, FENCE])


TINY = Tiny(config, "SmolVLMForConditionalGeneration", tiles, frames, tagged)


def other_config() -> Any:
    """Three by three patches a token, two by two tokens a tile."""
    return transformers.SmolVLMConfig(
        text_config=transformers.MistralConfig(**tiny_others.text(5, 6, 2, 24), head_dim=6, sliding_window=None),
        vision_config=tiny_others.tower(2, 2, 36, 6), image_token_id=IMAGE, scale_factor=3,
    )  # fmt: skip


OTHER = replace(
    TINY, config=other_config, pictures=tiny_others.few_tiles, videos=tiny_others.few_frames, ids=tiny_others.tagged
)
TOWER = VisionDrop(dominant=14, contextual=3, layer_list=(2,), image_token_list=((9, 2),), reference=25)
FAMILIES = pytest.mark.parametrize("family", ["smolvlm", "idefics3"])


# -- which tiles are whose -----------------------------------------------------------------------------------


def written(tokens: int, *grids: tuple[int, int], between: str = "What is it?", words: bool = False) -> list[str]:
    """A prompt as the processor writes it, in tokens: tags are one each, or words."""
    special = ("<fake_token_around_image>", "<image>", "<global-img>")
    texts = [get_image_prompt_string(*grid, tokens, *special) for grid in grids]
    whole = "User:" + between.join(texts) + "Tell me.<end_of_utterance>"
    return re.findall(r"<fake_token_around_image>|<image>|\w+|\s|[^\w\s]" if words else r"<[^>]+>|\w+|\s|\W", whole)


def lengths_in(tokens: list[str]) -> list[list[int]]:
    """Of each image, read off a prompt in tokens."""
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    ids, mask = torch.tensor([[vocabulary[t] for t in tokens]]), torch.tensor([[t == "<image>" for t in tokens]])
    return family_for(models.tiny("smolvlm")).image_lengths(mask, ids)


@given(
    grids=st.lists(st.sampled_from([(0, 0), (1, 2), (2, 3), (3, 1), (4, 4)]), min_size=1, max_size=4),
    between=st.sampled_from(["What is it?", "", "\n", "\n\n"]),
    words=st.booleans(),
)
def test_the_prompt_tells_which_tiles_are_whose(grids, between, words):
    assert lengths_in(written(4, *grids, between=between, words=words)) == [
        [4 * (rows * columns + 1) for rows, columns in grids]
    ]


def test_every_frame_of_a_video_is_an_image():
    lines = "".join(f"\nFrame from 00:0{second}:" + "".join(written(2, (0, 0)))[5:-26] for second in range(4))
    told = re.findall(r"<[^>]+>|\w+|\s|\W", "You are provided the following four frames:" + lines + "\n\nWhy?")
    assert lengths_in(told) == [[2, 2, 2, 2]]


def test_without_ids_every_tile_is_an_image():
    mask = torch.tensor([[False, True, True, False, True, True, False], [False] * 7])
    assert family_for(models.tiny("smolvlm")).image_lengths(mask, None) == [[2, 2], []]


# -- as the processor hands them over ------------------------------------------------------------------------


def by_sample(family: str, words: list[str]) -> dict[str, Any]:
    """A batch with the tiles of all of a sample's images in one row, padded with empty tiles."""
    inputs, rows = models.batch(family, words), []
    for word in words:
        _, pictures = models.sample(family, word)
        expected_pixels = torch.cat([torch.zeros(0, 3, 84, 84)] + [picture["pixel_values"][0] for picture in pictures])
        rows.append(expected_pixels[expected_pixels.flatten(1).any(dim=1)])
    longest = max(map(len, rows))
    pads = [torch.zeros(longest - len(row), 3, 84, 84) for row in rows]
    pixels = torch.stack([torch.cat(pair) for pair in zip(rows, pads, strict=True)])
    return {**inputs, "pixel_values": pixels, "pixel_attention_mask": torch.ones(*pixels.shape[:2], 84, 84).long()}


@FAMILIES
@pytest.mark.parametrize(
    "method", [TOWER, AveragePool(keep=0.4), Resize(keep=0.4), fv.V2Drop(layers=(2,), keep=(0.4,))]
)
def test_a_batch_in_the_processors_form_is_its_samples_alone(method, family):
    model, words = models.tiny(family), ["titit", "tt", "tiiit"]
    inputs = by_sample(family, words)
    with fv.drop(model, method) as together:
        out = models.generate(model, inputs)
        again = models.generate(model, models.batch(family, words))  # a row a picture
    assert torch.equal(out.sequences, again.sequences)
    assert [len(boxes) for sample in together.latest.boxes for boxes in sample] == [27, 9, 27, 9, 45]
    for index, word in enumerate(words):
        one = models.batch(family, [word])
        with fv.drop(model, method) as alone:
            single = models.generate(model, one)
        start = inputs["input_ids"].shape[1]
        assert torch.equal(out.sequences[index, start:], single.sequences[0, one["input_ids"].shape[1] :])
        if "i" in word:
            assert together.stages[0].kept[index].tolist() == alone.stages[0].kept[0].tolist()


@pytest.mark.parametrize("method", [TOWER, AveragePool(keep=0.4), Resize(keep=0.4)])
def test_features_come_in_the_form_they_had(method):
    model, inputs = models.tiny("smolvlm"), by_sample("smolvlm", ["titit", "tii"])
    pictures = models.given(model, inputs)
    with torch.no_grad():
        plain = model.model.get_image_features(**pictures).pooler_output
        with fv.drop(model, method):
            reduced = model.model.get_image_features(**pictures).pooler_output
    assert type(reduced) is type(plain)
    assert [one.shape for one in reduced] == [one.shape for one in plain]
    assert sum(one.shape[:-1].numel() for one in plain) == 2 * 36


# -- inside --------------------------------------------------------------------------------------------------


@FAMILIES
def test_blocks_are_the_models_pixel_shuffle(family):
    connector, patches = models.tiny(family).model.connector, torch.randn(2, 6, 6, 5)
    for block in (1, 2, 3):
        assert torch.equal(patch_blocks(patches, block), connector.pixel_shuffle(patches.flatten(1, 2), block))


@FAMILIES
@pytest.mark.parametrize("method", [TOWER, AveragePool(keep=0.4), Resize(keep=0.4)])
def test_rows_stay_behind_the_tags_of_their_tiles(method, family):
    """What a tile's tokens became stands between its tag and the next, at ids as the trace names them."""
    model, inputs = models.tiny(family), models.batch(family, ["tit"])
    entered = []
    handle = model.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: entered.append(args[0][0]))
    with fv.drop(model, method) as trace, torch.no_grad():
        model(**inputs)
        output = model.model.get_image_features(**models.given(model, inputs))
    handle.remove()
    ((item,),) = output._foveate.media
    rows, origin = torch.cat(list(output.pooler_output))[: len(item.cut.source)], item.cut.source
    columns, taken = (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0], set()
    for tile in range(3):
        mine = (origin // TOKENS == tile).nonzero()[:, 0]
        there = columns[tile * TOKENS : tile * TOKENS + len(mine)]
        assert torch.equal(entered[0][there], rows[mine])
        taken |= set(mine.tolist())
    assert len(taken) == trace.stages[0].after[0] == len(rows)


def test_a_picture_of_nothing_but_zeros_is_a_picture():
    model = models.tiny("smolvlm")
    ids = torch.tensor([[1, 5, *tagged({}, 9).tolist(), 6, 7]])
    with fv.drop(model, TOWER) as trace:
        models.generate(model, {"input_ids": ids, "pixel_values": torch.zeros(1, 1, 3, 84, 84)}, new_tokens=2)
    assert trace.stages[0].after == (5 + 1,)
