"""Asking every question under every method, in this process or in several; nothing is asked that the store has."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import torch

from foveate import embedded
from foveate.ask.generation import Generation
from foveate.ask.loading import load
from foveate.ask.prompt import Prompt
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.errors import InputError
from foveate.eval.embedded.pictures import PictureQuestion
from foveate.eval.first import First
from foveate.eval.store import FULL, Store, key_of
from foveate.runs.listener import Advance, unheard

__all__ = ["Work", "outstanding", "prompts_of", "run"]

Row = dict[str, Any]
MOST_JOBS = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be asked about one picture.

    Attributes:
        questions: Questions about it.
        methods: Each method (None is the full model, which is first) with the places of the questions it is asked.
        first: The full model's first tokens that the store has, by question.
    """

    questions: tuple[PictureQuestion, ...]
    methods: tuple[tuple[Method | None, tuple[int, ...]], ...]
    first: Mapping[str, First]

    def __len__(self) -> int:
        return sum(len(places) for _, places in self.methods)


def outstanding(questions: Sequence[PictureQuestion], methods: Sequence[Method], store: Store) -> list[Work]:
    """What of all that is to be asked the store does not have, a picture each."""
    work = []
    for _, group in groupby(questions, key=lambda question: question.picture):
        about_picture = _outstanding(tuple(group), methods, store)
        if len(about_picture):
            work.append(about_picture)
    return work


def _outstanding(questions: tuple[PictureQuestion, ...], methods: Sequence[Method], store: Store) -> Work:
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
    store: Store,
    *,
    max_new_tokens: int,
    jobs: int = 1,
    advance: Advance = unheard,
) -> None:
    """Ask, and keep every picture's answers as they come; stopping at any moment loses no finished picture.

    Args:
        vlm: The model.
        work: From `outstanding`.
        store: Where answers go.
        max_new_tokens: The longest answer.
        jobs: Processes. With more than one, each loads the model of this name again and has one torch thread. 0 takes
            one a core, at most 4, for the embedded model on a CPU, and else 1.
        advance: Called with the number of answers that were added.

    Raises:
        FoveateError: From loading or answering.
    """
    jobs = min(jobs or _default_jobs(vlm), len(work))
    if jobs < 2:
        for about_picture in work:
            rows = _rows(vlm, about_picture, max_new_tokens)
            store.add(rows)
            advance(len(rows))
        return
    context = multiprocessing.get_context("spawn")
    arguments = (_reload(vlm),)
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin, initargs=arguments)
    try:
        futures = [pool.submit(_rows_in_process, about_picture, max_new_tokens) for about_picture in work]
        for future in as_completed(futures):
            rows = future.result()
            store.add(rows)
            advance(len(rows))
    except BrokenProcessPool as error:
        raise InputError(
            "A process that answered questions died, perhaps for want of memory. Run again with --jobs 1: what was "
            "answered is kept."
        ) from error
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def prompts_of(vlm: VLM, questions: Sequence[PictureQuestion]) -> list[Prompt]:
    """Questions about one picture or film as the model gets them."""
    shown = questions[0].shown()
    return [vlm.prepare(shown, question.question.question) for question in questions]


def _default_jobs(vlm: VLM) -> int:
    """Processes that pay off."""
    if vlm.name not in embedded.NAMES or vlm.model.device.type != "cpu":
        return 1
    if not hasattr(os, "sched_getaffinity"):
        return min(MOST_JOBS, os.cpu_count() or 1)
    return min(MOST_JOBS, len(os.sched_getaffinity(0)))


def _reload(vlm: VLM) -> Callable[[], VLM]:
    """How another process loads the same model in the same way."""
    setup = vlm.to_dict()
    return partial(load, vlm.name, device=setup["device"], dtype=setup["dtype"], attention=setup["attention"])


_process: dict[str, VLM] = {}
"""The model of a process that answers questions."""


def _begin(reload: Callable[[], VLM]) -> None:
    """In a new process: one thread, Ctrl-C is for the parent to handle, and the model."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _process["model"] = reload()


def _rows_in_process(work: Work, max_new_tokens: int) -> list[Row]:
    return _rows(_process["model"], work, max_new_tokens)


def _rows(vlm: VLM, work: Work, max_new_tokens: int) -> list[Row]:
    """A row of each answer that is to be asked for."""
    prompts = prompts_of(vlm, work.questions)
    generation = Generation(max_new_tokens=max_new_tokens)
    first = dict(work.first)
    rows = []
    for method, places in work.methods:
        answer_all = vlm.answer_sharing if vlm.can_share(method) else vlm.answer_batch
        answers = answer_all([prompts[place] for place in places], method, generation=generation, first=True)
        for place, answer in zip(places, answers, strict=True):
            question = work.questions[place].key
            row = {
                "method": key_of(method),
                "question": question,
                "answer": answer.text,
                "spent": answer.spent,
                "vision_tokens": answer.vision_tokens,
                "flops": answer.flops,
            }
            assert answer.first is not None
            if method is None:
                first[question] = First.of(answer.first)
                row["first"] = first[question].to_dict()
            else:
                row["kl"] = first[question].divergence_of(answer.first)
            rows.append(row)
    return rows
