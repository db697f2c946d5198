"""What the benchmarks of training share: drawn questions, a picture once and its questions behind it, and a step.

A step shows the model a few pictures. Each picture is prefilled once; its questions follow in the batch, each behind a
copy of the picture's cache, with gradients. So a picture's cost is shared by its questions.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.embedded.scenes import Scene

IGNORED = -100
RATE, WARM_UP = 3e-4, 5
"""Highest learning rate, and the steps until it is reached."""

Pair = tuple[str, str]
"""A question and its answer."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is dropped while a model trains or answers: a method at a retention. Without a method: nothing."""

    method: str | None = None
    retention: float = 1.0

    def open(self, model: Any) -> AbstractContextManager[Any]:
        """Drop while the context is open."""
        if self.method is None:
            return nullcontext()
        return fv.drop(model, self.method, retention=self.retention)


SETTINGS = {
    "full": Setting(),
    "divprune 1/3": Setting("divprune", 1 / 3),
    "divprune 1/9": Setting("divprune", 1 / 9),
    "random 1/3": Setting("random:layers=0", 1 / 3),
    "random 1/9": Setting("random:layers=0", 1 / 9),
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Pictures with their questions.

    Attributes:
        prefix: What the model takes of each picture: its pixels, and the ids up to its end.
        ids: (questions, tokens) int64, each question with its answer, padded on the right with 0.
        labels: (questions, tokens) int64, the tokens of the answers, and `IGNORED`.
        picture: (questions,) int64, the picture of each question.
    """

    prefix: dict[str, Tensor]
    ids: Tensor
    labels: Tensor
    picture: Tensor


def batch_of(processor: Any, drawn: Sequence[tuple[Scene, Sequence[Pair]]]) -> Batch:
    """Make the tensors of pictures and their questions."""
    images = [Image.fromarray(scene.image) for scene, _ in drawn]
    prefix = processor(images=images, text=["USER: <image>\n"] * len(images), return_tensors="pt")
    tokenizer = processor.tokenizer
    answers = tokenizer.convert_tokens_to_ids("ASSISTANT:")
    rows = [
        tokenizer(f"{question} ASSISTANT: {answer}</s>", add_special_tokens=False).input_ids
        for _, pairs in drawn
        for question, answer in pairs
    ]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    behind = (ids == answers).cumsum(1) - (ids == answers).long() > 0  # past ASSISTANT:
    labels = ids.masked_fill(~behind | (ids == 0), IGNORED)
    picture = torch.arange(len(drawn)).repeat_interleave(torch.tensor([len(pairs) for _, pairs in drawn]))
    return Batch(dict(prefix), ids, labels, picture)


def logits_of(model: Any, batch: Batch) -> Tensor:
    """Return the logits behind each token of the questions, (questions, tokens, words)."""
    cache = cache_in(model(**batch.prefix, use_cache=True, logits_to_keep=1))
    cache.batch_select_indices(batch.picture)
    columns = batch.prefix["input_ids"].shape[1]
    mask = torch.cat((torch.ones(len(batch.ids), columns, dtype=torch.int64), (batch.ids != 0).long()), 1)
    return model(input_ids=batch.ids, attention_mask=mask, **with_cache(cache), use_cache=True).logits


def loss_of(model: Any, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the answers' tokens."""
    logits = logits_of(model, batch)
    return cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORED)


@torch.no_grad()
def right(model: Any, batch: Batch) -> list[bool]:
    """Return for each question whether the model's greedy answer is the right one, word for word."""
    labels = batch.labels[:, 1:]
    hits = (logits_of(model, batch)[:, :-1].argmax(-1) == labels) | (labels == IGNORED)
    return hits.all(1).tolist()


class Fitting:
    """The embedded model while its projector and decoder are trained. Its tower is frozen.

    Args:
        steps: Steps until the learning rate is 0. None: it stays.
    """

    def __init__(self, steps: int | None = None, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.model, self.processor = fv.embedded.load(dtype=torch.float32)
        self.model.model.vision_tower.requires_grad_(False)
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self._optimiser = torch.optim.AdamW(self.weights, lr=RATE, weight_decay=0.0, betas=(0.9, 0.98))
        self._steps, self.step = steps, 0

    def fit(self, drawn: Sequence[tuple[Scene, Sequence[Pair]]], setting: Setting) -> float:
        """Take one step, and return the loss."""
        left = 1.0 if self._steps is None else 1 - self.step / self._steps
        for group in self._optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (self.step + 1) / WARM_UP) * left
        with setting.open(self.model):
            loss = loss_of(self.model, batch_of(self.processor, drawn))
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self._optimiser.step()
        self._optimiser.zero_grad()
        self.step += 1
        return loss.item()

    def marks(self, drawn: Sequence[tuple[Scene, Sequence[Pair]]], setting: Setting) -> list[list[bool]]:
        """Return for each picture which of its questions are answered right."""
        marks: list[list[bool]] = []
        for four in (drawn[start : start + 4] for start in range(0, len(drawn), 4)):
            batch = batch_of(self.processor, four)
            with setting.open(self.model):
                answers = iter(right(self.model, batch))
            marks += [[next(answers) for _ in pairs] for _, pairs in four]
        return marks


def pictures(draw: Callable[[int], tuple[Scene, Sequence[Pair]]], numbers: Iterable[int], count: int) -> list[Any]:
    """Draw pictures that allow questions, `count` of them, from the first numbers that do."""
    chosen: list[Any] = []
    for number in numbers:
        scene, pairs = draw(number)
        if pairs:
            chosen.append((scene, pairs))
        if len(chosen) == count:
            break
    return chosen
