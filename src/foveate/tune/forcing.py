"""The full model's answers, forced token by token: how far a method's predictions move from the full model's.

Greedy decoding gives an answer if and only if every one of its tokens, forced, is the likeliest. So one pass tells
whether a method gives the full model's answer, and how far its distributions moved, without generating.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.ask.answering import BEHIND
from foveate.ask.batch import collate, ends_of, pad_id
from foveate.ask.generation import Generation, run
from foveate.ask.look import can_share, look_at, resumed, together
from foveate.engine.session import drop
from foveate.methods.base import Method
from foveate.registry import family_for
from foveate.tune.samples import About, Sample

__all__ = ["Outcome", "Target", "answered", "greedy", "outcomes", "predictions", "targets"]

LIKELIEST = 256
"""Tokens of a distribution whose probabilities are kept; all others count as one."""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """The full model's answer to a question.

    Attributes:
        ids: Its tokens, the end among them where it came.
        likeliest: (tokens, k) int64, the likeliest ids at each place.
        logs: (tokens, k) float32, their log-probabilities.
    """

    ids: tuple[int, ...]
    likeliest: Tensor
    logs: Tensor


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a method does to one answer.

    Attributes:
        divergence: KL from the full model, nats, summed over the answer's tokens.
        agrees: Whether the method gives this very answer.
    """

    divergence: float
    agrees: bool

    @property
    def root(self) -> float:
        """√divergence: what is searched with, because a few lost answers would steer a plain mean."""
        return math.sqrt(self.divergence)


def answered(model: Any, about: About, max_new_tokens: int) -> list[Target]:
    """The full model's own answers to all questions about a picture, and its distributions along them."""
    return targets(model, about, greedy(model, about.samples, max_new_tokens))


def targets(model: Any, about: About, answers: Sequence[tuple[int, ...]]) -> list[Target]:
    """The full model's distributions along answers to all questions about a picture."""
    found = []
    for ids, logs in zip(answers, predictions(model, about.samples, answers, None), strict=True):
        top = logs.topk(min(LIKELIEST, logs.shape[-1]))
        found.append(Target(ids, top.indices, top.values))
    return found


def greedy(model: Any, samples: Sequence[Sample], max_new_tokens: int) -> list[tuple[int, ...]]:
    """The tokens of the full model's greedy answers, up to and with their ends."""
    settings = Generation(max_new_tokens=max_new_tokens).arguments(None)
    look = None
    if _looks(model, None):
        look = look_at(model, samples[0].inputs)
        settings = {**settings, **BEHIND}
    answers: dict[int, tuple[int, ...]] = {}
    for places in _alike(samples) if look is None else together(model, look, [one.inputs for one in samples]):
        asked = [samples[place].inputs for place in places]
        inputs = collate(asked, pad_id(model)) if look is None else resumed(model, look, asked)
        out = run(model, inputs, settings)
        columns = inputs["input_ids"].shape[1]
        for place, ids in zip(places, out.sequences[:, columns:].tolist(), strict=True):
            answers[place] = _up_to_the_end(ids, ends_of(model))
    return [answers[place] for place in range(len(samples))]


def _up_to_the_end(ids: list[int], ends: Collection[int]) -> tuple[int, ...]:
    for place, token in enumerate(ids):
        if token in ends:
            return tuple(ids[: place + 1])
    return tuple(ids)


def _looks(model: Any, method: Method | None) -> bool:
    """Whether questions share one run of their picture; M-RoPE places a question by the whole prompt."""
    return can_share(model, method) and not _mrope(model)


def _mrope(model: Any) -> bool:
    return hasattr(family_for(model).core, "rope_deltas")


def _positions(mask: Tensor) -> Tensor:
    """Positions of a padded batch as `generate` gives them: (samples, columns) of 0 and 1 -> int64, 0 for padding."""
    return (mask.long().cumsum(dim=-1) - 1).clamp_min(0)


def outcomes(model: Any, about: About, wanted: Sequence[Target], method: Method) -> list[Outcome]:
    """What a method does to the answers about a picture."""
    found = []
    logs = predictions(model, about.samples, [target.ids for target in wanted], method)
    for target, moved in zip(wanted, logs, strict=True):
        hits = moved.argmax(dim=-1).cpu() == torch.tensor(target.ids)
        found.append(Outcome(_divergence(target, moved), bool(hits.all())))
    return found


def _divergence(target: Target, moved: Tensor) -> float:
    """KL(full ‖ moved) summed over places, nats: (tokens, vocabulary) log-probabilities of the method.

    The tokens that are not listed count as one, so that this is a lower bound; of a small vocabulary the two are near.
    """
    theirs = moved.gather(1, target.likeliest)
    kl = (target.logs.exp() * (target.logs - theirs)).sum(dim=1)
    ours_left, theirs_left = _rest(target.logs), _rest(theirs)
    kl = kl + ours_left * (ours_left.log() - theirs_left.log())
    return max(0.0, float(kl.sum()))


def _rest(logs: Tensor) -> Tensor:
    """The probability of all tokens that are not listed: (tokens, k) -> (tokens,)."""
    return (1 - logs.exp().sum(dim=1)).clamp_min(1e-7)


# -- forcing ------------------------------------------------------------------------------------------------------


def predictions(
    model: Any, samples: Sequence[Sample], answers: Sequence[Sequence[int]], method: Method | None
) -> list[Tensor]:
    """Log-probabilities at every place of an answer, for questions about one picture.

    The prompt alone decides what is dropped: answers are forced behind its prefill. Where the question has no say, the
    picture is run once for all questions.

    Returns:
        For each question (answer's tokens, vocabulary) float32.
    """
    logs: list[Tensor | None] = [None] * len(samples)
    with torch.inference_mode():
        ways = _behind_a_look if _looks(model, method) else _behind_prompts
        for place, values in ways(model, samples, answers, method):
            logs[place] = values.float().log_softmax(dim=-1)
    return [values for values in logs if values is not None]


Places = Iterator[tuple[int, Tensor]]


def _behind_a_look(
    model: Any, samples: Sequence[Sample], answers: Sequence[Sequence[int]], method: Method | None
) -> Places:
    """Logits of answers behind one prefill of the picture, padded between picture and question."""
    look = look_at(model, samples[0].inputs, method)
    for places in together(model, look, [sample.inputs for sample in samples]):
        with _dropping(model, method):
            inputs = resumed(model, look, [samples[place].inputs for place in places])
            forced = _forced([answers[place] for place in places], inputs["input_ids"], pad_id(model))
            asked = inputs["input_ids"][:, look.tokens :]
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, forced.shape[1]), value=1)
            out = model(
                input_ids=torch.cat((asked, forced), dim=1),
                attention_mask=mask,
                position_ids=_positions(mask)[:, look.tokens :],
                past_key_values=inputs["past_key_values"],
                use_cache=True,
            )
        for row, place in enumerate(places):
            start = asked.shape[1] - 1
            yield place, out.logits[row, start : start + len(answers[place])]


def _behind_prompts(
    model: Any, samples: Sequence[Sample], answers: Sequence[Sequence[int]], method: Method | None
) -> Places:
    """Logits of answers behind a prefill of each prompt.

    Prompts are padded on the left. With M-RoPE, where the model itself works positions out, only equal lengths go
    together.
    """
    groups = [list(range(len(samples)))]
    if _mrope(model):
        groups = _alike(samples)
    for places in groups:
        inputs = collate([samples[place].inputs for place in places], pad_id(model))
        with _dropping(model, method):
            mask = inputs["attention_mask"]
            placed = {} if _mrope(model) else {"position_ids": _positions(mask)}
            begun = model(**inputs, **placed, use_cache=True, logits_to_keep=1)
            forced = _forced([answers[place] for place in places], inputs["input_ids"], pad_id(model))
            logits = begun.logits[:, -1:]
            if forced.shape[1]:
                mask = torch.nn.functional.pad(mask, (0, forced.shape[1]), value=1)
                positions = _positions(mask)[:, -forced.shape[1] :]
                if _mrope(model):  # text behind pictures: one number for all three axes
                    positions = (positions + family_for(model).core.rope_deltas).expand(3, -1, -1)
                out = model(
                    input_ids=forced,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=begun.past_key_values,
                    use_cache=True,
                )
                logits = torch.cat((logits, out.logits), dim=1)
        for row, place in enumerate(places):
            yield place, logits[row, : len(answers[place])]


def _alike(samples: Sequence[Sample]) -> list[list[int]]:
    """Places of the samples of equal lengths: their batches need no padding before an answer."""
    groups: dict[int, list[int]] = defaultdict(list)
    for place, sample in enumerate(samples):
        groups[sample.inputs["input_ids"].shape[1]].append(place)
    return list(groups.values())


def _forced(answers: Sequence[Sequence[int]], like: Tensor, pad: int) -> Tensor:
    """The tokens that go in behind the prompts: all of an answer but its last, padded behind."""
    longest = max(len(answer) for answer in answers) - 1
    forced = like.new_full((len(answers), longest), pad)
    for row, answer in enumerate(answers):
        forced[row, : len(answer) - 1] = torch.tensor(answer[:-1], dtype=like.dtype)
    return forced


def _dropping(model: Any, method: Method | None) -> AbstractContextManager[Any]:
    return nullcontext() if method is None else drop(model, method)
