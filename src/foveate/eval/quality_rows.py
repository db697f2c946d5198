"""Rows of figures: what is known of a setting, of each of its tasks, and of a budget that cannot be met.

    QualityRow                   name and budget
    ├── RefusedRow               a budget that cannot be met
    ├── Pair                     two settings beside each other
    └── TaskRow                  a method's accuracy on one task
        ├── FullTaskRow          the full model's
        └── SettingRow           all questions
            ├── FullRow          the full model (a FullTaskRow too)
            └── MethodRow        a method, compared with the full model and the controls

Unknown figures are NaN; an unknown estimate is `foveate.plain.stats.UNKNOWN`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.plain.stats import Estimate


@dataclass(frozen=True)
class QualityRow:
    """Figures of a setting.

    Attributes:
        name: The method or preset as requested.
        budget: The requested share or number of tokens; None for the full model and presets.
    """

    name: str
    budget: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: None for NaN, and an estimate's ends as `…_low` and `…_high`."""
        values: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Estimate):
                values |= zip((name, f"{name}_low", f"{name}_high"), value.to_dict().values(), strict=True)
            else:
                values[name] = None if value != value else value  # NaN != NaN
        return values


@dataclass(frozen=True)
class RefusedRow(QualityRow):
    """A budget that cannot be met.

    Attributes:
        infeasible: Why.
        floor: The lowest possible share; None if unknown.
    """

    infeasible: str
    floor: float | None
    task: None = None


@dataclass(frozen=True)
class Pair(QualityRow):
    """A setting beside an earlier one with the same budget or the same spent cost.

    Attributes:
        name: The earlier setting's name; so are budget and tokens.
        tokens: Mean vision tokens per decoder layer, as spent.
        accuracy: The setting's accuracy minus the earlier one's.
        agreement: The same of agreement.
    """

    tokens: float
    accuracy: Estimate
    agreement: Estimate


@dataclass(frozen=True)
class TaskRow(QualityRow):
    """A setting's figures on one task, or on all questions together.

    Attributes:
        task: None for all questions together.
        questions: Number of questions.
        tokens: Mean vision tokens per decoder layer, as spent.
        accuracy: Mean score, or the benchmark's figure.
    """

    task: str | None
    questions: int
    tokens: float
    accuracy: Estimate


@dataclass(frozen=True)
class FullTaskRow(TaskRow):
    """The full model's figures on one task.

    Attributes:
        commonest: Score of always answering with the most frequent label. NaN if labels are unknown or the figure is
            not a mean.
        commonest_label: That label, if known.
        alike: Share of the full model's answers that are its most frequent one.
    """

    commonest: float
    commonest_label: str | None
    alike: float


@dataclass(frozen=True)
class SettingRow(TaskRow):
    """A setting's figures on all questions.

    Attributes:
        pictures: Number of pictures.
        retention: Spent tokens as a share of all vision tokens.
        again: Share of questions that the full model was asked again; NaN without a second look.
        flops: Share of the full model's FLOPs, from the pixels to the first token.
    """

    pictures: int
    retention: float
    again: float
    flops: float


@dataclass(frozen=True)
class FullRow(SettingRow, FullTaskRow):
    """The full model's figures on all questions."""


@dataclass(frozen=True)
class MethodRow(SettingRow):
    """A method's figures on all questions, compared with the full model's and the controls'.

    Attributes:
        share: Accuracy divided by the full model's.
        difference: Accuracy minus the full model's.
        agreement: Share of answers that equal the full model's, word for word.
        kl: Mean KL of the first answer token from the full model's, nats.
        minus_random: Accuracy minus that of random dropping at the same spent cost.
        minus_resize: Accuracy minus that of a smaller picture at the same spent cost.
        hard: Accuracy on questions that the full model gets right and Resize, at the same cost, wrong.
        hard_questions: Their number.
        draws: Accuracy of each draw, if there are several.
        settings: Settings of each draw.
        note: What is unusual about them.
        paired: The setting beside each earlier one with the same budget or the same spent cost.
    """

    share: Estimate
    difference: Estimate
    agreement: Estimate
    kl: Estimate
    minus_random: Estimate
    minus_resize: Estimate
    hard: Estimate
    hard_questions: int
    draws: Sequence[float]
    settings: Sequence[Mapping[str, Any]]
    note: str
    paired: Sequence[Pair]

    @property
    def minus(self) -> dict[str, Estimate]:
        """The differences from the controls, by their names."""
        return {"random": self.minus_random, "resize": self.minus_resize}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, those of the pairs in a list."""
        return {**super().to_dict(), "paired": [pair.to_dict() for pair in self.paired]}
