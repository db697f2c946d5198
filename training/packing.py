"""Several questions about one image in one sequence.

The image stands once; behind it stand the segments ("\\nquestion ASSISTANT: answer</s>"). Each sees
the image and itself, and its positions begin where the image ends, so the network computes what it
would for each question alone.
"""

from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from foveate.embedded.questions import TaskQuestion
from tokenizer import ASSISTANT, EOS, PAD

__all__ = ["Packed", "pack"]

ROUND = 16  # text lengths are multiples of this, so that few shapes occur


@dataclass(frozen=True, slots=True)
class Packed:
    """Text of a batch; T tokens a row.

    Attributes:
        ids: (B, T) int64.
        position: (B, T) int64, from the image's end.
        mask: (B, 1, T, P + T) bool, True where a token may look.
        at: (M,) int64, places in the flattened text whose next token is to be predicted.
        next: (M,) int64, those next tokens.
        weight: (M,) float32, 1 / sqrt(tokens of the answer), so that long answers do not rule.
    """

    ids: Tensor
    position: Tensor
    mask: Tensor
    at: Tensor
    next: Tensor
    weight: Tensor


def pack(batch: list[list[TaskQuestion]], tokenizer: Tokenizer, prefix: int) -> Packed:
    """Tokenize and lay out the questions of each image; `prefix` is P, the tokens before the text."""
    rows = [
        [tokenizer.encode(f"\n{q.question} ASSISTANT: {q.answer}</s>", add_special_tokens=False).ids for q in row]
        for row in batch
    ]
    longest = max(sum(map(len, row)) for row in rows)
    length = -(-longest // ROUND) * ROUND
    ids = torch.full((len(rows), length), PAD)
    position = torch.zeros(len(rows), length, dtype=torch.int64)
    segment = torch.full((len(rows), length), -1)
    at: list[int] = []
    weight: list[float] = []
    for b, row in enumerate(rows):
        start = 0
        for number, tokens in enumerate(row):
            stop = start + len(tokens)
            ids[b, start:stop] = torch.tensor(tokens)
            position[b, start:stop] = torch.arange(len(tokens))
            segment[b, start:stop] = number
            answer = tokens.index(ASSISTANT)
            count = len(tokens) - 1 - answer
            at += range(b * length + start + answer, b * length + stop - 1)
            weight += [count**-0.5] * count
            start = stop
    order = torch.arange(length)
    own = (segment[:, :, None] == segment[:, None, :]) & (order[:, None] >= order[None, :])
    mask = torch.cat([torch.ones(len(rows), length, prefix, dtype=torch.bool), own], dim=2)
    where = torch.tensor(at)
    nexts = ids.flatten()[where + 1]
    assert EOS in nexts
    return Packed(ids, position + prefix, mask[:, None], where, nexts, torch.tensor(weight))
