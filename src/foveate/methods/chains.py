"""Chains that are worth naming: reduce before the decoder, let V2Drop take the rest away late, cut the cache.

V2Drop's published cuts before layers 17 and 22 come after the layers in which a picture's content moves on to the text.
A method that has reduced the picture before layer 0 can therefore keep more tokens for those layers at the same mean.
On the embedded model they are at the top of the table at 64 tokens, but not told apart from their first method alone.
"""

from foveate.contract import Chain, Method, Preset
from foveate.methods.divprune import DivPrune
from foveate.methods.finalkv import FinalKV
from foveate.methods.scope import Scope
from foveate.methods.v2drop import V2Drop
from foveate.methods.vispruner import VisPruner

LATE = V2Drop(layers=(17, 22), keep=(0.3, 0.0))  # 110 tokens: 17 layers of 110, 5 of 33, 10 of one; 63.9 on average
HALF = V2Drop(layers=(17,), keep=(0.5,))  # 42 tokens: 17 layers of 42, 15 of 21; 32.2 on average


def _preset(name: str, *members: Method) -> Preset:
    source = "foveate's own; evidence: benchmarks/quality, on the embedded model"
    return Preset(f"chain/llava-1.5-7b/{name}", Chain.of(*members), 32, 576, source)


PRESETS = (
    _preset("64-vispruner-v2drop", VisPruner(keep=0.191), LATE),
    _preset("64-divprune-v2drop", DivPrune(keep=0.191), LATE),
    _preset("32-scope-v2drop-finalkv", Scope(keep=0.073), HALF, FinalKV()),
)
