"""FinalKV: after a method that cuts between layers, reduce the KV cache to the tokens that are left at the end.

Part (c) of MustDrop (Liu et al., arXiv:2411.10803), usable without its other parts.
"""

from foveate.contract import CacheStage, Layer, Method, Shape, Stage


class FinalKV(Method):
    """After the prefill, cuts the caches of earlier layers to the vision tokens that other methods keep at the end.

        V2Drop() + FinalKV()

    The prefill of the other methods does not change, bit for bit. From `first_layer` on, generated tokens attend only
    to the final vision tokens. Alone, or after methods that do not cut between layers, it does nothing.

    Attributes:
        first_layer: The first decoder layer whose cache is cut. None: the layer before the first cut, as in MustDrop.
    """

    name = "finalkv"

    first_layer: Layer | None = None

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        return (CacheStage(first_layer=self.first_layer),)
