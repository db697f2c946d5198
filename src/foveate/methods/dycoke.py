"""DyCoke: what a frame shows as an earlier one does is dropped, and steps of decoding read a share of what is left.

Paper: Tao et al., "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models", CVPR 2025,
arXiv:2411.15024.

First stage, in windows of four frames. It reads nothing but features, behind the projector:

    frame 0   stays whole
    frame 1   keeps the int((1 − k) · n) of its n tokens whose cosine with frame 0, at the same place, is lowest
    frame 2   the same, compared with frame 0
    frame 3   the same, compared with frame 2

Similar tokens are dropped, not averaged.

Second stage, in each step of decoding: a is the attention that the new token pays to the n cached vision tokens in
layer L − 1, mean over heads. Where its cosine with that of the step before is below 0.9, the layers from L on read the
int((1 − P) · n) tokens with the largest a; else what they read before.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from foveate.contract import Arriving, Cut, DecodeStage, Frames, Layer, Positions, ReadView, Shape, Share, Stage, change
from foveate.contract.frames import change_flops
from foveate.core.rank import by_quota, top
from foveate.core.signals import CachedAttention

WINDOW = 4
ALIKE = 0.9


class DyCoke(Frames):
    """Drops what a frame repeats of an earlier one; with `p`, steps read less. Pictures stay whole.

    Whole windows of four frames leave (1 + 3 (1 − k)) / 4 of a video: 47.5 % at k = 0.7. A budget is spread over the
    frames that are compared, to the token; its floor is the first frame of each window.

    Unlike the released code: the last window is compared as all others are, also where it has fewer than four frames
    (the release leaves out its last comparison, and loses the last of an odd number of frames); kept tokens stand in
    raster order (the release: in order of their cosines); k is 0.7 by default, as in the paper and its evaluation (the
    release's model builder has 0.3). The second stage is off by default: it saves no memory, and reads what a picture
    shows too (P is 0.7 in the paper). The release leaves the last vision token out of it, which is always read there.

    Attributes:
        k: K, the share of a compared frame's tokens that is dropped, in [0, 1].
        p: P, the share of the cached vision tokens that a step does not read, in [0, 1]; 0 reads all.
        layer: L, the first decoder layer that reads less, from 1 on.
        above: What is read where a step's attention is like that of the step before: "reuse" what was read then, as in
            the paper; "all", as the release does. "all" waits for the device in each step.
        retention, tokens, positions: See `Frames`; numbered anew by default, as in the release.
    """

    name = "dycoke"
    schedule = ("k",)
    usual = 0.7
    only_videos = True
    whole_at = ("k", 0)
    flops = staticmethod(change_flops)

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
            return (*stages, DecodeStage(self.layer, when="step", reads=paid, choose=self._best_or_all, host=True))
        return (*stages, DecodeStage(self.layer, when="step", reads=paid, count=self._read, choose=read_again))

    def _read(self, arriving: Arriving) -> int:
        """Vision tokens that a step reads."""
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
        # 0 1 2 3 4 5 are compared with – 0 0 2 – 4.
        earlier = frame - torch.where(place == 2, 2, (place > 0).long())
        likeness = -change(features, features[earlier])
        first = windows(frames)
        each = (count - first * tokens) / max(1, frames - first)
        quotas = torch.where(place == 0, float(tokens), each)
        return by_quota(likeness, quotas, count)


def windows(frames: int) -> int:
    """Windows of so many frames, the last of which may have fewer than four."""
    return -(-frames // WINDOW)


def is_alike(view: ReadView) -> Tensor:
    """Whether the new token attends as the one before it did, a bool tensor without dimensions."""
    return cosine_similarity(view.attention, view.attention_before, dim=0) >= ALIKE


def read_again(view: ReadView, count: int | None) -> Cut:
    """What was read before where the attention is alike, else the tokens with most attention."""
    assert count is not None
    best, before = top(view.attention, count), top(view.read_before.float(), count)
    return Cut.take(torch.where(is_alike(view), before, best), len(view))


METHOD = DyCoke
