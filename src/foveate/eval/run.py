"""Asking every question under every method, in this process or in several; what is known is not asked again."""

import multiprocessing
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from PIL import Image

from foveate.embedded.scenes import scene
from foveate.errors import InputError
from foveate.eval.answering import Answer, First, answer, answer_about_one_picture, can_share, collate
from foveate.eval.pictures import SPLIT, Asked
from foveate.eval.store import Store, fingerprint
from foveate.methods.base import Method
from foveate.registry import method as kind_of

__all__ = ["FULL", "Work", "key_of", "outstanding", "run", "sample"]

FULL = "full"

Loader = Callable[[], tuple[Any, Any]]
"""Gives a model and its processor; must be picklable where several processes are used."""


def key_of(method: Method | None) -> str:
    """The name under which a setting's answers are kept; None is the full model."""
    return FULL if method is None else f"{method.name} {fingerprint(method.to_dict())}"


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be asked about one picture.

    Attributes:
        asked: Questions about it.
        methods: For each method (plain values; None is the full model), which of the questions; the full one first.
        first: What is known of the full model's first tokens, by question.
    """

    asked: tuple[Asked, ...]
    methods: tuple[tuple[dict[str, Any] | None, tuple[int, ...]], ...]
    first: Mapping[str, First]

    def __len__(self) -> int:
        return sum(len(which) for _, which in self.methods)


def outstanding(asked: Sequence[Asked], methods: Sequence[Method], store: Store) -> list[Work]:
    """What of all that is to be asked the store does not know, a picture each."""
    found = []
    for _, group in groupby(asked, key=lambda one: one.picture):
        mine = tuple(group)
        first, todo = {}, []
        for method in (None, *methods):
            which = tuple(i for i, one in enumerate(mine) if store.get(key_of(method), one.key) is None)
            if which:
                todo.append((None if method is None else method.to_dict(), which))
        for one in mine:
            if (known := store.get(FULL, one.key)) is not None:
                first[one.key] = First(tuple(known["first"]["ids"]), tuple(known["first"]["logs"]))
        if todo:
            found.append(Work(mine, tuple(todo), first))
    return found


def run(
    load: Loader,
    work: Sequence[Work],
    store: Store,
    *,
    max_new_tokens: int,
    jobs: int = 1,
    advance: Callable[[int], object] = lambda done: None,
) -> None:
    """Ask, and keep every picture's answers as they come; stopping at any moment loses no finished picture.

    Args:
        load: Called once a process.
        work: From `outstanding`.
        store: Where answers go.
        jobs: Processes. With more than one, each gets one torch thread.
        advance: Called with the number of answers that were added.

    Raises:
        FoveateError: From loading or answering.
    """
    if jobs == 1 or len(work) < 2:
        model, processor = load()
        for one in work:
            records = _answered(model, processor, one, max_new_tokens)
            store.add(records)
            advance(len(records))
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(work)), mp_context=context, initializer=_begin, initargs=(load,))
    try:
        futures = [pool.submit(_job, one, max_new_tokens) for one in work]
        for future in as_completed(futures):
            records = future.result()
            store.add(records)
            advance(len(records))
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


def sample(model: Any, processor: Any, asked: Asked) -> Any:
    """What the model gets of one question alone."""
    image = Image.fromarray(scene(SPLIT, asked.picture).image)
    return _sample(model, processor, image, asked.question.question)


_mine: dict[str, Any] = {}


def _begin(load: Loader) -> None:
    """In a new process: one thread, Ctrl-C is the parent's business, and the model."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    _mine["model"], _mine["processor"] = load()


def _job(work: Work, max_new_tokens: int) -> list[dict[str, Any]]:
    return _answered(_mine["model"], _mine["processor"], work, max_new_tokens)


def _answered(model: Any, processor: Any, work: Work, max_new_tokens: int) -> list[dict[str, Any]]:
    """A record of each answer that `work` asks for."""
    image = Image.fromarray(scene(SPLIT, work.asked[0].picture).image)
    samples = [_sample(model, processor, image, one.question.question) for one in work.asked]
    first = dict(work.first)
    records = []
    for values, which in work.methods:
        method = None if values is None else kind_of(values["method"]).from_dict(values)
        given = _answers(model, [samples[i] for i in which], method, max_new_tokens)
        for one, got in zip((work.asked[i] for i in which), given, strict=True):
            record = {
                "method": key_of(method),
                "question": one.key,
                "answer": processor.decode(list(got.tokens), skip_special_tokens=True).strip(),
                "spent": got.spent,
                "vision_tokens": got.vision_tokens,
                "flops": got.flops,
            }
            if method is None:
                first[one.key] = found = First.of(got.logs)
                record["first"] = {"ids": list(found.ids), "logs": list(found.logs)}
            else:
                whole = first[one.key]
                record["kl"] = round(whole.divergence(First.of(got.logs, whole.ids)), 6)
            records.append(record)
    return records


def _answers(model: Any, samples: Sequence[Any], method: Method | None, max_new_tokens: int) -> list[Answer]:
    if can_share(model, method):
        return answer_about_one_picture(model, samples, method, max_new_tokens=max_new_tokens)
    batch = collate(samples, model.generation_config.pad_token_id or 0)
    return answer(model, batch, method, max_new_tokens=max_new_tokens)


def _sample(model: Any, processor: Any, image: Image.Image, question: str) -> Any:
    """One user turn in the processor's own chat template, as the model wants it."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(images=[image], text=[text], return_tensors="pt").to(model.device, dtype=model.dtype)
