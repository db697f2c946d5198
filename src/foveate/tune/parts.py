"""Samples of a user: questions about pictures, by picture, split to search, to choose and to report."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.ask.prompt import runs_of
from foveate.ask.vlm import VLM
from foveate.core.grid import Grid
from foveate.errors import SettingError
from foveate.plain.upstream import brief
from foveate.registry import family_for

FEW = 20  # pictures: below it the held-out intervals are wide
# Shares of the pictures, and most of them. With 15 to search, schedules led that were six points behind on others.
SEARCHED = (0.4, 40)
CHOSEN = (0.3, 30)


@dataclass(frozen=True, slots=True, eq=False)
class SampleInputs:
    """One question about a picture, as a model gets it.

    Attributes:
        inputs: The model's arguments, batch 1, on its device.
        sizes: Vision tokens of each image.
        grids: Rows and columns of each image's frames or views; None where they are not known.
    """

    inputs: Mapping[str, Tensor]
    sizes: tuple[int, ...]
    grids: tuple[tuple[Grid, ...], ...] | None

    @property
    def vision_tokens(self) -> int:
        """Vision tokens in all."""
        return sum(self.sizes)

    @property
    def text_tokens(self) -> int:
        """Tokens that are no vision tokens."""
        return int(self.inputs["input_ids"].shape[1]) - self.vision_tokens


@dataclass(frozen=True, slots=True, eq=False)
class About:
    """All questions about one picture, or about the same pictures.

    Attributes:
        key: SHA-256 of the pixels, their grids and sizes.
        samples: One for each question.
    """

    key: str
    samples: tuple[SampleInputs, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Pictures for three purposes; none is in two of them.

    Attributes:
        search: With which settings are tried.
        choose: With which one of the best is taken, so that luck with the first set is not taken for quality.
        report: With which the outcome is measured; neither of the other steps has seen them.
    """

    search: tuple[About, ...]
    choose: tuple[About, ...]
    report: tuple[About, ...]


def grouped(model: Any, samples: Iterable[Any]) -> tuple[About, ...]:
    """Samples by picture, in the order in which pictures come first.

    Args:
        model: A `VLM`, or a model of transformers.
        samples: For a `VLM`, (media, question) pairs or prompts of `VLM.prepare`; for both, the model's inputs.

    Raises:
        SettingError: If there is no sample, one holds several prompts, or one has no vision token.
    """
    pictures: dict[str, list[SampleInputs]] = {}
    for given in samples:
        inputs = _inputs_of(model, given)
        if inputs["input_ids"].shape[0] != 1:
            raise SettingError(f"A sample is one prompt; got a batch of {inputs['input_ids'].shape[0]}.")
        sample = _sample(model.model if isinstance(model, VLM) else model, inputs)
        if not sample.vision_tokens:
            raise SettingError("A sample has no vision token. Give samples with pictures.")
        pictures.setdefault(picture_of(inputs), []).append(sample)
    if not pictures:
        raise SettingError("There are no samples to tune on. Give at least one.")
    return tuple(About(key, tuple(questions)) for key, questions in pictures.items())


def _inputs_of(model: Any, given: Any) -> dict[str, Tensor]:
    """The model's arguments for one sample as it was given.

    Raises:
        SettingError: If it is no sample.
    """
    if isinstance(given, Mapping):
        return dict(given)
    if hasattr(given, "inputs"):  # a prompt
        return dict(given.inputs)
    if not isinstance(model, VLM):
        raise SettingError("Samples for a bare model are its inputs. Give a VLM (foveate.load) for pictures and texts.")
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise SettingError(f"A sample is a pair of a picture and a question; got {brief(given)}.")
    media, question = given
    return dict(model.prepare(media, question).inputs)


def _sample(model: Any, inputs: Mapping[str, Tensor]) -> SampleInputs:
    """A sample with the sizes of its images."""
    sizes = tuple(runs_of(model.config, inputs["input_ids"][0]))
    grids = family_for(model).token_grids(model.config, sizes)
    return SampleInputs(inputs, sizes, None if grids is None else tuple(map(tuple, grids)))


def digest(*inputs: Mapping[str, Any]) -> str:
    """SHA-256 over names, shapes, dtypes and values of all tensors."""
    sha = hashlib.sha256()
    for tensors in inputs:
        for name in sorted(tensors):
            value = tensors[name]
            if isinstance(value, Tensor):
                sha.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
                sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def picture_of(inputs: Mapping[str, Tensor]) -> str:
    """SHA-256 of what a prompt shows."""
    text = inputs["input_ids"].shape
    return digest({name: value for name, value in inputs.items() if value.shape != text})  # pixels, grids and sizes


def digest_of(pictures: Sequence[About]) -> str:
    """SHA-256 of all samples: of the pictures' keys, and of each question's ids."""
    questions = {}
    for about in pictures:
        for place, sample in enumerate(about.samples):
            questions[f"{about.key}/{place}"] = sample.inputs["input_ids"]
    return digest(questions)


def split(pictures: Sequence[About], seed: int) -> Split:
    """Three parts in a random order: 40 % to search (40 at most), 30 % to choose (30 at most), the rest to report.

    Raises:
        SettingError: If there are fewer than three pictures.
    """
    if len(pictures) < 3:
        raise SettingError(
            f"Tuning needs three pictures or more: to search, to choose and to report with; got {len(pictures)}. "
            "Questions about one picture stay together."
        )
    order = list(pictures)
    random.Random(seed).shuffle(order)
    searched, chosen = (max(1, min(most, int(share * len(order)))) for share, most in (SEARCHED, CHOSEN))
    return Split(tuple(order[:searched]), tuple(order[searched : searched + chosen]), tuple(order[searched + chosen :]))


def by_picture(values: NDArray[Any], pictures: Sequence[About]) -> list[NDArray[Any]]:
    """(questions,) figures of all questions about pictures, those about each apart."""
    ends = np.cumsum([len(about.samples) for about in pictures])
    return np.split(values, ends[:-1])


def notes_on(pictures: Sequence[About]) -> list[str]:
    """What the user should know of such samples: that they are few, of one question, or of unlike sizes."""
    notes = []
    questions = [sample for about in pictures for sample in about.samples]
    if len(pictures) < FEW:
        notes.append(
            f"{len(pictures)} pictures are few: intervals will be wide. {FEW} or more are better, 45 are good."
        )
    lengths = [sample.vision_tokens for sample in questions]
    if max(lengths) > 2 * min(lengths):
        notes.append(
            f"Pictures have {min(lengths)} to {max(lengths)} vision tokens: the cost holds on average, not for each."
        )
    asked = Counter(asked_of(sample) for sample in questions)
    if len(asked) == 1 and len(questions) > 1:
        notes.append("All samples ask the same question: the setting is fitted to it, and may not serve others.")
    return notes


def asked_of(sample: SampleInputs) -> tuple[int, ...]:
    """What a prompt asks: the ids of its last words."""
    ids: list[int] = sample.inputs["input_ids"][0, -sample.text_tokens :].tolist()
    return tuple(ids)
