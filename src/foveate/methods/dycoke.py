"""DyCoke, first stage: in windows of four frames, what a frame shows as an earlier one does is dropped.

Paper: Tao et al., "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models", CVPR 2025,
arXiv:2411.15024. Reads nothing but features, behind the projector.

    frame 0   stays whole
    frame 1   keeps the int((1 − k) · n) of its n tokens whose cosine with frame 0, at the same place, is lowest
    frame 2   the same, compared with frame 0
    frame 3   the same, compared with frame 2

Similar tokens are dropped, not averaged. The second stage, which picks anew in each step of decoding which vision
tokens the caches show, is not part of this.
"""

import torch
from torch import Tensor

from foveate.contract import Arriving, Framed, Positions, Share, change
from foveate.core.rank import by_quota

__all__ = ["METHOD", "DyCoke"]

WINDOW = 4


class DyCoke(Framed):
    """Drops what a frame repeats of an earlier one. A picture keeps all its tokens.

    Whole windows of four frames leave (1 + 3 (1 − k)) / 4 of a video: 47.5 % at k = 0.7. A budget is spread over the
    frames that are compared, to the token; its floor is the first frame of each window.

    Unlike the released code: the last window is compared as all others are, also where it has fewer than four frames
    (the release leaves out its last comparison, and loses the last of an odd number of frames); kept tokens stand in
    raster order (the release: in order of their cosines); k is 0.7 by default, as in the paper and its evaluation (the
    release's model builder has 0.3).

    Attributes:
        k: K, the share of a compared frame's tokens that is dropped, in [0, 1].
        retention, tokens, positions: See `Framed`; numbered anew by default, as in the release.
    """

    name = "dycoke"
    schedule = ("k",)
    usual = 0.7
    only_videos = True

    k: Share | None = None
    positions: Positions = "reindex"

    @property
    def keeps_all(self) -> bool:
        return self.k == 0 or self.retention == 1

    def own_count(self, frames: tuple[int, ...]) -> int:
        compared = len(frames) - windows(len(frames))
        return self.floor(frames) + compared * self._each(frames[0])

    def _each(self, tokens: int) -> int:
        """Tokens that a compared frame of so many keeps."""
        return int((1 - self.own) * tokens)

    def floor(self, frames: tuple[int, ...]) -> int:
        return windows(len(frames)) * frames[0]

    def flops(self, arriving: Arriving, width: int) -> int:
        """For each number 3 for its length and 3 for its difference, squared and added."""
        return 6 * width * arriving.tokens

    def select(self, features: Tensor, count: int | None) -> Tensor:
        assert count is not None
        frames, tokens, _ = features.shape
        frame = torch.arange(frames, device=features.device)
        place = frame % WINDOW
        # 0 1 2 3 4 5 are compared with – 0 0 2 – 4.
        earlier = frame - torch.where(place == 2, 2, (place > 0).long())
        likeness = -change(features, features[earlier])
        whole = windows(frames)
        each = (count - whole * tokens) / max(1, frames - whole)
        quotas = torch.where(place == 0, float(tokens), each)
        return by_quota(likeness, quotas, count)


def windows(frames: int) -> int:
    """Windows of so many frames, the last of which may have fewer than four."""
    return -(-frames // WINDOW)


DyCoke.presets = tuple(
    DyCoke.preset(f"llava-onevision-7b/{spent}", source, k=k)
    for k, spent, source in (
        (0.7, "47.5%", "paper, K = 0.7: 47.5 % of 32 frames enter the decoder"),
        (0.9, "32.5%", "derived: K = 0.9"),
        (1.0, "25%", "derived: K = 1, the first frame of each four"),
    )
)

METHOD = DyCoke
