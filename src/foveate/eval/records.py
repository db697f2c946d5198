"""What has been answered, on disk: an interrupted run goes on, a second one reuses it.

Of the full model's answers the first token is kept too, so that others tell how far theirs is from it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.ask.answer import Answer
from foveate.contract.method import Method
from foveate.errors import InputError
from foveate.eval.provenance import code_of
from foveate.naming import members_of
from foveate.runs.store import Lock, Store, acquire, open_store

FULL = "full"
"""The name under which the full model's answers are kept."""
LIKELIEST = 256
"""First tokens whose probabilities are kept of an answer."""
FORM = {"record": "with confidence and length"}
"""What is kept of an answer, among the conditions: a store whose records have less is another one."""


def home() -> Path:
    """Where answers are kept by default: `foveate/eval` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foveate" / "eval"


def fingerprint(values: Mapping[str, object]) -> str:
    """A short name for plain values: equal values, equal names."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]


def key_of(method: Method | None) -> str:
    """The name under which a method's answers are kept; None is the full model."""
    if method is None:
        return FULL
    code = [code_of(type(member)) for member in members_of(method)]
    return f"{method.name} {fingerprint({**method.to_dict(), 'code': code})}"


class Answers:
    """Answers of one model under one set of conditions, in a store; made by `open_answers`.

    Attributes:
        path: The store's folder.
        conditions: All that an answer depends on but for question and method.
    """

    def __init__(self, store: Store, conditions: Mapping[str, object]) -> None:
        self.path = store.path
        self.conditions = conditions
        self._store = store
        self._rows = {(row["method"], row["question"]): row for row in store.read(set())}

    def get(self, method: str, question: str) -> dict[str, Any] | None:
        """The record of a method's answer to a question; None where there is none."""
        return self._rows.get((method, question))

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Keep records, each with its "method" and "question"; a kill behind this loses none.

        Raises:
            InputError: If they cannot be written, as on a full disk.
        """
        rows = [dict(row) for row in records if self.get(row["method"], row["question"]) is None]
        self._store.add(rows)
        self._rows |= {(row["method"], row["question"]): row for row in rows}

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows.values())


@contextmanager
def open_answers(
    conditions: Mapping[str, object],
    folder: str | Path | None = None,
    *,
    alone: bool = True,
    note: Callable[[str], object] = str,
) -> Iterator[Answers]:
    """The answers under these conditions; while the context lasts, no other run uses them.

    Args:
        conditions: All that an answer depends on but for question and method; their hash names the store's folder.
        folder: Where that lies; None is `home()`.
        alone: Off for a process of a run whose first process has them open.
        note: Hears that another run is waited for, and that lines are damaged.

    Raises:
        InputError: If another run uses them, or the folder cannot be used.
    """
    path = Path(folder or home()).expanduser() / fingerprint(conditions)
    with open_store(path, "method", "question", checked=True, alone=alone, note=note) as store:
        if alone:
            store.require("conditions", conditions, "other conditions")
        answers = Answers(store, conditions)
        if store.damaged:
            lines = "line is" if store.damaged == 1 else "lines are"
            note(f"{store.damaged} {lines} damaged in {store.path} and left out; what is missing is asked again")
        yield answers


@contextmanager
def reservation(
    setup: Mapping[str, object], folder: str | Path | None, note: Callable[[str], object]
) -> Iterator[None]:
    """Keep a folder of answers from other runs with this setup, before a model is loaded, while the context lasts.

    Raises:
        InputError: If another run has it.
    """
    path = Path(folder or home()).expanduser()
    lock = Lock(path / f".{fingerprint(setup)}.lock")
    with suppress(OSError):  # what cannot be written can be read
        path.mkdir(parents=True, exist_ok=True)
        acquire(lock, path, note)
    try:
        yield
    finally:
        lock.release()


def record_of(answer: Answer, method: str, question: str, full: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is kept of an answer; of the full model's its first token too, of others how far theirs is from it.

    Args:
        answer: With its first token, and its confidence.
        method: The name under which it is kept.
        question: That of its question.
        full: The first token of the full model's answer, as its record has it; None where it is not known.
    """
    assert answer.first is not None
    record = {
        "method": method,
        "question": question,
        "answer": answer.text,
        "spent": answer.spent,
        "vision_tokens": answer.vision_tokens,
        "flops": answer.flops,
        "confidence": answer.confidence,
        "new_tokens": len(answer.tokens),
    }
    if method == FULL:
        ids = answer.first.topk(min(LIKELIEST, len(answer.first))).indices.tolist()
        return {**record, "first": {"ids": ids, "logs": [round(log, 5) for log in answer.first[ids].tolist()]}}
    if full is None:
        return record
    return {**record, "kl": divergence(full, answer.first)}


def divergence(full: Mapping[str, Any], logs: Tensor) -> float:
    """KL(full model ‖ another) of the first token, nats, rounded to a millionth: a lower bound of the exact one.

    The full model's likeliest tokens count one by one, and all others as one.

    Args:
        full: The likeliest tokens ("ids") and their log-probabilities (natural, "logs"), as a record has them.
        logs: (vocabulary,) float32 log-probabilities of the other.

    Raises:
        InputError: If there is no such token: the values are of a damaged file.
    """
    if max(full["ids"]) >= len(logs):
        raise InputError(
            f"A stored answer begins with token {max(full['ids'])}, and the model has {len(logs)}: the file is "
            "damaged. Name another --cache."
        )
    ours = torch.tensor(full["logs"], dtype=torch.float64)
    theirs = torch.tensor([round(log, 5) for log in logs[full["ids"]].tolist()], dtype=torch.float64)
    our_rest, their_rest = ((1 - listed.exp().sum()).clamp_min(1e-12) for listed in (ours, theirs))
    listed = (ours.exp() * (ours - theirs)).sum()
    unlisted = our_rest * (our_rest.log() - their_rest.log())
    return round(max(0.0, float(listed + unlisted)), 6)


def record_of_both(quick: Mapping[str, Any], full: Mapping[str, Any], sure: float) -> dict[str, Any]:
    """The record of a second look: of two answers to a question the one that counts, at what both cost.

    Args:
        quick: The record with few tokens.
        full: The full model's.
        sure: From which confidence on the first is trusted.
    """
    if quick["confidence"] >= sure or not quick["vision_tokens"]:
        return {**quick, "again": 0.0}
    both: dict[str, Any] = {"kl": 0.0, "again": 1.0}
    for figure in ("spent", "flops", "new_tokens"):
        costs = [record[figure] for record in (quick, full)]
        both[figure] = None if None in costs else sum(costs)
    return {name: value for name, value in full.items() if name != "first"} | both
