"""How answers are decoded: greedy unless one asks for something else, whatever a checkpoint's own settings say."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, TypedDict

import torch
from annotated_types import Ge, Lt, MinLen
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from foveate._transformers import PreTrainedModel
from foveate.ask.loaded import quiet
from foveate.contract.settings import Part, check
from foveate.errors import SettingError
from foveate.plain.spelling import no_setting

COLDEST = 1e-4
"""The least temperature of sampling: logits are divided by it, and infinity has no distribution."""

AtLeastOne = Annotated[int, Ge(1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How an answer is decoded. The defaults are greedy.

    Sampling, beams and penalties of a checkpoint's own `generation_config` do not count.

    Attributes:
        max_new_tokens: The longest answer, 1 or more.
        temperature: Of sampling; 0 takes the likeliest token each time.
        top_p: Samples from the likeliest tokens that have this probability together, in (0, 1].
        top_k: Samples from so many of the likeliest tokens.
        num_beams: Beams of a beam search; 1 is none.
        seed: Of sampling: torch's generators are set to it, and put back afterwards.
        stop: Texts that end an answer. They are no part of it.

    Raises:
        SettingError: If a number leaves its range, or settings of sampling come without a temperature.
    """

    max_new_tokens: AtLeastOne = 64
    temperature: Annotated[float, Ge(0)] = 0.0
    top_p: Part | None = None
    top_k: AtLeastOne | None = None
    num_beams: AtLeastOne = 1
    seed: Annotated[int, Ge(-(2**63)), Lt(2**64)] | None = None
    stop: tuple[Annotated[str, MinLen(1)], ...] = ()

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in check("Generation", Generation, values).items():
            object.__setattr__(self, name, value)
        if 0 < self.temperature < COLDEST:
            raise SettingError(f"temperature must be 0 (greedy) or {COLDEST:g} and more; got {self.temperature}.")
        sampling = [name for name in ("top_p", "top_k", "seed") if values[name] is not None]
        if sampling and not self.temperature:
            raise SettingError(f"{sampling[0]} is for sampling: give a temperature above 0, or leave it out.")

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        return self.temperature > 0

    def refuse_with(self, choices: Sequence[str], stream: bool) -> None:
        """Refuse what does not go together with these settings.

        Raises:
            SettingError: If something does not.
        """
        if choices and (stream or self.samples or self.num_beams > 1):
            raise SettingError("choices are scored, not decoded: leave stream and the settings of decoding out.")
        if stream and self.num_beams > 1:
            raise SettingError("A beam search knows its answer only at the end: leave stream or num_beams out.")

    def arguments(self, tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
        """These settings as arguments of transformers' `generate`."""
        arguments: dict[str, object] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": self.samples,
            "temperature": self.temperature or None,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": None,
            "repetition_penalty": 1.0,  # Qwen2.5-VL's own is 1.05: log-probabilities would be others
            "num_return_sequences": 1,
            "use_cache": True,
            # Behind a cache that is there already, these give wrong tokens or another kind of cache.
            "cache_implementation": None,
            "prompt_lookup_num_tokens": None,
            "assistant_early_exit": None,
        }
        if self.samples and self.top_k is None:
            arguments["top_k"] = 0  # transformers' own default is 50
        if self.stop:
            arguments["stop_strings"] = list(self.stop)
            arguments["tokenizer"] = tokenizer
        return arguments


class Decoding(TypedDict, total=False):
    """How answers are decoded; see `Generation`."""

    max_new_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    num_beams: int
    seed: int | None
    stop: tuple[str, ...]


def generation_of(options: Mapping[str, Any]) -> Generation:
    """How an answer is decoded, as a caller's keyword arguments say it.

    Raises:
        SettingError: If there is no such setting, or as `Generation`.
    """
    names = [field.name for field in fields(Generation)]
    if unknown := sorted(set(options) - set(names)):
        raise no_setting("An answer", unknown[0], names)
    return Generation(**options)


class FirstToken:
    """Notes the log-probabilities of the first token, as one of transformers' logits processors.

    Attributes:
        logs: (samples, vocabulary) float32, on the CPU; None before the first token.
    """

    def __init__(self) -> None:
        self.logs: Tensor | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if self.logs is None:
            self.logs = scores.float().log_softmax(dim=-1).cpu()
        return scores


class LeastSure:
    """Notes how likely each token of greedy answers is, as one of transformers' logits processors.

    A sample that has ended is padded while others go on, so only its own tokens count: see `of`.
    """

    def __init__(self) -> None:
        self._logs: list[Tensor] = []  # (samples,) float32 of each step, where the model runs

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        logits = scores.float()
        self._logs.append(logits.amax(dim=-1) - logits.logsumexp(dim=-1))
        return scores

    def of(self, sample: int, tokens: int) -> float:
        """The probability of the least likely of the first so many tokens of an answer, its end among them."""
        steps = torch.stack(self._logs[: max(1, tokens)])
        return math.exp(float(steps[:, sample].amin()))


class Forced:
    """Takes the given tokens one after the other, then any of `ends`, as one of transformers' logits processors.

    Attributes:
        value: The sum of their log-probabilities so far.
    """

    def __init__(self, tokens: Sequence[int], ends: Collection[int]) -> None:
        self.value = 0.0
        self._left = list(tokens)
        self._ends = sorted(ends)

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        logs = scores.float().log_softmax(dim=-1)[0]
        if not self._left:
            self.value += float(logs[self._ends].logsumexp(dim=0))
            return scores
        token = self._left.pop(0)
        self.value += float(logs[token])
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
    """What `model.generate` answers greedily as a dict, its sequences and cache among it.

    Args:
        model: A model of transformers.
        inputs: What it is given, by name.
        new_tokens: At the most.
        exactly: Whether no end of sequence comes before.
        streamer: Gets every token as it comes.
    """
    settings = Generation(max_new_tokens=new_tokens).arguments(None)
    if exactly:
        settings["min_new_tokens"] = new_tokens
    return run(model, inputs, settings, streamer=streamer)


def run(
    model: PreTrainedModel, inputs: Mapping[str, object], settings: Mapping[str, object], **more: object
) -> ModelOutput:
    """What `model.generate` answers as a dict, under `settings` and what `more` it takes."""
    with torch.inference_mode(), quiet():
        return model.generate(**inputs, **settings, **more, return_dict_in_generate=True)


# -- ends and padding ---------------------------------------------------------------------------------------------


def pad_id(model: PreTrainedModel) -> int:
    """What a prompt is padded with."""
    return model.generation_config.pad_token_id or 0


def without_padding(model: PreTrainedModel, ids: Tensor) -> tuple[int, ...]:
    """The new ids of one sample, (new,) int64, up to the one that ends it, which is among them."""
    ends = ends_of(model)
    tokens: list[int] = ids.tolist()
    for place, token in enumerate(tokens):
        if token in ends:
            return tuple(tokens[: place + 1])
    return tuple(tokens)


def ends_of(model: PreTrainedModel) -> set[int]:
    """Ids that end an answer."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        return set()
    if isinstance(ends, list):
        return set(ends)
    return {ends}
