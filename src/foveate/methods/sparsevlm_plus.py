"""SparseVLM+: SparseVLM without its bias towards tokens near the text, and only with heads that attend to the image.

Paper: Zhang et al., "SparseVLM+: Visual Token Sparsification with Improved Text-Visual Attention Pattern", 2025. Built
from the released code (USE_VERSION=2_0), as the paper was not at hand.

Raters are those of SparseVLM. RoPE lets attention fall with distance, so the last rows of an image, next to the text,
tend to be rated higher. Let r(p, j) be the product of two vectors of ones, rotated by RoPE to the positions of p and j,
divided by that product at equal positions. Behind layer l, for each head h

    a_h(p, j) = A_l,h[p, j] / max(0.05, r(p, j))        of rater p and vision token j; A is after the softmax

and s_j = mean over raters and over the heads H of a_h(p, j), where H are the 14 heads, or half of all heads, with the
largest Σ_p Σ_j a_h(p, j). The n_l tokens with the largest s stay. Nothing is recycled, and positions are kept.
"""

from typing import Annotated

from annotated_types import Ge

from foveate.contract import Attention, Signal
from foveate.methods.sparsevlm import Rated


class SparseVLMPlus(Rated):
    """Cuts three times by the attention of the words that resemble the image, corrected for their distance.

    This is the later version (2.0) of `SparseVLM`; see there for raters. The divisor is at least 0.05, because the
    code's product changes its sign far from the text.

    Attributes:
        targets: Tokens that each cut leaves. By default the code's list for 192, whose true mean is 206.75.
        heads: How many heads, the most attentive ones, rate the tokens. None: half of them. The code has 14, even for
            LLaVA-1.5-7B's 32 heads.
        pruning_layers, reference, retention, tokens: See `Rated`.
        positions: See `Rated`. The code keeps positions. With "reindex" the distances between the remaining tokens
            shrink.

    Raises:
        SettingError: If the lists differ in length.
        UnsupportedError: When a model runs whose decoder applies RoPE in a way that foveate does not know.
    """

    name = "sparsevlm_plus"
    usual_keep = (300, 200, 118)

    heads: Annotated[int, Ge(1)] | None = None

    @property
    def reads(self) -> tuple[Signal, ...]:  # type: ignore[override]  # depends on settings
        return (Attention(rows="raters", heads="busiest", over="mean", without_distance=True, busiest=self.heads),)
