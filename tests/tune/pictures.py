"""Pictures of tiny models with several questions about each."""

from typing import Any

import torch

from foveate.tuning.parts import About, grouped
from tests.models import TINY, batch, tiny

HEAD = torch.tensor([[1, 5, 6, 7]])


def question(family: str, word: str, seed: int, *closing: int) -> dict[str, Any]:
    """A prompt that begins as all of them do, and closes with these ids."""
    inputs = batch(family, [word], seed)
    ids = torch.cat((HEAD, inputs["input_ids"][:, HEAD.shape[1] : -3], torch.tensor([closing])), dim=1)
    return {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), **TINY[family].extra(ids)}


def questions(family: str, count: int) -> list[dict[str, Any]]:
    """Two questions about each of so many pictures."""
    return [question(family, "tit", seed, *closing) for seed in range(count) for closing in ((8, 9, 10), (11,))]


def pictures_of(family: str, count: int = 3) -> tuple[About, ...]:
    """The same by picture."""
    return grouped(tiny(family), questions(family, count))
