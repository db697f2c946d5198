"""DTD, Differential Token Drop: drop what shows what its place showed one frame earlier.

Paper: Yao et al., "TimeChat-Online: 80% Visual Tokens are Naturally Redundant in Streaming Videos", ACM MM 2025,
arXiv:2504.17343. Reads nothing but features, behind the projector.

    dropped: cos(x_t, x_{t−1}) > threshold, for each token of frame t and the one at its place in the frame before

The first frame stays whole. Or, by `share`, each later frame loses ⌊share · n⌋ of its n tokens, the highest cosines.
"""

from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor

from foveate.contract import Cut, Frames, Share
from foveate.contract.frames import change_flops
from foveate.core.rank import by_quota, top


class DTD(Frames):
    """Keeps the first frame, and of each later one what changes. A picture keeps everything.

    The video decides how many stay, unless `share` or a budget does. A budget moves the threshold until the count is
    met, which is EVS. The released code's other mode, which compares pixels, is not built. Unlike there, a frame is
    one of the video's, not all that has one time id, and places that are equal tie: the lower index stays.

    Attributes:
        threshold: The cosine above which a token leaves, in [−1, 1]; usually 0.5.
        share: Instead of it: the share of each later frame's tokens that leaves, in [0, 1].
        retention, tokens, positions: See `Frames`. A budget's floor is the first frame.

    Raises:
        SettingError: If threshold and share are both given.
    """

    name = "dtd"
    schedule = ("threshold", "share")
    only_one = True
    usual = 0.5
    only_videos = True
    whole_at = ("share", 0)
    flops = staticmethod(change_flops)

    threshold: Annotated[float, Ge(-1), Le(1)] | None = None
    share: Share | None = None

    def own_count(self, frames: tuple[int, ...]) -> int | None:
        if self.share is None:
            return None
        first, *later = frames
        if self.before(first) is not None:
            first -= int(first * self.share)
        return first + sum(tokens - int(tokens * self.share) for tokens in later)

    def select(self, features: Tensor, count: int | None) -> Tensor | Cut:
        differences = self.changes(features)
        if count is None:
            return Cut.keep((differences >= 1 - self.own).flatten())
        if self.share is None:
            return top(differences.flatten(), count)
        frames, tokens = differences.shape
        quotas = differences.new_full((frames,), tokens - int(tokens * self.share))
        if self.before(tokens) is None:
            quotas[0] = tokens
        return by_quota(-differences, quotas, count)


METHOD = DTD
