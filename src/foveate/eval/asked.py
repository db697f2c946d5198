"""Asking every question under every method, in this process or in several; nothing is asked that the store has."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from foveate import embedded
from foveate.ask.answers import Answerer, in_order
from foveate.ask.generation import Generation
from foveate.ask.loading import reloading
from foveate.ask.prompt import Prompt
from foveate.ask.second_look import conditions_of
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.engine.tower_memo import TowerMemo
from foveate.errors import SettingError
from foveate.eval.records import FULL, Answers, key_of, record_of
from foveate.runs.crew import Stopped, Worker, crew_of, work_through
from foveate.runs.listener import Advance, unheard

MOST_WORKERS = 4
BATCH = 8
"""Most questions that are answered at a time."""


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
        prompt: It and its pictures as the model gets them, where somebody has prepared them.
    """

    key: str
    picture: Any
    task: str
    text: str
    media: Callable[[], Any] = field(compare=False)
    labels: tuple[str, ...] = ()
    seed: int | None = None
    reading: Callable[[str], str] = str
    prompt: Prompt | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be asked about one picture, or about some of which there is one question each.

    Attributes:
        questions: Questions about them.
        methods: Each method (None is the full model, which is first) with the places of the questions it is asked.
        first: The full model's first tokens that the store has, by question, as records have them.
    """

    questions: tuple[Asked, ...]
    methods: tuple[tuple[Method | None, tuple[int, ...]], ...]
    first: Mapping[str, Any]

    def __len__(self) -> int:
        return sum(len(places) for _, places in self.methods)


def outstanding(questions: Sequence[Asked], methods: Sequence[Method], store: Answers) -> list[Work]:
    """What of all that is to be asked the store does not have."""
    work = []
    for group in _groups(questions):
        todo: list[tuple[Method | None, tuple[int, ...]]] = []
        for method in (None, *methods):
            rows = [store.get(key_of(method), question.key) for question in group]
            if missing := tuple(place for place, row in enumerate(rows) if row is None):
                todo.append((method, missing))
        if todo:
            full = {question.key: store.get(FULL, question.key) for question in group}
            first = {key: row["first"] for key, row in full.items() if row is not None}
            work.append(Work(tuple(group), tuple(todo), first))
    return work


def _groups(questions: Sequence[Asked]) -> Iterator[list[Asked]]:
    """Questions about one picture; of pictures with one question, a batch's."""
    single: list[Asked] = []
    for _, group in groupby(questions, key=lambda question: question.picture):
        about = list(group)
        if len(about) > 1:
            yield about
        else:
            single += about
    yield from (single[start : start + BATCH] for start in range(0, len(single), BATCH))


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
    settings = Generation(max_new_tokens=max_new_tokens)
    if workers == 0:
        workers = 1
        if vlm.name in embedded.NAMES and vlm.model.device.type == "cpu":
            here = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
            workers = min(MOST_WORKERS, len(here))
    workers = min(workers, len(work))
    task = partial(_begin, reloading(vlm), conditions_of(vlm, settings), settings)

    def take(rows: Sequence[dict[str, object]]) -> None:
        store.add(rows)
        advance(len(rows))

    with crew_of(task, workers, partial(_rows, vlm, settings)) as crew:
        work_through(work, crew, take)


def _begin(reload: Callable[[], VLM], conditions: Mapping[str, str], settings: Generation, *_: int) -> Worker:
    """The task of a process; see `foveate.runs.crew.Task`.

    Raises:
        SettingError: If its model is not the one in the first process.
    """
    vlm = reload()
    if conditions_of(vlm, settings) != conditions:
        raise SettingError(
            f"{vlm.name} was changed since it was loaded. Take workers=1, or save the model and load that."
        )
    return partial(_rows, vlm, settings)


def prompts_of(vlm: VLM, questions: Sequence[Asked]) -> list[Prompt]:
    """Questions as the model gets them; those about the same stand one behind the other."""
    prompts = []
    for _, group in groupby(questions, key=lambda question: question.picture):
        about = list(group)
        shown = about[0].media()
        prompts += [question.prompt or vlm.prepare(shown, question.text) for question in about]
    return prompts


def _rows(vlm: VLM, settings: Generation, work: Work, stopped: Stopped) -> Iterator[list[dict[str, object]]]:
    """A row of each answer that is to be asked for, a method's together; see `foveate.runs.crew.Worker`."""
    prompts = prompts_of(vlm, work.questions)
    first = dict(work.first)
    tower = TowerMemo()
    for method, places in work.methods:
        answerer = Answerer(vlm, method, settings, BATCH, first=True, confidence=True, tower=tower)
        answers = in_order(answerer.replies(places, lambda place, _: prompts[place]))
        rows = []
        for place, answer in zip(places, answers, strict=True):
            question = work.questions[place].key
            rows.append(record_of(answer, key_of(method), question, first.get(question)))
            if method is None:
                first[question] = rows[-1]["first"]
        yield rows
