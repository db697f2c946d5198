"""lmms-eval in this process: one run of benchmarks under one setting, and what it says of each answer."""

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.errors import InputError
from foveate.eval.lmms.benchmarks import BENCHMARKS, check_folders, check_installed, resolve
from foveate.eval.lmms.metrics import Metric, metric_of
from foveate.eval.lmms.quiet import quiet
from foveate.eval.lmms.requests import Conduct, RequestAnswerer
from foveate.eval.records import Answers
from foveate.runs.listener import Advance, unheard


def harness_tasks(include: Sequence[Path] = ()) -> tuple[str, ...]:
    """Every task, group and tag of lmms-eval, and those in folders of one's own.

    Raises:
        UnsupportedError: If lmms-eval is not installed.
        InputError: If there is no such folder.
    """
    check_installed()
    check_folders(include)
    return tuple(_manager(tuple(map(str, include))).all_tasks)


def check_names(names: Sequence[str], include: Sequence[Path] = ()) -> dict[str, str]:
    """What lmms-eval calls each name; its own names are looked up only where ours do not suffice.

    Raises:
        UnknownNameError: If there is no such benchmark; the message lists those there are.
        UnsupportedError: If lmms-eval is not installed.
    """
    if set(names) <= set(BENCHMARKS):
        return resolve(names)
    return resolve(names, harness_tasks(include))


def run(
    vlm: VLM,
    names: Sequence[str],
    method: Method | None = None,
    *,
    conduct: Conduct | None = None,
    store: Answers | None = None,
    advance: Advance = unheard,
) -> tuple[dict[str, list[dict[str, object]]], dict[str, Metric]]:
    """Run benchmarks under one setting.

    What the store has of the setting is not asked again, and every batch is on disk when the next one begins.
    Run the full model first, into the same store: later runs then measure how far their first tokens diverge.

    Args:
        vlm: The model.
        names: Ours or lmms-eval's.
        method: What drops, its budget counted on each sample; None is the full model.
        conduct: How they are run.
        store: From `open_answers(conduct.conditions(vlm), folder)`; None keeps nothing on disk.
        advance: Called with the number of answers that were added.

    Returns:
        Of each task a log (see `foveate.eval.pairing`), whose rows have also the "benchmark", the "document" and the
        "inputs" of lmms-eval's functions by metric; and the figure that papers print.

    Raises:
        BudgetError: If a sample cannot meet the budget.
        UnknownNameError: If there is no such benchmark.
        UnsupportedError: If lmms-eval is not installed, or a task cannot be run with this model.
        InputError: If a task's data cannot be read.
    """
    conduct = conduct or Conduct()
    resolved = check_names(names, conduct.include)
    answerer = RequestAnswerer(vlm, method, conduct, store, advance)
    with TemporaryDirectory() as folder, quiet():
        from lmms_eval.evaluator import simple_evaluate

        from foveate.eval.lmms.plugin import Answering

        manager = _Manager(_manager(tuple(map(str, conduct.include))))
        arguments = Namespace(output_path=folder, process_with_media=True, reasoning_tags=None)
        try:
            report = simple_evaluate(
                Answering(answerer),
                tasks=list(dict.fromkeys(resolved.values())),
                task_manager=manager,
                limit=conduct.limit,
                bootstrap_iters=0,
                cli_args=arguments,
                process_docs_parallel=1,
            )
        except SystemExit as error:  # how tasks end when a video is not where they look for it
            raise InputError(f"lmms-eval stopped: {error.code}.") from error
        except AssertionError as error:  # how tasks refuse what they cannot count, such as half a pair of MME
            raise InputError(f"lmms-eval stopped: {error}. A limit must not cut what is counted together.") from error
        logs, metrics = {}, {}
        for name, task in manager.tasks():
            if samples := report["samples"].get(name):
                metrics[name] = metric_of(name, task, report, arguments)
                logs[name] = list(_rows(name, samples, answerer.records, metrics[name]))
    return logs, metrics


def _rows(
    name: str,
    samples: Sequence[Mapping[str, Any]],
    records: Mapping[tuple[str, int], Mapping[str, object]],
    metric: Metric,
) -> Iterator[dict[str, object]]:
    """A task's log, in the order of its documents; of several filters, the first."""
    documents: dict[int, Mapping[str, Any]] = {}
    for sample in samples:
        documents.setdefault(int(sample["doc_id"]), sample)
    for document, sample in sorted(documents.items()):
        record = records[name, document]
        inputs = {part: sample[part] for part in metric.parts if part in sample}
        # Papers print Video-MME for short, medium and long videos apart.
        lengths = [given["duration"] for given in inputs.values() if isinstance(given, Mapping) and "duration" in given]
        yield {
            **record,
            "benchmark": name,
            "document": document,
            "inputs": inputs,
            "task": next(iter(lengths), name),
            "picture": record["media"] or f"document {document}",
        }


@cache
def _manager(include: tuple[str, ...]) -> Any:
    """lmms-eval's index of tasks; reading it takes seconds."""
    with quiet():
        from lmms_eval.tasks import TaskManager

        return TaskManager(include_path=list(include) or None, model_name="foveate")


class _Manager:
    """A task manager that remembers what it loaded."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._loaded: dict[object, Any] = {}

    def load_task_or_group(self, names: Sequence[str], *args: object) -> object:
        from tenacity import RetryError

        try:
            self._loaded = self._manager.load_task_or_group(names, *args)
        except (RetryError, OSError, ImportError) as error:
            cause: BaseException = error
            if isinstance(error, RetryError):
                cause = error.last_attempt.exception() or error
            reason = f"{type(cause).__name__}: {str(cause).partition(chr(10))[0].rstrip('.')}"
            raise InputError(
                f"The data of {', '.join(names)} cannot be read: {reason}. Most come from the hub: fetch them once "
                "where it can be reached, logged in where a data set asks for it (hf auth login)."
            ) from error
        return self._loaded

    def tasks(self, loaded: Mapping[object, object] | None = None) -> Iterator[tuple[str, object]]:
        """The tasks with their names; a group is a mapping of tasks and groups."""
        for name, task in (self._loaded if loaded is None else loaded).items():
            if isinstance(task, Mapping):
                yield from self.tasks(task)
            else:
                yield str(name), task
