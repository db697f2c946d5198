"""Benchmarks by name, through lmms-eval in this process."""

import inspect
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from foveate._loading import Loaded
from foveate.errors import InputError, UnsupportedError
from foveate.eval.answerer import Answerer, Conduct
from foveate.eval.benchmarks import BENCHMARKS, MME_TOTAL, primary, resolve
from foveate.eval.scores import Metric, Scores, TaskScores
from foveate.eval.setting import Choice
from foveate.eval.store import Store
from foveate.methods.base import Method

__all__ = ["Options", "check_names", "harness_tasks", "run"]

INSTALL = 'pip install "foveate[eval]" -c constraints.txt'
DURATIONS = ("short", "medium", "long")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How benchmarks are run.

    Attributes:
        conduct: How questions are put to the model.
        limit: Documents of each task, from its first on; None is all.
        include: Folders with tasks of one's own.
    """

    conduct: Conduct = field(default_factory=Conduct)
    limit: int | None = None
    include: tuple[Path, ...] = ()


def harness_tasks(include: Sequence[Path] = ()) -> tuple[str, ...]:
    """Every task, group and tag of lmms-eval, and those in folders of one's own.

    Raises:
        UnsupportedError: If lmms-eval is not installed.
        InputError: If there is no such folder.
    """
    if find_spec("lmms_eval") is None:
        raise UnsupportedError(
            f"Benchmarks by name are run by lmms-eval, which is not installed: {INSTALL} "
            "(docs/guides/benchmarks.md says how to keep your torch)."
        )
    for folder in include:
        if not folder.is_dir():
            raise InputError(f"There is no folder {folder} to take tasks from.")
    return tuple(_manager(tuple(str(folder) for folder in include)).all_tasks)


def check_names(names: Sequence[str], include: Sequence[Path] = ()) -> dict[str, str]:
    """What lmms-eval calls each name; its own names are looked up only where ours do not suffice.

    Raises:
        UnknownNameError: If there is no such benchmark; the message lists those there are.
        UnsupportedError: If lmms-eval is not installed.
    """
    others = () if set(names) <= set(BENCHMARKS) else harness_tasks(include)
    return resolve(names, others)


def run(
    loaded: Loaded,
    names: Sequence[str],
    choice: "Choice | Method | None" = None,
    *,
    options: Options | None = None,
    store: Store | None = None,
    advance: Callable[[int], object] = lambda done: None,
) -> Scores:
    """Run benchmarks under one setting.

    What the store knows of the setting is not asked again, and every batch is on disk when the next one begins.
    Run the full model first, into the same store: later runs then measure how far their first tokens diverge.

    Args:
        loaded: The model.
        names: Ours or lmms-eval's.
        choice: What drops: a method for all samples, or a `Choice` that solves one for each; None is the full model.
        options: How they are run.
        store: From `Store(folder, options.conduct.conditions(loaded))`; None keeps nothing on disk.
        advance: Called with the number of answers that were added.

    Raises:
        UnknownNameError: If there is no such benchmark.
        UnsupportedError: If lmms-eval is not installed, or a task cannot be run with this model.
        InputError: If a task's data cannot be read.
    """
    options = options or Options()
    known = harness_tasks(options.include)
    resolved = resolve(names, known)
    if not isinstance(choice, Choice):
        choice = Choice.of(choice)
    answerer = Answerer(loaded, choice, options.conduct, store, advance)
    with TemporaryDirectory() as folder, _quiet():
        from lmms_eval.evaluator import simple_evaluate

        from foveate.eval.backend import Answering

        manager = _Manager(_manager(tuple(str(one) for one in options.include)))
        said = Namespace(output_path=folder, process_with_media=True, reasoning_tags=None)
        try:
            found = simple_evaluate(
                Answering(answerer),
                tasks=list(dict.fromkeys(resolved.values())),
                task_manager=manager,
                limit=options.limit,
                bootstrap_iters=0,
                cli_args=said,
                process_docs_parallel=1,
            )
        except SystemExit as error:  # how tasks end when a video is not where they look for it
            raise InputError(f"lmms-eval stopped: {error.code}.") from error
        except AssertionError as error:  # how tasks refuse what they cannot count, such as half a pair of MME
            raise InputError(f"lmms-eval stopped: {error}. A limit must not cut what is counted together.") from error
        tasks = {
            name: _scores(name, task, found["samples"][name], found, answerer, said)
            for name, task in manager.tasks().items()
            if found["samples"].get(name)
        }
    groups = {
        name: {key.split(",")[0]: value for key, value in values.items() if isinstance(value, float)}
        for name, values in found.get("groups", {}).items()
    }
    return Scores(tasks, groups, resolved, options.conduct.protocol, version("lmms-eval"))


@cache
def _manager(include: tuple[str, ...]) -> Any:
    """lmms-eval's index of tasks; reading it takes seconds."""
    with _quiet():
        from lmms_eval.tasks import TaskManager

        return TaskManager(include_path=list(include) or None, model_name="foveate")


class _Manager:
    """A task manager that remembers what it loaded."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._loaded: dict[Any, Any] = {}

    def load_task_or_group(self, *args: Any, **kwargs: Any) -> Any:
        self._loaded = self._manager.load_task_or_group(*args, **kwargs)
        return self._loaded

    def tasks(self) -> dict[str, Any]:
        """The tasks by name, groups opened."""

        def opened(found: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
            for name, task in found.items():
                if isinstance(task, Mapping):
                    yield from opened(task)
                else:
                    yield str(name), task

        return dict(opened(self._loaded))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep stdout for results: what the harness and its tasks print goes to stderr, and its progress bars nowhere."""
    with redirect_stdout(sys.stderr):
        import lmms_eval.api.task
        import lmms_eval.evaluator  # sets its own log up while it is imported
        from datasets import disable_progress_bars, enable_progress_bars
        from loguru import logger

        logger.remove()
        logger.add(sys.stderr, level="WARNING", format="lmms-eval: {message}")
        modules = (lmms_eval.evaluator, lmms_eval.api.task)
        bars = [module.tqdm for module in modules]
        disable_progress_bars()
        try:
            for module, bar in zip(modules, bars, strict=True):
                module.tqdm = partial(_hidden, bar)
            yield
        finally:
            for module, bar in zip(modules, bars, strict=True):
                module.tqdm = bar
            enable_progress_bars()


def _hidden(bar: Any, *args: Any, **kwargs: Any) -> Any:
    """A progress bar that shows nothing."""
    return bar(*args, **{**kwargs, "disable": True})


def _scores(
    name: str, task: Any, samples: Sequence[Mapping[str, Any]], found: Mapping[str, Any], answerer: Answerer, said: Any
) -> TaskScores:
    """A task's figures from the harness's report and what is known of each answer."""
    by_document: dict[int, Mapping[str, Any]] = {}
    for sample in samples:  # of several filters, the first
        by_document.setdefault(int(sample["doc_id"]), sample)
    documents = tuple(sorted(by_document))
    records = tuple(answerer.records[name, document] for document in documents)
    labels: dict[str, int] = {}
    group = {
        document: labels.setdefault(record["media"] or f"document {document}", len(labels))
        for document, record in zip(documents, records, strict=True)
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
            metrics[metric] = _metric(metric, values[metric], better, there, inputs, group, aggregate)
    metrics |= _added(metrics, group)
    if not metrics:
        raise UnsupportedError(f"{name} gives no figure, only files to send in somewhere. Take its validation split.")
    return TaskScores(name, str(found["versions"].get(name)), documents, records, metrics, primary(list(metrics)))


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
        with TemporaryDirectory() as folder, _quiet():
            return aggregate(inputs, args=Namespace(**{**vars(said), "output_path": folder}))

    return called


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
