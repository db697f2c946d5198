"""What a check of a model found: rows, and the table that goes into an issue."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from foveate.plain.table import Column, Table

CLEARLY = 5.0
"""How many times the noise, and the difference found, what is wrong on purpose must differ by."""
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Row:
    """One line of a check. Differences are of logits, as shares of the largest logit.

    Attributes:
        name: What is compared.
        verdict: "not served" where this model lacks what the method reads, or nothing can be compared.
        difference: The largest that was found; None where bits are compared, or nothing was.
        tolerance: The largest that passes.
        wrong: What hiding wrong columns on purpose makes of it.
        reason: Why it failed, or was not served.
    """

    name: str
    verdict: Literal["passed", "failed", "not served"]
    difference: float | None = None
    tolerance: float | None = None
    wrong: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Checked:
    """What a check found; it prints as a table that can be pasted into an issue.

    Attributes:
        about: The model, how it runs, and the versions.
        noise: How far the untouched model differs from itself: cached or not, alone or padded in a batch.
        rows: One a comparison.
    """

    about: Mapping[str, Any]
    noise: float
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether no comparison failed, of those that every model must allow."""
        return all(row.verdict != "failed" for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; None in the place of an infinite difference, which JSON does not know."""
        rows = [{name: _finite(value) for name, value in asdict(row).items()} for row in self.rows]
        return {"passed": self.passed, "about": dict(self.about), "noise": _finite(self.noise), "rows": rows}

    @property
    def table(self) -> Table:
        """The table, and below it what to know of the run."""
        columns = [Column(head, right=True) for head in ("Noise", "Difference", "Tolerance", "Wrong columns")]
        rows = []
        for row in self.rows:
            noise = None if row.tolerance is None else self.noise
            numbers = (noise, row.difference, row.tolerance, row.wrong)
            rows.append((row.name, row.verdict, *("" if share is None else f"{share:.1e}" for share in numbers)))
        notes = [f"{row.name}: {row.verdict}: {row.reason}" for row in self.rows if row.reason]
        notes += [
            "Differences of the answer's logits, as shares of the largest. Noise: the untouched model beside itself. "
            f"Wrong columns: others hidden on purpose; below {CLEARLY:g} times noise or difference they prove nothing.",
            "Merged rows stand for no column that could be hidden, so methods that merge are not proved here: what is "
            "proved is that rows left, masks, positions and caches are right.",
        ]
        if self.about["dtype"] in map(name_of, HALF):
            notes.append(
                "In half precision a fault below the tolerance cannot be seen. Check float32 too, where the model fits."
            )
        about = ", ".join(f"{name} {value}" for name, value in self.about.items())
        notes.append(f"For an issue, paste the table with this: {about}")
        title = "foveate check: " + ("passed" if self.passed else "FAILED")
        return Table(title, [Column("Compared", wrap=True), "Verdict", *columns], rows, notes)

    def __str__(self) -> str:
        return str(self.table)

    def _repr_html_(self) -> str:
        return self.table.to_html()


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _finite(value: Any) -> Any:
    if value == math.inf:
        return None
    return value
