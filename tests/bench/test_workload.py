"""Named shapes and their prompts: sizes of the real models, and inputs that the models take."""

import dataclasses

import pytest
import torch

import foveate as fv
from foveate.bench.shapes import shape
from foveate.bench.stopwatch import PARTS, time_parts
from foveate.bench.workload import synthetic
from foveate.plain.flags import PromptRequest

CPU = torch.device("cpu")
PARAMETERS = {  # in billions, as their model cards and papers say
    "llava-1.5-7b": 7.06, "llava-1.5-13b": 13.35, "llava-next-7b": 7.06, "llava-onevision-7b": 8.03,
    "qwen2-vl-7b": 8.29, "qwen2.5-vl-7b": 8.29, "qwen3-vl-8b": 8.77,
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shape_has_as_many_parameters_as_the_real_model(name):
    model = shape(name).build(torch.device("meta"), torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(PARAMETERS[name], rel=0.01)


def shrunk(name):
    """A shape with few and narrow layers; what its prompts are made of stays."""
    known = shape(name)
    config = {key: dict(value) if isinstance(value, dict) else value for key, value in known.config.items()}
    text, vision = config["text_config"], config["vision_config"]
    qwen = "rope_parameters" in text and "mrope_section" in text["rope_parameters"]
    text |= {"num_hidden_layers": 4, "intermediate_size": 32, "hidden_size": 256 if qwen else 32}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1} if qwen else {"num_attention_heads": 2}
    text |= {"num_key_value_heads": 2} if not qwen and "num_key_value_heads" in text else {}
    if "depth" in vision:
        vision |= {"depth": 2, "num_heads": 2} | ({"embed_dim": 32} if "embed_dim" in vision else {"hidden_size": 32})
        vision |= {"hidden_size": 256} if "embed_dim" in vision else {"out_hidden_size": 256, "intermediate_size": 32}
        vision |= {"fullatt_block_indexes": [1]} if "fullatt_block_indexes" in vision else {}
        vision |= {"deepstack_visual_indexes": [0]} if "deepstack_visual_indexes" in vision else {}
    else:
        vision |= {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return dataclasses.replace(known, config=config)


SMALL = ["llava-1.5-7b", "llava-next-7b", "llava-onevision-7b", "qwen2-vl-7b", "qwen2.5-vl-7b", "qwen3-vl-8b"]


@pytest.mark.parametrize("name", SMALL)
def test_a_model_takes_its_prompt_and_drops_from_it(name):
    known = shrunk(name)
    frames = 2 if known.image is None else None
    model = known.build(CPU, torch.float32)
    workload = synthetic(known, PromptRequest(batch=2, text_tokens=20, frames=frames), CPU)
    method = fv.V2Drop.for_budget(model, retention=0.5, vision_tokens=workload.vision_tokens)
    with fv.drop(model, method) as trace:
        times = time_parts(model, workload.inputs, 2)
    assert trace.vision_tokens == [workload.vision_tokens] * 2
    assert trace.latest.rows == (workload.vision_tokens + 20,) * 2
    assert list(times) == [part for part in PARTS if part != "launches"]
    assert 0 < times["tower"] + times["prefill"] < times["ttft"] < times["whole"]
    cost = workload.cost(model, method)
    assert list(cost.tokens) == [counts[0] for counts in trace.latest.per_layer]
    assert cost.tower_flops > 0


@pytest.mark.parametrize(
    ("name", "asked", "told"),
    [
        ("llava-1.5-7b", {"frames": 8}, "takes pictures: give images, not frames"),
        ("llava-onevision-7b", {"images": 2}, "takes a video: give frames, not images"),
        ("qwen2-vl-7b", {"frames": 3}, "an even number of frames, 2 or more; got 3"),
        ("qwen2-vl-7b", {"frames": 2, "images": 2}, "exclude each other"),
        ("llava-1.5-7b", {"images": 0}, "images"),
        ("llava-1.5-7b", {"text_tokens": 5}, "6 tokens of text or more; got 5"),
    ],
)
def test_what_a_shape_does_not_take_is_refused(name, asked, told):
    with pytest.raises(fv.SettingError, match=told):
        synthetic(shape(name), PromptRequest(**asked))


def test_an_unknown_shape_is_refused_with_those_there_are():
    with pytest.raises(fv.UnknownNameError, match="llava-8b"):
        shape("llava-8b")
