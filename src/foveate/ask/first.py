"""The first token of an answer as a distribution: how far is a method's from the full model's?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveate.errors import InputError

LIKELIEST = 256
"""First tokens whose probabilities are kept of an answer."""


@dataclass(frozen=True, slots=True)
class First:
    """The distribution of an answer's first token, cut to its likeliest.

    Attributes:
        ids: Token ids, likeliest first.
        logs: Their log-probabilities (natural).
    """

    ids: tuple[int, ...]
    logs: tuple[float, ...]

    @classmethod
    def of(cls, logs: Tensor, ids: Sequence[int] | None = None) -> "First":
        """The likeliest tokens, or those of these ids.

        Shapes: (vocabulary,) float32 log-probabilities.
        """
        if ids is None:
            ids = logs.topk(min(LIKELIEST, len(logs))).indices.tolist()
        kept = logs[torch.tensor(ids, device=logs.device)].tolist()
        return cls(tuple(ids), tuple(round(log, 5) for log in kept))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "First":
        """From plain values, as `to_dict` gives them."""
        return cls(tuple(values["ids"]), tuple(values["logs"]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"ids": list(self.ids), "logs": list(self.logs)}

    def divergence_of(self, logs: Tensor) -> float:
        """How far another answer's first token is from this one, nats, rounded to a millionth; see `divergence`.

        Shapes: (vocabulary,) float32 log-probabilities.

        Raises:
            InputError: If there is no such token: the values are of a damaged file.
        """
        if max(self.ids) >= len(logs):
            raise InputError(
                f"A stored answer begins with token {max(self.ids)}, and the model has {len(logs)}: the file is "
                "damaged. Name another --cache."
            )
        return round(self.divergence(First.of(logs, self.ids)), 6)

    def divergence(self, other: "First") -> float:
        """KL(self ‖ other) in nats over self's tokens, all others as one; a lower bound of the exact one.

        `other` must hold the same ids in the same order.
        """
        ours = torch.tensor(self.logs, dtype=torch.float64)
        theirs = torch.tensor(other.logs, dtype=torch.float64)
        our_rest, their_rest = _rest(ours), _rest(theirs)
        listed = (ours.exp() * (ours - theirs)).sum()
        unlisted = our_rest * (our_rest.log() - their_rest.log())
        return max(0.0, float(listed + unlisted))


def _rest(logs: Tensor) -> Tensor:
    """The probability of all tokens that are not listed."""
    return (1 - logs.exp().sum()).clamp_min(1e-12)
