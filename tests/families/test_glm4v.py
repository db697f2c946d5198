"""GLM-4.1V's tiny model, and its videos, whose placeholders are those of images."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import foveate as fv
from tests import others
from tests.tiny import IMAGE, TEXT, VISION_START, Picture, Tiny, after_start, qwen_frames, qwen_patches

VIDEO_START, VIDEO_END = 90, 95
VISION = {
    "depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 40, "image_size": 70,
}  # fmt: skip
TOKENS = {
    "image_token_id": IMAGE, "image_start_token_id": VISION_START, "image_end_token_id": 94,
    "video_start_token_id": VIDEO_START, "video_end_token_id": VIDEO_END,
}  # fmt: skip


def config() -> Any:
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 2, 1], "partial_rotary_factor": 1.0}
    return transformers.Glm4vConfig(
        text_config={**TEXT, "num_key_value_heads": 1, "rope_parameters": rope}, vision_config=VISION, **TOKENS
    )


def ids(picture: Picture, length: int) -> Tensor:
    """A video is one image for every temporal patch, with a time stamp, between a start and an end of its own."""
    if "video_grid_thw" not in picture:
        return after_start(picture, length)
    frames = int(picture["video_grid_thw"][0, 0])
    frame = [torch.tensor([VISION_START]), torch.full((length // frames,), IMAGE), torch.tensor([94, 7])]
    return torch.cat([torch.tensor([VIDEO_START]), *frame * frames, torch.tensor([VIDEO_END])])


def types(ids: Tensor) -> dict[str, Tensor]:
    """Which tokens are of images, and which, between start and end of one, of videos."""
    inside = (ids == VIDEO_START).cumsum(-1) > (ids == VIDEO_END).cumsum(-1)
    return {"mm_token_type_ids": (ids == IMAGE).long() * (1 + inside.long())}


TINY = Tiny(
    config, "Glm4vForConditionalGeneration", qwen_patches, qwen_frames, ids=ids, extra=types, mrope=True, apart=True
)


def other_vision(width: int, merge: int, **more: Any) -> dict[str, Any]:
    return {
        "depth": 3, "hidden_size": 24, "out_hidden_size": width, "num_heads": 3, "intermediate_size": 20,
        "image_size": 30, "patch_size": 6, "spatial_merge_size": merge, "temporal_patch_size": 1, **more,
    }  # fmt: skip


def other_config() -> Any:
    rope = others.mrope(1, 1, 0, partial_rotary_factor=0.5)
    return transformers.Glm4vConfig(
        text_config=others.text(7, 3, 3, 24, rope_parameters=rope), vision_config=other_vision(24, 3), **TOKENS
    )


OTHER = replace(TINY, config=other_config, pictures=others.grids, videos=others.clips)


@pytest.mark.parametrize(
    "method",
    [fv.V2Drop(layers=(1, 3), keep=(0.5, 0.4), scope="image"), fv.AveragePool(keep=0.4)],
    ids=lambda one: one.name,
)
def test_a_batch_of_videos_is_its_samples_run_alone(method):
    from tests.invariants.alone import check_alone
    from tests.models import tiny

    check_alone(tiny("glm4v"), "glm4v", method, ("tvt", "tvtvt", "ttt"))
