"""The commands on Qwen3.5, whose layers carry a state in the place of a cache."""

import pytest
from PIL import Image

from tests.cli.checkpoints import check_bytes, save_qwen3_5


@pytest.fixture(scope="module")
def qwen3_5(tmp_path_factory):
    return save_qwen3_5(tmp_path_factory.mktemp("qwen3_5"))


def test_qwen3_5_saves_what_dropping_saves_in_layers_with_keys(run, qwen3_5, tmp_path):
    Image.effect_mandelbrot((160, 160), (-2, -1.5, 1, 1.5), 40).convert("RGB").save(path := tmp_path / "a.png")
    layers = check_bytes(run, qwen3_5, path)
    assert layers[0] == layers[5] == 0
    assert 0 < layers[1] == layers[2] == layers[3] == layers[4]
