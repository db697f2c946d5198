"""The result of a check of a model: rows, and a table that can be pasted into an issue."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from foveate.plain.table import Column, Table

CLEARLY = 5.0
"""Factor by which the deliberately wrong comparison must exceed both the noise and the difference found."""
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Row:
    """One comparison of a check. Differences of logits are shares of the largest logit.

    Attributes:
        name: The comparison.
        verdict: "passed", "failed", or "not served" if the model lacks a signal that the method reads, or there is
            nothing to compare.
        difference: The largest difference found; None if bits were compared, or nothing was.
        tolerance: The largest difference that passes.
        wrong: The difference when the wrong columns are hidden on purpose.
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
    """The result of a check. It prints as a table that can be pasted into an issue.

    Attributes:
        about: The model, its settings, and the versions.
        noise: The largest difference of the unmodified model from itself: with and without a cache, alone and padded
            in a batch.
        rows: One row per comparison.
    """

    about: Mapping[str, Any]
    noise: float
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """True if no comparison failed. Comparisons that are not served do not count."""
        return all(row.verdict != "failed" for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values. An infinite difference becomes None, because JSON has no infinity."""
        rows = [{name: _finite(value) for name, value in asdict(row).items()} for row in self.rows]
        return {"passed": self.passed, "about": dict(self.about), "noise": _finite(self.noise), "rows": rows}

    @property
    def table(self) -> Table:
        """The table of the comparisons, with notes about the run."""
        columns = [Column(head, right=True) for head in ("Noise", "Difference", "Tolerance", "Wrong columns")]
        rows = []
        for row in self.rows:
            noise = None if row.tolerance is None else self.noise
            numbers = (noise, row.difference, row.tolerance, row.wrong)
            rows.append((row.name, row.verdict, *("" if share is None else f"{share:.1e}" for share in numbers)))
        notes = [f"{row.name}: {row.verdict}: {row.reason}" for row in self.rows if row.reason]
        notes += [
            "Differences of the answer's logits, as shares of the largest. Noise: the unmodified model against itself. "
            f"Wrong columns: others hidden on purpose; below {CLEARLY:g} times noise or difference they prove nothing.",
            "The check verifies remaining rows, masks, positions and caches. It does not verify merging, because a "
            "merged row has no single column that could be hidden.",
        ]
        if self.about["dtype"] in map(dtype_name, HALF):
            notes.append(
                "In half precision, errors below the tolerance are not visible. Check float32 too, if the model fits."
            )
        about = ", ".join(f"{name} {value}" for name, value in self.about.items())
        notes.append(f"To report an issue, paste the table and this line: {about}")
        title = "foveate check: " + ("passed" if self.passed else "FAILED")
        return Table(title, [Column("Compared", wrap=True), "Verdict", *columns], rows, notes)

    def __str__(self) -> str:
        return str(self.table)

    def _repr_html_(self) -> str:
        return self.table.to_html()


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _finite(value: Any) -> Any:
    if value == math.inf:
        return None
    return value
