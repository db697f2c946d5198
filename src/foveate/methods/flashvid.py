"""FlashVID: keep tokens that are attended and diverse; link the others over time into trees, and merge each tree.

Paper: Fan et al., "FlashVID: Efficient Video Large Language Models via Training-free Tree-based Spatiotemporal Token
Merging", ICLR 2026. With n tokens per frame, of which b = ⌈1.25 r n⌉ are kept on average:

    scenes    cut where the cosine of neighbouring frames' means is below 0.9, and into at least 8
    diverse   the a = ⌈0.7 b⌉ tokens of each frame picked so that the smallest (1 − cos) · attention is large
    trees     each other token links to the most similar token of the frame before, if their cosine is above 0.8; but
              at least b tokens per frame remain. A tree becomes its mean, at the place of its first token
    clusters  the trees of each frame are clustered by density peaks (at most 7 neighbours) into b − a; each becomes
              its mean
"""

import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.contract import Cut, Frames, Part
from foveate.core.film_scenes import FilmRows, likeness, scenes, trees
from foveate.core.merge import average, density_peaks
from foveate.core.picks import max_min, pairs
from foveate.core.rank import put_marked_first

SCENES, ALIKE, LINKED, DIVERSE, NEIGHBOURS = 8, 0.9, 0.8, 0.7, 7


class FlashVID(Frames):
    """Keeps diverse tokens of each frame, and merges trees of tokens that show the same over time.

    The released system cuts once more inside the decoder, "flashvid+fastv:layers=20;keep=0.3;rounding=up", which the
    expansion compensates. With a budget the expansion is not used, and the most attended of the other tokens fill the
    budget up.

    Attributes:
        form: "attention" is the rule above, the code's `attn_div` (Qwen-VL). "events" is its `attn_div_v2` (LLaVA),
            which multiplies attention by the product of the token with its scene's mean.
        trees: "mean", or "released": the code's value of a tree, larger where a place stands still for long. It leaves
            one more tree, and in a scene of one frame a position may occur twice.
        expansion: Factor of r, 1.25 as in the code.
        keep, retention, tokens, positions: See `Frames`.
    """

    name = "flashvid"

    keep: Part | None = None
    form: Literal["attention", "events"] = "attention"
    trees: Literal["mean", "released"] = "mean"
    expansion: Annotated[float, Ge(1)] = 1.25

    def own_count(self, frames: tuple[int, ...]) -> int | None:
        if len(frames) > 1:
            return None
        budget = self._of_frame(frames[0])
        diverse = math.ceil(DIVERSE * budget)
        return min(frames[0], diverse + math.ceil(frames[0] * ((budget - diverse) / frames[0])))

    def _of_frame(self, tokens: int) -> int:
        """The tokens that a frame of `tokens` keeps on average, rounded as the code does: 12 · 0.2 · 1.25 gives 4."""
        return min(tokens, math.ceil(tokens * self.own * self.expansion))

    def merge(self, features: Tensor, attention: Tensor, count: int | None) -> Cut:
        frames, tokens, _ = features.shape
        count = None if self.budget is None else count
        rounded = math.ceil if count is None or frames == 1 else int
        budget = self._of_frame(tokens) if count is None else count // frames
        diverse = rounded(DIVERSE * budget)
        runs = scenes(likeness(features.mean(dim=1)).tolist(), ALIKE, SCENES)  # host sync
        weight = attention
        if self.form == "events":
            means = torch.cat([features[a:b].mean(dim=(0, 1)).expand(b - a, -1) for a, b in runs])
            weight = attention * (features * means[:, None]).sum(dim=-1)

        def diverse_of(rows: Tensor, each: Tensor) -> Tensor:
            return max_min(pairs(rows, lambda cosines, _: (1 - cosines) * each), diverse)

        picks = torch.func.vmap(diverse_of)(features, weight)
        is_diverse = torch.zeros_like(attention, dtype=torch.bool).scatter(1, picks, True)
        released = self.trees == "released"
        scenes_of = [trees(features[a:b], is_diverse[a:b], budget, LINKED, released) for a, b in runs]
        values, grows = (torch.cat(parts) for parts in zip(*[tree[:2] for tree in scenes_of], strict=True))
        left = grows.sum(dim=1).tolist()  # host sync: the number of trees in each frame
        roots = put_marked_first(grows)
        rows = FilmRows(features)
        for first, end in runs:
            each = budget - diverse
            trees_of = left[first:end] if end - first > 1 else [tokens]  # here the code counts diverse tokens too
            ratio = each * (end - first) / max(1, sum(trees_of))
            for frame in range(first, end):
                start, own = frame * tokens, roots[frame, : left[frame]]
                rows.keep(start + picks[frame])
                # Multiply in the code's order: of 100 tokens, 100 · (7 / 100) is 7.000…01, which makes 8 clusters.
                exact = count is not None and end - first == 1
                clusters = each
                if not exact:
                    clusters = rounded(trees_of[frame - first] * ratio)
                if clusters := min(clusters, left[frame]):
                    peaks, cluster = density_peaks(values[frame, own], clusters, min(clusters, NEIGHBOURS))
                    merged = average(values[frame, own], Cut.join(peaks, cluster))
                    rows.join(start + own[peaks], merged, start + own, cluster)
        rows.follow(torch.cat([first * tokens + tree[2] for (first, _), tree in zip(runs, scenes_of, strict=True)]))
        return rows.cut(attention, count)
