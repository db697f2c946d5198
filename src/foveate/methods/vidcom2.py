"""VidCom2: give unique frames more tokens; in each frame keep the tokens least similar to the video and to the frame.

Paper: Liu et al., "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models",
EMNLP 2025, arXiv:2505.14454. Reads only features, neither attention nor the question.

    x̂   features after the projector, on the half of the channels that vary least over the video, at length one
    g   the kernel score Σ_a exp(−‖x̂ − mean‖² / 2a) for a = 1/8, 1/4, 1/2, 1, 2: high means similar to the mean
    s   g with the mean over the video, plus g with the mean over the token's frame
    p   softmax over frames f of u_f / 0.01, where u_f = −mean over f's tokens of the first g
    k_f = max(1, round(min(1, R · (1 + p_f − 1/F)) · n)) of a frame's n tokens stay: those with the lowest s
"""

import torch
from torch import Tensor

from foveate.contract import Cut, Frames, Part
from foveate.core.merge import of_length_one
from foveate.core.rank import by_quota, ranks

WIDTHS = tuple(2.0**power for power in range(-3, 2))  # the kernels' a
TEMPERATURE = 0.01


class VidCom2(Frames):
    """Gives more tokens to frames unlike the rest of the video, and keeps the least redundant tokens of each frame.

    With `keep` the total follows the paper's rule, so it depends on the video. A budget is met exactly, shared among
    frames by largest remainders in the same proportions.

    Attributes:
        keep: R, the share of the tokens to keep, in (0, 1]; 1 keeps every token. By default a quarter, as in the paper.
        retention, tokens, positions: See `Frames`.
    """

    name = "vidcom2"

    keep: Part | None = None

    def own_count(self, frames: tuple[int, ...]) -> int | None:
        if len(frames) != 1:
            return None
        return max(1, round(self.own * frames[0]))

    def select(self, features: Tensor, count: int | None) -> Tensor | Cut:
        frames, tokens, _ = features.shape
        like_video, like_frame = redundancy(features)
        uniqueness = -like_video.mean(dim=1)  # (frames,)
        weights = 1 + torch.softmax(uniqueness / TEMPERATURE, dim=0) - 1 / frames
        scores = like_video + like_frame
        if count is None:
            quotas = (self.own * weights).clamp(max=1) * tokens
            stays = ranks(-scores) < quotas.round().clamp(min=1)[:, None]  # (frames, tokens)
            return Cut.keep(stays.flatten())
        return by_quota(scores, weights * (count / frames), count, least=1)


def redundancy(features: Tensor) -> tuple[Tensor, Tensor]:
    """Similarity of each token to the whole video, and to its frame: the kernel scores, high is redundant.

    Shapes: (frames, tokens of each, width) float32 -> (frames, tokens of each) twice.
    """
    tokens = features.flatten(0, 1)
    spread = tokens.var(dim=0, correction=0)
    steady = torch.sort(spread, stable=True).indices[: max(1, len(spread) // 2)]
    steady_features = features[..., steady]
    unit = of_length_one(steady_features)
    # The means are not normalised: the more similar the tokens, the longer their mean.
    frame_mean = unit.mean(dim=1, keepdim=True)
    video_mean = frame_mean.mean(dim=0, keepdim=True)
    return _kernel(unit - video_mean), _kernel(unit - frame_mean)


def _kernel(difference: Tensor) -> Tensor:
    """Σ_a exp(−d² / 2a) of differences (…, size) -> (…)."""
    squared = difference.square().sum(dim=-1)
    return torch.stack([torch.exp(-squared / (2 * width)) for width in WIDTHS]).sum(dim=0)
