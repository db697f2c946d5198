"""`compare_logs`: read the sample logs of lmms-eval runs, and pair them document by document."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from foveate.errors import InputError, UnsupportedError
from foveate.eval.lmms.metrics import Functions, Metric, metric_of, score_logs
from foveate.eval.lmms.model_args import Arguments, values_of
from foveate.eval.pairing import Log, figures_of
from foveate.eval.plan import Contender
from foveate.eval.quality import Quality
from foveate.plain.spelling import read_json
from foveate.plain.upstream import install_line

ASKED = ("target", "input", "doc_hash")
"""Fields that must be equal in two samples of one document."""
ALIKE = ("pretrained", "protocol", "max_frames", "dtype", "attention")
"""Model arguments that must be equal in all runs."""


def compare_logs(paths: Sequence[Path], include: Sequence[Path] = ()) -> dict[str, Quality]:
    """Pair lmms-eval runs of `--model foveate`, task by task.

    Args:
        paths: Folders given as `--output_path`, or results files in them. The full model's comes first.
        include: Folders with your own tasks, whose functions score the answers.

    Returns:
        The figures of each task, by lmms-eval's name. A notebook shows each as tables.

    Raises:
        UnsupportedError: If lmms-eval is not installed, or a task has no figure.
        InputError: If a log is missing or damaged, or runs differ in model, tasks or documents.
    """
    if find_spec("lmms_eval") is None:
        raise UnsupportedError(
            f"Logs need lmms-eval, which is not installed: {install_line('eval')}, "
            "with -c constraints.txt (docs/guides/benchmarks.md says how to keep your torch)."
        )
    full, *others = [_read(path) for path in paths]
    _check(full, others)
    contenders: dict[tuple[str, float | None], list[LoggedRun]] = {}
    for run in others:
        budget = run.arguments.budget or run.arguments.share
        contenders.setdefault((run.arguments.method, budget), []).append(run)
    with redirect_stdout(sys.stderr):  # lmms-eval and its functions print to stdout
        functions = _functions_of(full.samples, include)
        return {task: _quality(task, functions[task], full, contenders) for task in full.samples}


@dataclass(frozen=True)
class LoggedRun:
    """A run of lmms-eval.

    Attributes:
        file: Its results file.
        report: The contents of the results file.
        values: The given model arguments.
        arguments: All model arguments, including defaults.
        samples: The samples of each task by document number, in ascending order. Of several filters, the first.
    """

    file: Path
    report: Mapping[str, Any]
    values: Mapping[str, Any]
    arguments: Arguments
    samples: Mapping[str, Mapping[int, Mapping[str, Any]]]

    def version(self, task: str) -> list[object]:
        """Return the values that distinguish versions of a task with the same name."""
        config = self.report["configs"][task]
        return [self.report["versions"].get(task), config.get("metadata"), config.get("generation_kwargs")]

    def log(self, task: str, metric: Metric) -> list[dict[str, Any]]:
        """Return a task's log; see `foveate.eval.pairing`. Its rows also have "document" and "inputs", for `metric`."""
        rows = []
        for document, sample in self.samples[task].items():
            counts = sample["token_counts"][0]
            inputs = {part: sample[part] for part in metric.parts if part in sample}
            row = {**counts, "document": document, "inputs": inputs, "task": task}
            for of_part in inputs.values():  # papers report Video-MME separately for short, medium and long videos
                if isinstance(of_part, dict):
                    row["task"] = of_part.get("duration", row["task"])
            row["picture"] = counts["media"] or f"document {document}"
            row["answer"] = json.dumps(sample.get("resps", sample["filtered_resps"]))
            rows.append(row)
        return rows


def _read(path: Path) -> LoggedRun:
    """Read the only run in a folder, or the run of a results file."""
    files = [path]
    if not path.is_file():
        files = sorted(path.rglob("[0-9]*_[0-9]*_results.json"))
    if len(files) != 1:
        raise InputError(f"{path} has {len(files)} runs of lmms-eval. Name one's --output_path, or its …_results.json.")
    file, report = files[0], read_json(files[0])
    try:
        model, arguments = report["config"]["model"], report["config"]["model_args"]
        sizes = {task: report["n-samples"][task]["effective"] for task in sorted(report["configs"])}
        _ = [report["versions"], *((report["results"][task], report["higher_is_better"][task]) for task in sizes)]
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} is damaged, or no results file of lmms-eval: no {error}.") from error
    if model != "foveate":
        raise InputError(f"{file} is of --model {model}: only runs of --model foveate can be paired.")
    values = values_of(arguments or "")
    offset = report["config"].get("offset", 0)
    samples = {task: _samples(file, task, size - offset) for task, size in sizes.items()}
    return LoggedRun(file, report, values, Arguments(**values), samples)


def _samples(results: Path, task: str, size: float) -> dict[int, Mapping[str, Any]]:
    """Read a task's samples.

    Args:
        results: The results file, next to the samples.
        task: The task.
        size: Number of documents that must be there.
    """
    file = results.with_name(results.name.replace("results.json", f"samples_{task}.jsonl"))
    samples: dict[int, Mapping[str, Any]] = {}
    try:
        for line in file.read_text(encoding="utf-8").strip("\n").split("\n"):
            sample = json.loads(line)
            if "spent" not in (sample["token_counts"][0] or {}):
                raise InputError(
                    f"{file} does not say what document {sample['doc_id']} spent: its answer came from --use_cache. "
                    "Run lmms-eval without it; foveate stores answers with log=."
                )
            samples.setdefault(sample["doc_id"], sample)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}. Run lmms-eval with --log_samples.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError) as error:
        raise InputError(f"{file} is damaged: {error}. Run lmms-eval again.") from error
    if len(samples) < size:
        raise InputError(f"{file} is damaged: it has {len(samples)} of {size} documents. Run lmms-eval again.")
    return dict(sorted(samples.items()))


def _check(full: LoggedRun, others: Sequence[LoggedRun]) -> None:
    """Refuse runs that cannot be paired.

    Raises:
        InputError: If the first run has a method, or runs repeat or differ in model arguments.
    """
    if full.arguments.drops is not None:
        raise InputError(
            f"{full.file} is of {full.arguments.method}: the first log must be the full model's, without method=."
        )
    settings: dict[object, LoggedRun] = {None: full}
    for run in others:
        if (other := settings.setdefault(run.arguments.drops, run)) is not run:
            raise InputError(f"{run.file} is of the same setting as {other.file}. Leave one out.")
        for argument in ALIKE:
            ours, theirs = run.values.get(argument), full.values.get(argument)
            if ours != theirs:
                raise InputError(f"{run.file} is of {argument}={ours}, and {full.file} of {argument}={theirs}.")
        _check_documents(full, run)


def _check_documents(full: LoggedRun, run: LoggedRun) -> None:
    """Refuse a run whose tasks or documents differ from those of the full model."""
    pair = f"{full.file} and {run.file}"
    if full.samples.keys() != run.samples.keys():
        raise InputError(f"{pair} are of different tasks: {', '.join(full.samples)}; and {', '.join(run.samples)}.")
    for task, samples in full.samples.items():
        if full.version(task) != run.version(task):
            raise InputError(f"{pair} are of different versions of {task}.")
        theirs, ours = _documents_of(samples), _documents_of(run.samples[task])
        if ours != theirs:
            document = min(number for number, _ in ours ^ theirs)
            raise InputError(f"{pair} are of different documents: {document} of {task} is not the same in both.")


def _documents_of(samples: Mapping[int, Mapping[str, Any]]) -> set[tuple[int, str]]:
    """Return the document numbers, each with its fields and media as JSON."""
    return {
        (document, json.dumps([*(sample.get(name) for name in ASKED), sample["token_counts"][0]["media"]]))
        for document, sample in samples.items()
    }


def _functions_of(tasks: Iterable[str], include: Sequence[Path]) -> dict[str, Functions]:
    """Return lmms-eval's functions that compute each task's figures, without loading any data."""
    from lmms_eval.api.task import ConfigurableTask, TaskConfig
    from lmms_eval.tasks import TaskManager
    from loguru import logger

    logger.disable("lmms_eval")
    manager = TaskManager(include_path=list(map(str, include)) or None)
    functions = {}
    for name in tasks:
        if name not in manager.all_tasks:
            raise InputError(f"lmms-eval has no task {name}. Name the folder that it is in with --include.")
        task = ConfigurableTask.__new__(ConfigurableTask)  # __init__ would load the data
        task._config = TaskConfig(**manager._get_config(name))
        task._prepare_metric_and_aggregation()
        functions[name] = task.aggregation()
    return functions


def _quality(
    task: str, functions: Functions, full: LoggedRun, contenders: Mapping[tuple[str, float | None], Sequence[LoggedRun]]
) -> Quality:
    """Return a task's figures."""
    runs = [full, *(run for of_contender in contenders.values() for run in of_contender)]
    metrics = [metric_of(task, functions, run.report) for run in runs]
    logs = [run.log(task, metrics[0]) for run in runs]
    (paired, *others), aggregate = score_logs(metrics, logs)
    rest = iter(others)
    ran: list[tuple[Contender, list[Log]]] = []
    for (name, budget), of_contender in contenders.items():
        draws = tuple(run.arguments.drops for run in of_contender if run.arguments.drops is not None)
        ran.append((Contender(name, budget, draws), list(islice(rest, len(draws)))))
    metric, values = metrics[0], full.values
    pictures = len({row["picture"] for row in logs[0]})
    protocol = values.get("protocol", "own")
    return Quality(
        figures_of(paired, ran, aggregate),
        unit=100.0 if aggregate is None or abs(metric.value) <= 1 else 1.0,
        title=(
            f"{values.get('pretrained', 'embedded')} on {task}: {metric.name}, {len(logs[0])} documents about "
            f"{pictures} pictures or videos, protocol {protocol}"
        ),
        figure="Score",
        higher_is_better=metric.higher_is_better,
        origin={
            "what": "benchmarks through lmms-eval, each setting paired with the full model on the same documents",
            "model": values,
            "protocol": protocol,
            "limit": full.report["config"].get("limit"),
            "logs": [str(run.file) for run in runs],
            "task": task,
            "metric": metric.name,
            "version": metric.version,
        },
    )
