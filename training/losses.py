"""The tower's auxiliary losses."""

import torch
import torch.nn.functional as F
from torch import Tensor

from labels import UNKNOWN
from packing import Packed
from tokenizer import EOS

__all__ = ["answer_loss", "dense_loss", "presence_loss", "right_answers"]

LABELS = (
    "shape",
    "colour",
    "character",
    "order",
    "across",
    "down",
    "beside",
    "things",
    "same_shape",
    "same_colour",
)
BACKGROUND = 0.3  # weight of a patch that shows nothing


def dense_loss(scores: dict[str, Tensor], targets: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
    """Loss over patches, and how well each label is met where there is something to see.

    Shapes: scores (B, N, size) float32 by label; targets (B, N) int64, "centre" (B, N) and
    "xy" (B, N, 2) float32.
    """
    total = torch.zeros(())
    report: dict[str, float] = {}
    for name in LABELS:
        want = targets[name].flatten()
        flat = scores[name].reshape(len(want), -1)
        weight = torch.where(want > 0, 1.0, BACKGROUND) * (want != UNKNOWN)
        each = F.cross_entropy(flat, want, reduction="none", ignore_index=UNKNOWN)
        total = total + (each * weight).sum() / weight.sum().clamp_min(1)
        seen = want > 0
        report[f"patch {name}"] = (flat.argmax(-1)[seen] == want[seen]).float().mean().item() if seen.any() else 1.0
    total = total + F.binary_cross_entropy_with_logits(
        scores["centre"].squeeze(-1), targets["centre"], pos_weight=torch.tensor(4.0)
    )
    something = (targets["shape"] > 0) | (targets["character"] > 0)
    weight = torch.where(something, 1.0, BACKGROUND)
    error = (scores["xy"] - targets["xy"]).abs().mean(-1)
    total = total + 3 * (error * weight).sum() / weight.sum()
    report["patch xy"] = error[something].mean().item() if something.any() else 0.0
    return total, report


def presence_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Which shapes and colours are in the picture, from the CLS token: (B, 16) each."""
    return F.binary_cross_entropy_with_logits(scores.float(), targets)


def answer_loss(logits: Tensor, packed: Packed, tasks: list[str]) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of the answers' tokens, and the share of right answers by task.

    logits: (M, vocabulary) float32; `tasks`: one name a question, in the order of packing.
    """
    each = F.cross_entropy(logits, packed.next, reduction="none")
    loss = (each * packed.weight).sum() / packed.weight.sum()
    marks: dict[str, list[bool]] = {}
    for task, right in zip(tasks, right_answers(logits, packed, len(tasks)), strict=True):
        marks.setdefault(task, []).append(right)
    return loss, {task: sum(m) / len(m) for task, m in marks.items()}


def right_answers(logits: Tensor, packed: Packed, questions: int) -> list[bool]:
    """Whether each question's answer is the arg-max throughout, its end included."""
    wrong = (logits.argmax(-1) != packed.next).int()
    ends = (packed.next == EOS).int()
    question = ends.cumsum(0) - ends  # which question each token belongs to
    mistakes = torch.zeros(questions, dtype=torch.int32).index_add_(0, question, wrong)
    return [count == 0 for count in mistakes.tolist()]
