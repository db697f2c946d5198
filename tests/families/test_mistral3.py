"""Mistral 3: its tiny model, and what is special: any picture size, padded in a batch, and breaks between rows."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import foveate as fv
from foveate.contract import Arriving
from foveate.methods.resize import Resize
from foveate.methods.visiondrop import VisionDrop
from foveate.registry import family_for
from tests import models, tiny_others
from tests.tiny import IMAGE, TEXT, Picture, Tiny

BREAK, END = 93, 94


def config() -> Any:
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "patch_size": 14, "image_size": 140, "initializer_range": 0.2,
    }  # fmt: skip
    return transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**TEXT, head_dim=8, sliding_window=None),
        vision_config=transformers.PixtralVisionConfig(**vision),
        image_token_index=IMAGE, spatial_merge_size=2, vision_feature_layer=-1,
    )  # fmt: skip


def padded(
    config: Any,
    count: int,
    rng: torch.Generator,
    sizes: Sequence[tuple[int, int]] = ((84, 112), (56, 140), (112, 84)),
    ground: tuple[int, int] = (112, 140),
) -> list[Picture]:
    """Pictures of several sizes on grounds of one."""
    own = torch.tensor(sizes)[torch.arange(count) % 3]
    pixels = torch.randn(count, 3, *ground, generator=rng)
    for one, (height, width) in zip(pixels, own.tolist(), strict=True):
        one[:, height:], one[:, :, width:] = 0, 0
    return [{"pixel_values": one[None], "image_sizes": size[None]} for one, size in zip(pixels, own, strict=True)]


def rows(picture: Picture, length: int, side: int = 28) -> Tensor:
    """A break behind each row, an end behind the last."""
    height, width = (picture["image_sizes"][0] // side).tolist()
    row = [*[IMAGE] * width, BREAK]
    return torch.tensor([*(row * height)[:-1], END])


TINY = Tiny(config, "Mistral3ForConditionalGeneration", padded, ids=rows)


def other_config() -> Any:
    vision = transformers.PixtralVisionConfig(
        hidden_size=24, intermediate_size=20, num_hidden_layers=4, num_attention_heads=3, patch_size=6, image_size=90,
        initializer_range=0.2,
    )  # fmt: skip
    return transformers.Mistral3Config(
        text_config=transformers.MistralConfig(**tiny_others.text(7, 5, 1, 30), head_dim=6, sliding_window=None),
        vision_config=vision, image_token_index=IMAGE, spatial_merge_size=3, vision_feature_layer=-2,
        multimodal_projector_bias=True,
    )  # fmt: skip


OTHER = replace(
    TINY,
    config=other_config,
    pictures=partial(padded, sizes=((36, 72), (18, 54), (90, 36)), ground=(90, 90)),
    ids=partial(rows, side=18),
)
TOWER = VisionDrop(dominant=14, contextual=3, layer_list=(2,), image_token_list=((9, 2),), reference=25)
CLOSE = {"atol": 5e-5, "rtol": 1e-4}


def test_a_side_that_is_no_whole_number_of_tokens():
    """The merger leaves out what is left over, as the model does."""
    model = models.tiny("mistral3")
    pictures = {"pixel_values": torch.randn(1, 3, 98, 70), "image_sizes": torch.tensor([[98, 70]])}
    with torch.no_grad():
        (whole,) = model.model.get_image_features(**pictures).pooler_output
        with fv.drop(model, TOWER):
            (reduced,) = model.model.get_image_features(**pictures).pooler_output
    assert len(whole) == 6
    assert len(reduced._foveate.cut.source) == 3 + 1
    assert reduced._foveate.layout().grids == ((3, 2),)


def test_a_smaller_picture_is_what_the_model_makes_of_it_alone():
    model, inputs = models.tiny("mistral3"), models.batch("mistral3", ["tiii"])
    pictures = models.given(model, inputs)
    with fv.drop(model, Resize(keep=0.4)), torch.no_grad():
        got = list(model.model.get_image_features(**pictures).pooler_output)
    for one, (height, width), features in zip(*pictures.values(), got, strict=True):
        tokens = height * width // 784
        arriving = Arriving(tokens, tokens, tokens, grids=((height // 28, width // 28),))
        ((rows, columns),) = Resize(keep=0.4).coarsen(arriving)
        own = one[None, :, :height, :width]
        small = torch.nn.functional.interpolate(own, (28 * rows, 28 * columns), mode="bilinear", antialias=True)
        with torch.no_grad():
            (expected,) = model.model.get_image_features(small, torch.tensor([small.shape[2:]])).pooler_output
        torch.testing.assert_close(features[: rows * columns], expected, **CLOSE)
        assert features.shape == (height * width // 784, 32)
        assert not features[rows * columns :].any()


def test_rows_stay_between_the_breaks_of_their_row():
    model, inputs = models.tiny("mistral3"), models.batch("mistral3", ["tit"])
    entered = []
    handle = model.get_decoder().layers[0].register_forward_pre_hook(lambda _, args: entered.append(args[0][0]))
    with fv.drop(model, TOWER), torch.no_grad():
        (features,) = model.model.get_image_features(**models.given(model, inputs)).pooler_output
        model(**inputs)
    handle.remove()
    origin, columns = features._foveate.cut.source, (inputs["input_ids"][0] == IMAGE).nonzero()[:, 0]
    assert len(origin) == 8
    for row in range(3):
        mine = (origin // 4 == row).nonzero()[:, 0]
        assert torch.equal(entered[0][columns[4 * row : 4 * row + len(mine)]], features[mine])


def test_a_small_picture_beside_a_large_one_is_not_its_padding():
    """Padding is no part of a picture: its boxes and its smaller copy are of its own pixels."""
    model, inputs = models.tiny("mistral3"), models.batch("mistral3", ["tii"])
    pictures = family_for(model).pictures(model.config, "image", models.given(model, inputs), [12, 10])
    corners = [picture.boxes[-1].tolist() for picture in pictures]
    assert corners == [
        pytest.approx([0.75, 2 / 3, 1, 1]),
        pytest.approx([0.8, 0.5, 1, 1]),
    ]
