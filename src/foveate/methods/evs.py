"""EVS, Efficient Video Sampling: drop tokens that look like the token at their place one frame earlier.

Paper: Bagrov et al., "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference",
arXiv:2510.14624. Reads only features, after the projector. For Qwen3-VL, x is the decoder's input together with the
features added after the first layers (deepstack), as in vLLM's own EVS.

    d_t = 1 − cos(x_t, x_{t−1}) for each token of frame t and the token at its place in frame t − 1

The first frame is kept whole. Of all other frames together, the tokens with the largest d stay. In total these are
max(n, int(T · n · (1 − q))) tokens, for T frames of n tokens. This count depends only on the clip's shape, so a server
knows it before it encodes the clip.
"""

from torch import Tensor

from foveate.contract import Deepstack, Frames, Share
from foveate.core.rank import top


class EVS(Frames):
    """Keeps the first frame and what changes from frame to frame. An image keeps all its tokens.

    Whole frames may be dropped. As in vLLM's own EVS, a frame is compared with the frame before it, not with the
    last one kept, so slow changes are lost. Unlike there, cosines are computed in float32, because many tie in the
    model's dtype. Rounding does not count as a change: if a place did not change at all, d is exactly 0, and the lower
    index stays.

    Attributes:
        q: The share of a video's tokens that is dropped, in [0, 1].
        retention, tokens, positions: See `Frames`. The smallest possible budget is the first frame.
    """

    name = "evs"
    schedule = ("q",)
    usual = 0.75
    reads = (Deepstack(),)
    only_videos = True
    whole_at = ("q", 0)

    q: Share | None = None

    def own_count(self, frames: tuple[int, ...]) -> int:
        return max(self.floor(frames), int(sum(frames) * (1 - self.own)))

    def select(self, features: Tensor, count: int | None) -> Tensor:
        assert count is not None
        return top(self.changes(features).flatten(), count)
