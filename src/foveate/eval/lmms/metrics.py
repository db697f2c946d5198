"""`Metric`: the figure of a benchmark that papers print, computed by lmms-eval's functions."""

import inspect
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from foveate.errors import InputError, UnsupportedError
from foveate.eval.pairing import Log

PRINTED = ("pope_f1_score", "seed_all", "relaxed_overall")
"""Figures that papers print, for tasks with several."""
MME_TOTAL = "mme_score"
"""The sum of MME's perception and cognition scores, as papers print it."""
MME_PARTS = ("mme_perception_score", "mme_cognition_score")
CHOICES = "gpt_eval_score"
"""MMBench's figure."""
CIRCLES = 1_000_000
"""MMBench repeats a question with its choices rotated, with the question's index plus a multiple of this."""
MEANS = ("mvbench_accuracy", "ocrbench_accuracy", "videomme_perception_score")
"""Figures that are a multiple of the mean of their inputs' scores, in addition to those by lmms-eval's `mean`.

OCRBench's function adds to a global count, so it can be called only once.
"""
TOLERANCE = 1e-9

Functions = Mapping[str, Callable[..., float]]
"""lmms-eval's functions that compute a task's metrics from inputs, by metric."""


@dataclass(frozen=True)
class Metric:
    """A figure of a task, as a function of the rows of a log; see `foveate.eval.pairing`.

    Attributes:
        name: lmms-eval's name of the figure.
        value: The figure in the run's report.
        higher_is_better: Whether a higher figure is better.
        version: lmms-eval's version of the task.
        parts: lmms-eval's functions by name. The figure is their sum (MME has two, other tasks one).
    """

    name: str
    value: float
    higher_is_better: bool
    version: str
    parts: Mapping[str, Callable[[Sequence[object]], float]]

    def __call__(self, log: Log) -> float:
        """Compute the figure of these rows. Each has its "inputs" by part; a resample may repeat rows."""
        times: Counter[int] = Counter()
        inputs: dict[str, list[object]] = {name: [] for name in self.parts}
        for row in log:
            for name in inputs.keys() & row["inputs"].keys():
                inputs[name].append(_again(row["inputs"][name], times[row["document"]]))
            times[row["document"]] += 1
        return sum(float(self.parts[name](of_part)) for name, of_part in inputs.items() if of_part)


def _again(given: object, time: int) -> object:
    """Return an input for its `time`-th repetition in a resample.

    MME pairs inputs by question_id, so each repetition gets its own.
    """
    if time and isinstance(given, Mapping) and "question_id" in given:
        return {**given, "question_id": f"{given['question_id']} #{time}"}
    return given


def metric_of(name: str, functions: Functions, report: Mapping[str, Any]) -> Metric:
    """Return the figure of a task that papers print.

    Args:
        name: lmms-eval's name of the task.
        functions: lmms-eval's functions of the task.
        report: lmms-eval's report.

    Raises:
        UnsupportedError: If the task has no figure.
    """
    values: dict[str, float] = {}
    for key, value in report["results"][name].items():  # keys are "metric,filter"; take the first filter
        if isinstance(value, int | float) and not isinstance(value, bool):
            values.setdefault(key.partition(",")[0], float(value))
    counted = [metric for metric in functions if metric in values]
    if not counted:
        raise UnsupportedError(f"{name} gives no figure, only files to submit. Use its validation split.")
    chosen = next((metric for metric in PRINTED if metric in counted), counted[0])
    parts = [chosen]
    if set(MME_PARTS) <= set(counted):
        chosen, parts = MME_TOTAL, list(MME_PARTS)
    return Metric(
        name=chosen,
        value=sum(values[part] for part in parts),
        higher_is_better=bool(report["higher_is_better"][name][parts[0]]),
        version=str(report["versions"].get(name)),
        parts={part: _of_inputs(functions[part]) for part in parts},
    )


def _of_inputs(function: Callable[..., float]) -> Callable[[Sequence[Any]], float]:
    """Return a function of inputs alone. A function that writes files gets a temporary folder at each call."""
    if "args" not in inspect.signature(function).parameters:
        return function

    def call(inputs: Sequence[object]) -> float:
        with TemporaryDirectory() as folder:
            return function(inputs, args=Namespace(output_path=folder))

    return call


# -- scores ---------------------------------------------------------------------------------------------------


def score_logs(metrics: Sequence[Metric], logs: Sequence[Log]) -> tuple[list[list[dict[str, Any]]], Any]:
    """Add a "score" to every row if the figure is the mean of scores. If not, return a function for the figure.

    Args:
        metrics: The task's figure in each run, the full model's first.
        logs: The log of each run.

    Returns:
        The logs, and None or a function that computes the figure of a log.

    Raises:
        InputError: If the figure of the logged answers differs from the report's.
    """
    metric, full = metrics[0], logs[0]
    if CHOICES in metric.parts and full and "index" in full[0]["inputs"][CHOICES]:
        # MMBench's function takes seconds for all questions and may call a judge, so call it once per question. A
        # question is a hit (100) only if it is right for every rotation of its choices, and the figure is the mean.
        hits = []
        for log in logs:
            turns: dict[int, list[Mapping[str, Any]]] = {}
            for row in log:
                turns.setdefault(row["inputs"][CHOICES]["index"] % CIRCLES, []).append(row)
            hits.append([{**rows[0], "score": metric(rows) / 100} for rows in turns.values()])
        return hits, None
    factor = _factor(metrics, logs)
    figure: Callable[[Log], float] = metric
    if factor is not None:
        figure = lambda log: factor * float(np.mean([row["score"] for row in log]))  # noqa: E731
    rows = [[{**row, "score": None if factor is None else _score(metric, row)} for row in log] for log in logs]
    for of_run, log in zip(metrics, rows, strict=True):
        again = figure(log)
        if abs(again - of_run.value) > TOLERANCE * max(1.0, abs(of_run.value)):
            raise InputError(
                f"{metric.name} was {of_run.value:g}, and is {again:g} for the answers in the log: the log is damaged, "
                "or lmms-eval's function returns a different figure each time."
            )
    shares = all(0 <= row["score"] <= 1 for log in rows for row in log if factor is not None)
    if factor is None or not shares or all(abs(factor - unit) >= TOLERANCE * unit for unit in (1, 100)):
        return rows, figure
    return rows, None


def _score(metric: Metric, row: Mapping[str, Any]) -> float | None:
    """Return the number in a row's input, such as 1 for right and 0 for wrong, or None without one."""
    value = row["inputs"].get(next(iter(metric.parts)))
    if isinstance(value, Mapping):
        value = value.get("score")
    if not isinstance(value, int | float):
        return None
    return float(value)


def _factor(metrics: Sequence[Metric], logs: Sequence[Log]) -> float | None:
    """Return the factor by which the figure is the mean of scores, for any choice of rows. None if it is no mean."""
    from lmms_eval.api.metrics import mean

    metric, factor = metrics[0], 1.0
    if metric.name not in MEANS and metric.parts.get(metric.name) is not mean:
        return None
    for of_run, log in reversed(list(zip(metrics, logs, strict=True))):
        scores = [_score(metric, row) for row in log]
        if None in scores:
            return None
        middle = float(np.mean(np.array(scores, dtype=np.float64)))
        if middle != 0:
            factor = of_run.value / middle
    return factor
