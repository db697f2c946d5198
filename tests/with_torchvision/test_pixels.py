"""The pixels with which pictures have no more tokens than somebody wants, on a processor that scales by pixels."""

import pytest
from PIL import Image

import foveate as fv
from foveate.ask.counting import most_pixels
from foveate.errors import SettingError
from tests.with_torchvision.conftest import save_qwen2_vl

STEP = 28 * 28


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    folder = save_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl"))
    return fv.load(str(folder), weights=False)


@pytest.fixture
def pictures(tmp_path):
    paths = []
    for size in ((160, 90), (60, 200)):
        Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 40).convert("RGB").save(path := tmp_path / f"{size[0]}.png")
        paths.append(path)
    return paths


def tokens_at(vlm, pictures, pixels):
    vlm.processor.image_processor.size = {"shortest_edge": min(56 * 56, pixels), "longest_edge": pixels}
    return vlm.prepare(pictures, "What happens ?").vision_tokens


@pytest.mark.parametrize("tokens", [4, 8, 13])
def test_that_many_fit_and_a_token_s_pixels_more_do_not(vlm, pictures, tokens):
    whole = tokens_at(vlm, pictures, 16 * STEP)
    prompt = vlm.prepare(pictures, "What happens ?")
    limit = most_pixels(vlm, prompt, tokens)
    assert vlm.prepare(pictures, "What happens ?").vision_tokens == whole > tokens  # the processor is as it was
    assert limit % STEP == 0
    assert tokens_at(vlm, pictures, limit) <= tokens < tokens_at(vlm, pictures, limit + STEP)


def test_what_fits_already_keeps_the_processor_s_own_limit(vlm, pictures):
    tokens_at(vlm, pictures, 16 * STEP)
    assert most_pixels(vlm, vlm.prepare(pictures, "What happens ?"), 1000) == 16 * STEP


def test_fewer_than_the_fewest_are_refused(vlm, pictures):
    tokens_at(vlm, pictures, 16 * STEP)
    with pytest.raises(SettingError, match="at least"):
        most_pixels(vlm, vlm.prepare(pictures, "What happens ?"), 1)
