"""`evaluate` and `evaluate_samples`: answer questions with several methods, paired with the full model's answers."""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from foveate import embedded
from foveate.ask.generation import Generation
from foveate.ask.media import read_medium
from foveate.ask.prompt import Prompt
from foveate.ask.vlm import VLM
from foveate.contract.method import Method
from foveate.contract.settings import AtLeastOne
from foveate.core.fields import check_call
from foveate.cost.fitting import costs_of
from foveate.errors import BudgetError, InputError, SettingError
from foveate.eval import provenance
from foveate.eval.asked import Asked, answer_missing, outstanding, prompts_of
from foveate.eval.held_out import check_tasks, questions
from foveate.eval.pairing import figures_of, shares_unmatched
from foveate.eval.plan import BASELINES, USUAL, Contender, Plan, contenders_at
from foveate.eval.quality import AGREEMENT, Quality
from foveate.eval.quality_rows import MethodRow, QualityRow
from foveate.eval.records import FORM, Answers, key_of, open_answers, record_of_both
from foveate.naming import parse
from foveate.plain.files import is_video, sha256_of, spell
from foveate.plain.spelling import nearest
from foveate.plain.upstream import brief, trim
from foveate.runs.listener import Listener
from foveate.runs.samples import LABELS, Bad, MediaSample, Samples, as_said, labels_in, plain
from foveate.runs.versions import commit, versions

R = TypeVar("R", bound=QualityRow)

READ = (*LABELS, "task")
"""Columns that are read besides the media, question and id."""
PRICED = 64
"""Maximum prompts for which FLOPs budgets are solved."""
TOLD = 3
"""Maximum notes on single rows that are left out."""


@check_call("eval")
def evaluate(
    vlm: VLM,
    tasks: Sequence[str] = (),
    plan: Plan | None = None,
    *,
    count: AtLeastOne = 550,
    seeds: Sequence[int] = (0,),
    listener: Listener | None = None,
) -> Quality:
    """Compare methods at budgets with the full model, on questions about drawn pictures.

    Args:
        vlm: The model.
        tasks: Names in `foveate.embedded.tasks_of(vlm.name)`; empty for all tasks.
        plan: The methods and budgets. The default is three methods and four baselines at three budgets.
        count: Number of questions, at most one per task and picture.
        seeds: Seeds that select the held-out pictures. Intervals are over the pictures of all seeds.
        listener: Receives the progress.

    Returns:
        The figures. A notebook shows them as tables.

    Raises:
        UnknownNameError: If a task is unknown.
        SettingError: If a number is out of range.
        InputError: If answers cannot be stored, or another run uses the same store.
    """
    listener = listener or Listener()
    names = check_tasks(tasks, embedded.tasks_of(vlm.name))
    with listener.stage("Drawing pictures", None):
        chosen = questions(names, count, seeds)
    first = prompts_of(vlm, chosen[:1])[0]  # one is enough: all pictures have the same size
    quality = _compare(vlm, chosen, plan or Plan(), listener, first.vision_tokens, first)
    what = "exact match on held-out questions about generated pictures, each paired with the full model's"
    title = f"{quality.title}, seeds {', '.join(map(str, seeds))}"
    return replace(quality, title=title, origin={"what": what, "seeds": list(seeds), **quality.origin})


def evaluate_samples(
    vlm: VLM | Callable[[], VLM],
    samples: Samples,
    plan: Plan | None = None,
    *,
    listener: Listener | None = None,
) -> Quality:
    """Compare methods at budgets with the full model, on questions about your own pictures.

    If every sample has a true answer ("label" or "answer"; any in a list counts), the figure is accuracy. If none has,
    it is the share of answers that equal the full model's, word for word. Rows that cannot be read are left out;
    `origin["bad"]` has their reasons.

    Args:
        vlm: The model, or a function that loads it once all samples have been read.
        samples: From `foveate.runs.samples.samples_in`.
        plan: The methods and budgets. The default is three methods and four baselines at three budgets.
        listener: Receives the progress.

    Raises:
        InputError: If no sample can be read, only some have a label, or answers cannot be stored.
        SettingError: If budgets are in tokens and pictures differ in their number of vision tokens.
    """
    listener = listener or Listener()
    with listener.stage("Reading samples", None):
        rows = [(sample, _question_of(sample)) for sample in samples.read()]
    readable = [question for _, question in rows if isinstance(question, Asked)]
    bad = [question for _, question in rows if isinstance(question, Bad)]
    columns = {name for sample, _ in rows for name in sample.record}
    if unread := sorted(columns - {*samples.columns.media, *samples.columns.question, samples.columns.id, *READ}):
        near = "".join(nearest(name, READ) for name in unread)
        listener.note(f"columns that are not read: {trim(', '.join(unread))}.{near}")
    for row in bad[:TOLD]:
        listener.note(f"row {row.number} (from 0) is left out: {row.reason}")
    if len(bad) > TOLD:
        listener.note(f"{len(bad) - TOLD} more rows are left out; --out and --json have their reasons")
    if not readable:
        why = ""
        if bad:
            why = f" Row {bad[0].number}: {bad[0].reason}"
        raise InputError(f"No row of {spell(samples.source.path)} can be asked.{why}")
    asked = list({question.key: question for question in readable}.values())
    if len(asked) < len(readable):
        listener.note(f"{len(readable) - len(asked)} samples repeat another one, and are left out")
    asked.sort(key=lambda question: question.picture)
    labelled = [question for question in asked if question.labels]
    if labelled and len(labelled) < len(asked):
        raise InputError(f"{len(labelled)} of {len(asked)} samples have a label. Label all of them, or none.")
    if not isinstance(vlm, VLM):
        vlm = vlm()
    prompts = (vlm.prepare(question.media(), question.text) for question in asked if vlm.name in embedded.NAMES)
    if any(embedded.STRANGE in prompt.notes for prompt in prompts):
        listener.note(embedded.STRANGE)
    vision_tokens = None
    if all(isinstance(question, Bad) or _is_picture(sample) for sample, question in rows):
        vision_tokens = vlm.card.family.fixed_count(vlm.model.config)
    quality = _compare(vlm, asked, plan or Plan(), listener, vision_tokens)
    left_out = [{"row": row.number, "reason": row.reason} for row in bad]
    origin = {"what": "foveate eval --samples", "samples": samples.source.digest(), "bad": left_out}
    return replace(quality, origin={**origin, **quality.origin})


def _is_picture(sample: MediaSample | Bad) -> bool:
    """Return whether a sample is about one picture."""
    return isinstance(sample, MediaSample) and len(sample.media) == 1 and not is_video(Path(sample.media[0]))


def _question_of(sample: MediaSample | Bad) -> Asked | Bad:
    """Make a question of a sample. Its pictures are decoded once, to find damaged ones here."""
    if isinstance(sample, Bad):
        return sample
    try:
        picture = provenance.join_digests([sha256_of(source) for source in sample.media])
        for source in sample.media:
            if not is_video(Path(source)):
                read_medium(source)
        labels = labels_in(sample.record)
        task = plain(sample.record, "task")
    except InputError as error:
        return Bad(sample.number, sample.record, str(error))
    return Asked(
        key=f"{picture}/{sample.question}",
        picture=picture,
        task=task or "samples",
        text=sample.question,
        media=partial(_same_files, sample.media, picture),
        labels=labels,
        reading=as_said,
    )


def _same_files(media: Sequence[str], picture: str) -> list[str]:
    """Return the files, after checking that they still have the hash under which answers are stored.

    Raises:
        InputError: If a file has changed.
    """
    if provenance.join_digests([sha256_of(source) for source in media]) != picture:
        raise InputError(f"{brief(media[0])} or another file of its row changed during the run. Run again.")
    return list(media)


def _compare(
    vlm: VLM,
    asked: Sequence[Asked],
    plan: Plan,
    listener: Listener,
    vision_tokens: int | None,
    alike: Prompt | None = None,
) -> Quality:
    """Answer the questions with the full model and every method of a plan, and compare.

    Args:
        vlm: The model.
        asked: The questions; those about the same media are consecutive. Without true answers, an answer counts as
            right if it equals the full model's.
        plan: The methods and budgets.
        listener: Receives the progress.
        vision_tokens: Vision tokens of every prompt; None if they differ.
        alike: One of the prompts, if all have media of one size.
    """
    costs, title = None, ""
    if plan.flops:
        some = random.Random(0).sample(asked, min(PRICED, len(asked)))
        with listener.stage("Counting FLOPs", None):
            costs = costs_of(prompts_of(vlm, [question])[0] for question in some)
        title = f", within {', '.join(f'{share:.3g}' for share in plan.flops)} of the full model's FLOPs"
    budgeted = partial(contenders_at, model=vlm.model, vision_tokens=vision_tokens, alike=alike, costs=costs)
    for look in plan.second_looks():
        look.refuse_others(vlm, Generation(max_new_tokens=plan.max_new_tokens))
    shares = plan.shares_of(vision_tokens)
    passes_over = SettingError if plan.flops and plan.methods == USUAL else BudgetError
    has_budgets = bool(plan.tokens or plan.retention or plan.flops)
    contenders = budgeted(
        plan.by_name(), shares=shares, seeds=range(plan.draws), given=has_budgets, passes_over=passes_over
    )
    contenders += [Contender(look.name, None, (look.method,), sure=look.sure) for look in plan.second_looks()]
    with open_questioning(vlm, asked, plan, listener) as asking:
        rows = asking.rows(contenders, "Answering")
        spent = shares_unmatched(rows) if plan.baselines and not plan.flops else []
        baselines = {name: parse(name) for name in BASELINES}
        controls = budgeted(baselines, shares=spent, seeds=range(plan.draws))
        names = {(contender.name, contender.budget) for contender in contenders}
        controls = [contender for contender in controls if (contender.name, contender.budget) not in names]
        if controls:
            rows = asking.rows([*contenders, *controls], "Answering: controls at the spent budgets")
    if plan.tokens:
        rows = [_in_tokens(row, dict(zip(shares, plan.tokens, strict=True)), vision_tokens) for row in rows]
    pictures = {question.picture for question in asked}
    return Quality(
        rows,
        figure="Accuracy" if asking.labelled else AGREEMENT,
        title=f"{vlm.name}: {len(asked)} questions about {len(pictures)} pictures{title}",
        origin={
            "model": vlm.card.to_dict() | {"weights": asking.store.conditions["weights"]},
            "versions": versions(),
            "commit": commit(),
            "draws": plan.draws,
            "flops": list(plan.flops),
            "max_new_tokens": plan.max_new_tokens,
        },
    )


def _in_tokens(row: R, tokens: Mapping[float, float], vision_tokens: int | None) -> R:
    """Convert the budgets of a row and its pairs from shares to tokens.

    Args:
        row: The row.
        tokens: The requested number of tokens, by share. A control's share is not in it, and is multiplied out.
        vision_tokens: Vision tokens of every prompt.
    """
    if isinstance(row, MethodRow):
        row = replace(row, paired=[_in_tokens(pair, tokens, vision_tokens) for pair in row.paired])
    if row.budget is None:
        return row
    return replace(row, budget=tokens.get(row.budget, round(row.budget * (vision_tokens or 0), 3)))


@contextmanager
def open_questioning(vlm: VLM, asked: Sequence[Asked], plan: Plan, listener: Listener) -> "Iterator[Questioning]":
    """Open the store for a model's answers to these questions. It is locked while the context lasts.

    The store's folder depends on everything that determines an answer.

    Raises:
        InputError: If answers cannot be stored, or another run uses the store.
    """
    conditions = provenance.conditions(vlm) | FORM | {"max_new_tokens": plan.max_new_tokens}
    with open_answers(conditions, plan.cache, note=listener.note) as store:
        yield Questioning(vlm, asked, plan, store, listener)


@dataclass(frozen=True)
class Questioning:
    """Questions to one model, with the store of its answers."""

    vlm: VLM
    asked: Sequence[Asked]
    plan: Plan
    store: Answers
    listener: Listener

    @property
    def labelled(self) -> bool:
        """Whether the questions have true answers."""
        return bool(self.asked[0].labels)

    def rows(self, contenders: Sequence[Contender], doing: str) -> list[QualityRow]:
        """Ask the missing questions and return all figures of these contenders."""
        self.ask([draw for contender in contenders for draw in contender.draws], doing)
        ran = [(contender, [self.log(draw, contender.sure) for draw in contender.draws]) for contender in contenders]
        return figures_of(self.log(None), ran, spends="flops" if self.plan.flops else "spent")

    def ask(self, methods: Iterable[Method], doing: str) -> None:
        """Ask all questions without a stored answer, of these methods and of the full model."""
        methods = list({key_of(method): method for method in methods}.values())
        work = outstanding(self.asked, methods, self.store)
        left, total = sum(map(len, work)), len(self.asked) * (1 + len(methods))
        if left < total:
            self.listener.note(f"{total - left} of {total} answers are known already, from {self.store.path}")
        with self.listener.stage(doing, left) as advance:
            answer_missing(self.vlm, work, self.store, self.plan.max_new_tokens, self.plan.workers, advance)

    def log(self, method: Method | None, sure: float | None = None) -> list[dict[str, Any]]:
        """Return a setting's log in the order of the questions; see `foveate.eval.pairing`.

        With `sure`, it is the log of a second look, made of the method's and the full model's stored answers.
        """
        log = []
        for question in self.asked:
            row, full = (self.store.get(key, question.key) for key in (key_of(method), key_of(None)))
            assert row is not None
            assert full is not None
            if sure is not None:
                row = record_of_both(row, full, sure)
            if self.labelled:
                labels = tuple(map(question.reading, question.labels))
                right = question.reading(row["answer"]) in labels
            else:
                labels, right = (full["answer"],), row["answer"] == full["answer"]
            about = {"task": question.task, "picture": question.picture, "labels": labels}
            log.append({**about, **row, "score": float(right)})
        return log
