"""What tuning several methods at several budgets came to: a table, and a preset file for each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from foveate.errors import InputError
from foveate.plain.stats import Estimate
from foveate.plain.table import SECTION, Column, Table, number
from foveate.plain.writing import preset_files
from foveate.tune.prices import Limit
from foveate.tune.tuned import Tuned, points

FORMAT = "foveate tunings 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What tuning one method at one budget came to.

    Attributes:
        name: The method, as it was asked for.
        budget: What might be spent, by the kind of cost.
        tuned: The setting that was found; None where there is none.
        infeasible: Why there is none.
        behind: The agreement of the best at this budget minus that of this one, paired on the held-out answers.
        untuned_behind: The same for the method's published schedule; None where it has none at this budget.
    """

    name: str
    budget: Mapping[str, float]
    tuned: Tuned | None = None
    infeasible: str = ""
    behind: Estimate | None = None
    untuned_behind: Estimate | None = None

    @property
    def at(self) -> str:
        """The budget, as people write it: "64 tokens"."""
        ((kind, value),) = self.budget.items()
        return str(Limit(kind, value))

    def to_dict(self) -> dict[str, Any]:
        """The outcome as plain values."""
        return {
            "name": self.name,
            "budget": dict(self.budget),
            "infeasible": self.infeasible or None,
            "behind": None if self.behind is None else self.behind.to_dict(),
            "untuned_behind": None if self.untuned_behind is None else self.untuned_behind.to_dict(),
            "tuned": None if self.tuned is None else self.tuned.to_dict(),
        }


@dataclass(frozen=True, kw_only=True, repr=False)
class Tunings:
    """Several methods, each tuned at several budgets on the same pictures, and compared on the same others.

    Attributes:
        rows: Budget by budget as they were asked for, the highest agreement first; what cannot be tuned comes last.
        notes: What the user should know of the samples.
    """

    rows: tuple[Outcome, ...]
    notes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Tunings({' '.join(self.verdicts)})"

    @property
    def best(self) -> tuple[Outcome, ...]:
        """Of each budget, the row with the highest agreement; none of a budget that no method can meet."""
        firsts = (rows[0] for rows in self._by_budget())
        return tuple(row for row in firsts if row.tuned is not None)

    @property
    def verdicts(self) -> list[str]:
        """Of each budget: which is best and whether that is sure, what untuned is as good, and what cannot be."""
        return [line for rows in self._by_budget() for line in _verdicts(rows)]

    def _by_budget(self) -> list[list[Outcome]]:
        return [list(rows) for _, rows in groupby(self.rows, key=lambda row: dict(row.budget))]

    def table(self) -> Table:
        """A row for each budget and method, and the verdicts below."""
        heads = ("Agreement, %", "Behind the best", "Untuned, %")
        body: list[Sequence[str]] = []
        for rows in self._by_budget():
            if body:
                body.append(SECTION)
            body += [_cells(row, is_best=row is rows[0]) for row in rows]
        told = next(row.tuned for row in self.best)
        assert told is not None
        note = f"On {told.pictures[2]} pictures that were used for nothing else; [ ] are 95 % intervals over pictures."
        settings = [f"{row.at}: {row.tuned.method} ({row.tuned.chosen})" for row in self.rows if row.tuned is not None]
        columns = [Column(head, right=True) for head in heads]
        return Table(
            "Tuned, on held-out pictures",
            ["Budget", Column("Method", wrap=True), *columns],
            body,
            [note, *self.verdicts, *settings],
        )

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def to_dict(self) -> dict[str, Any]:
        """All as plain values; each row's "tuned" is what its preset file holds."""
        rows = [row.to_dict() for row in self.rows]
        return {"format": FORMAT, "rows": rows, "verdicts": self.verdicts, "notes": list(self.notes)}

    def save(self, folder: str | Path, *, force: bool = False) -> list[Path]:
        """Write a preset file for each setting, METHOD-BUDGET.json, into a folder; it is made where it is missing.

        Returns:
            The files, in the order of the rows that have a setting.

        Raises:
            InputError: If one of the files exists and `force` is off, or one cannot be written.
        """
        folder = Path(folder)
        names = preset_files((row.name, row.budget) for row in self.rows)
        found = [
            (folder / name, row.tuned) for name, row in zip(names, self.rows, strict=True) if row.tuned is not None
        ]
        for path, _ in found:
            if path.exists() and not force:
                raise InputError(f"{path} exists already. Name another folder, or overwrite it with force=True.")
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError(f"The folder {folder} cannot be made: {error.strerror}. Name another one.") from error
        for path, tuned in found:
            tuned.save(path, force=force)
        return [path for path, _ in found]


def _cells(row: Outcome, *, is_best: bool) -> Sequence[str]:
    if row.tuned is None:
        return (row.at, row.name, "infeasible")
    by_name = {held_out.name: held_out for held_out in row.tuned.rows}
    tuned, published = by_name["tuned"], by_name.get("published")
    assert row.behind is not None
    behind = "best" if is_best else points(row.behind)
    untuned = ""
    if row.untuned_behind is not None and published is not None:
        untuned = number(100 * published.agreement.value, ".1f")
    return (row.at, row.name, points(tuned.agreement), behind, untuned)


def _verdicts(rows: Sequence[Outcome]) -> list[str]:
    """What the rows of one budget say."""
    at = rows[0].at
    lines = []
    tuned = [row for row in rows if row.tuned is not None]
    if len(tuned) > 1:
        lines.append(_first(at, tuned))
    untuned = _listed((row.name, row.untuned_behind) for row in tuned)
    if untuned:
        lines.append(f"{at}: as good as the best without tuning, as far as these pictures tell: {untuned}.")
    return lines + [f"{at}: {row.name} is infeasible: {row.infeasible}" for row in rows if row.tuned is None]


def _first(at: str, rows: Sequence[Outcome]) -> str:
    """Which of several is best at a budget, and whether that is sure."""
    best, second, *_ = rows
    alike = _listed((row.name, row.behind) for row in rows[1:])
    if alike:
        return f"{at}: {best.name} has the highest agreement, but is not told apart from {alike}."
    assert second.behind is not None
    return f"{at}: {best.name} is best, {points(second.behind)} points of agreement ahead of {second.name}."


def _listed(behind: Iterable[tuple[str, Estimate | None]]) -> str:
    """Those that may not be behind the best, with how far they are."""
    return ", ".join(f"{name} ({points(far)} behind)" for name, far in behind if far is not None and far.low <= 0)
