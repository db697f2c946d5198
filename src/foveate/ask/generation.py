"""How answers are decoded: greedy unless one asks for something else, whatever a checkpoint's own settings say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor

from foveate.ask.quiet import quiet
from foveate.errors import SettingError

__all__ = ["FirstToken", "Generation", "Options", "generate", "settings_behind"]


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

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_types()
        for name in ("max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} must be 1 or more; got {getattr(self, name)}.")
        if not 0 <= self.temperature < float("inf"):
            raise SettingError(f"temperature must be 0 (greedy) or more; got {self.temperature}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise SettingError(f"top_p must be above 0 and at most 1; got {self.top_p}.")
        if self.top_k is not None and self.top_k < 1:
            raise SettingError(f"top_k must be 1 or more; got {self.top_k}.")
        sampling = [name for name in ("top_p", "top_k", "seed") if getattr(self, name) is not None]
        if sampling and not self.temperature:
            raise SettingError(f"{sampling[0]} is for sampling: give a temperature above 0, or leave it out.")
        texts = isinstance(self.stop, Sequence) and all(isinstance(text, str) and text for text in self.stop)
        if isinstance(self.stop, str) or not texts:
            raise SettingError(f'stop is texts of a letter or more, such as stop=("\\n",); got {self.stop!r}.')

    def _check_types(self) -> None:
        """Refuse what is no number where a number is wanted."""
        wanted = {
            "max_new_tokens": int,
            "num_beams": int,
            "top_k": int,
            "seed": int,
            "temperature": float,
            "top_p": float,
        }
        for name, kind in wanted.items():
            value = getattr(self, name)
            fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
            if value is not None and (isinstance(value, bool) or not fits):
                word = "a whole number" if kind is int else "a number"
                raise SettingError(f"{name} must be {word}; got {value!r}.")
        for name in ("max_new_tokens", "num_beams", "temperature"):
            if getattr(self, name) is None:
                raise SettingError(f"{name} must be a number; got None.")

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

    def arguments(self, tokenizer: Any) -> dict[str, Any]:
        """The same as arguments of transformers' `generate`."""
        arguments: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": self.samples,
            "temperature": self.temperature or None,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": None,
            "repetition_penalty": 1.0,  # Qwen2.5-VL's own is 1.05: log-probabilities would be others
            "num_return_sequences": 1,
        }
        if self.samples and self.top_k is None:
            arguments["top_k"] = 0  # transformers' own default is 50
        if self.stop:
            arguments["stop_strings"] = list(self.stop)
            arguments["tokenizer"] = tokenizer
        return arguments


class Options(TypedDict, total=False):
    """How answers are decoded; see `Generation`."""

    max_new_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    num_beams: int
    seed: int | None
    stop: tuple[str, ...]


NOT_TAKEN = {
    "assistant_model": "assisted decoding gives wrong tokens behind a cache that is there already",
    "prompt_lookup_num_tokens": "assisted decoding gives wrong tokens behind a cache that is there already",
    "use_cache": "a look is its cache",
    "past_key_values": "a look has its own cache",
    "num_return_sequences": "there is one answer to a question",
    "media": "it is about what was looked at",
    "method": "it drops as the look did",
    "retention": "it drops as the look did",
    "tokens": "it drops as the look did",
}
"""What a question takes no more, and why."""


def settings_behind(generation: Mapping[str, Any]) -> Generation:
    """How a question about a look is decoded.

    Raises:
        SettingError: If it names what such a question does not take.
    """
    for name, why in NOT_TAKEN.items():
        if name in generation:
            raise SettingError(f"A question about a look takes no {name}: {why}.")
    return Generation(**generation)


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


def generate(
    model: Any, inputs: Mapping[str, Any], new_tokens: int, *, exactly: bool = False, streamer: Any = None
) -> Any:
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


def run(model: Any, inputs: Mapping[str, Any], settings: Mapping[str, Any], **more: Any) -> Any:
    """What `model.generate` answers as a dict, under `settings` and what `more` it takes."""
    with torch.inference_mode(), quiet():
        return model.generate(**inputs, **settings, **more, return_dict_in_generate=True)
