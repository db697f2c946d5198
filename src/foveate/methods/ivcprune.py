"""IVC-Prune: one cut in the middle of the decoder, by position (coordinates) and by similarity to the question.

Paper: Sun et al., "IVC-Prune: Revealing the Implicit Visual Coordinates in LVLMs for Vision Token Pruning", ICLR 2026,
arXiv:2602.03060. Built from a description of the released code. Of an image's I rows before layer k:

    s1      similarity of the text's values in layer k − 1 to the image's; the max(1, round(.01 · I)) highest are seeds
    s2      the same for text and seeds together
    C, S    see `Coordinates`; the round(.1 · I) highest of each are coordinates

Seeds and coordinates stay, then the largest s2, up to round(.5 · I).
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.contract import CacheStage, Count, Cut, Layer, LayerView, Part, Rotary, Shape, Share, Stage, ValueLikeness
from foveate.contract.cuts import OneCut
from foveate.core.rank import ranks, spread_over, top
from foveate.methods.coordinates import places


class IVCPrune(OneCut):
    """Keeps seeds and coordinates of each image, then the tokens most similar to the text after it, in one cut.

    If seeds and coordinates exceed the count, seeds come first, then coordinates by C and by S alternately. Without
    text after an image, its coordinates stay, and other tokens at even steps.

    Attributes:
        layer: k, the first layer that processes fewer tokens. Values are those of the layer before.
        keep: Share of the vision tokens that stays; usually half.
        target: Instead of `keep`: a number of tokens.
        retention, tokens: See `Cuts`.
        scope: Treat each "image" or video separately, or each "frame".
        coordinates: Share of the rows that stays by C; the same share stays by S.
        seeds: Share of the rows that are seeds; at least one.
        skip: How many rows to ignore at the beginning of the text.
        among: Normalise similarities over the "image", or over "all" rows, as the code for LLaVA-1.5 does.
        foreground: As in that code: the share with the largest s2 that stays in addition to seeds and coordinates.
            Excludes `keep`, `target` and budgets.
        kv: The first layer whose cache is cut to the tokens that stay. None: no cache is cut.
    """

    name = "ivcprune"
    usual_keep = 0.5
    schedule = ("keep", "target", "foreground")

    layer: Annotated[int, Ge(1)] = 16
    coordinates: Share = 0.1
    seeds: Part = 0.01
    skip: Count = 2
    among: Literal["image", "all"] = "image"
    foreground: Share | None = None
    kv: Layer | None = 0

    @property
    def reads(self) -> tuple[ValueLikeness, Rotary]:  # type: ignore[override]  # depends on settings
        return ValueLikeness(self.skip, self.seeds, self.among), Rotary()

    def steps(self, shape: Shape) -> tuple[Stage, ...]:
        stages = super().steps(shape)
        if self.foreground is not None:
            stages = tuple(replace(stage, count=None, pick=None, choose=self._choose) for stage in stages)
        if self.kv is not None:
            return (*stages, CacheStage(first_layer=self.kv))
        return stages

    def share_of(self, tokens: int, share: float) -> int:
        if self.target is not None:
            return min(tokens, self.target)
        return max(1, round(share * tokens))

    def pick(self, view: LayerView, count: int) -> Tensor:
        return top(-self._order(view, count), count)

    def _choose(self, view: LayerView, _: int | None) -> Cut:
        count = round((self.foreground or 0) * len(view))
        return Cut.keep(self._order(view, count, others=count) < 4 * len(view) + count)

    def _order(self, view: LayerView, count: int, others: int | None = None) -> Tensor:
        """The order of the rows by priority, (tokens,) int64, lower stays first.

        Seeds have numbers from 0 on, coordinates from `tokens`, all others from 4 · `tokens`, by s2.
        """
        (signal, turned), tokens = self.reads, len(view)
        rotary, likeness = view[turned], view[signal]
        coordinates = (ranks(rotary.T) < round(self.coordinates * tokens)).any(dim=0)
        first, last = ranks(likeness.T)
        if not view.text_behind:
            left = count - coordinates.sum() if others is None else others
            last = ranks(spread_over(~coordinates, left).int())
        seeds = first < (signal.seed_count(tokens) if view.text_behind else 0)
        return torch.where(seeds, first, torch.where(coordinates, tokens + places(rotary), 4 * tokens + last))
