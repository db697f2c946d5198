"""EVS, Efficient Video Sampling: drop what looks like the same place one frame earlier.

Paper: Bagrov et al., "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference",
arXiv:2510.14624. Reads nothing but features, behind the projector. Of Qwen3-VL x is what enters the decoder and, beside
it, what is added behind the first layers (deepstack), as in the serving engine.

    d_t = 1 − cos(x_t, x_{t−1}) for each token of frame t and the one at its place in the frame before

The first frame stays whole; of all others together, those with the largest d stay: max(n, int(T · n · (1 − q))) of T
frames of n tokens. The count depends on the clip's shape alone, so that a server knows it before it encodes.
"""

from torch import Tensor

from foveate.contract import Deepstack, Frames, Share
from foveate.contract.frames import change_flops
from foveate.core.rank import top


class EVS(Frames):
    """Keeps the first frame and what changes from frame to frame; whole frames may vanish. A picture keeps everything.

    As in the serving engine, a frame is compared with the one before it, not with the last one that was kept: what
    changes slowly is lost. Unlike there, cosines are computed in float32 (in the model's dtype many of them tie), and
    rounding is no change: where a place shows just what it showed before, d is exactly 0, and the lower index stays.

    Attributes:
        q: The share of a video's tokens that is dropped, in [0, 1].
        retention, tokens, positions: See `Frames`. A budget's floor is the first frame.
    """

    name = "evs"
    schedule = ("q",)
    usual = 0.75
    reads = (Deepstack(),)
    only_videos = True
    whole_at = ("q", 0)
    flops = staticmethod(change_flops)

    q: Share | None = None

    def own_count(self, frames: tuple[int, ...]) -> int:
        return max(self.floor(frames), int(sum(frames) * (1 - self.own)))

    def select(self, features: Tensor, count: int | None) -> Tensor:
        assert count is not None
        return top(self.changes(features).flatten(), count)


METHOD = EVS
