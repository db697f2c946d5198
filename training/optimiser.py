"""Muon for the matrices inside layers, AdamW for everything else.

Both ranks hold the same state: gradients are averaged before `step`. Matrices of one shape are
orthogonalised together, which is what makes Muon affordable on a CPU.
"""

import torch
from torch import Tensor, nn

__all__ = ["Optimiser"]


class Optimiser:
    """One step for both kinds of parameters.

    Args:
        network: Its named parameters are sorted into the two kinds.
        rates: Learning rates: "tower", "decoder" (Muon), "rest", "projector" (AdamW).
        skip: Beginnings of the names that are left alone.
    """

    def __init__(self, network: nn.Module, rates: dict[str, float], skip: tuple[str, ...] = ()) -> None:
        self.rates, self.momentum, self.steps = rates, 0.95, 0
        self.matrices: dict[tuple[str, torch.Size], list[Tensor]] = {}
        self.rest: dict[str, list[Tensor]] = {}
        for name, p in network.named_parameters():
            if any(name.startswith(part) for part in skip):
                continue
            if p.ndim == 2 and ".layers." in name:
                self.matrices.setdefault((name.split(".")[0], p.shape), []).append(p)
            else:
                self.rest.setdefault("projector" if name.startswith("project") else "rest", []).append(p)
        self.state: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, object]:
        """Moments and step count."""
        return {"state": self.state, "steps": self.steps}

    def load_state_dict(self, saved: dict[str, object]) -> None:
        """Undo `state_dict`."""
        self.state, self.steps = dict(saved["state"]), saved["steps"]

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """Apply the gradients with all learning rates multiplied by `factor`."""
        self.steps += 1
        for (part, shape), group in self.matrices.items():
            gradient = torch.stack([p.grad for p in group])
            heavy = self._zeros(f"heavy {part} {tuple(shape)}", gradient)
            heavy.lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(heavy, self.momentum))
            scale = -self.rates[part] * factor * 0.2 * max(shape) ** 0.5
            torch._foreach_add_(group, list(update.unbind()), alpha=scale)
        b1, b2 = 0.9, 0.98
        for part, group in self.rest.items():
            gradient = torch.cat([p.grad.flatten() for p in group])
            mean, square = (self._zeros(f"{kind} {part}", gradient) for kind in ("mean", "square"))
            mean.lerp_(gradient, 1 - b1)
            square.lerp_(gradient.square(), 1 - b2)
            size = (square / (1 - b2**self.steps)).sqrt_().add_(1e-8)
            update = (mean / (1 - b1**self.steps)).div_(size)
            parts = [u.view_as(p) for u, p in zip(update.split([p.numel() for p in group]), group, strict=True)]
            torch._foreach_add_(group, parts, alpha=-self.rates[part] * factor)

    def _zeros(self, name: str, like: Tensor) -> Tensor:
        if name not in self.state:
            self.state[name] = torch.zeros_like(like)
        return self.state[name]


def orthogonal(x: Tensor, rounds: int = 5) -> Tensor:
    """Nearest (semi-)orthogonal matrices by Newton-Schulz: (n, rows, columns) float32 -> the same."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = x.shape[1] > x.shape[2]
    y = (x.transpose(1, 2) if tall else x).bfloat16()
    y = y / (y.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = y @ y.transpose(1, 2)
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return (y.transpose(1, 2) if tall else y).float()
