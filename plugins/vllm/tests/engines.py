"""Engines of vLLM for tests, and what transformers answers to the same prompt."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import transformers
from PIL import Image

import foveate as fv
from foveate import embedded
from foveate.contract.method import Method

PROMPT = "USER: <image>\nWhat does the text say? ASSISTANT:"
ARCHITECTURES = {
    "llava": "FoveateLlavaForConditionalGeneration",
    "llava_next": "FoveateLlavaNextForConditionalGeneration",
}


class Renumbered(Method):
    """Another method, its rows numbered anew wherever it drops: what a shorter prompt is."""

    name = "renumbered"
    inner: Method

    def stages(self, shape):
        return tuple(dataclasses.replace(stage, positions="reindex") for stage in self.inner.stages(shape))


@contextmanager
def engine(folder, setting=None, **options) -> Iterator:
    """An engine in this process; stock without a setting."""
    from vllm import LLM

    if setting is not None:
        config = transformers.AutoConfig.from_pretrained(folder)
        architecture = ARCHITECTURES.get(config.model_type) or f"Foveate{config.architectures[0]}"
        options["hf_overrides"] = {"architectures": [architecture], "foveate": setting}
    usual = {"max_model_len": 1024, "block_size": 32, "max_num_seqs": 4, "limit_mm_per_prompt": {"image": 3}}
    llm = LLM(str(folder), dtype="float32", enforce_eager=True, disable_log_stats=True, **usual | options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def request(images: Sequence = (), prompt: str | None = None, **rate) -> dict:
    """A request with these images."""
    if prompt is None:
        prompt = "USER: " + "<image>\n" * len(images) + "What does the text say? ASSISTANT:"
    asked = {"prompt": prompt}
    if images:
        asked["multi_modal_data"] = {"image": list(images)}
    if rate:
        asked["mm_processor_kwargs"] = rate
    return asked


def answers(llm, requests: Sequence[dict], tokens: int = 8, ignore_eos: bool = False, **options) -> list[list[int]]:
    """Greedy tokens of each request."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=ignore_eos)
    outputs = llm.generate(list(requests), sampling, use_tqdm=False, **options)
    return [list(output.outputs[0].token_ids) for output in outputs]


class Reference:
    """A model of transformers, and its processor."""

    def __init__(self, folder) -> None:
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        if self.model.config.model_type not in ARCHITECTURES:  # some configs bring an end of their own
            self.model.generation_config.eos_token_id = None

    def answer(self, request: dict, method: Method | None = None, tokens: int = 8, new: bool = True) -> list[int]:
        """Greedy tokens, with rows numbered anew where `new`."""
        images = request.get("multi_modal_data", {}).get("image")
        inputs = self.processor(images=images, text=request["prompt"], return_tensors="pt")
        before = inputs["input_ids"].shape[1]
        if images is None:
            method = None
        settings = {"max_new_tokens": tokens, "do_sample": False}
        if method is None:
            return self.model.generate(**inputs, **settings)[0, before:].tolist()
        with fv.drop(self.model, Renumbered(inner=method) if new else method):
            return self.model.generate(**inputs, **settings)[0, before:].tolist()


def demo() -> Image.Image:
    """The demo picture of the embedded model."""
    return Image.open(embedded.picture()).convert("RGB")


def picture(seed: int, width: int = 84, height: int = 84) -> Image.Image:
    """A random picture."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)
