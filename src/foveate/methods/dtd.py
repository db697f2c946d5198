"""DTD, Differential Token Drop: drop tokens that show the same as the token at their place one frame earlier.

Paper: Yao et al., "TimeChat-Online: 80% Visual Tokens are Naturally Redundant in Streaming Videos", ACM MM 2025,
arXiv:2504.17343. Reads only features, after the projector.

    dropped if cos(x_t, x_{t−1}) > threshold, for each token of frame t and the token at its place in frame t − 1

The first frame is kept whole. With `share`, each later frame instead loses the ⌊share · n⌋ of its n tokens that have
the highest cosine.
"""

from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor

from foveate.contract import Cut, Frames, Share
from foveate.core.rank import by_quota, top


class DTD(Frames):
    """Keeps the first frame, and the tokens of each later frame that changed. An image keeps all its tokens.

    The video decides how many tokens stay, unless `share` or a budget does. A budget moves the threshold until the
    count is met, as EVS does, which also compares deepstack features. The released code's second mode, which compares
    pixels, is not implemented. Here a frame is one frame of the video; in the release it is everything with one time
    id. Tokens with equal cosines tie, and the lower index stays.

    Attributes:
        threshold: Tokens whose cosine is above this are dropped, in [−1, 1]; usually 0.5.
        share: Instead of `threshold`: the share of each later frame's tokens that is dropped, in [0, 1].
        retention, tokens, positions: See `Frames`. The smallest possible budget is the first frame.

    Raises:
        SettingError: If both threshold and share are given.
    """

    name = "dtd"
    schedule = ("threshold", "share")
    only_one = True
    usual = 0.5
    only_videos = True
    whole_at = ("share", 0)

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
