"""From lmms-eval's report to figures that can be drawn again, and those that papers print beside its own."""

import inspect
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

from foveate.errors import UnsupportedError
from foveate.eval.lmms.benchmarks import MME_TOTAL, primary
from foveate.eval.lmms.quiet import quiet
from foveate.eval.lmms.scores import Metric, TaskScores

__all__ = ["scores_of"]

MME_PARTS = ("mme_perception_score", "mme_cognition_score")
DURATIONS = ("short", "medium", "long")
CIRCLES = 1_000_000
"""MMBench asks a question again with its choices turned, under its own index plus a multiple of this."""


def scores_of(
    name: str,
    task: Any,
    report: Mapping[str, Any],
    records: Mapping[tuple[str, int], Mapping[str, Any]],
    arguments: Namespace,
) -> TaskScores:
    """A task's figures.

    Args:
        name: The harness's name for it.
        task: The harness's task.
        report: The harness's report.
        records: The record of each answer, by task and document.
        arguments: The harness's own arguments, for functions that want them.

    Raises:
        UnsupportedError: If the task gives no figure.
    """
    samples: dict[int, Mapping[str, Any]] = {}
    for sample in report["samples"][name]:  # of several filters, the first
        samples.setdefault(int(sample["doc_id"]), sample)
    documents = tuple(sorted(samples))
    rows = tuple(records[name, document] for document in documents)
    group = _groups(documents, rows)
    values = _values(report["results"][name])
    metrics = {}
    for metric, aggregate in task.aggregation().items():
        counted = [document for document in documents if metric in samples[document]]
        if not counted or metric not in values:
            continue
        if "args" in inspect.signature(aggregate).parameters:
            aggregate = _with(aggregate, arguments)
        inputs = tuple(samples[document][metric] for document in counted)
        better = bool(task.higher_is_better()[metric])
        metrics[metric] = _metric(metric, values[metric], better, counted, inputs, group, aggregate)
        if metric == "gpt_eval_score" and "index" in inputs[0]:
            metrics[metric] = _hits(metrics[metric], group)
    metrics |= _added(metrics, group)
    if not metrics:
        raise UnsupportedError(f"{name} gives no figure, only files to send in somewhere. Take its validation split.")
    return TaskScores(name, str(report["versions"].get(name)), documents, rows, metrics, primary(list(metrics)))


def _groups(documents: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Of each document a number that it shares with those about the same pictures; without pictures, one of its own."""
    numbers: dict[str, int] = {}
    groups = {}
    for document, row in zip(documents, rows, strict=True):
        media = row["media"] or f"document {document}"
        groups[document] = numbers.setdefault(media, len(numbers))
    return groups


def _values(results: Mapping[str, Any]) -> dict[str, float]:
    """The harness's numbers by metric; of several filters, the first."""
    values: dict[str, float] = {}
    for key, value in results.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            values.setdefault(key.split(",")[0], float(value))
    return values


def _metric(
    name: str,
    value: float,
    better: bool,
    documents: Sequence[int],
    inputs: tuple[Any, ...],
    group: Mapping[int, int],
    aggregate: Callable[[Sequence[Any]], float],
) -> Metric:
    """A metric whose groups are numbered anew: not every document counts in every metric."""
    numbers: dict[int, int] = {}
    groups = tuple(numbers.setdefault(group[document], len(numbers)) for document in documents)
    return Metric(name, value, better, tuple(documents), inputs, groups, aggregate)


def _with(aggregate: Callable[..., float], arguments: Namespace) -> Callable[[Sequence[Any]], float]:
    """A function that writes files gets a folder of its own each time; the run's is gone by then."""

    def called(inputs: Sequence[Any]) -> float:
        with TemporaryDirectory() as folder, quiet():
            return aggregate(inputs, args=Namespace(**{**vars(arguments), "output_path": folder}))

    return called


def _hits(metric: Metric, group: Mapping[int, int]) -> Metric:
    """MMBench's figure as a mean of hits, a question each: one that is right however its choices are turned.

    Its own function takes seconds for all of them, and may ask a judge.
    """
    turns: dict[int, list[Any]] = {}
    for row in metric.inputs:
        turns.setdefault(row["index"] % CIRCLES, []).append(row)
    hits = {}
    for document, row in metric.rows():
        if row["index"] < CIRCLES:
            hits[document] = {"score": metric.aggregate(turns[row["index"]]) / 100}
    inputs = tuple(hits.values())
    return _metric(metric.name, metric.value, metric.higher_is_better, list(hits), inputs, group, _mean_of_hits)


def _mean_of_hits(rows: Sequence[Any]) -> float:
    total: float = sum(row["score"] for row in rows)
    return 100 * total / len(rows)


def _added(metrics: Mapping[str, Metric], group: Mapping[int, int]) -> dict[str, Metric]:
    """Figures that papers print and the harness does not: MME's total, and Video-MME by the length of the video."""
    added: dict[str, Metric] = {}
    parts = [metrics[name] for name in MME_PARTS if name in metrics]
    if len(parts) == len(MME_PARTS):
        added[MME_TOTAL] = _total(parts, group)
    for metric in metrics.values():
        if metric.name.startswith("videomme"):
            added |= _by_duration(metric, group)
    return added


def _total(parts: Sequence[Metric], group: Mapping[int, int]) -> Metric:
    """The sum of several metrics, each over its own documents."""
    rows = {}
    for part in parts:
        for document, row in part.rows():
            rows[document] = {**row, "metric": part.name}
    documents = sorted(rows)
    inputs = tuple(rows[document] for document in documents)
    value = sum(part.value for part in parts)
    return _metric(MME_TOTAL, value, True, documents, inputs, group, partial(_sum_of_parts, parts))


def _sum_of_parts(parts: Sequence[Metric], rows: Sequence[Any]) -> float:
    total = 0.0
    for part in parts:
        own = [row for row in rows if row["metric"] == part.name]
        if own:
            total += part.aggregate(own)
    return total


def _by_duration(metric: Metric, group: Mapping[int, int]) -> dict[str, Metric]:
    """A metric over short, medium and long videos apart, where there are such."""
    added = {}
    for duration in DURATIONS:
        rows = {document: row for document, row in metric.rows() if row["duration"] == duration}
        if rows:
            name, inputs = f"{metric.name}/{duration}", tuple(rows.values())
            value = float(metric.aggregate(inputs))
            added[name] = _metric(name, value, metric.higher_is_better, list(rows), inputs, group, metric.aggregate)
    return added
