"""FlashVID: tokens that are attended and diverse stay; the others are linked over time in trees, which are merged.

Paper: Fan et al., "FlashVID: Efficient Video Large Language Models via Training-free Tree-based Spatiotemporal Token
Merging", ICLR 2026. With n tokens a frame, of which b = ⌈1.25 r n⌉ are kept on average:

    scenes    cut where the cosine of neighbouring frames' means is below 0.9, and so that there are 8 at least
    diverse   of each frame the a = ⌈0.7 b⌉ tokens picked so that the smallest (1 − cos) · attention is large
    trees     each other token hangs on the one most like it in the frame before, if their cosine is above 0.8; but at
              least b tokens a frame are left. A tree becomes its mean, where its first token stands
    clusters  of each frame the trees become density peaks (7 neighbours at most), b − a a frame; each is its mean
"""

import math
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from foveate.contract import Arriving, ByScene
from foveate.core.cut import Cut
from foveate.core.films import FilmRows, likeness, scenes
from foveate.core.merge import average, density_peaks, first_most, of_length_one
from foveate.core.picks import cosines, max_min
from foveate.core.rank import marked_first, ranks

__all__ = ["METHOD", "FlashVID"]

SCENES, ALIKE, LINKED, DIVERSE, NEIGHBOURS = 8, 0.9, 0.8, 0.7, 7


class FlashVID(ByScene):
    """Diverse tokens of each frame, and trees of tokens that show the same over time.

    The released system cuts once more inside the decoder, by FastV's rule: "flashvid+fastv:layers=20;keep=0.3;
    rounding=up", which is what the expansion by 1.25 pays for. With a budget there is no expansion, counts are
    truncated, and the most attended of the others fill up.

    Attributes:
        keep: r, the share of a film's tokens to keep, in (0, 1]; usually a quarter.
        form: "attention", as above, the code's `attn_div` (Qwen-VL); or "events", its `attn_div_v2` (LLaVA), where
            attention is multiplied by the product of the token with the mean of its scene.
        trees: "mean"; or "released": its sum over one more than the number of tokens that hang on its first one
            directly, which makes a place that is still through a scene as much larger; one tree more is left; and in a
            scene of one frame diverse tokens are clustered too, so that a position may come twice.
        expansion: 1.25.
        retention, tokens, positions: See `Framed`.
    """

    name = "flashvid"

    form: Literal["attention", "events"] = "attention"
    trees: Literal["mean", "released"] = "mean"
    expansion: Annotated[float, Ge(1)] = 1.25

    def own_count(self, frames: tuple[int, ...]) -> int | None:
        return min(frames[0], math.ceil(frames[0] * self.own * self.expansion)) if len(frames) == 1 else None

    def flops(self, arriving: Arriving, width: int) -> int:
        """The cosines of each frame's tokens with each other, with those of the frame before, and their distances."""
        each = (arriving.frames or (arriving.tokens,))[0]
        return 6 * width * arriving.tokens * each

    def merge(self, features: Tensor, attention: Tensor, count: int | None) -> Cut:
        frames, tokens, _ = features.shape
        rounded = math.ceil if count is None else int
        share = self.own * self.expansion if count is None else count / (frames * tokens)
        budget = min(tokens, rounded(tokens * share))
        diverse = rounded(DIVERSE * budget)
        runs = scenes(likeness(features.mean(dim=1)).tolist(), ALIKE, SCENES)  # the host waits
        weight = attention
        if self.form == "events":
            means = torch.cat([features[a:b].mean(dim=(0, 1)).expand(b - a, -1) for a, b in runs])
            weight = attention * (features * means[:, None]).sum(dim=-1)
        picks = torch.func.vmap(lambda rows, each: max_min((1 - cosines(rows)) * each, diverse))(features, weight)
        is_diverse = torch.zeros_like(attention, dtype=torch.bool).scatter(1, picks, True)
        scenes_of = [self._trees(features[a:b], is_diverse[a:b], budget) for a, b in runs]
        values, grows = (torch.cat(parts) for parts in zip(*[tree[:2] for tree in scenes_of], strict=True))
        left = grows.sum(dim=1).tolist()  # and waits again: how many trees each frame has
        roots = marked_first(grows)
        rows = FilmRows(features)
        for first, end in runs:
            each = budget - diverse
            ratio = each * (end - first) / max(1, sum(left[first:end]))
            for frame in range(first, end):
                start, own = frame * tokens, roots[frame, : left[frame]]
                rows.keep(start + picks[frame])
                clusters = each if end - first == 1 else rounded(left[frame] * ratio)
                if clusters := min(clusters, left[frame]):
                    peaks, cluster = density_peaks(values[frame, own], clusters, min(clusters, NEIGHBOURS))
                    merged = average(values[frame, own], Cut.join(peaks, cluster))
                    rows.join(start + own[peaks], merged, start + own, cluster)
        rows.follow(torch.cat([first * tokens + tree[2] for (first, _), tree in zip(runs, scenes_of, strict=True)]))
        return rows.cut(attention, count)

    def _trees(self, features: Tensor, is_diverse: Tensor, budget: int) -> tuple[Tensor, Tensor, Tensor]:
        """The trees of a scene, (frames, tokens, width): what each token's tree is; whether it is the first of one;
        and which token is the first of its own, (frames · tokens,)."""
        frames, tokens, _ = features.shape
        itself = torch.arange(frames * tokens, device=features.device).view(frames, tokens)
        if frames == 1:
            return features, ~is_diverse | (self.trees == "released"), itself.flatten()
        unit = of_length_one(features, least=1e-12)
        alike = unit[1:] @ unit[:-1].transpose(1, 2)  # (frames − 1, tokens, tokens of the frame before)
        alike = alike.masked_fill(is_diverse[1:, :, None] | is_diverse[:-1, None], -1.0)
        best, hangs_on = alike.amax(dim=-1), first_most(alike)
        linked = best > LINKED
        most = torch.full_like(linked.sum(), frames * (tokens - budget))
        if self.trees == "released":
            most = most - (linked.sum() > most).long()
        linked = linked & (ranks(best.flatten()).view_as(best) < most)
        total, size, root = list(features), list(torch.ones_like(features[..., 0])), list(itself)
        for frame in range(frames - 1, 0, -1):
            up, to = linked[frame - 1].float(), hangs_on[frame - 1]
            more = up if self.trees == "released" else up * size[frame]
            total[frame - 1] = total[frame - 1].index_add(0, to, total[frame] * up[:, None])
            size[frame - 1] = size[frame - 1].index_add(0, to, more)
        for frame in range(1, frames):
            root[frame] = torch.where(linked[frame - 1], root[frame - 1][hangs_on[frame - 1]], itself[frame])
        starts = torch.cat((torch.ones_like(linked[:1]), ~linked))
        values = torch.stack(total) / torch.stack(size)[..., None]
        return values, starts & ~is_diverse, torch.cat(root)


FlashVID.presets = tuple(
    FlashVID.preset(f"{model}/{keep:.0%}", "released code, before its cut inside the decoder", keep=keep, form=form)
    for model, form in (("llava-onevision-7b", "events"), ("qwen2.5-vl-7b", "attention"), ("qwen3-vl-8b", "attention"))
    for keep in (0.25, 0.2, 0.15, 0.1)
)

METHOD = FlashVID
