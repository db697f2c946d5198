"""V2Drop: keep the vision tokens whose hidden state is still changing.

Paper: Chen et al., "Variation-aware Vision Token Dropping for Faster Large Vision-Language Models",
CVPR 2026, arXiv:2509.01552. Reads no attention weights, so it runs under any attention kernel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.linalg import vector_norm

from foveate.core.rank import top
from foveate.errors import SettingError, ShapeError
from foveate.methods.base import Cut, Preset, View
from foveate.methods.staged import StagedMethod

__all__ = ["METHOD", "V2Drop", "variation"]

Metric = Literal["l2", "l1", "cosine", "relative"]
EPSILON = 1e-6  # of norms that divide
OPERATIONS = {"l2": 3, "l1": 3, "cosine": 6, "relative": 5}  # a number of a move: subtract, square, add, …


@dataclass(frozen=True, slots=True, kw_only=True)
class V2Drop(StagedMethod):
    """Progressive dropping by token-wise variation: before each cut, the tokens that moved least leave.

    Attributes:
        layers: Decoder layers whose input is cut, strictly ascending, from 1 on.
        keep: Share of the arriving vision tokens that stays at each, in [0, 1]; ratios compound: 0.5 then
            0.3 leaves 15 %. The defaults are the paper's 192-token setting for LLaVA-1.5-7B.
        metric: How a move is measured: "l2" (the paper's choice), "l1", "cosine" (1 − cosine similarity,
            the first public release) or "relative" (L2 over the norm it started from).
        over: The move through the last `window` layers ("net"), or all moves since the last cut added up
            ("path").
        window: Layers a net move spans, 1 or more; 1 is the paper's.
        reverse: Keep the tokens that moved least instead: the control that shows whether the order means anything.
        score_dtype: "float32", or "model" to round as the released code does in half precision.
        min_keep, scope, skip_below: See `StagedMethod`.

    Raises:
        SettingError: If layers and ratios differ in length or a setting leaves its range.
    """

    name: ClassVar[str] = "v2drop"
    first_layer: ClassVar[int] = 1  # variation needs the layer before

    layers: tuple[int, ...] = (3, 17, 22)
    keep: tuple[float, ...] = (0.5, 0.3, 0.0)
    metric: Metric = "l2"
    over: Literal["net", "path"] = "net"
    window: int = 1
    reverse: bool = False
    score_dtype: Literal["float32", "model"] = "float32"

    def __post_init__(self) -> None:
        super(V2Drop, self).__post_init__()
        if self.metric not in ("l2", "l1", "cosine", "relative"):
            raise SettingError(f"metric is 'l2', 'l1', 'cosine' or 'relative'; got {self.metric!r}.")
        if self.over not in ("net", "path"):
            raise SettingError(f"over is 'net' or 'path'; got {self.over!r}.")
        if self.score_dtype not in ("float32", "model"):
            raise SettingError(f"score_dtype is 'float32' or 'model'; got {self.score_dtype!r}.")
        if self.window < 1 or (self.over == "path" and self.window != 1):
            raise SettingError(f"window is 1 or more, and belongs to over='net'; got {self.window} with {self.over!r}.")
        if self.layers and self.layers[0] < self.window:
            raise SettingError(
                f"A move over {self.window} layers cannot be seen before layer {self.layers[0]}: "
                f"layers start at {self.window} for window={self.window}."
            )

    @property
    def together(self) -> bool:
        return True

    def watches(self, layer: int) -> bool:
        if self.over == "path":
            return bool(self.layers) and layer < self.layers[-1]
        return layer + self.window in self.layers

    def observe(self, view: View) -> None:
        if self.over == "path":
            at_a_cut = view.layer in self.layers
            if "before" in view.notes and not at_a_cut:
                moved = self._variation(view.hidden, view.notes["before"])
                view.notes["path"] = view.notes["path"] + moved if "path" in view.notes else moved
            if at_a_cut:
                view.notes.pop("path", None)
            view.notes["before"] = view.hidden
        else:
            view.notes[f"entered {view.layer}"] = view.hidden

    def cut(self, view: View) -> Cut | None:
        found = super(V2Drop, self).cut(view)
        if self.over == "net":
            view.notes.pop(f"entered {view.layer - self.window}", None)  # nobody reads it again
        return found

    def remembered(self, tokens: Sequence[int]) -> tuple[int, ...]:
        if self.over == "path":
            return tuple(count if self.watches(layer) else 0 for layer, count in enumerate(tokens))
        spans = [range(cut - self.window, cut) for cut in self.layers]
        return tuple(count * sum(layer in span for span in spans) for layer, count in enumerate(tokens))

    def select(self, view: View, count: int) -> Tensor:
        scores = self._scores(view)
        return top(-scores if self.reverse else scores, count)

    def _scores(self, view: View) -> Tensor:
        if self.over == "path":
            moved = self._variation(view.hidden, view.notes["before"])
            return view.notes["path"] + moved if "path" in view.notes else moved
        return self._variation(view.hidden, view.notes[f"entered {view.layer - self.window}"])

    def scoring_flops(self, depth: int, width: int, sizes: Sequence[int]) -> int:
        """Of every move measured: at the cuts that rank, and for a path at the layers between."""
        plan = self.plan(depth, sizes)
        if min(plan) == sum(sizes):
            return 0  # where nobody leaves, nobody measures
        between = range(1, self.layers[-1]) if self.over == "path" and self.layers else ()
        moves = 0
        for layer, (arrive, stay) in enumerate(pairwise((sum(sizes), *plan))):
            if stay < arrive if layer in self.layers else layer in between:
                moves += arrive
        return OPERATIONS[self.metric] * width * moves

    def _variation(self, hidden: Tensor, before: Tensor) -> Tensor:
        return variation(hidden, before, self.metric, hidden.dtype if self.score_dtype == "model" else torch.float32)


def variation(hidden: Tensor, before: Tensor, metric: Metric = "l2", dtype: torch.dtype = torch.float32) -> Tensor:
    """How far each token moved between two layers' inputs (Sec. 3 of the paper for "l2").

    Shapes: two (tokens, width) tensors of any float dtype -> (tokens,) `dtype`. Unit: for "l2" and "l1"
    that of the hidden state, else none; >= 0, larger means keep.

    Raises:
        ShapeError: If the two shapes differ.
    """
    if hidden.shape != before.shape:
        raise ShapeError(f"hidden is {tuple(hidden.shape)}, before is {tuple(before.shape)}.")
    # In bf16 (8 significant bits) near scores tie, and the order turns arbitrary: hence float32.
    now, then = hidden.to(dtype), before.to(dtype)
    scores: Tensor
    if metric == "l2":
        scores = vector_norm(now - then, dim=-1)
    elif metric == "l1":
        scores = (now - then).abs().sum(dim=-1)
    elif metric == "cosine":
        scores = 1 - torch.cosine_similarity(now, then, dim=-1)
    else:
        scores = vector_norm(now - then, dim=-1) / vector_norm(then, dim=-1).clamp(min=EPSILON)
    return scores


def _preset(
    name: str,
    layers: tuple[int, ...],
    keep: tuple[float, ...],
    depth: int,
    vision_tokens: int | None,
    source: str,
) -> Preset:
    return Preset(f"v2drop/{name}", V2Drop(layers=layers, keep=keep), depth, vision_tokens, source)


_PAPER = "paper, prune ratios {}"
_CODE = "released code"
_DERIVED = "derived from the paper's ratios: {}"
_LLAVA = (3, 17, 22)
_QWEN = (3, 16, 22)

V2Drop.presets = (
    _preset("llava-1.5-7b/192", _LLAVA, (0.5, 0.3, 0.0), 32, 576, _PAPER.format("50/70/100 %")),
    _preset("llava-1.5-7b/128", _LLAVA, (0.28, 0.25, 0.0), 32, 576, _PAPER.format("72/75/100 %")),
    _preset("llava-1.5-7b/64", _LLAVA, (0.05, 0.05, 0.0), 32, 576, _PAPER.format("95/95/100 %")),
    _preset("llava-1.5-7b/repo", _LLAVA, (0.5, 0.5, 0.0), 32, 576, _CODE),
    _preset("llava-next-7b/33.6%", _LLAVA, (0.5, 0.3, 0.0), 32, 2880, _DERIVED.format("those of LLaVA-1.5 at 192")),
    _preset("qwen2-vl-7b/22.6%", _QWEN, (0.25, 0.05, 0.0), 28, None, f"{_CODE}, the 77.8 % setting"),
    _preset("qwen2-vl-7b/33.3%", _QWEN, (0.476, 0.05, 0.0), 28, None, _DERIVED.format("33.3 % of the tokens")),
    _preset("qwen2-vl-7b/20%", _QWEN, (0.195, 0.05, 0.0), 28, None, _DERIVED.format("20 % of a video's tokens")),
    *(
        _preset(
            f"llava-onevision-7b/{budget}",
            _LLAVA,
            (first, 0.3, 0.0),
            28,
            6272,
            _DERIVED.format(f"{budget} of 32 frames"),
        )
        for budget, first in (("33.3%", 0.409), ("25%", 0.258), ("20%", 0.168), ("15%", 0.077))
    ),
)

METHOD = V2Drop
