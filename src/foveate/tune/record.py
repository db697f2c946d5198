"""What a tuning found, and on what: a JSON file that gives the method back."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from foveate._spelling import read_json
from foveate._upstream import shown
from foveate._writing import publish
from foveate.contract import catalogue
from foveate.contract.method import Method
from foveate.contract.settings import check
from foveate.errors import InputError, SettingError

__all__ = ["Record", "write_json"]

FORMAT = "foveate tuning 1"
WITHIN = 0.01  # of the target


@dataclass(frozen=True, kw_only=True, repr=False)
class Record:
    """A tuned method and where it comes from.

    Attributes:
        method: The tuned method.
        model: The model it was tuned on.
        task: What the samples show.
        samples: Number of samples.
        inputs: SHA-256 of all samples' tensors: equal for two tunings on the same samples.
        target: The budget, as mean retention.
        retention: Mean retention on the samples.
        spread: Standard deviation over the samples.
        vision_tokens: Mean vision tokens of a sample.
        steps: Every (γ, mean retention) tried, in order.
        versions: Of foveate, torch and transformers.
        date: Of the tuning, UTC, ISO 8601.
    """

    method: Method
    model: str
    task: str
    samples: int
    inputs: str
    target: float
    retention: float
    spread: float
    vision_tokens: float
    steps: tuple[tuple[float, float], ...]
    versions: Mapping[str, str]
    date: str

    @property
    def met(self) -> bool:
        """Whether the retention reached lies within 1 % of the target; else it is the nearest that was found."""
        return abs(self.retention - self.target) <= WITHIN * self.target

    @property
    def note(self) -> str | None:
        """What the user should know of a budget that was not met; None where it was."""
        if self.met:
            return None
        return (
            f"No setting keeps {self.target:.2%} of these samples' tokens, within {WITHIN:.0%} of it. The "
            f"nearest setting keeps {self.retention:.2%}. With more samples the mean changes in smaller steps."
        )

    def __repr__(self) -> str:
        return (
            f"Record({self.method.name} on {self.model}: retention {self.retention:.1%} for {self.target:.1%} asked, "
            f"{self.samples} samples)"
        )

    def to_dict(self) -> dict[str, Any]:
        """The record as plain values, `met` among them."""
        values = {name: value for name, value in asdict(self).items() if name != "method"}
        return {
            "format": FORMAT,
            "method": self.method.to_dict(),
            **values,
            "met": self.met,
            "steps": [list(step) for step in self.steps],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The record that `to_dict` gave.

        Raises:
            InputError: If it is no such record.
        """
        values = dict(values)
        if values.pop("format", None) != FORMAT:
            raise InputError(f"This file is not a record of foveate tune: its format is not {FORMAT!r}.")
        values.pop("met", None)
        wanted = {one.name for one in fields(cls)}
        if wrong := sorted(wanted ^ set(values)):
            raise InputError(
                f"This record of a tuning is damaged: the field {shown(str(wrong[0]), 80)} is missing, or does not "
                "belong there."
            )
        values["method"] = catalogue.from_dict(values["method"])
        try:
            return cls(**check("This record of a tuning is damaged", cls, values))
        except SettingError as error:
            raise InputError(str(error)) from error

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the record as JSON.

        Raises:
            InputError: If the file exists and `force` is off, or it cannot be written.
        """
        write_json(self.to_dict(), Path(path), force)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The record in a file.

        Raises:
            InputError: If there is no such file, or it holds no record.
        """
        return cls.from_dict(read_json(path))


def write_json(values: Mapping[str, Any], path: Path, force: bool) -> None:
    """Write plain values to a file.

    Raises:
        InputError: If the file exists and `force` is off, or it cannot be written.
    """
    if path.exists() and not force:
        raise InputError(f"{path} exists already. Name another file, or overwrite it with force=True.")
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    publish(path, lambda part: part.write_text(text, encoding="utf-8"), force=True)
