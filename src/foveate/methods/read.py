"""Read: while an answer is generated, each layer reads the cached vision tokens that the question attends to.

Nothing leaves the caches, so the next question may read others. Quest (Tang et al., ICML 2024, arXiv:2406.10774) reads
pages of a cache by the query of each step; here it is single vision tokens, once a turn, by the whole question.
"""

from foveate.contract import CachedAttention, DecodeStage, Layer, Method, Shape, Share, Stage, attended


class Read(Method):
    """Drops nothing: steps of decoding read a share of the cached vision tokens, by the question.

        VisionZip() + Read(keep=0.3)

    The prompt itself, and so the first token of an answer, reads everything. Text and generated tokens are always read.

    Attributes:
        keep: Share of the vision tokens in a layer's cache that steps read, in [0, 1]; one at least.
        layer: The first decoder layer that may read less.
    """

    name = "read"

    keep: Share = 0.2
    layer: Layer = 0

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        return (DecodeStage(self.layer, reads=(CachedAttention(),), keep=self.keep, score=attended),)
