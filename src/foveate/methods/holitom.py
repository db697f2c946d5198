"""HoliTom: a film is cut into scenes so that most places stand still, and these are merged over time and space.

Paper: Shao et al., "HoliTom: Holistic Token Merging for Fast Video Large Language Models", NeurIPS 2025,
arXiv:2505.21334. With F frames of n tokens, behind the projector:

    scenes    cut so that Σ (frames − 1) · (places that stand still through the scene: every cosine > tau) is largest
    r'        min(1, r · F n / (F n − saved)), of what is left once a still place is kept once a scene
    still     its mean over the scene; round(r' · m) of m are centres of density peaks (7 neighbours), the others join
              the nearest one: 0.6 · centre + 0.4 · mean of those that joined
    moving    of each frame ⌈r' · m⌉ of its m other tokens: those with the most attention in the tower
"""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from foveate.contract import Arriving, Cut, Frames, Part, Positions
from foveate.core.films import FilmRows, likeness, still_places, still_scenes
from foveate.core.merge import density_peaks, towards
from foveate.core.rank import marked_first, top

NEIGHBOURS, BETA = 7, 0.6


class HoliTom(Frames):
    """Still places are merged over each scene and clustered; of what moves the most attended tokens stay.

    This is the paper's method without its merging inside the decoder, which is `FastV` with `join`:
    "holitom+fastv:layers=18;join=true;scope=image". The release's D, a share of moving tokens that is clustered,
    is not built: it cannot be run there.

    Attributes:
        keep: r, the share of a film's tokens to keep, in (0, 1]; usually a quarter. Counts are rounded as in the code:
            ⌈…⌉ for each frame, so that a little more stays.
        tau: The cosine with the frame before above which a place stands still.
        retention, tokens, positions: See `Frames`; numbered anew by default, as in the release, and then a scene's
            still rows stand before its frames'.
    """

    name = "holitom"

    keep: Part | None = None
    tau: Annotated[float, Ge(-1), Le(1)] = 0.8
    positions: Positions = "reindex"

    def own_count(self, frames: tuple[int, ...]) -> int | None:
        if len(frames) != 1:
            return None
        return math.ceil(frames[0] * self.own)

    def flops(self, arriving: Arriving, width: int) -> int:
        """For each number 3 for its length and 2 for its cosine; and the distances of a scene's still places, at most
        those of one frame."""
        frames = arriving.frames or (arriving.tokens,)
        return 5 * width * arriving.tokens + 2 * width * frames[0] ** 2

    def merge(self, features: Tensor, attention: Tensor, count: int | None) -> Cut:
        frames, tokens, _ = features.shape
        is_still = likeness(features) > self.tau
        places = still_places(is_still).tolist()  # the host waits once
        scenes, saved = still_scenes(places)
        left = max(count or 0, frames * tokens - saved)
        ratio = min(1.0, self.own / (left / (frames * tokens)))
        rows = FilmRows(features)
        for first, end in scenes:
            scene = torch.arange(first, end, device=features.device)[:, None] * tokens  # the first token of each frame
            still = 0
            if end - first > 1:
                still = places[end - 1][end - 1 - first]
            stays = is_still[first : end - 1].all(dim=0) & (still > 0)
            order = marked_first(stays)
            alike, moving = order[:still], order[still:]
            # With a budget both are rounded down, and what that leaves is filled up.
            if centres := round(still * ratio) if count is None else still * count // left:
                means = features[first:end, alike].mean(dim=0)
                peaks, cluster = density_peaks(means, centres, min(NEIGHBOURS, centres))
                peaks, by_place = peaks.sort()
                row = by_place.argsort()[cluster]
                joined = towards(means[peaks], means, row.scatter(0, peaks, -1), BETA)
                rows.join(first * tokens + alike[peaks], joined, (scene + alike).flatten(), row.repeat(end - first))
            kept = math.ceil(len(moving) * ratio) if count is None else len(moving) * count // left
            for frame in range(first, end):
                rows.keep(frame * tokens + moving[top(attention[frame, moving], kept)])
        return rows.cut(attention, count)


METHOD = HoliTom
