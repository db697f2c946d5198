"""FastVID: a film is cut into scenes; salient tokens stay, and the others go into density centres of a few frames.

Paper: Shen et al., "FastVID: Dynamic Density Pruning for Fast Video Large Language Models", NeurIPS 2025,
arXiv:2503.11187. With n tokens a frame, of which m = ⌊r n⌋ are kept on average:

    scenes    cut where the cosine of neighbouring frames is below tau, and at the 7 lowest
    salient   of each frame the tokens with the most attention in the tower: m − ⌊0.4 m⌋
    centres   the other ⌊0.4 m⌋ of all frames of a scene are density peaks (4 neighbours) of the tokens that are not
              salient, in every fourth frame, counted from the scene's end
    merging   each token of the scene that is not salient joins the centre most like it in each of these frames:
              w · centre + (1 − w) · mean, w = max(1 / (joined + 1), 0.6)
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from foveate.contract import Arriving, Cut, Frames, Part, Share
from foveate.core.films import FilmRows, Scene, likeness, scenes
from foveate.core.merge import density_peaks, first_most, of_length_one, towards
from foveate.core.rank import shared_out

SCENES, NEIGHBOURS, STEP, BETA, ALIKE = 8, 4, 4, 0.6, 0.95


class FastVID(Frames):
    """Salient tokens of each frame, and density centres of every fourth one into which its scene is merged.

    Attributes:
        rule: "onevision", as above; or "qwen": of frames that follow one another within a scene, cosine 0.95 or more,
            the last alone keeps tokens, those of all of them. The first counts a centre among those that join it.
        tau: The cosine of neighbouring frames below which a scene ends: the code's 0.9, for Qwen2.5-VL 0.84.
        centres: The share of what is kept that are centres.
        keep, retention, tokens, positions: See `Frames`. With a budget the most attended of the others fill up.
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

    def flops(self, arriving: Arriving, width: int) -> int:
        """The distances in every fourth frame, and each token's cosines with the centres of one."""
        frames = arriving.frames or (arriving.tokens,)
        return 2 * width * frames[0] * (len(frames) // STEP + 1) * frames[0]

    def merge(self, features: Tensor, attention: Tensor, count: int | None, whole: Tensor | None = None) -> Cut:
        """`whole` is the feature of each frame, (frames, width); None: the mean of its tokens."""
        frames, tokens, _ = features.shape
        alike = likeness(features.mean(dim=1) if whole is None else whole).tolist()  # the host waits once
        kept = int(tokens * self.own) if count is None else count // frames
        rows = FilmRows(features)
        for scene in scenes(alike, self.tau, SCENES):
            shares = self._shares(scene, alike, tokens, kept)
            inside = features[slice(*scene)].flatten(0, 1)  # the scene's tokens
            ranked = attention[slice(*scene)].sort(dim=1, descending=True, stable=True).indices
            joins = torch.ones_like(inside[:, 0], dtype=torch.bool)
            for place, (salient, _) in enumerate(shares):
                tops = place * tokens + ranked[place, :salient].sort().values
                joins[tops] = False
                rows.keep(scene[0] * tokens + tops)
            for place, (salient, centres) in enumerate(shares):
                if centres:
                    rest = place * tokens + ranked[place, salient:].sort().values
                    peaks, _ = density_peaks(inside[rest], centres, NEIGHBOURS)
                    self._join(rows, scene[0] * tokens, inside, rest[peaks], joins)
        return rows.cut(attention, count)

    def _join(self, rows: FilmRows, start: int, inside: Tensor, centres: Tensor, joins: Tensor) -> None:
        """Let the tokens of a scene join the centres of one frame; its first token is `start` in the film."""
        unit = of_length_one(inside, least=1e-6)
        nearest = first_most(unit @ unit[centres].T).masked_fill(~joins, -1)
        if self.rule == "qwen":
            nearest[centres] = -1
        members = torch.arange(start, start + len(inside), device=inside.device)
        rows.join(start + centres, towards(inside[centres], inside, nearest, BETA), members, nearest)

    def _shares(self, scene: Scene, alike: Sequence[float], tokens: int, kept: int) -> list[tuple[int, int]]:
        """How many tokens of each frame of a scene are salient, and how many centres."""
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
        few = dict(zip(anchors, shared_out(centres, [total] * len(anchors)), strict=True))
        shares = dict.fromkeys(range(first, end), (0, 0))
        for frame, high in zip(ends, shared_out(salient, [total] * len(ends)), strict=True):
            own = min(few.get(frame, 0), room)
            shares[frame] = min(high, tokens - own), own
        return list(shares.values())


METHOD = FastVID
