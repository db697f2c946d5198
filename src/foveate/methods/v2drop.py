"""V2Drop: keep the vision tokens whose hidden state is still changing.

Paper: Chen et al., "Variation-aware Vision Token Dropping for Faster Large Vision-Language Models",
CVPR 2026, arXiv:2509.01552. Reads no attention weights, so it runs under any attention kernel.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm

from foveate.contract import Hidden, LayerStage, LayerView, Shape, Stage
from foveate.contract.cuts import ManyCuts
from foveate.errors import ShapeError

Metric = Literal["l2", "l1", "cosine", "relative"]
EPSILON = 1e-6  # lower bound of a norm used as divisor


class V2Drop(ManyCuts):
    """Drops, at each of several layers, the tokens whose hidden state moved least (token-wise variation).

    Attributes:
        metric: How movement is measured: "l2" (the paper's choice), "l1", "cosine" (1 − cosine similarity, the first
            public release) or "relative" (L2 divided by the norm before the layer).
        over: "net": the movement through the layer before the cut. "path": the sum of the movements since the last cut.
        reverse: Keep the tokens that moved least instead: a control that shows if the order matters.
        layers, keep: See `Cuts`. Layers start at 1. By default the paper's 192-token setting for LLaVA-1.5-7B.
        retention, tokens, min_keep, scope: See `Cuts`.
    """

    name = "v2drop"
    first_layer = 1  # variation needs the layer before
    reads = (Hidden(back=1),)
    searched: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "metric": ("l2", "l1", "cosine", "relative"),
        "over": ("net", "path"),
    }

    metric: Metric = "l2"
    over: Literal["net", "path"] = "net"
    reverse: bool = False

    def caution(self, retention: float) -> str | None:
        """Below a fifth of the tokens V2Drop loses far more than others in our table: at 1/9 25 points, DivPrune 4.

        The limit is 2 % below a fifth, because budgets are met within 2 %.
        """
        if retention >= 0.98 * 0.2 or self.budget is None or self.layers is not None:
            return None
        return (
            "v2drop is not the best choice for so few tokens, unless tuned: on the embedded model divprune, scope and "
            "vidcom2 lose far less (docs/guides/choosing.md)"
        )

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        """With "path", a look before every layer up to the last cut adds the last movement to the path.

        With cuts before 3 and 5, paths begin with the looks before layers 1, 4 and 6, which see the first movement.
        """
        stages = super().steps(shape)
        if self.over == "net" or not stages:
            return stages
        cuts = self.cuts(shape.depth)
        steps = []
        for layer in range(1, max(cuts) + 1):
            look = partial(self._step, starts=layer - 1 in (0, *cuts))
            steps.append(LayerStage(layer, reads=self.reads, look=look))
        return (*steps, *(replace(stage, reads=()) for stage in stages))  # the notes have all movements

    def _step(self, view: LayerView, starts: bool) -> Mapping[str, Tensor]:
        """Add the movement through one layer to the path, (tokens,). `starts`: a path begins here."""
        moved = variation(view.hidden, view.hidden_before, self.metric)
        return {"path": moved if starts else view.notes["path"] + moved}

    def score(self, view: LayerView, layer: int) -> Tensor:
        if self.over == "path":
            scores = view.notes["path"]
        else:
            scores = variation(view.hidden, view.hidden_before, self.metric)
        if self.reverse:
            return -scores
        return scores


def variation(hidden: Tensor, before: Tensor, metric: Metric = "l2") -> Tensor:
    """The movement of each token between two layers' inputs: s_j = ‖h_j − h'_j‖ for "l2" (Sec. 3 of the paper).

    Shapes: two (tokens, width) tensors of any float dtype -> (tokens,) float32. Unit: that of the hidden state for "l2"
    and "l1", else none. >= 0, larger means keep.

    Raises:
        ShapeError: If the two shapes differ.
    """
    if hidden.shape != before.shape:
        raise ShapeError(f"Shapes must be the same; hidden is {tuple(hidden.shape)}, before is {tuple(before.shape)}.")
    # float32, because in bf16 (8 significant bits) close scores tie and the order becomes arbitrary.
    now, then = hidden.float(), before.float()
    if metric == "cosine":
        return 1 - torch.cosine_similarity(now, then, dim=-1)
    if metric == "l1":
        return (now - then).abs().sum(dim=-1)
    moved: Tensor = vector_norm(now - then, dim=-1)
    if metric == "relative":
        moved = moved / vector_norm(then, dim=-1).clamp(min=EPSILON)
    return moved
