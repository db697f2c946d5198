"""A model twice: in vLLM with stages between its layers, and in transformers with the same method."""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import transformers

import foveate as fv
from tests.engines import demo, picture

__all__ = ["DEMO", "METHODS", "NEAR", "SIX", "Ask", "Reference", "answers", "asks", "engine", "misses", "use"]

ARCHITECTURES = {
    "llava": "FoveateLlavaForConditionalGeneration",
    "qwen2_5_vl": "FoveateQwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "FoveateQwen3VLForConditionalGeneration",
}
MARKS = {"llava": "<image>", "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>"}
MARKS["qwen3_vl"] = MARKS["qwen2_5_vl"]
METHODS = (
    "v2drop:layers=1,3;keep=0.5,0.3",
    "v2drop:layers=2,3,4;keep=0.5,0.5,0.0;scope=image",
    "fastv:layers=2;keep=0.3",
    "pyramiddrop:positions=keep;layer_list=1,3,4;image_token_ratio_list=0.5,0.25,0.1",
    "random:layers=1,3;keep=0.5,0.3",
    "uniform:layers=2;keep=0.25;scope=image",
    "dart:layer=2",
    "fastv:layers=2;keep=0.5+v2drop:layers=4;keep=0.3",
)
NEAR = 1e-4
"""Of log-probabilities: kernels add in another order."""
NEW = 8


@dataclass(frozen=True)
class Ask:
    """A question about some pictures."""

    images: tuple = ()
    question: str = "What does the text say?"
    before: str = ""


SIX = (
    Ask((picture(0),)),
    Ask(question="Is there no picture at all?"),
    Ask((picture(1), picture(2)), "Which of them?"),
    Ask((picture(3),), "How many words can you see here, please?", "hello, look at"),
    Ask((picture(4),), "Say."),
    Ask((picture(0),), "Where?"),
)
DEMO = (Ask((demo(),)), Ask(question="Hello?"), Ask((demo(), picture(7, 300, 200)), "Which one?"))


@dataclass(frozen=True)
class Answer:
    """Greedy tokens and the log-probability of each."""

    tokens: list[int]
    logprobs: list[float]


def prompt_of(kind: str, ask: Ask) -> str:
    return f"USER: {ask.before}{MARKS[kind] * len(ask.images)}\n{ask.question} ASSISTANT:"


class Reference:
    """foveate on transformers, float32."""

    def __init__(self, folder) -> None:
        model = transformers.AutoModelForImageTextToText
        self._model = model.from_pretrained(folder, dtype=torch.float32).eval()
        self._model.generation_config.eos_token_id = None  # all answers are of one length
        self._processor = transformers.AutoProcessor.from_pretrained(folder)
        self._kind = self._model.config.model_type

    def answer(self, ask: Ask, method: str | None, new: int = NEW) -> Answer:
        images = list(ask.images) or None
        inputs = self._processor(images=images, text=[prompt_of(self._kind, ask)], return_tensors="pt")
        if method is None or images is None:
            return self._generated(inputs, new)
        with fv.drop(self._model, method):
            return self._generated(inputs, new)

    def _generated(self, inputs, new) -> Answer:
        answer = self._model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=new,
            return_dict_in_generate=True,
            output_logits=True,
        )
        tokens = answer.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        rows = [torch.log_softmax(logits[0].double(), -1) for logits in answer.logits]
        return Answer(tokens, [float(row[token]) for row, token in zip(rows, tokens, strict=True)])


def settings(folder, method: str, **options) -> dict:
    """What an engine is started with."""
    kind = transformers.AutoConfig.from_pretrained(folder).model_type
    overrides = {"architectures": [ARCHITECTURES[kind]], "foveate": {"method": method}}
    usual = {"max_model_len": 1024, "block_size": 32, "max_num_seqs": 2, "limit_mm_per_prompt": {"image": 3}}
    fixed = {"dtype": "float32", "enforce_eager": True, "enable_prefix_caching": False, "disable_log_stats": True}
    return {"model": str(folder), "hf_overrides": overrides, **fixed, **usual, **options}


@contextmanager
def engine(folder, method: str, **options):
    """vLLM with the plug-in, in this process unless options say otherwise."""
    from vllm import LLM

    llm = LLM(**settings(folder, method, **options))
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()


def use(engine, method: str) -> None:
    """Give an engine of this process another method whose stages are all between layers."""
    from foveate_vllm.setting import Setting

    config = engine.model_config.hf_config
    config.foveate = {"method": method}

    def read_again(model) -> None:
        model.foveate = Setting.of(config, model.host)
        model.drop_between(model.foveate)

    engine.apply_model(read_again)
    info = engine.renderer.mm_processor.info
    vars(info).pop("setting", None)


def asks(engine, questions: Sequence[Ask]) -> list[dict]:
    """What vLLM takes."""
    kind = engine.model_config.hf_config.model_type
    requests = []
    for ask in questions:
        request = {"prompt": prompt_of(kind, ask)}
        if ask.images:
            request["multi_modal_data"] = {"image": list(ask.images)}
        requests.append(request)
    return requests


def answers(engine, questions: Sequence[Ask], new: int = NEW) -> list[Answer]:
    """What vLLM says, all asked at once."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=new, logprobs=1, ignore_eos=True)
    engines = []
    for output in engine.generate(asks(engine, questions), sampling, use_tqdm=False):
        tokens = list(output.outputs[0].token_ids)
        logprobs = [row[token].logprob for row, token in zip(output.outputs[0].logprobs, tokens, strict=True)]
        engines.append(Answer(tokens, logprobs))
    return engines


def misses(got: Answer, wanted: Answer) -> float:
    """The largest difference of a log-probability; infinite where tokens differ."""
    if got.tokens != wanted.tokens:
        return float("inf")
    return max(abs(one - other) for one, other in zip(got.logprobs, wanted.logprobs, strict=True))
