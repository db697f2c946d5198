"""Read: during decoding, each layer reads only the cached vision tokens that the question attends to.

Nothing is removed from the caches, so the next question may read other tokens. Quest (Tang et al., ICML 2024,
arXiv:2406.10774) reads pages of a cache by the query of each step. Here it is single vision tokens, once a turn, by the
whole question.
"""

from foveate.contract import CachedAttention, DecodeStage, Layer, Method, Shape, Share, Stage, attended


class Read(Method):
    """Drops nothing: decode steps read a share of the cached vision tokens, chosen by the question.

        VisionZip() + Read(keep=0.3)

    The prompt itself, and so the first token of an answer, reads everything. Text and generated tokens are always read.

    Attributes:
        keep: Share of the vision tokens in a layer's cache that decode steps read, in [0, 1]; at least one token.
        layer: The first decoder layer that may read less.
    """

    name = "read"

    keep: Share = 0.2
    layer: Layer = 0

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        return (DecodeStage(self.layer, reads=(CachedAttention(),), keep=self.keep, score=attended),)
