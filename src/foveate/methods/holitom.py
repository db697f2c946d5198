"""HoliTom: split a video into scenes with many static places, and merge these places over time and space.

Paper: Shao et al., "HoliTom: Holistic Token Merging for Fast Video Large Language Models", NeurIPS 2025,
arXiv:2505.21334. With F frames of n tokens, after the projector:

    scenes    cut so that Σ (frames − 1) · (places that are static through the scene: every cosine > tau) is largest
    r'        min(1, r · F n / (F n − saved)), r relative to what is left when each static place is kept once a scene
    static    the mean of each place over the scene; round(r' · m) of m are centres of density peaks (7 neighbours), the
              others join the nearest centre: 0.6 · centre + 0.4 · mean of those that joined
    moving    the ⌈r' · m⌉ of each frame's m other tokens with the most attention in the tower
"""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from foveate.contract import Cut, Frames, Part, Positions
from foveate.core.film_scenes import FilmRows, likeness, still_places, still_scenes
from foveate.core.merge import density_peaks, towards
from foveate.core.rank import put_marked_first, top

NEIGHBOURS, BETA = 7, 0.6


class HoliTom(Frames):
    """Merges static places over each scene and clusters them. Of the moving tokens, the most attended stay.

    This is the paper's method without its merging inside the decoder, which is `FastV` with `join`:
    "holitom+fastv:layers=18;join=true;scope=image". The release's D, a share of moving tokens that is clustered, is not
    implemented, because the release itself cannot run it.

    Attributes:
        keep: r, the share of a video's tokens to keep, in (0, 1]; usually a quarter. Counts are rounded up for each
            frame, as in the code, so slightly more tokens stay.
        tau: A place is static if its cosine with the frame before is above this.
        retention, tokens, positions: See `Frames`. Positions are renumbered by default, as in the release; then a
            scene's static rows come before the rows of its frames.
    """

    name = "holitom"

    keep: Part | None = None
    tau: Annotated[float, Ge(-1), Le(1)] = 0.8
    positions: Positions = "reindex"

    def own_count(self, frames: tuple[int, ...]) -> int | None:
        if len(frames) != 1:
            return None
        return math.ceil(frames[0] * self.own)

    def merge(self, features: Tensor, attention: Tensor, count: int | None) -> Cut:
        frames, tokens, _ = features.shape
        is_still = likeness(features) > self.tau
        places = still_places(is_still).tolist()  # one host sync
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
            order = put_marked_first(stays)  # (tokens,): places that are static through the scene first
            alike, moving = order[:still], order[still:]
            # With a budget, centres and moving tokens are rounded down; `rows.cut` fills up the remainder.
            if centres := round(still * ratio) if count is None else still * count // left:
                means = features[first:end, alike].mean(dim=0)
                peaks, cluster = density_peaks(means, centres, min(NEIGHBOURS, centres))
                peaks, by_place = peaks.sort()
                row = by_place.argsort()[cluster]  # (still,): the row, in raster order, that each place joins
                joined = towards(means[peaks], means, row.scatter(0, peaks, -1), BETA)
                rows.join(first * tokens + alike[peaks], joined, (scene + alike).flatten(), row.repeat(end - first))
            kept = math.ceil(len(moving) * ratio) if count is None else len(moving) * count // left
            for frame in range(first, end):
                rows.keep(frame * tokens + moving[top(attention[frame, moving], kept)])
        return rows.cut(attention, count)
