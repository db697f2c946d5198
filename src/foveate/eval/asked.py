"""Ask every question with every method, in one process or several, unless the store has the answer."""

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
from foveate.engine.extensions.tower_memo import TowerMemo
from foveate.errors import SettingError
from foveate.eval.records import FULL, Answers, key_of, record_of
from foveate.runs.crew import Here, Pool, Stopped, Worker, work_through
from foveate.runs.listener import Advance, unheard

MOST_WORKERS = 4
BATCH = 8
"""Maximum questions per batch."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about pictures or a film.

    Attributes:
        key: A unique name.
        picture: Identifies its media. Questions about the same media must be consecutive.
        task: Its task.
        text: The question.
        media: Returns the media, as `VLM.prepare` takes them.
        labels: The true answers, any of which counts; empty if unknown.
        reading: Normalises an answer or label before they are compared.
        prompt: The prepared prompt, or None.
    """

    key: str
    picture: Any
    task: str
    text: str
    media: Callable[[], Any] = field(compare=False)
    labels: tuple[str, ...] = ()
    reading: Callable[[str], str] = str
    prompt: Prompt | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Work:
    """The questions to ask about one picture, or about several pictures with one question each.

    Attributes:
        questions: The questions.
        methods: Each method with the indices of its questions. None is the full model, which comes first.
        first: The full model's first tokens that the store has, by question, in the format of records.
    """

    questions: tuple[Asked, ...]
    methods: tuple[tuple[Method | None, tuple[int, ...]], ...]
    first: Mapping[str, Any]

    def __len__(self) -> int:
        return sum(len(places) for _, places in self.methods)


def outstanding(questions: Sequence[Asked], methods: Sequence[Method], store: Answers) -> list[Work]:
    """Return the questions that have no answer in the store yet, for the full model and each method."""
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
    """Yield groups of questions: all about one picture, or a batch of pictures with one question each."""
    single: list[Asked] = []
    for _, group in groupby(questions, key=lambda question: question.picture):
        about = list(group)
        if len(about) > 1:
            yield about
        else:
            single += about
    yield from (single[start : start + BATCH] for start in range(0, len(single), BATCH))


def answer_missing(
    vlm: VLM,
    work: Sequence[Work],
    store: Answers,
    max_new_tokens: int,
    workers: int = 1,
    advance: Advance = unheard,
) -> None:
    """Ask the questions and store the answers as they come. A stopped run loses no finished group.

    Args:
        vlm: The model.
        work: The groups, from `outstanding`.
        store: The store for the answers.
        max_new_tokens: Maximum tokens of an answer.
        workers: Number of processes. With more than one, each loads the model of this name again. 0 uses one per core
            (at most 4) for the embedded model on a CPU, else 1.
        advance: Called with the number of answers added.

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

    alone = Here(lambda place, count: _GroupWorker(vlm, settings))
    with Pool(task, workers) if workers > 1 else alone as crew:
        work_through(work, crew, take)


def _begin(reload: Callable[[], VLM], conditions: Mapping[str, str], settings: Generation, *_: int) -> Worker:
    """Load the model in a process and return its worker; see `foveate.runs.crew.Task`.

    Raises:
        SettingError: If the model differs from that of the first process.
    """
    worker = _GroupWorker(reload(), settings)
    if worker.about() != conditions:
        raise SettingError(
            f"{worker.vlm.name} was changed since it was loaded. Set workers=1, or save the model and load that."
        )
    return worker


def prompts_of(vlm: VLM, questions: Sequence[Asked]) -> list[Prompt]:
    """Prepare questions for the model. Questions about the same media must be consecutive."""
    prompts = []
    for _, group in groupby(questions, key=lambda question: question.picture):
        about = list(group)
        shown = about[0].media()
        prompts += [question.prompt or vlm.prepare(shown, question.text) for question in about]
    return prompts


@dataclass(frozen=True)
class _GroupWorker:
    """Answers groups of questions with one model; see `foveate.runs.crew.Worker`."""

    vlm: VLM
    settings: Generation

    def about(self) -> dict[str, Any]:
        return dict(conditions_of(self.vlm, self.settings))

    def rows(self, work: Work, stopped: Stopped) -> Iterator[list[dict[str, object]]]:
        """Yield the records of one method at a time."""
        prompts = prompts_of(self.vlm, work.questions)
        first = dict(work.first)
        tower = TowerMemo()
        for method, places in work.methods:
            answerer = Answerer(self.vlm, method, self.settings, BATCH, first=True, confidence=True, tower=tower)
            answers = in_order(answerer.replies(places, lambda place, _: prompts[place]))
            rows = []
            for place, answer in zip(places, answers, strict=True):
                question = work.questions[place].key
                rows.append(record_of(answer, key_of(method), question, first.get(question)))
                if method is None:
                    first[question] = rows[-1]["first"]
            yield rows
