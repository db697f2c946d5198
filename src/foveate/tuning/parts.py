"""Samples of a user: questions about pictures, by picture, and what is to be said of them."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.ask.prompt import Prompt
from foveate.ask.vlm import VLM
from foveate.errors import SettingError
from foveate.eval.asked import Asked
from foveate.plain.upstream import brief

FEW = 20  # pictures: below it the held-out intervals are wide
CHOSEN = (0.6, 60)
"""To choose with: a share of the pictures, and most of them. The others are reported."""
Pictures = Mapping[str, Sequence[Prompt]]
"""All questions about each picture, by what it shows."""


def prompt_of(vlm: VLM, sample: Any) -> Prompt:
    """A sample as the model gets it.

    Args:
        vlm: The model.
        sample: A (media, question) pair, or a prompt.

    Raises:
        SettingError: If it is neither, or nothing else asks questions.
    """
    if not isinstance(vlm, VLM):
        raise SettingError("Tuning asks questions: give a VLM (foveate.load), not a model alone.")
    if isinstance(sample, Prompt):
        return sample
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise SettingError(f"A sample is a pair of a picture and a question, or a prompt; got {brief(sample)}.")
    return vlm.prepare(*sample)


def question_of(prompt: Prompt, task: str = "samples") -> Asked:
    """A sample that is asked under several methods."""
    return Asked(digest(prompt.inputs), picture_of(prompt.inputs), task, prompt.text, media=tuple, prompt=prompt)


def by_picture(prompts: Iterable[Prompt]) -> Pictures:
    """Samples by picture, in the order in which pictures come first.

    Raises:
        SettingError: If there is no sample, or one has no vision token.
    """
    pictures: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        if not prompt.vision_tokens:
            raise SettingError("A sample has no vision token. Give samples with pictures.")
        pictures.setdefault(picture_of(prompt.inputs), []).append(prompt)
    if not pictures:
        raise SettingError("There are no samples to tune on. Give at least one.")
    return pictures


def digest(tensors: Mapping[str, Any]) -> str:
    """SHA-256 over names, shapes, dtypes and values of all tensors."""
    sha = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        if isinstance(value, Tensor):
            sha.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def picture_of(inputs: Mapping[str, Tensor]) -> str:
    """SHA-256 of what a prompt shows."""
    text = inputs["input_ids"].shape
    return digest({name: value for name, value in inputs.items() if value.shape != text})  # pixels, grids and sizes


def digest_of(pictures: Pictures) -> str:
    """SHA-256 of all samples: of what pictures show, and of each question's ids."""
    questions = {}
    for picture, prompts in pictures.items():
        for place, prompt in enumerate(prompts):
            questions[f"{picture}/{place}"] = prompt.inputs["input_ids"]
    return digest(questions)


def split(pictures: Iterable[str], seed: int) -> tuple[list[str], list[str]]:
    """Pictures to choose with, and others to report with, in a random order: 60 % (60 at most), and the rest.

    Raises:
        SettingError: If there are fewer than two.
    """
    order = list(pictures)
    if len(order) < 2:
        raise SettingError(
            f"Tuning needs two pictures or more: to choose and to report with; got {len(order)}. "
            "Questions about one picture stay together."
        )
    random.Random(seed).shuffle(order)
    share, most = CHOSEN
    chosen = max(1, min(most, int(share * len(order))))
    return order[:chosen], order[chosen:]


def notes_on(pictures: Pictures) -> list[str]:
    """What the user should know of such samples: that they are few, of one question, or of unlike sizes."""
    notes = []
    prompts = [prompt for about in pictures.values() for prompt in about]
    if len(pictures) < FEW:
        notes.append(
            f"{len(pictures)} pictures are few: intervals will be wide. {FEW} or more are better, 45 are good."
        )
    lengths = [prompt.vision_tokens for prompt in prompts]
    if max(lengths) > 2 * min(lengths):
        notes.append(
            f"Pictures have {min(lengths)} to {max(lengths)} vision tokens: the cost holds on average, not for each."
        )
    asked = Counter(tuple(prompt.inputs["input_ids"][0, -prompt.text_tokens :].tolist()) for prompt in prompts)
    if len(asked) == 1 and len(prompts) > 1:
        notes.append("All samples ask the same question: the setting is fitted to it, and may not serve others.")
    return notes
