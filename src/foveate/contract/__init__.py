"""The public interface for writing a method.

from foveate.contract import LayerStage, LayerView, Method, Share, Shape, Stage

`name as name` marks a re-export.
"""

from foveate.contract.budget import check_depth as check_depth, half_up as half_up
from foveate.contract.cuts import Cuts as Cuts, attended as attended, highest as highest
from foveate.contract.frames import Frames as Frames, change as change, changes as changes
from foveate.contract.method import Chain as Chain, Method as Method, Preset as Preset
from foveate.contract.once import Once as Once, merging_stage as merging_stage
from foveate.contract.settings import (
    Count as Count,
    Counts as Counts,
    FallingShares as FallingShares,
    Layer as Layer,
    Layers as Layers,
    Part as Part,
    Positions as Positions,
    Share as Share,
    Shares as Shares,
    Tokens as Tokens,
    Unit as Unit,
)
from foveate.contract.stages import (
    CacheStage as CacheStage,
    DecodeStage as DecodeStage,
    ImageStage as ImageStage,
    LayerStage as LayerStage,
    PatchStage as PatchStage,
    PixelStage as PixelStage,
    Place as Place,
    Shape as Shape,
    Stage as Stage,
    ThinStage as ThinStage,
    TowerStage as TowerStage,
)
from foveate.core.cut import Cut as Cut
from foveate.core.reading import LayerReader as LayerReader, LayerRows as LayerRows, Signal as Signal
from foveate.core.signals import (
    Attention as Attention,
    CachedAttention as CachedAttention,
    Cells as Cells,
    Cls as Cls,
    Columns as Columns,
    Deepstack as Deepstack,
    Features as Features,
    Hidden as Hidden,
    KeyNorms as KeyNorms,
    Keys as Keys,
    Normed as Normed,
    OwnSignal as OwnSignal,
    Pivots as Pivots,
    Products as Products,
    Resource as Resource,
    Rotary as Rotary,
    Text as Text,
    TowerAttention as TowerAttention,
    TowerKeys as TowerKeys,
    ValueLikeness as ValueLikeness,
)
from foveate.core.units import Arriving as Arriving
from foveate.core.views import (
    ImageView as ImageView,
    LayerView as LayerView,
    PatchView as PatchView,
    PixelView as PixelView,
    ReadView as ReadView,
    View as View,
)
