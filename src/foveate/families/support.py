"""Support: what a method does on a family, derived from its stages, without a model or a hand-written table."""

from collections.abc import Callable, Sequence
from typing import Any

from foveate.contract import follow
from foveate.contract.method import Method
from foveate.contract.stages import WAYS, PatchStage, PixelStage, Place, Shape, Stage, ThinStage, TowerStage
from foveate.core import signals
from foveate.core.signals import (
    Attention,
    CachedAttention,
    Cls,
    Deepstack,
    Features,
    OwnSignal,
    Resource,
    Signal,
    TowerSignal,
)
from foveate.core.views import Arriving
from foveate.families.base import Family

SERVED: tuple[type[Signal], ...] = tuple(
    kind for kind in vars(signals).values() if isinstance(kind, type) and "kind" in vars(kind)
)
"""foveate's own signals."""
USUAL = Arriving(576, 576, 576, grids=((24, 24),))  # an image of LLaVA-1.5, for which the table is computed
FILM = Arriving(1024, 1024, 1024, grids=((16, 16),) * 4, video=True)
DEPTH = 32


def refusal(
    stages: Sequence[Stage],
    lacks: Callable[[Signal], str | None],
    kind: type[Family] | None = None,
) -> str | None:
    """The reason why the engine does not run these stages, as the end of a sentence ("reads …"). None if it runs them.

    Args:
        stages: In order.
        lacks: Returns why the model has no such signal, or None if it has it.
        kind: The family. None: a host that runs the tower itself.
    """
    by_pixels = any(isinstance(stage, PatchStage) for stage in stages)
    returns = by_pixels and kind is not None and not kind.defines("encode_subset")
    needed = "this host runs the tower itself" if kind is None else kind.needs_all_rows
    if returns and kind is not None and not kind.defines("block"):
        needed = needed or "how it cuts pictures into patches is not known"
    if returns and needed is not None:
        return f"drops patches before the vision tower, which here needs all of them: {needed}."
    for stage in stages:
        reason = _refusal_of(stage, lacks)
        if reason is not None:
            return reason
    for place in (Place.PIXELS, Place.TOWER, Place.DECODE):
        kinds = [type(stage).__name__ for stage in stages if stage.place is place]
        if len(kinds) > 1:
            named = "s and ".join(dict.fromkeys(kinds))
            return f"has {len(kinds)} {named}s, and the engine runs one. Do all in one stage, or leave all but one out."
    thins = [stage for stage in stages if isinstance(stage, ThinStage)]
    if thins:
        if returns:
            return "drops patches before the tower and lets rows leave inside it; the engine does one of the two."
        reason = _refusal_of_thinning(stages, needed)
        if reason is not None:
            return reason
        stages = [stage for stage in stages if stage is not thins[0]]  # it does not affect the other stages
    reason = _refusal_of_bias(stages, kind)
    if reason is not None:
        return reason
    early = [stage.place for stage in stages if stage.place < Place.LAYER]
    if Place.PIXELS in early and (Place.TOWER in early or Place.BEFORE_PROJECTOR in early):
        return "cuts before the tower and in it; the engine cannot do both in one pass. Drop between layers instead."
    reading = follow.reading(stages)
    late = [layer for layer in follow.cut_layers(stages) if reading is not None and layer >= reading.layer]
    if reading is None or reading.when == "turn" or not late:
        return None
    return (
        f"picks in each step what all layers from {reading.layer} on read, but also drops before layer {late[0]}, so "
        "these layers hold different tokens. Drop before earlier layers, or read from a later layer on."
    )


def _refusal_of_thinning(stages: Sequence[Stage], needs_all_rows: str | None) -> str | None:
    """The reason why blocks of the tower do not run on fewer rows, although one of these stages requires it."""
    what = "lets rows leave inside the vision tower"
    if needs_all_rows is not None:
        return f"{what}, which here needs all of them: {needs_all_rows}. Leave thintower out."
    reads = [signal for stage in stages for signal in stage.reads if isinstance(signal, TowerSignal)]
    if reads:
        return (
            f"{what}, and also reads {reads[0]!r} there, which would have only the rows that stay. Use a method that "
            "reads no attention or keys of the tower (VidCom2, DivPrune), or leave thintower out."
        )
    return None


def _refusal_of_bias(stages: Sequence[Stage], kind: type[Family] | None) -> str | None:
    """The reason why nothing can be added to the logits of keys, although one of these stages does so."""
    layers = follow.layer_stages(stages)
    first = min((stage.layer for stage in layers if stage.bias), default=None)
    if first is None:
        return None
    what = f"adds to the logits of keys from layer {first} on"
    if kind is None:
        return f"{what}, which this host cannot. Leave bias out."
    read = [signal for stage in layers if stage.layer > first for signal in stage.reads]
    reads = [signal for signal in read if isinstance(signal, Attention) or not isinstance(signal, SERVED)]
    if reads or follow.reading(stages) is not None:
        return f"{what}, but attention that is read there would be without. Read it in earlier layers."
    return None


def _refusal_of(stage: Stage, lacks: Callable[[Signal], str | None]) -> str | None:
    """The reason why the engine does not run this stage, whatever the other stages are."""
    for signal in stage.reads:
        reader, *places = reader_of(signal)
        kind = "a value of a decoder layer" if isinstance(signal, OwnSignal) else "it"
        reason: str | None = f"{type(stage).__name__} cannot read {kind}: use {reader}"
        if Place.LAYER not in places:
            reason = f"{reason}; in a Cuts or a Once, override steps"
        if not isinstance(signal, SERVED) and not signal.can_be_read():
            reason = "it does not say how it is read"
        elif stage.place in places:
            reason = lacks(signal)
        if reason is not None:
            return f"reads {signal}: {reason}."
    ways = [way for way in WAYS if getattr(stage, way) is not None]
    if isinstance(stage, PixelStage) and ways:
        return f"has a PixelStage with a {ways[0]}, but there are no tokens yet. Use only coarsen."
    if isinstance(stage, PatchStage | TowerStage) and stage.look is not None:
        return f"has a {type(stage).__name__} with a look, whose notes would be lost. Use score, pick or choose."
    if isinstance(stage, ThinStage):
        return None
    if isinstance(stage, TowerStage) and stage.block < 1:
        return f"cuts in the tower before block {stage.block}, but the engine only before block 1 or a later one."
    return None


def reader_of(signal: Signal) -> tuple[Any, ...]:
    """The stage that reads a signal, as an author writes it, and its places.

    Patches before the tower and in it are seen without a signal.
    """
    if isinstance(signal, CachedAttention):
        return "DecodeStage", Place.DECODE
    if isinstance(signal, TowerSignal | Cls | Deepstack):
        return "ImageStage", Place.BEFORE_PROJECTOR, Place.BEHIND_PROJECTOR
    if isinstance(signal, Features) or (isinstance(signal, Resource) and signal.of == "features"):
        return 'ImageStage(side="before")', Place.BEFORE_PROJECTOR
    return "LayerStage", Place.LAYER


def usual_input(kind: type[Family], modality: str) -> Arriving:
    """An image or a video as a family's stages see it. `tiled` families treat each frame of a video as an image."""
    if modality == "video" and not kind.tiled:
        return FILM
    return USUAL


def reach(
    method: Method, kind: type[Family], config: Any = None, *, depth: int = DEPTH, arriving: Arriving = USUAL
) -> list[str] | str:
    """The places where a method drops tokens of this family, or may drop them, sorted; or a text: why it is refused.

    Places are "pixels", "tower", "projector", "layer" and "kv", as in a trace, and "read", where tokens are cached but
    not read. Whether tokens are dropped there may depend on the image or the question.

    Args:
        method: The method, with its settings.
        kind: The family.
        config: The model's config. Without it, if towers of the family may have a CLS or none, the places are those of
            both, and a method is refused only if both refuse it.
        depth: Number of decoder layers.
        arriving: An image or a video; see `usual_input`.
    """
    cls = kind.cls_in_tower(config)
    results = [_reach(method, kind, own, depth, arriving) for own in ((True, False) if cls is None else (cls,))]
    served = [places for places in results if not isinstance(places, str)]
    return sorted(set().union(*served)) if served else str(results[-1])


def _reach(method: Method, kind: type[Family], cls: bool, depth: int, arriving: Arriving) -> set[str] | str:
    stages = method.placed(Shape(depth, cls=cls, renumbers=kind.renumbers))
    reason = refusal(stages, lambda signal: kind.lacking(signal, cls), kind)
    early = {stage.place for stage in stages if stage.place < Place.LAYER and not isinstance(stage, ThinStage)}
    serves = kind.defines("encode") or kind.defines("token_means")
    if Place.PIXELS in early:
        serves = kind.defines("encode_smaller") or any(isinstance(stage, PatchStage) for stage in stages)
    if reason is None and early - {Place.BEHIND_PROJECTOR} and not serves:
        reason = f"drops in or after the vision tower, which foveate cannot do for {kind.model_type!r}."
    if reason is not None:
        return f"{method.name} {reason}"
    places = set[str]()
    of_image = (arriving.tokens,), (arriving.grids,), () if arriving.video is None else (arriving.video,)
    tokens, counted = arriving.tokens, list[Stage]()
    for stage in stages:
        if isinstance(stage, ThinStage):
            places.add("tower")  # rows leave, and are restored
        elif stage.place is Place.CACHE:
            if not follow.cut_layers(stages) or follow.cached_layers(stages):
                places.add("kv")
        elif stage.place is Place.DECODE:
            left = stage.left(Arriving.all_of(tokens))
            if left is None or left < tokens:
                places.add("read")
        elif stage.drops:
            # Stages whose counts are unknown are left out: what comes behind them may drop, but need not.
            plan = follow.layer_plan([*counted, stage], depth, *of_image)
            if plan is None or plan[-1] < tokens:
                places.add(_where(stage, several=len(early) > 1))
            if plan is not None:
                counted.append(stage)
                tokens = plan[-1]
    return places


def _where(stage: Stage, several: bool) -> str:
    """The name of a stage's place in a trace."""
    if stage.place >= Place.LAYER:
        return "layer"
    if isinstance(stage, PatchStage):
        return "pixels"
    if stage.place is not Place.BEHIND_PROJECTOR:
        return "tower"
    if several:
        return "layer"
    return "projector"
