"""Decoding settings (greedy by default, ignoring the checkpoint's own), logits processors, and calls of `generate`."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypedDict

import torch
from annotated_types import Ge, Lt, MinLen
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from foveate._transformers import PreTrainedModel
from foveate.ask.loaded import quiet
from foveate.contract.settings import AtLeastOne, Part
from foveate.core.fields import check
from foveate.errors import SettingError

COLDEST = 1e-4
"""Lowest sampling temperature. Logits are divided by it, and a lower one could overflow them to infinity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Decoding settings. The defaults are greedy.

    Sampling, beams and penalties of the checkpoint's `generation_config` are ignored.

    Attributes:
        max_new_tokens: Maximum tokens of the answer, 1 or more.
        temperature: Sampling temperature; 0 decodes greedily.
        top_p: Sample from the likeliest tokens with this total probability, in (0, 1].
        top_k: Sample from this many of the likeliest tokens.
        num_beams: Beams of a beam search; 1 disables it.
        seed: Seed for sampling. torch's generators are seeded, and restored afterwards.
        stop: Texts that end the answer. The answer does not include them.

    Raises:
        SettingError: If a number is out of range, or a sampling setting comes without a temperature.
    """

    max_new_tokens: AtLeastOne = 64
    temperature: Annotated[float, Ge(0)] = 0.0
    top_p: Part | None = None
    top_k: AtLeastOne | None = None
    num_beams: AtLeastOne = 1
    seed: Annotated[int, Ge(-(2**63)), Lt(2**64)] | None = None
    stop: tuple[Annotated[str, MinLen(1)], ...] = ()

    def __post_init__(self) -> None:
        check(self)
        if 0 < self.temperature < COLDEST:
            raise SettingError(f"temperature must be 0 (greedy) or at least {COLDEST:g}; got {self.temperature}.")
        sampling = [name for name in ("top_p", "top_k", "seed") if getattr(self, name) is not None]
        if sampling and not self.temperature:
            raise SettingError(f"{sampling[0]} is for sampling: set a temperature above 0, or leave it out.")

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled."""
        return self.temperature > 0

    def refuse_with(self, choices: Sequence[str], stream: bool) -> None:
        """Refuse `choices` or `stream` if they conflict with these settings.

        Raises:
            SettingError: If they do.
        """
        if choices and (stream or self.samples or self.num_beams > 1):
            raise SettingError("choices are scored, not decoded: leave stream and decoding settings out.")
        if stream and self.num_beams > 1:
            raise SettingError("A beam search has no answer before its end: leave stream or num_beams out.")

    def arguments(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
        """Return these settings as arguments of transformers' `generate`."""
        arguments: dict[str, object] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": self.samples,
            "temperature": self.temperature or None,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": None,
            "repetition_penalty": 1.0,  # Qwen2.5-VL's default of 1.05 would change log-probabilities
            "num_return_sequences": 1,
            "use_cache": True,
            # With an existing cache, these would give wrong tokens or replace it by another kind of cache.
            "cache_implementation": None,
            "prompt_lookup_num_tokens": None,
            "assistant_early_exit": None,
        }
        if self.samples and self.top_k is None:
            arguments["top_k"] = 0  # transformers' default is 50
        if self.stop:
            arguments["stop_strings"] = list(self.stop)
            arguments["tokenizer"] = tokenizer
        return arguments


class Decoding(TypedDict, total=False):
    """Keywords of decoding; see `Generation`."""

    max_new_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    num_beams: int
    seed: int | None
    stop: tuple[str, ...]


class FirstToken:
    """A transformers logits processor that records the log-probabilities of the first token.

    Attributes:
        logs: Natural logarithms, (samples, vocabulary) float32 on the CPU; None before the first token.
    """

    def __init__(self) -> None:
        self.logs: Tensor | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if self.logs is None:
            self.logs = scores.float().log_softmax(dim=-1).cpu()
        return scores


class LeastSure:
    """A transformers logits processor that records the log-probability of each token of greedy answers.

    A sample that has ended is padded while others continue, so `of` reads only the sample's own tokens.
    """

    def __init__(self) -> None:
        self._logs: list[Tensor] = []  # one (samples,) float32 per step, on the model's device

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        logits = scores.float()
        # (samples, vocabulary) -> (samples,): the log-softmax at the argmax, which is the greedy token.
        self._logs.append(logits.amax(dim=-1) - logits.logsumexp(dim=-1))
        return scores

    def of(self, sample: int, tokens: int) -> float:
        """Return the lowest probability among the first `tokens` tokens of a sample's answer, including its end."""
        steps = torch.stack(self._logs[: max(1, tokens)])
        return math.exp(float(steps[:, sample].amin()))


class Forced:
    """A transformers logits processor that forces the given tokens on every sample, then scores any of `ends`.

    Attributes:
        logs: Sums of the natural log-probabilities so far, (samples,) float32 on the model's device.
    """

    def __init__(self, tokens: Sequence[int], ends: Collection[int]) -> None:
        self.logs = torch.zeros(1)
        self._left = list(tokens)
        self._ends = sorted(ends)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        logs = scores.float().log_softmax(dim=-1)  # (samples, vocabulary)
        before = self.logs.to(logs.device)
        if not self._left:
            self.logs = before + logs[:, self._ends].logsumexp(dim=1)
            return scores
        token = self._left.pop(0)
        self.logs = before + logs[:, token]
        # (samples, vocabulary): 0 at the token and −∞ elsewhere, so greedy decoding must take it.
        forced = torch.full_like(scores, -torch.inf)
        forced[:, token] = 0.0
        return forced


def generate(
    model: PreTrainedModel,
    inputs: Mapping[str, object],
    new_tokens: int,
    *,
    exactly: bool = False,
    streamer: object = None,
) -> ModelOutput:
    """Call `model.generate` greedily and return its output with sequences and cache.

    Args:
        model: A transformers model.
        inputs: Its inputs by name.
        new_tokens: Maximum new tokens.
        exactly: Suppress the end of sequence, so that exactly `new_tokens` are generated.
        streamer: A transformers streamer that gets every token.
    """
    settings = Generation(max_new_tokens=new_tokens).arguments(None)
    if exactly:
        settings["min_new_tokens"] = new_tokens
    return run(model, inputs, settings, streamer=streamer)


def run(
    model: PreTrainedModel, inputs: Mapping[str, object], settings: Mapping[str, object], **more: object
) -> ModelOutput:
    """Call `model.generate` with `settings` and further arguments, and return its output object."""
    with torch.inference_mode(), quiet():
        return model.generate(**inputs, **settings, **more, return_dict_in_generate=True)


# -- ends and padding ---------------------------------------------------------------------------------------------


def pad_id(model: PreTrainedModel) -> int:
    """Return the id that pads prompts."""
    return model.generation_config.pad_token_id or 0


def without_padding(model: PreTrainedModel, ids: Tensor) -> tuple[int, ...]:
    """Cut the new ids of one sample, (new,) int64, after the first end id."""
    ends = ends_of(model)
    tokens: list[int] = ids.tolist()
    last = next((place for place, token in enumerate(tokens, start=1) if token in ends), None)
    return tuple(tokens[:last])


def ends_of(model: PreTrainedModel) -> set[int]:
    """Return the ids that end an answer."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return set()
    if isinstance(ends, list):
        return set(ends)
    return {ends}
