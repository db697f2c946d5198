"""A tiny Qwen model twice: in vLLM with foveate's plug-in, and in transformers with the same method."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
import transformers
from PIL import Image

import foveate as fv
from foveate.naming import parse
from tests.checkpoints_qwen import FILM, MARK

__all__ = ["ARCHITECTURES", "Ask", "Reference", "differences", "engine_of", "picture", "run", "sampling", "shut", "use"]

ARCHITECTURES = {
    "qwen2_5_vl": "FoveateQwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "FoveateQwen3VLForConditionalGeneration",
    "qwen2_vl": "FoveateQwen2VLForConditionalGeneration",
    "qwen3_vl_moe": "FoveateQwen3VLMoeForConditionalGeneration",
    "glm4v": "FoveateGlm4vForConditionalGeneration",
}
NEW_TOKENS = 8


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Noise of so many times 32 pixels: in patches of 16 pixels, as many tokens; of 14, a few more."""
    pixels = numpy.random.default_rng(seed).integers(0, 255, (32 * height, 32 * width, 3), dtype=numpy.uint8)
    return Image.fromarray(pixels)


@dataclass(frozen=True)
class Ask:
    """One request.

    Attributes:
        images: In front of the question.
        question: Behind them.
        rate: The request's own, "tokens" or "retention".
        before: Text in front of the images.
        films: Behind them: frames, and what vLLM wants to know of each film.
        mark: What stands for an image.
    """

    images: Sequence[Image.Image] = ()
    question: str = "What does the text say?"
    rate: dict[str, Any] = field(default_factory=dict)
    before: str = ""
    films: Sequence[tuple[Any, dict[str, Any]]] = ()
    mark: str = MARK

    @property
    def prompt(self) -> str:
        marks = self.mark * len(self.images) + FILM * len(self.films)
        return f"USER: {self.before}{marks}\n{self.question} ASSISTANT:"

    @property
    def request(self) -> dict[str, Any]:
        """What vLLM takes."""
        media = {"image": list(self.images), "video": list(self.films)}
        media = {kind: items for kind, items in media.items() if items}
        if not media:
            return {"prompt": self.prompt}
        kwargs = {f"foveate_{name}": value for name, value in self.rate.items()}
        return {"prompt": self.prompt, "multi_modal_data": media, "mm_processor_kwargs": kwargs}


@dataclass(frozen=True)
class Answer:
    """Greedy tokens and the log-probability of each."""

    tokens: list[int]
    logprobs: list[float]


class Reference:
    """foveate on transformers, float32."""

    def __init__(self, folder: Path) -> None:
        self._processor = transformers.AutoProcessor.from_pretrained(folder)
        kind = transformers.AutoModelForImageTextToText
        self._model = kind.from_pretrained(folder, dtype=torch.float32).eval()

    def answer(self, ask: Ask, method: str, new_tokens: int = NEW_TOKENS) -> Answer:
        """The method with the request's own rate, if it has one."""
        media = {"images": list(ask.images) or None}
        if ask.films:
            frames, about = zip(*ask.films, strict=True)
            media |= {"videos": list(frames), "video_metadata": list(about), "do_sample_frames": False}
        inputs = self._processor(**media, text=[ask.prompt], return_tensors="pt")
        rate = dict(ask.rate)
        if ask.films:  # which stay whole without a rate of their own
            rate = {"retention": rate["video_retention"]} if "video_retention" in rate else {"retention": 1.0}
        if (not ask.images and rate.get("retention") == 1) or not (ask.images or ask.films):
            return self._generated(inputs, new_tokens)
        at_rate = parse(method).with_budget(**rate) if rate else method
        with fv.drop(self._model, at_rate):
            return self._generated(inputs, new_tokens)

    def _generated(self, inputs: Any, new_tokens: int) -> Answer:
        answer = self._model.generate(
            **inputs, do_sample=False, max_new_tokens=new_tokens, return_dict_in_generate=True, output_logits=True
        )
        tokens = answer.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        rows = [torch.log_softmax(logits[0].double(), -1) for logits in answer.logits]
        return Answer(tokens, [float(row[token]) for row, token in zip(rows, tokens, strict=True)])


def engine_of(name: str, folder: Path, method: str | None, **settings: Any) -> Any:
    """vLLM with the plug-in, in this process, or without it (method None); `shut` it before the next one."""
    from vllm import LLM

    if method is not None:
        settings["hf_overrides"] = {"architectures": [ARCHITECTURES[name]], "foveate": {"method": method}}
    usual = {"max_model_len": 1024, "block_size": 32, "max_num_seqs": 4}
    return LLM(str(folder), dtype="float32", enforce_eager=True, disable_log_stats=True, **{**usual, **settings})


def shut(engine: Any) -> None:
    """End an engine of this process."""
    engine.llm_engine.engine_core.shutdown()


def use(engine: Any, method: str) -> None:
    """Give an engine of this process another method, so that one engine serves many."""
    from foveate_vllm.setting import Setting

    config = engine.model_config.hf_config
    config.foveate = {"method": method}

    def read_again(model: Any) -> None:
        model.foveate = Setting.of(config, model.host)

    engine.apply_model(read_again)
    del engine.renderer.mm_processor.info.setting


@functools.cache
def sampling(new_tokens: int) -> Any:
    """Greedy."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=new_tokens, logprobs=1, ignore_eos=True)


def run(engine: Any, asks: Sequence[Ask], new_tokens: int = NEW_TOKENS, **settings: Any) -> list[Any]:
    """vLLM's outputs, all asked at once; `settings` are more of each request."""
    requests = [{**ask.request, **settings} for ask in asks]
    return engine.generate(requests, sampling(new_tokens), use_tqdm=False)


def differences(output: Any, wanted: Answer) -> float:
    """The largest difference of a log-probability; infinite where tokens differ."""
    (completion,) = output.outputs
    tokens = list(completion.token_ids)
    if tokens != wanted.tokens:
        return float("inf")
    pairs = zip(completion.logprobs, tokens, wanted.logprobs, strict=True)
    return max(abs(row[token].logprob - logprob) for row, token, logprob in pairs)
