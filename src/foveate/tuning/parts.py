"""The user's samples: read them, group them by picture, split them, and note what is unusual about them."""

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foveate.ask.prompt import Prompt
from foveate.ask.vlm import VLM
from foveate.embedded import STRANGE
from foveate.errors import SettingError
from foveate.eval.asked import Asked
from foveate.plain.upstream import brief

FEW = 20  # with fewer pictures the held-out intervals are wide
CHOSEN = (0.6, 60)
"""Share and maximum number of the pictures to choose with. The others are held out for the report."""
PromptsByPicture = Mapping[str, Sequence[Prompt]]
"""All questions about each picture, by the picture's hash."""


def prompt_of(vlm: VLM, sample: Any) -> Prompt:
    """Prepare a sample for the model.

    Args:
        vlm: The model.
        sample: A (media, question) pair, or a prompt.

    Raises:
        SettingError: If `sample` is neither.
    """
    if isinstance(sample, Prompt):
        return sample
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        raise SettingError(f"A sample must be a pair of a picture and a question, or a prompt; got {brief(sample)}.")
    return vlm.prepare(*sample)


def question_of(prompt: Prompt, task: str = "samples") -> Asked:
    """Return a sample as a question that is asked under several methods."""
    return Asked(digest(prompt.inputs), picture_of(prompt.inputs), task, prompt.text, media=tuple, prompt=prompt)


def by_picture(prompts: Iterable[Prompt]) -> PromptsByPicture:
    """Group samples by picture, in the order of each picture's first sample.

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
    """Return the SHA-256 of the names, shapes, dtypes and values of all tensors."""
    sha = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        if isinstance(value, Tensor):
            sha.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def picture_of(inputs: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a prompt's media: all inputs except per-token ones, which have the ids' shape."""
    text = inputs["input_ids"].shape
    return digest({name: value for name, value in inputs.items() if value.shape != text})  # pixels, grids and sizes


def digest_of(pictures: PromptsByPicture) -> str:
    """Return the SHA-256 of all samples: the pictures' hashes and each question's ids."""
    questions = {}
    for picture, prompts in pictures.items():
        for place, prompt in enumerate(prompts):
            questions[f"{picture}/{place}"] = prompt.inputs["input_ids"]
    return digest(questions)


def split(pictures: Iterable[str], seed: int) -> tuple[list[str], list[str]]:
    """Split pictures at random into those to choose with (60 %, at most 60) and those to report with (the rest).

    Raises:
        SettingError: If there are fewer than two.
    """
    order = list(pictures)
    if len(order) < 2:
        raise SettingError(
            f"Tuning needs two or more pictures, to choose and to report with; got {len(order)}. "
            "Questions about one picture stay together."
        )
    random.Random(seed).shuffle(order)
    share, most = CHOSEN
    chosen = max(1, min(most, int(share * len(order))))
    return order[:chosen], order[chosen:]


def notes_on(pictures: PromptsByPicture) -> list[str]:
    """Return notes for the user on samples that are few, have one question, or differ in size."""
    prompts = [prompt for about in pictures.values() for prompt in about]
    notes = [STRANGE] * any(STRANGE in prompt.notes for prompt in prompts)
    if len(pictures) < FEW:
        notes.append(
            f"The pictures are few ({len(pictures)}): intervals will be wide. {FEW} or more are better, 45 are good."
        )
    lengths = [prompt.vision_tokens for prompt in prompts]
    if max(lengths) > 2 * min(lengths):
        notes.append(
            f"Pictures have {min(lengths)} to {max(lengths)} vision tokens: the cost holds on average, not for each."
        )
    asked = Counter(tuple(prompt.inputs["input_ids"][0, -prompt.text_tokens :].tolist()) for prompt in prompts)
    if len(asked) == 1 and len(prompts) > 1:
        notes.append("All samples ask the same question: the setting is fitted to it, and may not suit others.")
    return notes
