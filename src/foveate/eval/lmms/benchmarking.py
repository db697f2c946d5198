"""`evaluate_benchmarks`: benchmarks by name under several methods, each setting paired with the full model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from foveate._versions import commit, versions
from foveate.ask.loading import reloading
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.contract.naming import before_decoder, draws
from foveate.errors import BudgetError, InputError
from foveate.eval.answer_store import Answers, open_answers
from foveate.eval.figures import Log, figures_of
from foveate.eval.lmms.harness import Options, check_names, run
from foveate.eval.lmms.metrics import Metric, scored
from foveate.eval.lmms.setting import Setting
from foveate.eval.plan import EARLY, SHARES, Cell, Plan, cells_of
from foveate.eval.quality import Quality
from foveate.runs.crew import Here, Pool, Stopped, Worker
from foveate.runs.going import run as go
from foveate.runs.listener import Advance, Listener, unheard

__all__ = ["evaluate_benchmarks"]

WHAT = "benchmarks through lmms-eval, each setting paired with the full model on the same documents"


def evaluate_benchmarks(
    vlm: VLM,
    names: Sequence[str],
    plan: Plan | None = None,
    *,
    options: Options | None = None,
    workers: int = 1,
    listener: Listener | None = None,
) -> dict[str, Quality]:
    """Run benchmarks with the full model and with every method at every budget.

    Args:
        vlm: The model.
        names: Ours (`foveate.eval.lmms.benchmarks.BENCHMARKS`) or lmms-eval's.
        plan: What is compared; by default three methods and four baselines at three budgets.
        options: How benchmarks are run.
        workers: Processes, each with a model of its own, that run one setting at a time; 0 is 1.
        listener: Hears how it goes.

    Returns:
        All figures of each task, by lmms-eval's name; in a notebook each shows itself as tables.

    Raises:
        UnknownNameError: If there is no such benchmark.
        UnsupportedError: If lmms-eval is not installed, or a task cannot be run with this model.
        InputError: If a task's data cannot be read, answers cannot be kept, or another run uses its file.
    """
    plan, options, listener = plan or Plan(), options or Options(), listener or Listener()
    resolved = check_names(names, options.include)
    shown = [name if name == task else f"{name} = {task}" for name, task in resolved.items()]
    listener.note(f"benchmarks: {', '.join(shown)}")
    budgets = plan.tokens or plan.retention or SHARES
    cells = cells_of(plan.contenders(), vlm.model.config, budgets, None, plan.seeds, of_tokens=bool(plan.tokens))
    conditions = options.conduct.conditions(vlm)
    with plan.store(conditions, listener.note) as store:
        if len(store):
            listener.note(f"{len(store)} answers are known already, from {store.path}")
        with listener.stage("Answering: the full model", None) as advance:
            full, metrics = run(vlm, names, options=options, store=store, advance=advance)
        runs = [
            _Run(place, draw, _setting(cell, draw, plan)) for place, cell in enumerate(cells) for draw in cell.draws
        ]
        total = len(runs) * sum(map(len, full.values()))
        with listener.stage(f"Answering: {len(runs)} settings", total) as advance:
            ran = _ran(vlm, names, runs, options, store, min(workers, len(runs)), advance)
    origin = {
        "what": WHAT,
        "model": vlm.to_dict() | {"weights": conditions["weights"]},
        "versions": versions() | {"lmms_eval": version("lmms-eval")},
        "commit": commit(),
        "protocol": options.conduct.protocol,
        "limit": options.limit,
        "names": resolved,
    }
    cells = [_as_ran(cell, [done for done in ran if done.run.cell == place]) for place, cell in enumerate(cells)]
    return {task: _quality(task, vlm.name, metrics[task], log, cells, ran, origin) for task, log in full.items()}


@dataclass(frozen=True)
class _Run:
    """A run of all benchmarks under one setting.

    Attributes:
        cell: The place of its cell.
        method: What drops.
        setting: How it was asked for.
    """

    cell: int
    method: Method
    setting: Setting


@dataclass(frozen=True)
class _Ran:
    """What a run came to.

    Attributes:
        run: The run.
        logs: Its log of each task; empty where the budget cannot be met.
        method: What truly dropped.
        infeasible, floor: Why the budget cannot be met, and the lowest share that can.
    """

    run: _Run
    logs: Mapping[str, Log] = field(default_factory=dict)
    method: Method | None = None
    infeasible: str = ""
    floor: float | None = None


def _setting(cell: Cell, draw: Method, plan: Plan) -> Setting:
    """A draw as `--model_args` would ask for it."""
    seed = None
    if draws(plan.contenders()[cell.name]):
        seed = plan.seeds[cell.draws.index(draw)]
    if cell.budget is None:
        return Setting(name=cell.name, seed=seed)
    budget = {"budget": cell.budget} if plan.tokens else {"retention": cell.budget}
    settings = {"layers": (0,)} if cell.note == EARLY else {}
    return Setting(name=cell.name, seed=seed, settings=settings, **budget)


def _ran(
    vlm: VLM,
    names: Sequence[str],
    runs: Sequence[_Run],
    options: Options,
    store: Answers,
    workers: int,
    advance: Advance,
) -> list[_Ran]:
    """What these runs came to, in their order."""
    done: list[_Ran] = []

    def take(rows: list[Any]) -> None:
        done.extend(rows)
        if workers > 1:
            advance(sum(len(log) for ran in rows for log in ran.logs.values()))

    task = partial(_begin, reloading(vlm), names, options, store.conditions, store.path.parent)
    worker = partial(_work, vlm, names, options, store, advance)
    with Pool(task, workers) if workers > 1 else Here(task, worker) as crew:
        go(runs, crew, take, alone=lambda each: [each], given_up=_refuse)
    return sorted(done, key=lambda ran: runs.index(ran.run))


def _begin(
    reload: Callable[[], VLM],
    names: Sequence[str],
    options: Options,
    conditions: Mapping[str, Any],
    folder: Path,
    place: int,
    count: int,
) -> Worker:
    """The task of a process, which reads and adds to the store that the first one holds; see `runs.crew.Task`."""
    vlm, store = reload(), ExitStack().enter_context(open_answers(conditions, folder, alone=False))
    return partial(_work, vlm, names, options, store, unheard)


def _work(
    vlm: VLM, names: Sequence[str], options: Options, store: Answers, advance: Advance, item: _Run, stopped: Stopped
) -> Iterator[list[_Ran]]:
    """Run it; a control that cannot meet its budget at its usual depth is cut before the decoder."""
    asking = partial(run, vlm, names, options=options, store=store, advance=advance)
    try:
        logs, _ = asking(item.method, setting=item.setting)
    except BudgetError as error:
        early = before_decoder(item.method)
        if early is None:
            yield [_Ran(item, infeasible=str(error), floor=error.floor)]
            return
        logs, _ = asking(early, setting=replace(item.setting, settings={"layers": (0,)}))
        yield [_Ran(item, logs, early)]
        return
    yield [_Ran(item, logs, item.method)]


def _refuse(item: _Run) -> list[dict[str, Any]]:
    raise InputError(
        f"A process that ran {item.setting.name} died, and another one too, perhaps for want of memory. Run again with "
        "--workers 1: what was answered is kept."
    )


def _as_ran(cell: Cell, ran: Sequence[_Ran]) -> Cell:
    """A cell with what truly dropped."""
    for done in ran:
        if done.infeasible:
            return replace(cell, draws=(), infeasible=done.infeasible, floor=done.floor)
    methods = tuple(done.method for done in ran if done.method is not None)
    return replace(cell, draws=methods, note=EARLY if methods != cell.draws else cell.note)


def _quality(
    task: str,
    model: str,
    metric: Metric,
    full: Log,
    cells: Sequence[Cell],
    ran: Sequence[_Ran],
    origin: Mapping[str, Any],
) -> Quality:
    """A task's figures."""
    logs = [full, *(done.logs[task] for done in ran if done.logs)]
    (paired, *others), aggregate = scored(metric, full, logs)
    rest = iter(others)
    of_cells = [(cell, [next(rest) for _ in cell.draws]) for cell in cells]
    pictures = len({row["picture"] for row in full})
    return Quality(
        figures_of(paired, of_cells, aggregate),
        unit=100.0 if aggregate is None or abs(metric.value) <= 1 else 1.0,
        title=(
            f"{model} on {task}: {metric.name}, {len(full)} documents about {pictures} pictures or videos, protocol "
            f"{origin['protocol']}"
        ),
        figure="Score",
        higher_is_better=metric.higher_is_better,
        origin={**origin, "task": task, "metric": metric.name, "version": metric.version},
    )
