"""What a benchmark says of the answers: its figures, and what they are made of, document by document."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Metric", "Scores", "TaskScores"]

TOLERANCE = 1e-9


@dataclass(frozen=True, eq=False)
class Metric:
    """A figure of a task, and how it comes about.

    Attributes:
        name: The harness's name for it.
        value: The figure, by the harness's own function.
        higher_is_better: Which way is good.
        documents: Ids of the documents that count, ascending.
        inputs: What the harness's function gets, one a document.
        groups: (documents,) a label each, 0 to n-1: documents about the same pictures share one. MME's pairs do.
        aggregate: The harness's function: inputs in, figure out.
    """

    name: str
    value: float
    higher_is_better: bool
    documents: tuple[int, ...]
    inputs: tuple[Any, ...]
    groups: tuple[int, ...]
    aggregate: Callable[[Sequence[Any]], float] = field(repr=False)

    def rows(self) -> Iterator[tuple[int, Any]]:
        """Each document with its input."""
        return zip(self.documents, self.inputs, strict=True)

    @cached_property
    def scores(self) -> NDArray[np.float64] | None:
        """A number for each document, where the inputs hold one; such as 1 for right and 0 for wrong."""
        scores = [_score(row) for row in self.inputs]
        if None in scores:
            return None
        return np.array(scores, dtype=np.float64)

    @cached_property
    def factor(self) -> float | None:
        """With it the figure is `factor` times the mean of `scores`, for any choice of documents; None: it is no mean.

        Tried out on drawn documents, unless the function counts on from call to call, as OCRBench's does.
        """
        if self.scores is None or not len(self.scores):
            return None
        mean = float(self.scores.mean())
        if mean == 0:
            return 1.0 if self.value == 0 else None
        factor = self.value / mean
        if abs(self.aggregate(self.inputs) - self.value) > TOLERANCE * max(1.0, abs(self.value)):
            return factor
        rng = np.random.default_rng(0)
        count = max(self.groups) + 1
        for _ in range(3):
            drawn = rng.multinomial(count, np.full(count, 1 / count)).tolist()
            figure, expected = self._aggregated(drawn), factor * self._mean(drawn)
            if abs(figure - expected) > TOLERANCE * max(1.0, abs(figure)):
                return None
        return factor

    def over(self, counts: Sequence[int]) -> float:
        """The figure over a resample that takes each group so many times.

        Args:
            counts: One a group, 0 or more; their sum is above 0.
        """
        if self.factor is None:
            return self._aggregated(counts)
        return self.factor * self._mean(counts)

    def _mean(self, counts: Sequence[int]) -> float:
        assert self.scores is not None
        weights = np.asarray(counts, dtype=np.float64)[list(self.groups)]
        return float(weights @ self.scores / weights.sum())

    def _aggregated(self, counts: Sequence[int]) -> float:
        drawn: list[Any] = []
        for row, group in zip(self.inputs, self.groups, strict=True):
            drawn += [_again(row, time) for time in range(counts[group])]
        return float(self.aggregate(drawn))


def _score(row: Any) -> float | None:
    """The number that an input holds; None where it holds none."""
    if isinstance(row, Mapping):
        row = row.get("score")
    if not isinstance(row, int | float):
        return None
    return row


def _again(row: Any, time: int) -> Any:
    """An input that is drawn once more: a question of its own, so that MME pairs each draw with itself."""
    if time and isinstance(row, Mapping) and "question_id" in row:
        return {**row, "question_id": f"{row['question_id']} #{time}"}
    return row


@dataclass(frozen=True, eq=False)
class TaskScores:
    """A task's figures under one setting.

    Attributes:
        task: The harness's name.
        version: The harness's version of the task.
        documents: Ids of all documents asked, ascending; of two runs of a task they are the same.
        records: What is kept of each answer, aligned with `documents`: "answer", "tokens", "spent", "retention",
            "vision_tokens", "flops", "media", "kl" where the full model's answers were known.
        metrics: Figures by name.
        primary: The one that papers print.
    """

    task: str
    version: str
    documents: tuple[int, ...]
    records: tuple[Mapping[str, Any], ...]
    metrics: Mapping[str, Metric]
    primary: str

    @property
    def media(self) -> list[str]:
        """What each document is about: a name for its pictures, or its own where it has none."""
        documents = zip(self.documents, self.records, strict=True)
        return [record["media"] or f"document {document}" for document, record in documents]

    @property
    def retention(self) -> float:
        """Mean over documents of the share of vision tokens a decoder layer processed."""
        return float(np.mean([record["retention"] for record in self.records]))

    @property
    def tokens(self) -> float:
        """Mean over documents of the vision tokens that a decoder layer processed."""
        return float(np.mean([record["spent"] for record in self.records]))

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {
            "task": self.task,
            "version": self.version,
            "documents": len(self.documents),
            "primary": self.primary,
            "metrics": {name: metric.value for name, metric in self.metrics.items()},
            "retention": self.retention,
            "tokens": self.tokens,
        }


@dataclass(frozen=True, eq=False)
class Scores:
    """What a run of benchmarks found.

    Attributes:
        tasks: Every task's figures, by the harness's name.
        groups: The harness's own figures of groups of tasks, where it has some: group, figure, value.
        resolved: What each name that was asked for stood for.
        protocol: How questions were put.
        harness: The harness's version.
        asked: The method and the budget that were asked for.
    """

    tasks: Mapping[str, TaskScores]
    groups: Mapping[str, Mapping[str, float]]
    resolved: Mapping[str, str]
    protocol: str
    harness: str
    asked: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {
            **self.asked,
            "tasks": {name: scores.to_dict() for name, scores in self.tasks.items()},
            "groups": {name: dict(values) for name, values in self.groups.items()},
            "resolved": dict(self.resolved),
            "protocol": self.protocol,
            "lmms_eval": self.harness,
        }
