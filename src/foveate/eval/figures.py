"""From lmms-eval's report to figures that can be drawn again, and those that papers print beside its own."""

import inspect
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from tempfile import TemporaryDirectory
from typing import Any

from foveate.errors import UnsupportedError
from foveate.eval.benchmarks import MME_TOTAL, primary
from foveate.eval.quiet import quiet
from foveate.eval.scores import Metric, TaskScores

__all__ = ["scores_of"]

DURATIONS = ("short", "medium", "long")
CIRCLES = 1_000_000
"""MMBench asks a question again with its choices turned, under its own index plus a multiple of this."""


def scores_of(
    name: str,
    task: Any,
    found: Mapping[str, Any],
    records: Mapping[tuple[str, int], Mapping[str, Any]],
    said: Namespace,
) -> TaskScores:
    """A task's figures.

    Args:
        name: The harness's name for it.
        task: The harness's task.
        found: The harness's report.
        records: What is known of each answer, by task and document.
        said: The harness's own arguments, for functions that want them.

    Raises:
        UnsupportedError: If the task gives no figure.
    """
    samples = found["samples"][name]
    by_document: dict[int, Mapping[str, Any]] = {}
    for sample in samples:  # of several filters, the first
        by_document.setdefault(int(sample["doc_id"]), sample)
    documents = tuple(sorted(by_document))
    rows = tuple(records[name, document] for document in documents)
    labels: dict[str, int] = {}
    group = {
        document: labels.setdefault(record["media"] or f"document {document}", len(labels))
        for document, record in zip(documents, rows, strict=True)
    }
    values: dict[str, float] = {}
    for key, value in found["results"][name].items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            values.setdefault(key.split(",")[0], float(value))
    metrics = {}
    for metric, aggregate in task.aggregation().items():
        there = [document for document in documents if metric in by_document[document]]
        if there and metric in values:
            if "args" in inspect.signature(aggregate).parameters:
                aggregate = _with(aggregate, said)
            inputs = tuple(by_document[document][metric] for document in there)
            better = bool(task.higher_is_better()[metric])
            whole = _metric(metric, values[metric], better, there, inputs, group, aggregate)
            metrics[metric] = _hits(whole, group) if metric == "gpt_eval_score" and "index" in inputs[0] else whole
    metrics |= _added(metrics, group)
    if not metrics:
        raise UnsupportedError(f"{name} gives no figure, only files to send in somewhere. Take its validation split.")
    return TaskScores(name, str(found["versions"].get(name)), documents, rows, metrics, primary(list(metrics)))


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
    labels: dict[int, int] = {}
    groups = tuple(labels.setdefault(group[document], len(labels)) for document in documents)
    return Metric(name, value, better, tuple(documents), inputs, groups, aggregate)


def _with(aggregate: Callable[..., float], said: Any) -> Callable[[Sequence[Any]], float]:
    """A function that writes files gets a folder of its own each time; the run's is gone by then."""

    def called(inputs: Sequence[Any]) -> float:
        with TemporaryDirectory() as folder, quiet():
            return aggregate(inputs, args=Namespace(**{**vars(said), "output_path": folder}))

    return called


def _hits(metric: Metric, group: Mapping[int, int]) -> Metric:
    """MMBench's figure as a mean of hits, a question each: one that is right however its choices are turned.

    Its own function takes seconds for all of them, and may ask a judge.
    """
    turned: dict[int, list[Any]] = {}
    for one in metric.inputs:
        turned.setdefault(one["index"] % CIRCLES, []).append(one)
    rows = {
        at: {"score": metric.aggregate(turned[one["index"]]) / 100}
        for at, one in metric.rows()
        if one["index"] < CIRCLES
    }

    def mean(inputs: Sequence[Any]) -> float:
        total: float = sum(one["score"] for one in inputs)
        return 100 * total / len(inputs)

    return _metric(metric.name, metric.value, metric.higher_is_better, list(rows), tuple(rows.values()), group, mean)


def _added(metrics: Mapping[str, Metric], group: Mapping[int, int]) -> dict[str, Metric]:
    """Figures that papers print and the harness does not: MME's total, and Video-MME by the length of the video."""
    added: dict[str, Metric] = {}
    parts = [metrics[name] for name in ("mme_perception_score", "mme_cognition_score") if name in metrics]
    if len(parts) == 2:
        rows = {at: {**one, "metric": part.name} for part in parts for at, one in part.rows()}

        def total(inputs: Sequence[Any]) -> float:
            mine = [(part, [one for one in inputs if one["metric"] == part.name]) for part in parts]
            return sum(part.aggregate(ones) for part, ones in mine if ones)

        there, value = sorted(rows), sum(part.value for part in parts)
        added[MME_TOTAL] = _metric(MME_TOTAL, value, True, there, tuple(rows[at] for at in there), group, total)
    for metric in metrics.values():
        for duration in DURATIONS if metric.name.startswith("videomme") else ():
            part = {at: one for at, one in metric.rows() if one["duration"] == duration}
            if part:
                name, inputs = f"{metric.name}/{duration}", tuple(part.values())
                value = float(metric.aggregate(inputs))
                added[name] = _metric(name, value, metric.higher_is_better, list(part), inputs, group, metric.aggregate)
    return added
