"""`evaluate_benchmarks`: benchmarks by name under several methods, each setting paired with the full model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from foveate.ask.loading import reloading
from foveate.ask.vlm import VLM
from foveate.contract.budget import Budget
from foveate.contract.method import Method
from foveate.errors import BudgetError, SettingError
from foveate.eval.contenders import EARLY, Contender, before_decoder, contenders_at
from foveate.eval.lmms.harness import check_names, run
from foveate.eval.lmms.metrics import Metric, scored
from foveate.eval.lmms.requests import Conduct
from foveate.eval.pairing import Log, figures_of
from foveate.eval.plan import SHARES, Plan
from foveate.eval.quality import Quality
from foveate.eval.records import Answers, open_answers
from foveate.runs.crew import Stopped, Worker, crew_of
from foveate.runs.listener import Advance, Listener
from foveate.runs.versions import commit, versions
from foveate.runs.working import work_through

WHAT = "benchmarks through lmms-eval, each setting paired with the full model on the same documents"


def evaluate_benchmarks(
    vlm: VLM,
    names: Sequence[str],
    plan: Plan | None = None,
    *,
    conduct: Conduct | None = None,
    listener: Listener | None = None,
) -> dict[str, Quality]:
    """Run benchmarks with the full model and with every method at every budget.

    Args:
        vlm: The model.
        names: Ours (`foveate.eval.lmms.benchmarks.BENCHMARKS`) or lmms-eval's.
        plan: What is compared; by default three methods and four baselines at three budgets.
        conduct: How benchmarks are run.
        listener: Hears how it goes.

    Returns:
        All figures of each task, by lmms-eval's name; in a notebook each shows itself as tables.

    Raises:
        UnknownNameError: If there is no such benchmark.
        UnsupportedError: If lmms-eval is not installed, or a task cannot be run with this model.
        InputError: If a task's data cannot be read, answers cannot be kept, or another run uses its file.
    """
    plan, conduct, listener = plan or Plan(), conduct or Conduct(), listener or Listener()
    if plan.second_looks():
        raise SettingError("A second look is measured on samples (--samples) or on the embedded tasks: leave it out.")
    resolved = check_names(names, conduct.include)
    shown = [name if name == task else f"{name} = {task}" for name, task in resolved.items()]
    listener.note(f"benchmarks: {', '.join(shown)}")
    budgets = [Budget(tokens=count) for count in plan.tokens]
    budgets = budgets or [Budget(retention=share) for share in plan.retention or SHARES]
    contenders = contenders_at(plan.by_name(), vlm.model.config, budgets, None, plan.seeds, given=plan.has_budgets)
    conditions = conduct.conditions(vlm)
    with plan.store(conditions, listener.note) as store:
        if len(store):
            listener.note(f"{len(store)} answers are known already, from {store.path}")
        with listener.stage("Answering: the full model", None) as advance:
            full, metrics = run(vlm, names, conduct=conduct, store=store, advance=advance)
        run_one = partial(run, names=names, conduct=conduct)
        methods = [draw for contender in contenders for draw in contender.draws]
        total = len(methods) * sum(map(len, full.values()))
        with listener.stage(f"Answering: {len(methods)} settings", total) as advance:
            ran = iter(_ran(vlm, run_one, methods, store, min(plan.workers, len(methods)), advance))
    origin = {
        "what": WHAT,
        "model": vlm.card.to_dict() | {"weights": conditions["weights"]},
        "versions": versions() | {"lmms_eval": version("lmms-eval")},
        "commit": commit(),
        "protocol": conduct.protocol,
        "limit": conduct.limit,
        "names": resolved,
    }
    of_contenders = [_as_ran(contender, list(islice(ran, len(contender.draws)))) for contender in contenders]
    return {task: _quality(task, vlm.name, metrics[task], log, of_contenders, origin) for task, log in full.items()}


Run = Callable[..., tuple[Mapping[str, Log], Mapping[str, Metric]]]
"""`run`, with all that is alike for the methods."""


@dataclass(frozen=True)
class _Ran:
    """What a run of all benchmarks under one method came to.

    Attributes:
        method: What truly dropped.
        logs: Its log of each task; empty where the budget cannot be met.
        infeasible, floor: Why it cannot, and the lowest share that can.
    """

    method: Method
    logs: Mapping[str, Log] = field(default_factory=dict)
    infeasible: str = ""
    floor: float | None = None


def _ran(
    vlm: VLM, run_one: Run, methods: Sequence[Method], store: Answers, workers: int, advance: Advance
) -> list[_Ran]:
    """What runs under these methods came to, in their order."""
    done: dict[int, _Ran] = {}

    def take(rows: list[Any]) -> None:
        done.update(rows)
        if workers > 1:
            advance(sum(len(log) for _, ran in rows for log in ran.logs.values()))

    task = partial(_begin, reloading(vlm), run_one, store.conditions, store.path.parent)
    here = partial(_work, partial(run_one, vlm, store=store, advance=advance))
    with crew_of(task, workers, here) as crew:
        work_through(enumerate(methods), crew, take)
    return [done[number] for number in range(len(methods))]


def _begin(
    reload: Callable[[], VLM],
    run_one: Run,
    conditions: Mapping[str, object],
    folder: Path,
    place: int,
    count: int,
) -> Worker:
    """The task of a process, which reads and adds to the store that the first one holds; see `runs.crew.Task`."""
    vlm, store = reload(), ExitStack().enter_context(open_answers(conditions, folder, alone=False))
    return partial(_work, partial(run_one, vlm, store=store))


def _work(run_one: Run, item: tuple[int, Method], stopped: Stopped) -> Iterator[list[tuple[int, _Ran]]]:
    """Run a numbered method; a control that cannot meet its budget at its usual depth is cut before the decoder."""
    number, method = item
    try:
        logs, _ = run_one(method=method)
    except BudgetError as error:
        early = before_decoder(method)
        if early is None:
            yield [(number, _Ran(method, infeasible=str(error), floor=error.floor))]
            return
        method = early
        logs, _ = run_one(method=method)
    yield [(number, _Ran(method, logs))]


def _as_ran(contender: Contender, ran: Sequence[_Ran]) -> tuple[Contender, list[Mapping[str, Log]]]:
    """A contender with what truly dropped, and the logs of its draws; none where one of them cannot meet the budget."""
    for done in ran:
        if done.infeasible:
            return replace(contender, draws=(), infeasible=done.infeasible, floor=done.floor), []
    methods = tuple(done.method for done in ran)
    note = EARLY
    if methods == contender.draws:
        note = contender.note
    return replace(contender, draws=methods, note=note), [done.logs for done in ran]


def _quality(
    task: str,
    model: str,
    metric: Metric,
    full: Log,
    of_contenders: Sequence[tuple[Contender, Sequence[Mapping[str, Log]]]],
    origin: Mapping[str, object],
) -> Quality:
    """A task's figures."""
    logs = [full, *(of_draw[task] for _, of_draws in of_contenders for of_draw in of_draws)]
    (paired, *others), aggregate = scored(metric, full, logs)
    rest = iter(others)
    paired_contenders = [(contender, list(islice(rest, len(of_draws)))) for contender, of_draws in of_contenders]
    pictures = len({row["picture"] for row in full})
    return Quality(
        figures_of(paired, paired_contenders, aggregate),
        unit=100.0 if aggregate is None or abs(metric.value) <= 1 else 1.0,
        title=(
            f"{model} on {task}: {metric.name}, {len(full)} documents about {pictures} pictures or videos, protocol "
            f"{origin['protocol']}"
        ),
        figure="Score",
        higher_is_better=metric.higher_is_better,
        origin={**origin, "task": task, "metric": metric.name, "version": metric.version},
    )
