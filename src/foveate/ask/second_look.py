"""`SecondLook`: answer with few tokens first, and ask the full model again if the answer is uncertain.

A second look is not a `Method`: `ask` and `ask_many` accept it, `foveate.drop` does not. It can be saved as JSON.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from foveate._transformers import PreTrainedModel, adapters_of
from foveate.ask.generation import Generation
from foveate.ask.loaded import Loaded
from foveate.contract.method import BUDGET, Method
from foveate.core.fields import check
from foveate.engine.state import own_hooks
from foveate.errors import InputError, SettingError
from foveate.naming import members_of, name_of
from foveate.plain.filed import Record
from foveate.plain.spelling import SECOND_LOOK
from foveate.plain.stats import RISK, bound, wilson
from foveate.plain.table import Column, Table, number
from foveate.registry import PlainMethod

GIVEN = {"dtype": "dtype", "kernel": "attention", "max_new_tokens": "max_new_tokens", "stop": "stop"}
"""Conditions that a user can set, with the name of the argument. (A flag has hyphens.)"""
FEW = 16
"""About how many values of each weight identify a model."""

Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLook:
    """Results of a calibration for the samples of one task.

    Attributes:
        task: The task's name.
        questions: Number of samples.
        again: Share of the samples that is asked again.
        differ: Share of the samples whose trusted answer differs from the full model's.
    """

    task: str
    questions: Count
    again: Share
    differ: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The agreement that a threshold guarantees, and the calibration behind it.

    Attributes:
        agreement: Minimum mean share of answers that equal the full model's, word for word.
        samples: Number of samples in the bound: one per picture unless the promise is approximate.
        wrong: Number of these samples whose trusted answer differs from the full model's.
        pictures: Number of distinct pictures in all samples.
        tried: Number of settings calibrated on the samples. This one is the cheapest.
        again: Share of the bound's samples that is asked again.
        tokens: Mean vision tokens per decoder layer, both looks together.
        first: Mean vision tokens per decoder layer in the first look alone.
        full: Mean vision tokens of the full model.
        tasks: Results per task.
        model: The model's name.
        conditions: The conditions that the threshold is valid for; see `conditions_of`.
        single_turn: Whether every sample was a single question. If so, conversations are refused.
        notes: Notes for the user.
        date: UTC, ISO 8601.
    """

    agreement: Share
    samples: Count
    wrong: Count
    pictures: Count
    tried: Count
    again: Share
    tokens: Positive
    first: Positive
    full: Positive
    tasks: tuple[TaskLook, ...]
    model: str
    conditions: Mapping[str, str]
    single_turn: bool
    notes: tuple[str, ...]
    date: str

    def __post_init__(self) -> None:
        if self.tried < 1 or self.bound > 1 - self.agreement:
            raise SettingError(
                f"{self.wrong} wrong of {self.samples} samples for {self.tried} settings do not support an agreement "
                f"of {self.agreement}."
            )

    @property
    def bound(self) -> float:
        """Upper bound of the share of answers that differ. It holds in nine of ten calibrations."""
        return bound(self.wrong, self.samples, RISK / self.tried)

    @property
    def approximate(self) -> bool:
        """Whether the bound counts several questions about one picture, which are not independent."""
        return self.samples > self.pictures

    def strange(self, again: float, questions: int) -> str | None:
        """Return why questions differ from the calibration's samples, or None if their share asked again fits.

        The share does not fit if the 95 % intervals of both shares do not overlap. An overlap is no proof of a fit.

        Args:
            again: Share of the questions that was asked again.
            questions: Number of questions.
        """
        ours, theirs = wilson(self.again, self.samples), wilson(again, questions)
        if ours.low <= theirs.high and theirs.low <= ours.high:
            return None
        return (
            f"{share_words(again)} of the answers were asked again, and of the samples of the calibration "
            f"{share_words(self.again)} [{100 * ours.low:.1f}, {100 * ours.high:.1f}]. These questions are not like "
            "the samples, so nothing is promised for them. Calibrate on samples of these questions."
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class SecondLook(Record):
    """A method for the first look, and the confidence below which the full model is asked again.

        sure = fv.tune(vlm, samples, agreement=0.98)
        vlm.ask("cat.jpg", "What is it?", method=sure).again

    Attributes:
        method: The method of the first look, with its budget.
        sure: Lowest trusted confidence, in [0, 1]. The confidence is the probability of an answer's least likely token.
        promise: The promise of the calibration. None if the threshold was set by hand.
    """

    FORMAT = f"{SECOND_LOOK} 2"
    KIND = "second look"
    SUMMARY = "sentence"

    method: PlainMethod
    sure: Share
    promise: Promise | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise SettingError(f"A second look needs a method, such as fv.VidCom2(tokens=64); got {self.method!r}.")
        check(self)

    def __repr__(self) -> str:
        return f"SecondLook({self.name}: below {self.sure:.3g})"

    @property
    def name(self) -> str:
        """A short name for tables: "vidcom2 64, else full"."""
        budgets = [value for member in members_of(self.method) for value in member._not_none(BUDGET).values()]
        if self.promise is not None:
            budgets = [self.promise.first]
        return f"{name_of(self.method)}{f' {budgets[-1]:.3g}' if budgets else ''}, else full"

    @property
    def sentence(self) -> str:
        """A summary of the setting and its promise. Saved files hold it, so its words must not change."""
        promise = self.promise
        if promise is None:
            return f"{self.method}; answers below {self.sure:.3g} are asked again. Nothing is promised."
        about = "With"
        if promise.approximate:
            about = "Approximately (questions share pictures), with"
        return (
            f"{self.method}; answers below {self.sure:.3g} are asked again, {share_words(promise.again)}: "
            f"{promise.tokens:.4g} of {promise.full:.4g} tokens on average. {about} {1 - RISK:.0%} confidence "
            f"at most {share_words(1 - promise.agreement)} differ from the full model's."
        )

    def table(self) -> Table:
        """Return a table of the calibration per task. The promise is an average over the tasks."""
        tasks = () if self.promise is None else self.promise.tasks
        body = [
            (row.task, str(row.questions), number(100 * row.again, ".1f"), number(100 * row.differ, ".1f"))
            for row in tasks
        ]
        heads = ("Questions", "Again, %", "Differ, %")
        note = "Differ: trusted answers that are not the full model's. The promise is an average over all tasks."
        columns = [Column(head, right=True) for head in heads]
        return Table("A second look, by task", ["", *columns], body, [self.sentence, note])

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def refuse_with(self, settings: Generation, choices: Sequence[str] = (), stream: bool = False) -> None:
        """Refuse settings that a second look does not support.

        Raises:
            SettingError: If decoding is not greedy, or with `stream` or `choices`.
        """
        if choices or stream or settings.samples or settings.num_beams > 1:
            raise SettingError(
                "A second look needs a whole greedy answer: leave stream, choices, num_beams and the settings of "
                "sampling out, or pass a method instead."
            )

    def refuse_others(self, loaded: Loaded, settings: Generation) -> None:
        """Refuse a model or conditions that the threshold was not calibrated for.

        Raises:
            SettingError: If a condition differs. The message names each one and what to set.
        """
        if self.promise is None:
            return
        here, there = conditions_of(loaded, settings), self.promise.conditions
        other = [name for name in {**there, **here} if here.get(name) != there.get(name)]
        if {"dtype", "weights"} <= {*other}:
            other.remove("weights")  # another dtype rounds the weights, so they always differ too
        if other:
            differ = [f"another {name}: {there.get(name)} there, {here.get(name)} here" for name in other]
            advice = [f"give {GIVEN[name]}={there[name]}" for name in other if name in GIVEN and name in there]
            if len(advice) < len(other):
                advice = [f"load {self.promise.model} as it was then, or calibrate again with foveate tune --agreement"]
            raise SettingError(
                f"This second look was calibrated with {'; with '.join(differ)}. A threshold is valid only for what it "
                f"was calibrated with: {' and '.join(advice)}."
            )

    # -- files ------------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SecondLook":
        """Read the values of `to_dict`.

        Raises:
            InputError: If the values are invalid, or contradict the sentence among them.
        """
        look = super().from_dict(values)
        if values.get("sentence") != look.sentence:
            raise InputError("This second look was changed by hand: its sentence contradicts its other values.")
        return look

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the second look as JSON, for `method=` and `--method`.

        Raises:
            InputError: If the path does not end in .json, the file exists without `force`, or it cannot be written.
        """
        if not str(path).endswith(".json"):
            raise InputError(f"{path}: a second look must be saved as a .json file. Name one, such as sure.json.")
        super().save(path, force=force)


AnyLook = Method | SecondLook | None
"""A method, a second look, or None for the untouched model."""


def share_words(share: float) -> str:
    """Format a share as a percentage: 2 %, 14.3 %."""
    return f"{100 * share:.3g} %"


# -- what a threshold belongs to ----------------------------------------------------------------------------------


def conditions_of(loaded: Loaded, settings: Generation) -> dict[str, str]:
    """Return the conditions that confidences depend on besides method, picture and question, each as a text.

    Weights are identified by a few of their values, so another revision, quantisation or adapter is another model.
    Hooks of one's own are identified by their names and places, and are only there if there are any.
    """
    config, processor = loaded.model.config, loaded.processor
    quantised = str(getattr(config, "quantization_config", None))
    hooks = own_hooks(loaded.model)
    return ({"hooks": ", ".join(hooks)} if hooks else {}) | {
        "model": config.model_type,
        "weights": _digest([_numbers(loaded.model), adapters_of(loaded.model.modules()), quantised]),
        "dtype": str(loaded.card.dtype).removeprefix("torch."),
        "kernel": str(config.get_text_config()._attn_implementation),
        "processor": _digest(_settings(processor)),
        "max_new_tokens": str(settings.max_new_tokens),
        "stop": json.dumps(settings.stop),
    }


def _settings(processor: Any) -> list[object]:
    """Return everything that determines preprocessing: processor settings, chat templates and the vocabulary's size."""
    parts = [getattr(processor, name, None) for name in ("image_processor", "video_processor")]
    own = {name: value for name, value in vars(processor).items() if isinstance(value, str | int | float | bool)}
    templates = [getattr(part, "chat_template", None) for part in (processor, processor.tokenizer)]
    tokens = type(processor.tokenizer).__name__, len(processor.tokenizer)
    named = [part.to_dict() for part in parts if part is not None and hasattr(part, "to_dict")]
    return [own, *named, templates, tokens]


def _numbers(model: PreTrainedModel) -> list[tuple[object, ...]]:
    """Return the name, shape, dtype and a few bytes of each tensor of the state dict, quantisation scales included."""
    numbers: list[tuple[object, ...]] = []
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        bits = None
        step = value.numel() // FEW | 1  # odd: an even step could pick all values from one column
        with suppress(RuntimeError, TypeError, NotImplementedError):  # offloaded, or no byte view
            bits = value.detach().flatten()[::step].contiguous().view(torch.uint8).tolist()
        numbers.append((name, tuple(value.shape), str(value.dtype), bits))
    return numbers


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
