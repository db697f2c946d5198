"""Which of several given answers a model finds likeliest: one prefill, then each choice behind a copy of its cache."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.ask.generation import FirstToken, run
from foveate.engine.cache import copy_of
from foveate.errors import SettingError

__all__ = ["begin_alike", "log_probabilities", "tokens_of"]


def tokens_of(tokenizer: Any, choices: Sequence[str]) -> list[tuple[int, ...]]:
    """The token ids of each choice, as an answer begins with them.

    Raises:
        SettingError: If there are fewer than two, one has no token, or two have the same ones.
    """
    texts = all(isinstance(choice, str) for choice in choices)
    if isinstance(choices, str) or not texts or len(choices) < 2:
        raise SettingError(f"choices are two texts or more; got {choices!r}.")
    ids = [tuple(tokenizer(choice, add_special_tokens=False).input_ids) for choice in choices]
    for choice, tokens in zip(choices, ids, strict=True):
        if not tokens:
            raise SettingError(f"Every choice has a token at least; got {choice!r}.")
    if len(set(ids)) < len(ids):
        raise SettingError(f"Every choice has tokens of its own; got {list(choices)!r}.")
    return ids


def begin_alike(choices: Sequence[tuple[int, ...]]) -> bool:
    """Whether one choice is the beginning of another: it could then never be the less likely of the two."""
    pairs = itertools.permutations(choices, 2)
    return any(longer[: len(short)] == short for short, longer in pairs)


def log_probabilities(
    model: Any,
    inputs: Mapping[str, Any],
    choices: Sequence[tuple[int, ...]],
    settings: Mapping[str, Any],
    ends: Collection[int] = (),
) -> tuple[list[float], Any]:
    """Log-probability (natural) of each choice behind a prompt, all its tokens together; and the prompt's cache.

    Args:
        model: Of transformers; dropping where a context is open.
        inputs: The prompt, batch 1; where it goes on from a look, with the cache of that.
        choices: Token ids of each.
        settings: Greedy ones, for `generate`.
        ends: Ids that end an answer: where given, the probability that one of them follows the choice counts too.
    """
    first = FirstToken()
    out = run(model, inputs, {**settings, "max_new_tokens": 1}, logits_processor=[first])
    assert first.logs is not None
    values = []
    for tokens in choices:
        value = float(first.logs[0, tokens[0]])
        if len(tokens) > 1 or ends:
            value += _rest(model, inputs, tokens, copy_of(out.past_key_values), settings, ends)
        values.append(value)
    return values, out.past_key_values


def _rest(
    model: Any,
    inputs: Mapping[str, Any],
    tokens: tuple[int, ...],
    cache: Any,
    settings: Mapping[str, Any],
    ends: Collection[int],
) -> float:
    """Log-probability of all tokens but the first, which goes in behind the prompt, and of the end."""
    forced = _Forced(tokens[1:], ends)
    text = inputs["input_ids"].shape
    longer = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.shape == text}
    for name, value in longer.items():
        column = {"input_ids": tokens[0], "attention_mask": 1}.get(name, 0)
        longer[name] = torch.cat((value, value.new_full((1, 1), column)), dim=1)
    # No `min_new_tokens`: it takes the end's probability away and shares it among the other tokens.
    steps = len(tokens) - 1 + bool(ends)
    run(model, {**longer, "past_key_values": cache}, {**settings, "max_new_tokens": steps}, logits_processor=[forced])
    return forced.value


class _Forced:
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
