"""What the tests must know of a method, read off its stages."""

from foveate.contract import Attention, KeyNorms, Keys, Method, Pivots, Place, Products, Shape, Stage, follow
from tests.models import DEPTH

__all__ = [
    "attends_in",
    "by_frame",
    "cuts",
    "kv_layers",
    "of_pixels",
    "reads_key_norms",
    "reads_less",
    "reads_text",
    "renumbers",
]


def cuts(method: Method, depth: int = DEPTH) -> tuple[int, ...]:
    """Decoder layers before which tokens may leave."""
    return follow.cut_layers(stages(method, depth))


def kv_layers(method: Method, depth: int = DEPTH) -> range:
    """Decoder layers whose caches are cut after the prefill."""
    return follow.cached_layers(stages(method, depth))


def reads_key_norms(method: Method) -> bool:
    """Whether anything is read that depends on positions themselves, not on the distances between them."""
    return any(isinstance(signal, KeyNorms | Pivots) for stage in stages(method) for signal in stage.reads)


def reads_text(method: Method) -> bool:
    """Whether text decides what is left."""
    return follow.reads_text(stages(method))


def reads_less(method: Method) -> bool:
    """Whether steps of decoding read less than is cached."""
    return follow.reading(stages(method)) is not None


def by_frame(method: Method) -> bool:
    """Whether the frames of a video are counted one by one."""
    return any(stage.unit == "frame" for stage in stages(method))


def attends_in(method: Method, depth: int = DEPTH) -> set[int]:
    """Decoder layers whose queries or keys are read."""
    read = set()
    for stage in follow.layer_stages(stages(method, depth)):
        for signal in stage.reads:
            if signal.of_ran:
                read.add(stage.layer - 1)
            elif isinstance(signal, Attention | Keys | Products):
                read.add(stage.layer)
    return read


def renumbers(method: Method, depth: int = DEPTH) -> bool:
    """Whether rows are numbered anew anywhere."""
    return any(stage.positions == "reindex" for stage in stages(method, depth))


def of_pixels(method: Method) -> bool:
    """Whether the tower gets smaller pictures."""
    return any(stage.place is Place.PIXELS for stage in stages(method))


def stages(method: Method, depth: int = DEPTH) -> tuple[Stage, ...]:
    """On a decoder of so many layers."""
    return follow.in_order(method.stages(Shape(depth)))
