"""Attach: a method's stages on one model, each at its place along the way. Made once, when a context opens."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from foveate.contract import follow
from foveate.contract.method import Method
from foveate.contract.stages import Place, Shape, Stage
from foveate.core.cut import Cut
from foveate.core.signals import Cells
from foveate.engine import guards
from foveate.engine.early import EarlyStages
from foveate.engine.late import LateStages
from foveate.families.base import Family

__all__ = ["NotesOf", "Program", "named"]


class Program(EarlyStages, LateStages):
    """Which stages act where, on a model of transformers.

    Attributes, beside those of `EarlyStages` and `LateStages`:
        reads_text: Whether text decides what is left.
        by_frame: Whether the frames of a video are counted one by one.
        adds_rows: Whether rows may come that are no tokens of their own.
        cached: Decoder layers whose caches are cut after the prefill.
        reads_cells: Whether a stage before a layer reads where tokens stand.
        finds_raters: Whether attention of the raters is read, which are told from what enters the decoder.

    Raises:
        UnsupportedError: If a stage reads what this model or this engine has not, or stands where nothing runs.
    """

    def __init__(self, method: Method, family: Family) -> None:
        shape = Shape(len(family.layers), cls=family.tower_cls, renumbers=family.renumbers)
        stages = follow.in_order(method.stages(shape))
        follow.refuse_shallow(type(method).__name__, stages, shape.depth)
        EarlyStages.__init__(self, method, stages)
        guards.refuse_stages(method, stages, family)
        self._depth = shape.depth
        self._renumbers = shape.renumbers
        # What stands behind the projector, behind another stage of the tower, cuts before layer 0.
        moved = [stage for stage in self.entering if stage.place is not Place.LAYER]
        LateStages.__init__(self, stages, entering=moved)
        self.reads_text = follow.reads_text(stages)
        self.by_frame = any(stage.unit == "frame" for stage in stages)
        self.adds_rows = any(stage.ownerless for stage in stages)
        self.cached = follow.cached_layers(stages)
        layers = follow.layer_stages(stages)
        self.reads_cells = any(Cells() in stage.reads for stage in layers)
        self.finds_raters = any(getattr(signal, "rows", "") == "raters" for stage in layers for signal in stage.reads)

    # -- each layer --------------------------------------------------------------------------------------------

    def plan(self, sizes: Sequence[int]) -> tuple[int, ...] | None:
        """Vision tokens that each layer processes, as far as that is known beforehand."""
        return follow.layer_plan(self.stages, self._depth, sizes)

    # -- positions ---------------------------------------------------------------------------------------------

    @property
    def renumbers(self) -> bool:
        """Whether rows are numbered anew anywhere."""
        return self._renumbering(self.stages)

    def renumbers_before(self, layer: int | None) -> bool:
        """Whether rows are numbered anew by what cuts before this layer (None: before the decoder)."""
        if layer is not None:
            return self._renumbering(self.before(layer))
        # A stage behind the projector that stands before layer 0 numbers rows anew there.
        early = [stage for stage in self.stages if stage.place < Place.LAYER]
        return self._renumbering([stage for stage in early if stage not in self.before(0)])

    def _renumbering(self, stages: Sequence[Stage]) -> bool:
        return self._renumbers and any(stage.positions == "reindex" for stage in stages)


# -- names of notes -----------------------------------------------------------------------------------------------


CELLS = "cells"
"""The name under which it is remembered where rows stand."""


def named(cut: Cut, stage: Stage) -> Cut:
    """The cut, its notes named for the member of a chain that wrote them."""
    if cut.notes:
        cut.notes = {f"{stage.owner} {name}": note for name, note in cut.notes.items()}
    return cut


class NotesOf(Mapping[str, Tensor]):
    """The notes of a stage's own member, by the names that it gave them.

    Args:
        notes: Of all members, and of the engine itself.
        stage: Whose notes are shown.
        rows: Which of the rows they are shown of; None: all.
    """

    def __init__(self, notes: Mapping[str, Tensor], stage: Stage, rows: slice | None = None) -> None:
        self._notes = notes
        self._mark = f"{stage.owner} "
        self._rows = rows

    def __getitem__(self, name: str) -> Tensor:
        note = self._notes[self._mark + name]
        if self._rows is None:
            return note
        return note[self._rows]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._mark) for name in self._notes if name.startswith(self._mark))

    def __len__(self) -> int:
        return sum(1 for _ in self)
