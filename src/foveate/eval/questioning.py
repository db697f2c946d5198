"""Asking every question under every method, in this process or in several; nothing is asked that the store has."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from foveate import embedded
from foveate.ask.generation import Generation
from foveate.ask.loading import reloading
from foveate.ask.prompt import Prompt
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.core.patching import Patcher
from foveate.engine.program import Program
from foveate.eval.answer_store import FULL, Answers, First, key_of, record_of
from foveate.registry import family_for
from foveate.runs.crew import Stopped, Worker, crew_of
from foveate.runs.going import run as go
from foveate.runs.listener import Advance, unheard

__all__ = ["Asked", "Work", "outstanding", "prompts_of", "run"]

MOST_WORKERS = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about pictures or a film.

    Attributes:
        key: A name that no other question has.
        picture: What it is about: questions about the same stand one behind the other.
        task: What kind of question it is.
        text: What is asked.
        media: Gives the pictures, as `VLM.prepare` takes them.
        labels: The true answers, of which any counts; none where they are not known.
        seed: Which seed drew the picture; None where nobody did.
        reading: What of an answer is compared with the labels'.
    """

    key: str
    picture: Any
    task: str
    text: str
    media: Callable[[], Any] = field(compare=False)
    labels: tuple[str, ...] = ()
    seed: int | None = None
    reading: Callable[[str], str] = str

    def is_right(self, answer: str) -> bool:
        """Whether an answer is a true one."""
        return self.reading(answer) in map(self.reading, self.labels)


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be asked about one picture.

    Attributes:
        questions: Questions about it.
        methods: Each method (None is the full model, which is first) with the places of the questions it is asked.
        first: The full model's first tokens that the store has, by question.
    """

    questions: tuple[Asked, ...]
    methods: tuple[tuple[Method | None, tuple[int, ...]], ...]
    first: Mapping[str, First]

    def __len__(self) -> int:
        return sum(len(places) for _, places in self.methods)


def outstanding(questions: Sequence[Asked], methods: Sequence[Method], store: Answers) -> list[Work]:
    """What of all that is to be asked the store does not have, a picture each."""
    work = []
    for _, group in groupby(questions, key=lambda question: question.picture):
        about_picture = _outstanding(tuple(group), methods, store)
        if len(about_picture):
            work.append(about_picture)
    return work


def _outstanding(questions: tuple[Asked, ...], methods: Sequence[Method], store: Answers) -> Work:
    todo: list[tuple[Method | None, tuple[int, ...]]] = []
    for method in (None, *methods):
        rows = [store.get(key_of(method), question.key) for question in questions]
        missing = tuple(place for place, row in enumerate(rows) if row is None)
        if missing:
            todo.append((method, missing))
    first = {}
    for question in questions:
        row = store.get(FULL, question.key)
        if row is not None:
            first[question.key] = First.from_dict(row["first"])
    return Work(questions, tuple(todo), first)


def run(
    vlm: VLM,
    work: Sequence[Work],
    store: Answers,
    max_new_tokens: int,
    workers: int = 1,
    advance: Advance = unheard,
) -> None:
    """Ask, and keep every picture's answers as they come; stopping at any moment loses no finished picture.

    Args:
        vlm: The model.
        work: From `outstanding`.
        store: Where answers go.
        max_new_tokens: The longest answer.
        workers: Processes. With more than one, each loads the model of this name again. 0 takes one a core, at most 4,
            for the embedded model on a CPU, and else 1.
        advance: Called with the number of answers that were added.

    Raises:
        FoveateError: From loading or answering.
    """
    task = partial(_begin, reloading(vlm), max_new_tokens)
    workers = min(workers or _default_workers(vlm), len(work))

    def take(rows: Sequence[dict[str, Any]]) -> None:
        store.add(rows)
        advance(len(rows))

    with crew_of(task, workers, partial(_work, vlm, max_new_tokens)) as crew:
        go(work, crew, take)


def _begin(reload: Callable[[], VLM], max_new_tokens: int, place: int, count: int) -> Worker:
    """The task of a process; see `foveate.runs.crew.Task`."""
    return partial(_work, reload(), max_new_tokens)


def _work(vlm: VLM, max_new_tokens: int, work: Work, stopped: Stopped) -> Iterator[list[dict[str, Any]]]:
    yield _rows(vlm, work, max_new_tokens)


def prompts_of(vlm: VLM, questions: Sequence[Asked]) -> list[Prompt]:
    """Questions about one picture or film as the model gets them."""
    shown = questions[0].media()
    return [vlm.prepare(shown, question.text) for question in questions]


def _default_workers(vlm: VLM) -> int:
    """Processes that pay off."""
    if vlm.name not in embedded.NAMES or vlm.model.device.type != "cpu":
        return 1
    if not hasattr(os, "sched_getaffinity"):
        return min(MOST_WORKERS, os.cpu_count() or 1)
    return min(MOST_WORKERS, len(os.sched_getaffinity(0)))


def _rows(vlm: VLM, work: Work, max_new_tokens: int) -> list[dict[str, Any]]:
    """A row of each answer that is to be asked for."""
    prompts = prompts_of(vlm, work.questions)
    generation = Generation(max_new_tokens=max_new_tokens)
    first = dict(work.first)
    rows = []
    seen = _TowerMemo()
    for method, places in work.methods:
        answer_all = vlm.answer_sharing if vlm.can_share(method) else vlm.answer_batch
        with Patcher() as patches:
            if (tower := _tower_apart(vlm.model, method)) is not None:
                patches.wrap(tower, "forward", seen)
            answers = answer_all([prompts[place] for place in places], method, generation=generation, first=True)
        for place, answer in zip(places, answers, strict=True):
            question = work.questions[place].key
            row = record_of(answer, key_of(method), question, first.get(question))
            if method is None:
                first[question] = First.from_dict(row["first"])
            rows.append(row)
    return rows


@dataclass(slots=True)
class _TowerMemo:
    """Stands around a vision tower that takes a picture a row: it does not look again at what it has just seen, nor
    twice at rows that are alike. A tower that is given sizes beside the pixels, as Pixtral is, always looks."""

    pictures: Tensor | None = None
    options: dict[str, Any] | None = None
    shown: Any = None

    def __call__(self, look: Callable[..., Any], pixel_values: Tensor, **options: Any) -> Any:
        if pixel_values.ndim != 4 or any(isinstance(value, Tensor) for value in options.values()):
            return look(pixel_values, **options)
        options.pop("use_cache", None)  # transformers 5.24 hands it on to towers, which have none
        pictures, like = torch.unique(pixel_values, dim=0, return_inverse=True)
        if self.pictures is None or not torch.equal(self.pictures, pictures) or self.options != options:
            self.pictures, self.options = pictures, options
            self.shown = look(pictures, **options)
        made = {name: tree_map_only(Tensor, lambda rows: rows[like], value) for name, value in self.shown.items()}
        return type(self.shown)(**made)


def _tower_apart(model: Any, method: Method | None) -> Any:
    """The vision tower, where a method neither works in it nor reads it; else None."""
    family = family_for(model)
    if method is not None and Program.on(method, family).encodes not in (None, "projector"):
        return None
    return getattr(family.core, "vision_tower", None)
