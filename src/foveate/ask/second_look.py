"""A second look: few tokens first, and the full model where the answer is unsure; as a record that goes into a file.

It is no method: a method drops, and this asks again. So it goes where questions are asked, and nowhere else.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from foveate._transformers import PreTrainedModel
from foveate.ask.generation import Generation
from foveate.ask.loaded import Loaded
from foveate.ask.look import adapters_of
from foveate.contract.method import BUDGET, Method
from foveate.errors import InputError, SettingError
from foveate.naming import members_of, name_of
from foveate.plain.filed import Record
from foveate.plain.spelling import SECOND_LOOK
from foveate.plain.stats import RISK, bound, wilson
from foveate.plain.table import Column, Table, number
from foveate.plain.upstream import brief
from foveate.registry import PlainMethod

GIVEN = {"dtype": "dtype", "kernel": "attention", "max_new_tokens": "max_new_tokens", "stop": "stop"}
"""What somebody gives of all that a threshold belongs to, by the argument's name; a flag's has hyphens."""
FEW = 16
"""Numbers of each weight that tell a model from others: some more of most."""

Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(strict=True, ge=0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLook:
    """What became of the samples of one task.

    Attributes:
        task: Its name.
        questions: How many samples it has.
        again: The share of them that is asked again.
        differ: The share of them whose trusted answer is not the full model's.
    """

    task: str
    questions: Count
    again: Share
    differ: Share


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What is promised of a threshold, and by what.

    Attributes:
        agreement: The share of answers that are the full model's, word for word: this or more, on average.
        samples: The samples of the bound, one a picture unless it is approximate.
        wrong: How many of them have a trusted answer that is not the full model's.
        pictures: How many pictures all samples are about.
        tried: Settings that were calibrated on the samples, of which this is the cheapest.
        again: The share of the bound's samples that is asked again.
        tokens: Vision tokens that a decoder layer processes, mean, both looks together.
        first: Those of the first look alone.
        full: Those of the full model.
        tasks: What became of each task.
        model: What the model is called.
        conditions: What a threshold belongs to; see `conditions_of`.
        single_turn: Whether all samples were one question, and no conversation: then conversations are refused.
        notes: What the user should know.
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
                f"{self.wrong} wrong of {self.samples} samples for {self.tried} settings do not promise an agreement "
                f"of {self.agreement}."
            )

    @property
    def bound(self) -> float:
        """The share of answers that differ, at most, in nine of ten calibrations."""
        return bound(self.wrong, self.samples, RISK / self.tried)

    @property
    def approximate(self) -> bool:
        """Whether several questions about one picture count, which are not independent."""
        return self.samples > self.pictures

    def strange(self, again: float, questions: int) -> str | None:
        """Why questions are not like the samples, by the share of them that was asked again; None where that fits.

        It does not where the 95 % intervals of the two shares have no point in common. That they have is no proof.
        """
        ours, theirs = wilson(self.again, self.samples), wilson(again, questions)
        if ours.low <= theirs.high and theirs.low <= ours.high:
            return None
        return (
            f"{share_words(again)} of the answers were asked again, and of the samples of the calibration "
            f"{share_words(self.again)} [{100 * ours.low:.1f}, {100 * ours.high:.1f}]: these questions are not like "
            "those, and nothing is promised for them. Calibrate on samples of these."
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class SecondLook(Record):
    """A method with few tokens, and from which confidence on its answers are trusted; others are the full model's.

        sure = fv.tune(vlm, samples, agreement=0.98)
        vlm.ask("cat.jpg", "What is it?", method=sure).again

    Attributes:
        method: What drops at the first look, with its budget.
        sure: The least confidence that is trusted, in [0, 1]: the probability of the least likely token of an answer.
        promise: What is promised, and for what; None of a threshold by hand.
    """

    FORMAT = f"{SECOND_LOOK} 2"
    KIND = "second look"
    SUMMARY = "sentence"

    method: PlainMethod
    sure: Share
    promise: Promise | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):
            raise SettingError(
                f"A second look begins with a method, such as fv.VidCom2(tokens=64); got {self.method!r}."
            )
        if not isinstance(self.sure, Real) or isinstance(self.sure, bool) or not 0 <= self.sure <= 1:
            raise SettingError(f"sure is a probability between 0 and 1, such as 0.9; got {brief(self.sure)}.")
        object.__setattr__(self, "sure", float(self.sure))  # of NumPy

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
        """What it does, and what is promised."""
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
        """What became of the samples task by task: the promise is an average over them."""
        tasks = () if self.promise is None else self.promise.tasks
        body = [
            (row.task, str(row.questions), number(100 * row.again, ".1f"), number(100 * row.differ, ".1f"))
            for row in tasks
        ]
        heads = ("Questions", "Again, %", "Differ, %")
        note = "Differ: trusted, and not the full model's answer. The promise is an average, and of no task alone."
        columns = [Column(head, right=True) for head in heads]
        return Table("A second look, by task", ["", *columns], body, [self.sentence, note])

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def refuse_with(self, settings: Generation, choices: Sequence[str] = (), stream: bool = False) -> None:
        """Refuse what does not go together with it.

        Raises:
            SettingError: If answers are not greedy, or come piece by piece or from choices.
        """
        if choices or stream or settings.samples or settings.num_beams > 1:
            raise SettingError(
                "A second look reads a whole greedy answer: leave stream, choices, num_beams and the settings of "
                "sampling out, or name a method alone."
            )

    def refuse_others(self, loaded: Loaded, settings: Generation) -> None:
        """Refuse another model, or other conditions, than the threshold was calibrated for.

        Raises:
            SettingError: That names the first that differs.
        """
        if self.promise is None:
            return
        here, there = conditions_of(loaded, settings), self.promise.conditions
        other = [name for name in {**there, **here} if here.get(name) != there.get(name)]
        if {"dtype", "weights"} <= {*other}:
            other.remove("weights")  # of course other ones, once they are rounded
        if other:
            differ = [f"another {name}: {there.get(name)} there, {here.get(name)} here" for name in other]
            advice = [f"give {GIVEN[name]}={there[name]}" for name in other if name in GIVEN and name in there]
            if len(advice) < len(other):
                advice = [f"load {self.promise.model} as it was then, or calibrate again with foveate tune --agreement"]
            raise SettingError(
                f"This second look was calibrated with {'; with '.join(differ)}. A threshold belongs to what it was "
                f"calibrated with: {' and '.join(advice)}."
            )

    # -- files ------------------------------------------------------------------------------------------------

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SecondLook":
        """What `to_dict` gave.

        Raises:
            InputError: If it is no such thing, or its sentence is not what its values say.
        """
        look = super().from_dict(values)
        if values.get("sentence") != look.sentence:
            raise InputError("This second look says in its sentence what its values do not: it was changed by hand.")
        return look

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write it as JSON, for `method=` and `--method`.

        Raises:
            InputError: If the file is no .json, exists and `force` is off, or cannot be written.
        """
        if not str(path).endswith(".json"):
            raise InputError(f"{path}: a second look is a .json file. Name one, such as sure.json.")
        super().save(path, force=force)


AnyLook = Method | SecondLook | None
"""How questions are asked: a method drops, nothing does, or there is a second look."""


def share_words(share: float) -> str:
    """A share in words: 2 %, 14.3 %."""
    return f"{100 * share:.3g} %"


# -- what a threshold belongs to ----------------------------------------------------------------------------------


def conditions_of(loaded: Loaded, settings: Generation) -> dict[str, str]:
    """What confidences depend on besides the method, the picture and the question, each as a text.

    Weights are told by a few of their values, so another revision, quantisation or adapter is another model.
    """
    config, processor = loaded.model.config, loaded.processor
    quantised = str(getattr(config, "quantization_config", None))
    return {
        "model": config.model_type,
        "weights": _digest([_numbers(loaded.model), adapters_of(loaded.model), quantised]),
        "dtype": str(loaded.card.dtype).removeprefix("torch."),
        "kernel": str(config.get_text_config()._attn_implementation),
        "processor": _digest(_settings(processor)),
        "max_new_tokens": str(settings.max_new_tokens),
        "stop": json.dumps(settings.stop),
    }


def _settings(processor: Any) -> list[object]:
    """How pictures and texts become tensors: a processor's settings and its parts', templates, and known tokens."""
    parts = [getattr(processor, name, None) for name in ("image_processor", "video_processor")]
    own = {name: value for name, value in vars(processor).items() if isinstance(value, str | int | float | bool)}
    templates = [getattr(part, "chat_template", None) for part in (processor, processor.tokenizer)]
    tokens = type(processor.tokenizer).__name__, len(processor.tokenizer)
    named = [part.to_dict() for part in parts if part is not None and hasattr(part, "to_dict")]
    return [own, *named, templates, tokens]


def _numbers(model: PreTrainedModel) -> list[tuple[object, ...]]:
    """Name, shape, dtype and a few bytes of each weight, and of what a state has besides, as scales."""
    numbers: list[tuple[object, ...]] = []
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        bits = None
        step = value.numel() // FEW | 1  # odd, else all may be of one column
        with suppress(RuntimeError, TypeError, NotImplementedError):  # on disk, or a kind without bits to see
            bits = value.detach().flatten()[::step].contiguous().view(torch.uint8).tolist()
        numbers.append((name, tuple(value.shape), str(value.dtype), bits))
    return numbers


def _digest(values: object) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]
