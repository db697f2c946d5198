"""Store answers on disk, so that an interrupted run continues and a second one reuses them.

For the full model's answers the first token's probabilities are stored too, to compute the KL of other answers.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.ask.answer import Answer
from foveate.contract.method import Method
from foveate.errors import InputError
from foveate.eval.provenance import code_of
from foveate.naming import members_of
from foveate.runs.store import Store, open_store

FULL = "full"
"""The key of the full model's answers."""
LIKELIEST = 256
"""How many of the likeliest first tokens are stored with their probabilities."""
FORM = {"record": "with confidence and length"}
"""The format of records. It is one of the conditions, so records of another format are in another store."""


def home() -> Path:
    """Return the default folder for answers: `foveate/eval` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foveate" / "eval"


def fingerprint(values: Mapping[str, object]) -> str:
    """Return a short hash of plain values. Equal values have equal hashes."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]


def key_of(method: Method | None) -> str:
    """Return the key of a method's answers, which depends on settings and code. None is the full model."""
    if method is None:
        return FULL
    code = [code_of(type(member)) for member in members_of(method)]
    return f"{method.name} {fingerprint({**method.to_dict(), 'code': code})}"


class Answers:
    """The stored answers of one model under one set of conditions. `open_answers` makes it.

    Attributes:
        path: The store's folder.
        conditions: Everything an answer depends on, except question and method.
    """

    def __init__(self, store: Store, conditions: Mapping[str, object]) -> None:
        self.path = store.path
        self.conditions = conditions
        self._store = store
        self._rows = {(row["method"], row["question"]): row for row in store.read(set())}

    def get(self, method: str, question: str) -> dict[str, Any] | None:
        """Return the record of a method's answer to a question, or None."""
        return self._rows.get((method, question))

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Store records, each with its "method" and "question". They survive a kill after this returns.

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
    """Open the answers under these conditions, and lock them while the context lasts.

    Args:
        conditions: Everything an answer depends on, except question and method. Their hash names the store's folder.
        folder: The parent folder; None is `home()`.
        alone: Whether to lock the store. Off for further processes of a run whose first process has locked it.
        note: Called with a note that lines are damaged.

    Raises:
        InputError: If another run uses the store, or the folder cannot be used.
    """
    path = Path(folder or home()).expanduser() / fingerprint(conditions)
    with open_store(path, "method", "question", checked=True, alone=alone) as store:
        if alone:
            store.require("conditions", conditions, "other conditions")
        answers = Answers(store, conditions)
        if store.damaged:
            lines = "line is" if store.damaged == 1 else "lines are"
            note(f"{store.damaged} {lines} damaged in {store.path} and left out; missing answers are asked again")
        yield answers


def record_of(answer: Answer, method: str, question: str, full: Mapping[str, Any] | None) -> dict[str, Any]:
    """Make the record of an answer: with its first token for the full model, with the KL from it for others.

    Args:
        answer: The answer, with `first` and `confidence`.
        method: The key of the method.
        question: The key of the question.
        full: The first token of the full model's answer from its record, or None.
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
    """Return KL(full model ‖ another) of the first token in nats, rounded to 1e-6. It is a lower bound.

    The stored likeliest tokens of the full model count one by one, and all other tokens as one:
    Σ_i p_i (ln p_i − ln q_i) + p_rest (ln p_rest − ln q_rest).

    Args:
        full: The full model's likeliest tokens ("ids") and their natural log-probabilities ("logs"), from a record.
        logs: (vocabulary,) float32 log-probabilities of the other answer.

    Raises:
        InputError: If an id is not in the vocabulary, because the file is damaged.
    """
    if max(full["ids"]) >= len(logs):
        raise InputError(
            f"A stored answer begins with token {max(full['ids'])}, and the model has {len(logs)}: the file is "
            "damaged. Set another --cache."
        )
    ours = torch.tensor(full["logs"], dtype=torch.float64)
    theirs = torch.tensor([round(log, 5) for log in logs[full["ids"]].tolist()], dtype=torch.float64)
    our_rest, their_rest = ((1 - listed.exp().sum()).clamp_min(1e-12) for listed in (ours, theirs))
    listed = (ours.exp() * (ours - theirs)).sum()
    unlisted = our_rest * (our_rest.log() - their_rest.log())
    return round(max(0.0, float(listed + unlisted)), 6)


def record_of_both(quick: Mapping[str, Any], full: Mapping[str, Any], sure: float) -> dict[str, Any]:
    """Return the record of a second look: the first answer if it is trusted, else the full model's at the cost of both.

    Args:
        quick: The record with few tokens.
        full: The full model's record.
        sure: Lowest trusted confidence.
    """
    if quick["confidence"] >= sure or not quick["vision_tokens"]:
        return {**quick, "again": 0.0}
    both: dict[str, Any] = {"kl": 0.0, "again": 1.0}
    for figure in ("spent", "flops", "new_tokens"):
        costs = [record[figure] for record in (quick, full)]
        both[figure] = None if None in costs else sum(costs)
    return {name: value for name, value in full.items() if name != "first"} | both
