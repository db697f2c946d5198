"""`evaluate`: the embedded questions under several methods, each answer paired with the full model's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate import embedded
from foveate._versions import commit, versions
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.eval import provenance
from foveate.eval.cells import BASELINES, Cell, cells_of, contenders_of
from foveate.eval.embedded.pictures import check_tasks, questions
from foveate.eval.embedded.run import Asked, outstanding, prompts_of, run
from foveate.eval.pairing import Column, summarise, unmatched
from foveate.eval.plan import Plan
from foveate.eval.store import FULL, Answers, key_of
from foveate.eval.summary import AGREEMENT, Summary
from foveate.runs.listener import Listener

__all__ = ["compare", "evaluate"]

WHAT = "exact match on held-out questions about generated pictures, each paired with the full model's"


def evaluate(
    vlm: VLM,
    tasks: Sequence[str] = (),
    plan: Plan | None = None,
    *,
    count: int = 550,
    seeds: Sequence[int] = (0,),
    max_new_tokens: int = 64,
    workers: int = 1,
    listener: Listener | None = None,
) -> Summary:
    """Ask the same questions of the full model and of every method at every budget.

    Args:
        vlm: The model.
        tasks: Names in `foveate.embedded.tasks_of(vlm.name)`; none for all of them.
        plan: What is compared; by default three methods and four baselines at three budgets.
        count: Questions in all, up to one a task and picture.
        seeds: Which held-out pictures. Intervals are over pictures and over seeds; with one seed, over its pictures.
        max_new_tokens: The longest answer.
        workers: Processes; 0 takes as many as pay off, see `foveate.eval.embedded.run.run`.
        listener: Hears how it goes.

    Returns:
        All figures; in a notebook they are shown as tables.

    Raises:
        UnknownNameError: If there is no such task.
        SettingError: If a number leaves its range.
        InputError: If answers cannot be kept, or another run uses the same file.
    """
    plan = plan or Plan()
    listener = listener or Listener()
    names = check_tasks(tasks, embedded.tasks_of(vlm.name))
    with listener.stage("Drawing pictures", None):
        chosen = questions(names, count, seeds)
    vision_tokens = prompts_of(vlm, chosen[:1])[0].vision_tokens  # all pictures have the same size
    of_seeds = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    return compare(
        vlm,
        chosen,
        plan,
        vision_tokens,
        max_new_tokens=max_new_tokens,
        workers=workers,
        listener=listener,
        origin={"what": WHAT, "seeds": list(seeds)},
        title=f", {of_seeds}",
        seeds=[question.seed for question in chosen],
    )


def compare(
    vlm: VLM,
    questions: Sequence[Asked],
    plan: Plan,
    vision_tokens: int | None,
    *,
    max_new_tokens: int,
    workers: int,
    listener: Listener,
    origin: Mapping[str, Any],
    title: str = "",
    seeds: Sequence[int] | None = None,
    labelled: bool = True,
) -> Summary:
    """Ask the same questions of the full model and of every method of a plan.

    Args:
        vlm: The model.
        questions: Those about the same pictures one behind the other.
        plan: What is compared.
        vision_tokens: Of every prompt; None where they differ.
        max_new_tokens: The longest answer.
        workers: Processes.
        listener: Hears how it goes.
        origin: What the figures depend on besides.
        title: What is said of the pictures, behind how many there are.
        seeds: Of each question, where pictures are drawn.
        labelled: Whether the true answers are known. Else an answer counts as right that is the full model's.
    """
    conditions = provenance.conditions(vlm) | {"max_new_tokens": max_new_tokens}
    about = {
        **origin,
        "model": vlm.to_dict() | {"weights": conditions["weights"]},
        "versions": versions(),
        "commit": commit(),
        "draws": plan.draws,
        "max_new_tokens": max_new_tokens,
    }
    cells = cells_of(plan.contenders(), vlm.model, plan.shares_of(vision_tokens), vision_tokens, plan.seeds)
    with plan.store(conditions, listener.note) as store:
        asking = _Asking(vlm, questions, store, max_new_tokens, workers, listener, about, title, seeds, labelled)
        summary = asking.summary(cells, "Answering")
        spent = unmatched(summary) if plan.baselines else []
        if spent:
            cells += cells_of(contenders_of(BASELINES), vlm.model, spent, vision_tokens, plan.seeds)
            summary = asking.summary(cells, "Answering: controls at what was truly spent")
    return summary


@dataclass(frozen=True, slots=True)
class _Asking:
    """Questions to one model, and where its answers are kept."""

    vlm: VLM
    questions: Sequence[Asked]
    store: Answers
    max_new_tokens: int
    workers: int
    listener: Listener
    origin: dict[str, Any]
    about: str
    seeds: Sequence[int] | None
    labelled: bool

    def summary(self, cells: Sequence[Cell[Method]], doing: str) -> Summary:
        """Every figure of these cells, after asking what the store does not have."""
        methods = [draw for cell in cells for draw in cell.draws]
        work = outstanding(self.questions, methods, self.store)
        left, total = sum(map(len, work)), len(self.questions) * (1 + len(methods))
        if left < total:
            self.listener.note(f"{total - left} of {total} answers are known already, from {self.store.path}")
        with self.listener.stage(doing, left) as advance:
            run(self.vlm, work, self.store, max_new_tokens=self.max_new_tokens, workers=self.workers, advance=advance)
        pictures = [question.picture for question in self.questions]
        figure = {} if self.labelled else {"figure": AGREEMENT}
        return summarise(
            [question.task for question in self.questions],
            pictures,
            self._column(None),
            cells,
            [[self._column(draw) for draw in cell.draws] for cell in cells],
            title=f"{self.vlm.name}: {len(pictures)} questions about {len(set(pictures))} pictures{self.about}",
            seeds=self.seeds,
            origin=self.origin,
            **figure,
        )

    def _column(self, method: Method | None) -> Column:
        """What a method came to, from the store."""
        full = self._rows(FULL)
        rows = self._rows(key_of(method))
        if self.labelled:
            right = [question.is_right(row["answer"]) for row, question in zip(rows, self.questions, strict=True)]
        else:
            right = [row["answer"] == other["answer"] for row, other in zip(rows, full, strict=True)]
        return Column.of(rows, full, score=right)

    def _rows(self, key: str) -> list[dict[str, Any]]:
        """A setting's rows, in the questions' order."""
        rows = [self.store.get(key, question.key) for question in self.questions]
        return [row for row in rows if row is not None]
