"""What has been answered, on disk: an interrupted run goes on, a second one reuses it.

Of the full model's answers the first token is kept too, so that others tell how far theirs is from it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveate.ask.answer import Answer
from foveate.contract.method import Method
from foveate.errors import InputError
from foveate.runs.store import Store, open_store

__all__ = ["FULL", "LIKELIEST", "Answers", "First", "fingerprint", "home", "key_of", "open_answers", "record_of"]

FULL = "full"
"""The name under which the full model's answers are kept."""
KEYS = ("method", "question")
LIKELIEST = 256
"""First tokens whose probabilities are kept of an answer."""


def home() -> Path:
    """Where answers are kept by default: `foveate/eval` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foveate" / "eval"


def fingerprint(values: Mapping[str, Any]) -> str:
    """A short name for plain values: equal values, equal names."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]


def key_of(method: Method | None) -> str:
    """The name under which a method's answers are kept; None is the full model."""
    if method is None:
        return FULL
    return f"{method.name} {fingerprint(method.to_dict())}"


class Answers:
    """Answers of one model under one set of conditions, in a store; made by `open_answers`.

    Attributes:
        path: The store's folder.
        conditions: All that an answer depends on but for question and method.
    """

    def __init__(self, store: Store, conditions: Mapping[str, Any]) -> None:
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


@contextmanager
def open_answers(
    conditions: Mapping[str, Any],
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
    with open_store(path, *KEYS, checked=True, alone=alone, note=note) as store:
        if alone:
            store.require("conditions", conditions, "other conditions")
        answers = Answers(store, conditions)
        if store.damaged:
            lines = "line is" if store.damaged == 1 else "lines are"
            note(f"{store.damaged} {lines} damaged in {store.path} and left out; what is missing is asked again")
        yield answers


@dataclass(frozen=True, slots=True)
class First:
    """The distribution of an answer's first token, cut to its likeliest.

    Attributes:
        ids: Token ids, likeliest first.
        logs: Their log-probabilities (natural).
    """

    ids: tuple[int, ...]
    logs: tuple[float, ...]

    @classmethod
    def of(cls, logs: Tensor, ids: Sequence[int] | None = None) -> "First":
        """The likeliest tokens, or those of these ids.

        Shapes: (vocabulary,) float32 log-probabilities.
        """
        if ids is None:
            ids = logs.topk(min(LIKELIEST, len(logs))).indices.tolist()
        kept = logs[torch.tensor(ids, device=logs.device)].tolist()
        return cls(tuple(ids), tuple(round(log, 5) for log in kept))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "First":
        """From plain values, as `to_dict` gives them."""
        return cls(tuple(values["ids"]), tuple(values["logs"]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"ids": list(self.ids), "logs": list(self.logs)}

    def divergence_of(self, logs: Tensor) -> float:
        """How far another answer's first token is from this one, nats, rounded to a millionth; see `divergence`.

        Shapes: (vocabulary,) float32 log-probabilities.

        Raises:
            InputError: If there is no such token: the values are of a damaged file.
        """
        if max(self.ids) >= len(logs):
            raise InputError(
                f"A stored answer begins with token {max(self.ids)}, and the model has {len(logs)}: the file is "
                "damaged. Name another --cache."
            )
        return round(self.divergence(First.of(logs, self.ids)), 6)

    def divergence(self, other: "First") -> float:
        """KL(self ‖ other) in nats over self's tokens, all others as one; a lower bound of the exact one.

        `other` must hold the same ids in the same order.
        """
        ours = torch.tensor(self.logs, dtype=torch.float64)
        theirs = torch.tensor(other.logs, dtype=torch.float64)
        our_rest, their_rest = _rest(ours), _rest(theirs)
        listed = (ours.exp() * (ours - theirs)).sum()
        unlisted = our_rest * (our_rest.log() - their_rest.log())
        return max(0.0, float(listed + unlisted))


def record_of(answer: Answer, method: str, question: str, full: First | None) -> dict[str, Any]:
    """What is kept of an answer; of the full model's its first token too, of others how far theirs is from it.

    Args:
        answer: With its first token.
        method: The name under which it is kept.
        question: That of its question.
        full: The first token of the full model's answer; None where it is not known.
    """
    assert answer.first is not None
    record = {
        "method": method,
        "question": question,
        "answer": answer.text,
        "spent": answer.spent,
        "vision_tokens": answer.vision_tokens,
        "flops": answer.flops,
    }
    if method == FULL:
        return {**record, "first": First.of(answer.first).to_dict()}
    if full is None:
        return record
    return {**record, "kl": full.divergence_of(answer.first)}


def _rest(logs: Tensor) -> Tensor:
    """The probability of all tokens that are not listed."""
    return (1 - logs.exp().sum()).clamp_min(1e-12)
