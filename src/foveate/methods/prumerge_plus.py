"""PruMerge+: PruMerge, and tokens at even steps besides the outliers, so that no part of the picture is left out.

Paper: see `foveate.methods.prumerge`. With the share r of the patches that are outliers, the patches 0, s, 2s, … below
N − 1 stay too, s = ⌊⌊1 / r⌋ / 3⌋: about three times as many again. They stand behind the outliers, in raster order.

With a budget (ours) the number by score is the one from which that rule, with a step of at least 1, is expected to come
nearest to the count; steps too many go from the end, and what is missing is filled up by score.
"""

from foveate.methods.prumerge import PruMerge, presets

__all__ = ["METHOD", "PruMergePlus"]


class PruMergePlus(PruMerge):
    """As PruMerge, with tokens at even steps besides the outliers.

    Attributes:
        neighbours, retention, tokens, positions: See `PruMerge`.
    """

    name = "prumerge_plus"
    spatial = True


PruMergePlus.presets = presets(PruMergePlus)

METHOD = PruMergePlus
