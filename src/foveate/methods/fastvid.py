"""FastVID: split a video into scenes, keep salient tokens, and merge the others into density centres of a few frames.

Paper: Shen et al., "FastVID: Dynamic Density Pruning for Fast Video Large Language Models", NeurIPS 2025,
arXiv:2503.11187. With n tokens per frame, of which m = ⌊r n⌋ are kept on average:

    scenes    cut where the cosine of neighbouring frames is below tau, and at the 7 lowest cosines
    salient   the m − ⌊0.4 m⌋ tokens of each frame with the most attention in the tower
    centres   the other ⌊0.4 m⌋ of all frames of a scene are density peaks (4 neighbours) of the tokens that are not
              salient, in every fourth frame, counted from the scene's end
    merging   in each of these frames, each token of the scene that is not salient joins the most similar centre:
              w · centre + (1 − w) · mean, w = max(1 / (joined + 1), 0.6)
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from foveate.contract import Cut, Frames, Part, Share
from foveate.core.film_scenes import FilmRows, FrameSpan, likeness, scenes
from foveate.core.merge import density_peaks, first_most, of_length_one, towards
from foveate.core.rank import share_out

SCENES, NEIGHBOURS, STEP, BETA, ALIKE = 8, 4, 4, 0.6, 0.95


class FastVID(Frames):
    """Keeps salient tokens of each frame, and merges each scene into density centres of every fourth frame.

    Attributes:
        rule: "onevision" is the rule above. With "qwen", of successive frames in a scene with a cosine of 0.95 or more,
            only the last keeps tokens, as many as all of them together. "onevision" counts a centre among the tokens
            that join it; "qwen" does not.
        tau: A scene ends where the cosine of neighbouring frames is below this: 0.9 in the code, 0.84 for Qwen2.5-VL.
        centres: Share of the kept tokens that are centres.
        keep, retention, tokens, positions: See `Frames`. With a budget, the most attended of the other tokens fill it
            up.
    """

    name = "fastvid"

    keep: Part | None = None
    rule: Literal["onevision", "qwen"] = "onevision"
    tau: Share = 0.9
    centres: Share = 0.4

    def own_count(self, frames: tuple[int, ...]) -> int | None:
        if len(frames) != 1:
            return None
        return max(1, int(frames[0] * self.own))

    def merge(self, features: Tensor, attention: Tensor, count: int | None, whole: Tensor | None = None) -> Cut:
        """Merge the film scene by scene. `whole`: the feature of each frame, (frames, width). None: its mean."""
        frames, tokens, _ = features.shape
        alike = likeness(features.mean(dim=1) if whole is None else whole).tolist()  # one host sync
        kept = int(tokens * self.own) if count is None else count // frames
        rows = FilmRows(features)
        for scene in scenes(alike, self.tau, SCENES):
            shares = self._shares(scene, alike, tokens, kept)
            inside = features[slice(*scene)].flatten(0, 1)  # (frames of the scene · tokens, width)
            ranked = attention[slice(*scene)].sort(dim=1, descending=True, stable=True).indices  # (frames, tokens)
            joins = torch.ones_like(inside[:, 0], dtype=torch.bool)
            for place, (salient, _) in enumerate(shares):
                tops = place * tokens + ranked[place, :salient].sort().values  # indices within the scene
                joins = joins.index_fill(0, tops, False)
                rows.keep(scene[0] * tokens + tops)
            for place, (salient, centres) in enumerate(shares):
                if centres:
                    rest = place * tokens + ranked[place, salient:].sort().values
                    peaks, _ = density_peaks(inside[rest], centres, NEIGHBOURS)
                    self._join(rows, scene[0] * tokens, inside, rest[peaks], joins)
        return rows.cut(attention, count)

    def _join(self, rows: FilmRows, start: int, inside: Tensor, centres: Tensor, joins: Tensor) -> None:
        """Merge the tokens of a scene into the centres of one frame. The scene's first token has the index `start`."""
        unit = of_length_one(inside, least=1e-6)
        nearest = first_most(unit @ unit[centres].T).masked_fill(~joins, -1)
        if self.rule == "qwen":
            nearest = nearest.index_fill(0, centres, -1)
        members = torch.arange(start, start + len(inside), device=inside.device)
        rows.join(start + centres, towards(inside[centres], inside, nearest, BETA), members, nearest)

    def _shares(self, scene: FrameSpan, alike: Sequence[float], tokens: int, kept: int) -> list[tuple[int, int]]:
        """Return (salient tokens, centres) of each frame of a scene."""
        first, end = scene
        total, ends = kept * (end - first), list(range(first, end))
        if self.rule == "onevision":
            each = kept - int(kept * self.centres)
            salient = each * len(ends)
            room = tokens - each
            anchors = ends[::-STEP]
            centres = (total - salient) // len(anchors) * len(anchors)
        else:
            ends = [frame for frame in ends if frame == end - 1 or alike[frame] < ALIKE]
            centres = min(total, max(int(total * self.centres), 1))
            salient = total - centres
            room = tokens if end - first == 1 else tokens // 2
            anchors = ends[::-STEP]
        few = dict(zip(anchors, share_out(centres, [total] * len(anchors)), strict=True))
        shares = dict.fromkeys(range(first, end), (0, 0))
        for frame, high in zip(ends, share_out(salient, [total] * len(ends)), strict=True):
            own = min(few.get(frame, 0), room)
            shares[frame] = min(high, tokens - own), own
        return list(shares.values())
