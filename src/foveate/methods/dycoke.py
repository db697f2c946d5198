"""DyCoke: drop what a frame repeats of an earlier one, and let decode steps read only a share of what is left.

Paper: Tao et al., "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models", CVPR 2025,
arXiv:2411.15024.

First stage, in windows of four frames. It reads only features, after the projector:

    frame 0   is kept whole
    frame 1   keeps the int((1 − k) · n) of its n tokens with the lowest cosine to frame 0 at the same place
    frame 2   as frame 1, compared with frame 0
    frame 3   as frame 1, compared with frame 2

Similar tokens are dropped, not averaged.

Second stage, in each decode step: a is the attention, mean over heads, that the new token pays to the n cached vision
tokens in layer L − 1. If the cosine of a with that of the previous step is below 0.9, layers from L on read the
int((1 − P) · n) tokens with the largest a. Otherwise they read the tokens of the previous step.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from foveate.contract import Arriving, Cut, DecodeStage, Frames, Layer, Positions, ReadView, Shape, Share, Stage, change
from foveate.core.rank import by_quota, top
from foveate.core.signals import CachedAttention

WINDOW = 4
ALIKE = 0.9


class DyCoke(Frames):
    """Drops what a frame repeats of an earlier one; with `p`, decode steps read fewer tokens. Images keep all tokens.

    Full windows of four frames leave (1 + 3 (1 − k)) / 4 of a video: 47.5 % at k = 0.7. A budget is spread exactly over
    the compared frames. Its floor is the first frame of each window.

    Differences in the first stage: the last window is compared like all others, even with fewer than four frames (the
    release skips its last comparison and loses the last frame of an odd number). Kept tokens are in raster order (in
    the release, in the order of their cosines). k defaults to 0.7, as in the paper and its evaluation (0.3 in the
    release's model builder). The second stage is off by default: it saves no memory, and it applies to images too. P is
    0.7 in the paper. The release always reads the last vision token; here it is treated like the others.

    Attributes:
        k: K, the share of a compared frame's tokens that is dropped, in [0, 1].
        p: P, the share of the cached vision tokens that a decode step does not read, in [0, 1]; 0 reads all.
        layer: L, the first decoder layer that reads less, from 1 on.
        above: What a step reads if its attention is similar to that of the previous step: "reuse" the same tokens, as
            in the paper, or "all", as the release does. "all" causes a host sync in each step.
        retention, tokens, positions: See `Frames`. Positions are renumbered by default, as in the release.
    """

    name = "dycoke"
    schedule = ("k",)
    usual = 0.7
    only_videos = True
    whole_at = ("k", 0)

    k: Share | None = None
    p: Share = 0.0
    layer: Layer = 3
    above: Literal["reuse", "all"] = "reuse"
    positions: Positions = "reindex"

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        stages = super().stages(shape)
        if self.p == 0:
            return stages
        paid = (CachedAttention(),)
        if self.above == "all":
            return (*stages, DecodeStage(self.layer, when="step", reads=paid, choose=self._best_or_all))
        return (*stages, DecodeStage(self.layer, when="step", reads=paid, count=self._read, choose=read_again))

    def _read(self, arriving: Arriving) -> int:
        """The number of vision tokens that a decode step reads."""
        return int(arriving.tokens * (1 - self.p))

    def _best_or_all(self, view: ReadView, count: int | None) -> Cut | None:
        if is_alike(view):
            return None
        return Cut.take(top(view.attention, self._read(view.arriving)), len(view))

    def own_count(self, frames: tuple[int, ...]) -> int:
        compared = len(frames) - windows(len(frames))
        return self.floor(frames) + compared * int((1 - self.own) * frames[0])

    def floor(self, frames: tuple[int, ...]) -> int:
        return windows(len(frames)) * frames[0]

    def select(self, features: Tensor, count: int | None) -> Tensor:
        assert count is not None
        frames, tokens, _ = features.shape
        frame = torch.arange(frames, device=features.device)
        place = frame % WINDOW
        # Frames 0 1 2 3 4 5 are compared with frames – 0 0 2 – 4.
        earlier = frame - torch.where(place == 2, 2, (place > 0).long())
        likeness = -change(features, features[earlier])
        first = windows(frames)
        each = (count - first * tokens) / max(1, frames - first)
        quotas = torch.where(place == 0, float(tokens), each)  # (frames,): first frames of a window keep all
        return by_quota(likeness, quotas, count)


def windows(frames: int) -> int:
    """The number of windows of four in `frames` frames. The last may have fewer than four."""
    return -(-frames // WINDOW)


def is_alike(view: ReadView) -> Tensor:
    """Tell if the new token's attention is similar to that of the token before it. A bool tensor without dimensions."""
    return cosine_similarity(view.attention, view.attention_before, dim=0) >= ALIKE


def read_again(view: ReadView, count: int | None) -> Cut:
    """Read the previous step's tokens if the attention is similar, else the tokens with the most attention."""
    assert count is not None
    best, before = top(view.attention, count), top(view.read_before.float(), count)
    return Cut.take(torch.where(is_alike(view), before, best), len(view))
