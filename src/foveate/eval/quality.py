"""`Quality`: the results of a run as rows of figures, with tables and notes that explain them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property
from math import isnan
from typing import Any

from foveate.contract.budget import is_met
from foveate.eval.pairing import FULL_MODEL, RIVALS, has_collapsed, verdict
from foveate.eval.plan import BASELINES
from foveate.eval.quality_rows import FullRow, FullTaskRow, MethodRow, Pair, QualityRow, RefusedRow, TaskRow
from foveate.plain.spelling import in_words
from foveate.plain.stats import LEAST, Estimate, wilson
from foveate.plain.table import SECTION, Column, Number, Table, number

VERDICTS = "Better than, worse than: with six or more pictures, the 95 % interval of that difference excludes zero."
AGREEMENT = "Agreement"
"""The figure's name without true answers: the share of answers that equal the full model's."""
HEADS = ("", "Tokens", "FLOPs", "", "Agrees", "Of full", "KL", "Again", "Hard", "− random", "− resize")
FAILED = 0.2
"""Share of right answers up to which the full model counts as failing, so dropping has nothing to lose."""
FEW = 30
"""Number of pictures below which a percentile bootstrap is too narrow, so an interval means little."""
ALWAYS = "random"
"""The control whose verdict is always reported. For others, only "worse than" is."""
SHORT = {
    "existence": "exists",
    "quadrant": "where",
    "read text": "text",
    "character": "char",
    "text quadrant": "text at",
    "list left to right": "list →",
    "list top to bottom": "list ↓",
}
"""Short column heads for embedded tasks with long names."""


@dataclass(frozen=True, repr=False)
class Quality:
    """The figures of a run. A notebook shows them as tables.

    Attributes:
        rows: Rows of the full model and of every setting, for all questions and per task, as
            `foveate.eval.quality_rows` has them. `pandas.DataFrame(quality.to_dict()["rows"])` reads them.
        unit: Factor for display: 100 for shares, 1 for scores.
        title: A line above the table.
        figure: The figure's name in tables.
        higher_is_better: Whether a higher figure is better.
        origin: Model, versions and settings of the run, as plain values.
    """

    rows: Sequence[QualityRow]
    unit: float = 100.0
    title: str = ""
    figure: str = "Accuracy"
    higher_is_better: bool = True
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def full(self) -> FullRow:
        """The full model's row over all questions."""
        return next(row for row in self.rows if isinstance(row, FullRow))

    @property
    def settings(self) -> list[MethodRow]:
        """The rows for all questions of each contender that ran."""
        return [row for row in self.rows if isinstance(row, MethodRow)]

    @property
    def infeasible(self) -> list[RefusedRow]:
        """The rows of contenders that cannot meet their budget."""
        return [row for row in self.rows if isinstance(row, RefusedRow)]

    def tasks_of(self, setting: QualityRow) -> dict[str, TaskRow]:
        """Return a setting's rows by task; empty if there is only one figure."""
        rows = [row for row in self.rows if (row.name, row.budget) == (setting.name, setting.budget)]
        return {row.task: row for row in rows if isinstance(row, TaskRow) and row.task is not None}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: origin, notes and rows."""
        rows = [row.to_dict() for row in self.rows]
        return {**self.origin, "measure": self.figure, "notes": self.findings(), "rows": rows}

    def __repr__(self) -> str:
        return (
            f"Quality({self.title or self.figure!r}, {self.full.questions} questions about {self.full.pictures} "
            f"pictures, full model {points(self.full.accuracy, self.unit)}, {len(self.settings)} settings, "
            f"{len(self.infeasible)} infeasible)"
        )

    def _repr_html_(self) -> str:
        return "".join(sheet._repr_html_() for sheet in tables_of([self]))

    # -- tables -----------------------------------------------------------------------------------------------

    def table(self) -> Table:
        """Return a table with one row for the full model and one per contender. Empty columns are left out."""
        full, share = self.full, number(1, ".0%")
        agrees = Number(share, {"": 100})
        shown: list[Sequence[str]] = [
            (FULL_MODEL, number(full.tokens, ".1f"), share, points(full.accuracy, self.unit), agrees, share)
        ]
        for budget in self._budgets():
            shown.append(SECTION)
            shown += [self._cells(row) for row in self.settings if row.budget == budget]
            for row in self.infeasible:
                if row.budget == budget:
                    floors = ["", ""]  # tokens and FLOPs
                    if row.floor is not None:
                        in_flops = bool(self.origin.get("flops"))
                        least = row.floor * (100 if in_flops else full.tokens)
                        floors[in_flops] = Number(f"≥ {least:.1f}{'%' * in_flops}", {"at least": least})
                    shown.append((row.name, *floors, "infeasible"))
        heads = [self.figure if place == 3 else head for place, head in enumerate(HEADS)]
        columns = [Column(head, right=place > 0) for place, head in enumerate(heads)]
        unsaid = ("Of full", "Agrees") if self.figure == AGREEMENT else ()
        return Table(self.title, columns, shown).without_empty(without=unsaid)

    def _cells(self, row: MethodRow) -> list[str]:
        """Return a setting's row of the table."""
        return [
            row.name,
            number(row.tokens, ".1f"),
            "not counted" if isnan(row.flops) and self.full.flops > 0 else number(row.flops, ".0%"),
            points(row.accuracy, self.unit),
            points(row.agreement, 100),
            number(row.share.value, ".0%"),
            number(row.kl.value, "z.2f"),
            number(row.again, ".1%"),
            _hard(row),
            *(points(difference, self.unit, signed=True) for difference in row.minus.values()),
        ]

    def task_table(self) -> Table:
        """Return a table of the accuracy by task, in percent."""
        full = self.tasks_of(self.full)
        heads: list[str | Column] = ["", *(Column(SHORT.get(task, task), right=True) for task in full)]
        rows: list[Sequence[str]] = [["questions", *(str(row.questions) for row in full.values())]]
        rows.append([FULL_MODEL, *_percents(full.values())])
        for budget in self._budgets():
            rows.append(SECTION)
            for row in self.settings:
                if row.budget == budget:
                    rows.append([f"{row.name} {row.tokens:.0f}", *_percents(self.tasks_of(row).values())])
        return Table(f"{self.figure} by task, %", heads, rows)

    @cached_property
    def paired(self) -> Table:
        """A table that compares every method with the first one, on the same questions; empty without another method.

        Random and Resize are left out, because `table` has columns for them. Other baselines are shown only if there is
        no further method.
        """
        first = self.settings[0].name if self.settings else ""
        names = {row.name for row in self.settings} - {first, *RIVALS}
        shown = names - {*BASELINES} or names
        rows: list[Sequence[str]] = []
        for budget in self._budgets():
            rows += [SECTION] if rows and rows[-1] else []
            for row in self.settings:
                pairs = [pair for pair in row.paired if pair.name == first]
                if pairs and row.budget == budget and row.name in shown:
                    nearest = min(pairs, key=lambda pair: abs(pair.tokens - row.tokens))
                    rows.append([row.name, _tokens(row, nearest), *self._beside(nearest)])
        heads = ["Tokens", self.figure, "", AGREEMENT, ""]
        if self.figure == AGREEMENT:
            heads, rows = heads[:3], [row[:4] for row in rows]
        columns: list[str | Column] = [""]
        for head, before in zip(heads, ["", *heads], strict=False):
            columns.append(Column(head, right=head != "", name=f"{before} verdict"))
        return Table(f"Beside {first}, on the same questions", columns, rows)

    def _beside(self, pair: Pair) -> list[str]:
        """Return the differences of a pair, each followed by its verdict."""
        cells = []
        for difference, unit, higher_is_better in (
            (pair.accuracy, self.unit, self.higher_is_better),
            (pair.agreement, 100, True),
        ):
            words = verdict(difference, self.full.pictures, higher_is_better=higher_is_better)
            cells += [points(difference, unit, signed=True), words.removesuffix(" than").removesuffix(" from")]
        return cells

    def _budgets(self) -> list[float | None]:
        """Return the budgets from high to low. None, for contenders with their own budget, comes first."""
        budgets = {row.budget for row in (*self.settings, *self.infeasible)}
        return sorted(budgets, key=lambda budget: -(budget or float("inf")))

    # -- sentences --------------------------------------------------------------------------------------------

    def findings(self) -> list[str]:
        """Return notes on what the figure cannot show, on verdicts against controls, and on unusual rows."""
        notes = self.caveats() + self.verdicts()
        full = self.tasks_of(self.full)
        for row in self.settings:
            shown = [
                f"{task} ({of_task.accuracy.value:.0%}; full model {full[task].accuracy.value:.0%})"
                for task, of_task in self.tasks_of(row).items()
                if has_collapsed(of_task, full[task])
            ]
            if shown and row.name not in BASELINES:
                where = f"{row.name} at {row.tokens:.0f} tokens"
                notes.append(f"{where}: less than a quarter is left of {', '.join(shown)}.")
        for row in self.settings:
            where = f"{row.name} at {row.tokens:.0f} tokens"
            if (miss := _miss(row, bool(self.origin.get("flops")))) is not None:
                notes.append(f"{where}: the budget is not met, {miss}.")
            if row.note:
                notes.append(f"{where}: {row.note}.")
        if (count := self.full.pictures) < FEW:
            pictures = "1 picture"
            if count != 1:
                pictures = f"{count} pictures"
            notes.append(f"Only {pictures}: with fewer than {FEW}, intervals and verdicts are worth little. Ask more.")
        return notes

    def caveats(self) -> list[str]:
        """Return notes on where the figure says nothing about dropping, for all questions and by task, and why."""
        look = " Look at Agrees."
        if self.figure == AGREEMENT:
            look = ""
        elif self.full.alike >= wilson(1, self.full.pictures).low:
            look = f" Nor does Agrees: {100 * self.full.alike:.1f} % of the full model's answers are the same."
        tasks = self.tasks_of(self.full)
        of_tasks = {task: why for task, row in tasks.items() if len(tasks) > 1 and (why := self._says_nothing(row))}
        notes = []
        if self.full.pictures < LEAST:
            return [f"{self.figure} says nothing here: fewer than {LEAST} pictures are too few for an interval."]
        if why := self._says_nothing(self.full):
            notes.append(f"{self.figure} says nothing here: {why}.{look}")
        if of_tasks:
            where = "; on ".join(f"{task}: {why}" for task, why in of_tasks.items())
            notes.append(f"{self.figure} says nothing on {where}.{look}")
        return notes

    def _says_nothing(self, full: TaskRow) -> str | None:
        """Return why dropping could not lower one of the full model's figures, or None if it could."""
        if isnan(full.accuracy.low):
            return None
        accuracy, low, high = (f"{100 * end:.1f}" for end in astuple(full.accuracy))
        if isinstance(full, FullTaskRow) and full.accuracy.low <= full.commonest:
            label = "the commonest label"
            if self.figure == AGREEMENT:
                label = "its commonest answer"
            return (
                f"the full model's {accuracy} % (95 % interval: {low} to {high} %) does not rise above the "
                f"{100 * full.commonest:.1f} % that {label}, {full.commonest_label!r}, scores alone"
            )
        if self.unit == 100 and self.higher_is_better and full.accuracy.value <= FAILED:
            return f"the full model gets {accuracy} % right"
        return None

    def verdicts(self) -> list[str]:
        """Return one sentence per method.

        "v2drop: better than random at 192 and 128 tokens; worse than resize at 64 tokens." Controls get none, nor do
        methods without a control at the same cost.
        """
        tokens: dict[str, dict[str, list[str]]] = {}  # of each method, the counts at which each verdict holds
        for row in self.settings:
            for rival, difference in row.minus.items():
                if row.name in RIVALS or isnan(difference.value):
                    continue
                words = verdict(difference, row.pictures, higher_is_better=self.higher_is_better)
                if rival == ALWAYS or words == "worse than":
                    of_method = tokens.setdefault(row.name, {})
                    of_method.setdefault(f"{words} {rival}", []).append(f"{row.tokens:.0f}")
        sentences = []
        for name, of_method in tokens.items():
            phrases = [f"{words} at {in_words(counts, 'and')} tokens" for words, counts in of_method.items()]
            sentences.append(f"{name}: {'; '.join(phrases)}.")
        return sentences

    def legend(self) -> list[str]:
        """Return notes on the meaning of columns and intervals."""
        notes = ["Tokens: mean vision tokens per decoder layer, as spent.", "Intervals: 95 %, paired, over pictures."]
        accuracies = [row.accuracy for row in (self.full, *self.settings)]
        if any("(" in points(accuracy, self.unit) for accuracy in accuracies):
            notes.append("(≥ …), (≤ …): all right or all wrong, so the interval is Wilson's, over pictures.")
        if any(accuracy.low == accuracy.high for accuracy in accuracies):
            notes.append("± 0.0: every picture scores the same, so the bootstrap has no spread. It is not exact.")
        if not all(isnan(difference.value) for row in self.settings for difference in row.minus.values()):
            as_much = "FLOPs" if self.origin.get("flops") else "spent tokens"
            notes += [f"− random, − resize: accuracy minus theirs at the same {as_much}, in points.", VERDICTS]
        if any(self.paired.rows):
            beside = "minus its figures, in points, on the same questions; its tokens in brackets, if they differ."
            notes += [f"Beside …: {beside}", VERDICTS]
        if not all(isnan(row.again) for row in self.settings):
            again = "share of questions that the full model answered too; tokens and FLOPs are those of both answers."
            notes.append(f"Again: {again}")
        if any(row.hard_questions for row in self.settings):
            hard = "accuracy on questions that the full model gets right and resize, at the same spent tokens, wrong."
            notes.append(f"Hard: {hard}")
        return notes


def tables_of(qualities: Iterable[Quality]) -> list[Table]:
    """Return the tables of several benchmarks, each with its findings. The legend is below the last table."""
    tables: list[Table] = []
    legend: list[str] = []
    for quality in qualities:
        tables.append(quality.table().with_notes(quality.findings()))
        if len(quality.tasks_of(quality.full)) > 1:
            tables.append(quality.task_table())
        if quality.paired.rows:
            tables.append(quality.paired)
        legend += quality.legend()
    last = tables.pop()
    return [*tables, last.with_notes([*last.notes, *dict.fromkeys(legend)])]


def points(figure: Estimate, unit: float, *, signed: bool = False) -> str:
    """Format a figure, times `unit`, with half its interval's width, or with one end if it is at an edge.

    `61.4 ± 2.1`, `100.0 (≥ 88.6)`, `0.0 (≤ 11.4)`; signed: `+3.0 ± 1.9`. Empty if the figure is unknown, and `61.4`
    without an interval.
    """
    value, low, high = astuple(figure)
    if isnan(low):
        return number(unit * value, f"{'+' if signed else ''}z.1f")
    text = f"{unit * value:{'+' if signed else ''}z.1f} ± {unit / 2 * (high - low):.1f}"
    if not signed and low < value == high:
        text = f"{unit * value:.1f} (≥ {unit * low:.1f})"
    if not signed and low == value < high:
        text = f"{unit * value:.1f} (≤ {unit * high:.1f})"
    return Number(text, {"": unit * value, "low": unit * low, "high": unit * high})


def _miss(row: MethodRow, of_flops: bool) -> str | None:
    """Return the requested and the spent budget as a text if it was missed, else None."""
    budget = row.budget
    if budget is None:
        return None
    spent = row.flops if of_flops else row.retention
    asked_words, spent_words = f"{budget:.1%}", f"{spent:.1%}"
    if budget > 1:  # a number of tokens
        spent, asked_words, spent_words = row.tokens, f"{budget:g} tokens", f"{row.tokens:.1f}"
    if is_met(budget, spent):
        return None
    return f"{asked_words} requested, {spent_words} spent"


def _tokens(row: MethodRow, pair: Pair) -> str:
    """Format a setting's tokens, with those of the paired setting in brackets if they differ."""
    if is_met(row.tokens, pair.tokens):
        return number(row.tokens, ".1f")
    return Number(f"{row.tokens:.1f} ({pair.tokens:.1f})", {"": row.tokens, "of the other": pair.tokens})


def _hard(row: MethodRow) -> str:
    """Format the accuracy on the hard questions, and their number."""
    if not row.hard_questions:
        return ""
    count, accuracy = row.hard_questions, row.hard.value
    return Number(f"{accuracy:.0%} of {count}", {"%": 100 * accuracy, "questions": count})


def _percents(rows: Iterable[TaskRow]) -> list[str]:
    return [number(100 * row.accuracy.value, ".0f") for row in rows]
