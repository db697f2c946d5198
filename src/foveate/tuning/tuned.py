"""`Tuned`: the result of tuning. Its file works wherever a method's name does, and holds the held-out comparison."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from foveate.plain.filed import Record
from foveate.plain.stats import Estimate
from foveate.plain.table import Column, Number, Table, number
from foveate.registry import PlainMethod


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """One setting's results on the held-out pictures.

    Attributes:
        name: "published", "grid", "tuned", or a control.
        method: The setting. For a random control, the first seed.
        tokens: Mean vision tokens per decoder layer.
        agreement: Share of the answers that equal the full model's, word for word.
        root: Mean √KL of the first token from the full model's, in √nats.
        ahead: Agreement minus that of the published schedule, paired. None without a published schedule.
    """

    name: str
    method: PlainMethod
    tokens: float
    agreement: Estimate
    root: Estimate
    ahead: Estimate | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Tuned(Record):
    """A tuned method, with how it was tuned.

    Attributes:
        method: The setting to use.
        chosen: The setting's origin: "published" or "grid".
        base: The setting that tuning started with.
        model: The name of the model.
        task: What the samples show.
        budget: The budget, by kind of cost.
        cost: What the setting spends, in the budget's unit.
        tokens: Mean vision tokens per decoder layer.
        pictures: Number of pictures to choose with, and to report with.
        questions: Number of samples.
        inputs: SHA-256 of all samples.
        seed: Seed of the split.
        tried: Number of settings tried.
        runs: Number of answers that tuning added to the cache.
        seconds: Duration in seconds.
        rows: The comparison on the held-out pictures.
        notes: Notes for the user.
        versions: Versions of foveate, torch and transformers.
        date: UTC, ISO 8601.
    """

    FORMAT = "foveate tuning 4"
    KIND = "preset file of foveate tune"
    SUMMARY = "verdict"

    method: PlainMethod
    chosen: str
    base: Mapping[str, Any]
    model: str
    task: str
    budget: Mapping[str, float]
    cost: float
    tokens: float
    pictures: tuple[int, ...]
    questions: int
    inputs: str
    seed: int
    tried: int
    runs: int
    seconds: float
    rows: tuple[HeldOut, ...]
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    date: str

    def __repr__(self) -> str:
        return f"Tuned({self.method} on {self.model}: {self.tokens:.1f} tokens, {self.verdict})"

    @property
    def verdict(self) -> str:
        """The gain over the published schedule on the held-out pictures, as a text."""
        ahead = {row.name: row.ahead for row in self.rows}["grid" if self.chosen == "published" else "tuned"]
        gained = "" if ahead is None else f"{points(ahead, '+')} points of agreement"
        if self.chosen == "published":
            stays = "On the pictures to choose with, no setting is ahead of the published schedule by a standard error"
            if ahead is None or not ahead.low > 0:  # NaN: one picture has no interval
                return f"{stays}, so it stays."
            return f"{stays}, so it stays. On those held out, the best of the grid is ahead: {gained}."
        origin = "The small grid has the best setting"
        if ahead is None:
            return f"{origin}. There is no published schedule at this budget."
        if ahead.low > 0:
            return f"{origin}: {gained} against the published schedule."
        compared = "worse than" if ahead.high < 0 else "not told apart from"
        return f"{origin} on the pictures to choose with. On others it is {compared} the published schedule: {gained}."

    def table(self) -> Table:
        """Return the comparison as a table."""
        names = ("Tokens", "Agreement, %", "√KL", "Ahead of published")
        body = []
        for row in self.rows:
            ahead = "" if row.ahead is None else points(row.ahead, "+")
            root = number(row.root.value, ".3f")
            body.append((row.name, number(row.tokens, ".2f"), points(row.agreement), root, ahead))
        note = f"Pictures that were used for nothing else: {self.pictures[-1]}; [ ] are 95 % intervals over them."
        settings = [f"{row.name}: {row.method}" for row in self.rows if row.name in ("published", "grid", "tuned")]
        columns = [Column(name, right=True) for name in names]
        return Table("Held-out comparison", ["", *columns], body, [note, *settings, self.verdict])

    def _repr_html_(self) -> str:
        return self.table().to_html()


def points(estimate: Estimate, sign: str = "") -> str:
    """Format an estimate in hundredths with its interval: 95.3 [93.4, 96.9]."""
    value, low, high = (100 * number for number in asdict(estimate).values())
    if math.isnan(low):
        return number(value, f"{sign}z.1f")  # too few pictures for an interval
    text = f"{value:{sign}z.1f} [{low:{sign}z.1f}, {high:{sign}z.1f}]"
    return Number(text, {"": value, "low": low, "high": high})
