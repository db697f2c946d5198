"""A request's own rate holds before the decoder alone."""

import pytest
import transformers

from foveate.errors import SettingError
from foveate_vllm.setting import Rate, Setting

GRIDS = ((24, 24),)


def setting_of(**values):
    vision = transformers.CLIPVisionConfig(num_hidden_layers=4, image_size=336, patch_size=14)
    config = transformers.LlavaConfig(vision_config=vision, text_config=transformers.LlamaConfig(num_hidden_layers=32))
    return Setting(values, config)


@pytest.mark.parametrize("method", ["v2drop", "visionzip:tokens=128+v2drop:retention=0.1"])
def test_a_request_s_rate_is_refused_where_the_server_drops_between_layers(method):
    setting = setting_of(method=method)
    assert setting.count(Rate(), 576, GRIDS) in (576, 128)
    with pytest.raises(SettingError, match="requests cannot have rates of their own"):
        setting.count(Rate(tokens=64), 576, GRIDS)


def test_before_the_decoder_a_request_has_its_rate():
    setting = setting_of(method="visionzip", tokens=192)
    assert setting.count(Rate(tokens=64), 576, GRIDS) == 64
