"""The full model's answers, forced token by token: how far a method's predictions move from the full model's.

Greedy decoding gives an answer if and only if every one of its tokens, forced, is the likeliest. So one pass tells
whether a method gives the full model's answer, and how far its distributions moved, without generating.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

from foveate._transformers import cache_in, cache_of, with_cache
from foveate.ask.answers import free_memory
from foveate.ask.batch import collate, ends_of, pad_id
from foveate.ask.first import First
from foveate.ask.generation import Generation, run
from foveate.ask.look import Look, can_share, end_of_pictures, look_at, look_at_several, resumed, together
from foveate.contract.method import Method
from foveate.engine.session import drop_or_not
from foveate.plain.upstream import is_out_of_memory
from foveate.registry import family_for
from foveate.tune.parts import About, SampleInputs

WORST = 1e4
"""Nats of an answer at most; also where a setting makes the model overflow, which is not to look perfect."""
ROOM = 1 << 30
"""Bytes of copies that questions about several pictures get of the rows that they go on from."""


@dataclass(frozen=True, slots=True)
class Target:
    """The full model's answer to a question.

    Attributes:
        ids: Its tokens, the end among them where it came.
        likeliest: The likeliest tokens at each place.
    """

    ids: tuple[int, ...]
    likeliest: tuple[First, ...]


@dataclass(frozen=True, slots=True)
class Fidelity:
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
    (along,) = predictions(model, [about], [answers], None)
    return [Target(ids, tuple(map(First.of, logs.cpu()))) for ids, logs in zip(answers, along, strict=True)]


def greedy(model: Any, samples: Sequence[SampleInputs], max_new_tokens: int) -> list[tuple[int, ...]]:
    """The tokens of the full model's greedy answers, up to and with their ends."""
    settings = Generation(max_new_tokens=max_new_tokens).arguments(None)
    look = None
    if looks(model, None, samples):
        look = look_at(model, samples[0].inputs)

    def answer(places: Sequence[int]) -> list[tuple[int, ...]]:
        asked = [samples[place].inputs for place in places]
        if look is None:
            inputs = collate(asked, pad_id(model))
        else:
            inputs = resumed(model, look, asked)
        out = run(model, inputs, settings)
        columns = inputs["input_ids"].shape[1]
        return [_up_to_the_end(ids, ends_of(model)) for ids in out.sequences[:, columns:].tolist()]

    if look is None:
        groups = _alike(samples)
    else:
        groups = together(model, look, [one.inputs for one in samples])
    return _in_groups(groups, answer)


def _up_to_the_end(ids: list[int], ends: Collection[int]) -> tuple[int, ...]:
    for place, token in enumerate(ids):
        if token in ends:
            return tuple(ids[: place + 1])
    return tuple(ids)


def looks(model: Any, method: Method | None, samples: Sequence[SampleInputs]) -> bool:
    """Whether questions share one run of their picture; M-RoPE places a question by the whole prompt."""
    return can_share(model, method) and not _mrope(model) and len({beginning(model, one) for one in samples}) == 1


def beginning(model: Any, sample: SampleInputs) -> tuple[int, ...]:
    """The ids of a prompt up to and with its last picture."""
    ids = sample.inputs["input_ids"][0]
    begun: list[int] = ids[: end_of_pictures(model, ids)].tolist()
    return tuple(begun)


def _mrope(model: Any) -> bool:
    return hasattr(family_for(model).core, "rope_deltas")


def _positions(mask: Tensor) -> Tensor:
    """Positions of a padded batch as `generate` gives them: (samples, columns) of 0 and 1 -> int64, 0 for padding."""
    return (mask.long().cumsum(dim=-1) - 1).clamp_min(0)


def outcomes(
    model: Any, pictures: Sequence[About], wanted: Sequence[Sequence[Target]], method: Method
) -> list[list[Fidelity]]:
    """What a method does to the answers about each picture; the pictures run as one batch."""
    answers = [[target.ids for target in targets] for targets in wanted]

    def force(places: Sequence[int]) -> list[list[Tensor]]:
        return predictions(model, [pictures[place] for place in places], [answers[place] for place in places], method)

    logs = _in_groups([range(len(pictures))], force)
    return [list(map(_fidelity, targets, moved)) for targets, moved in zip(wanted, logs, strict=True)]


def _fidelity(target: Target, moved: Tensor) -> Fidelity:
    """What became of an answer: (tokens, vocabulary) log-probabilities of the method along it."""
    moved = moved.cpu()
    if moved.isnan().any():
        return Fidelity(WORST, agrees=False)
    hits = moved.argmax(dim=-1) == torch.tensor(target.ids)
    kl = sum(first.divergence_of(logs) for first, logs in zip(target.likeliest, moved, strict=True))
    return Fidelity(min(kl, WORST), bool(hits.all()))


# -- forcing ------------------------------------------------------------------------------------------------------


def predictions(
    model: Any, pictures: Sequence[About], answers: Sequence[Sequence[Sequence[int]]], method: Method | None
) -> list[list[Tensor]]:
    """Log-probabilities at every place of an answer, for all questions about pictures that fit into one batch.

    The prompt alone decides what is dropped: answers are forced behind its prefill. Where the question has no say, a
    picture is run once for all questions.

    Args:
        model: Of transformers.
        pictures: Whose prompts begin alike; see `foveate.tune.trials.batched`.
        answers: To each question about each picture.
        method: What drops; None for the untouched model.

    Returns:
        For each picture and question (answer's tokens, vocabulary) float32.
    """
    samples = [sample for about in pictures for sample in about.samples]
    ids = [given for of_picture in answers for given in of_picture]
    with torch.inference_mode():
        way = _behind_prompts
        if looks(model, method, samples):
            way = _behind_a_look
        logs = iter(way(model, pictures, ids, method))
    return [list(islice(logs, len(about.samples))) for about in pictures]


T = TypeVar("T")


def _in_groups(groups: Iterable[Sequence[int]], work: Callable[[Sequence[int]], Sequence[T]]) -> list[T]:
    """What work makes of each place, in order. A group for which memory lacks is halved, until one place lacks it."""
    made: dict[int, T] = {}
    waiting = deque(groups)
    while waiting:
        group = waiting.popleft()
        try:
            made |= zip(group, work(group), strict=True)
            continue
        except Exception as error:  # torch has a kind for each device, and Python one of its own
            if len(group) == 1 or not is_out_of_memory(error):
                raise
        free_memory()  # what the error held is free by now
        half = (len(group) + 1) // 2
        waiting.extendleft([group[half:], group[:half]])
    return [made[place] for place in range(len(made))]


def _behind_a_look(
    model: Any, pictures: Sequence[About], answers: Sequence[Sequence[int]], method: Method | None
) -> list[Tensor]:
    """Log-probabilities of answers behind one prefill of the pictures, padded between picture and question."""
    samples = [sample for about in pictures for sample in about.samples]
    look = look_at_several(model, [about.samples[0].inputs for about in pictures], method)
    about_which = [at for at, about in enumerate(pictures) for _ in about.samples]

    def force(places: Sequence[int]) -> list[Tensor]:
        of = None
        if len(pictures) != 1:
            of = [about_which[place] for place in places]
        with drop_or_not(model, method):
            inputs = resumed(model, look, [samples[place].inputs for place in places], places=of)
            forced = _forced([answers[place] for place in places], inputs["input_ids"], pad_id(model))
            asked = inputs["input_ids"][:, look.tokens :]
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, forced.shape[1]), value=1)
            out = model(
                input_ids=torch.cat((asked, forced), dim=1),
                attention_mask=mask,
                position_ids=_positions(mask)[:, look.tokens :],
                use_cache=True,
                **with_cache(cache_of(inputs)),
            )
        start = asked.shape[1] - 1
        return [_logs(out.logits[row, start:], answers[place]) for row, place in enumerate(places)]

    groups = together(model, look, [sample.inputs for sample in samples], _most_rows(look, len(pictures)))
    return _in_groups(groups, force)


def _logs(logits: Tensor, answer: Sequence[int]) -> Tensor:
    """(columns, vocabulary) logits behind a prompt -> (answer's tokens, vocabulary) float32 log-probabilities."""
    return logits[: len(answer)].float().log_softmax(dim=-1)


def _most_rows(look: Look, pictures: int) -> int | None:
    """How many questions go on together: those about one picture share its rows, others have copies of theirs."""
    if pictures == 1:
        return None
    return max(1, ROOM * pictures // look.nbytes)


def _behind_prompts(
    model: Any, pictures: Sequence[About], answers: Sequence[Sequence[int]], method: Method | None
) -> list[Tensor]:
    """Log-probabilities of answers behind a prefill of each prompt.

    Prompts are padded on the left. With M-RoPE, where the model itself works positions out, only equal lengths go
    together.
    """
    samples = [sample for about in pictures for sample in about.samples]
    groups = [list(range(len(samples)))]
    if _mrope(model):
        groups = _alike(samples)

    def force(places: Sequence[int]) -> list[Tensor]:
        inputs = collate([samples[place].inputs for place in places], pad_id(model))
        with drop_or_not(model, method):
            mask = inputs["attention_mask"]
            placed = {}
            if not _mrope(model):
                placed = {"position_ids": _positions(mask)}
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
                    use_cache=True,
                    **with_cache(cache_in(begun)),
                )
                logits = torch.cat((logits, out.logits), dim=1)
        return [_logs(logits[row], answers[place]) for row, place in enumerate(places)]

    return _in_groups(groups, force)


def _alike(samples: Sequence[SampleInputs]) -> list[list[int]]:
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
