"""Attach: where each stage of a method runs. Built once, when a `drop` context opens."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from torch import Tensor

from foveate.contract import follow
from foveate.contract.method import Method
from foveate.contract.stages import LayerStage, PatchStage, Place, Shape, Stage, ThinStage, TowerStage
from foveate.core.grid import Grid
from foveate.core.signals import Cells, Hidden, Resource, Rotary, Signal
from foveate.engine import guards
from foveate.families.base import Family

MOST_PLANS = 1024
"""How many plans are cached, one per combination of image sizes."""


class Program:
    """Which of a method's stages run where. Stages before decoder layer 1 do not need a transformers decoder.

    Args:
        method: The method.
        stages: All stages of the method, in order; or some of them, for a host that runs only a part of the model.
        depth: Decoder layers.
        renumbers: Whether the model's rows may be renumbered.
        resources: Resources passed to `drop(resources=...)`, by name.

    Attributes:
        resources: See `Args`.
        method: See `Args`.
        stages: See `Args`.
        pixels: Stages before the vision tower.
        tower: The stage that drops or merges inside the vision tower, if any.
        thin: The stage that runs blocks of the tower on fewer rows, if any.
        images: Stages on an image's tokens before and behind the projector.
        entering: Stages on what enters the decoder: those before layer 0, and those behind the projector if the method
            also has an earlier stage.
        cuts: Decoder layers before which tokens may be dropped.
        drops: Whether tokens may be dropped while a prompt runs, from some picture.
        openers: See `follow.openers`.
        reads_text: Whether the prompt's text decides what is left.
        by_frame: Whether a stage ranks the frames of a video separately.
        cached: Decoder layers whose caches are cut after the prefill.
        reads_cells: Whether a stage before a layer reads the grid positions of tokens.
        reading: The stage that limits what decoding reads, if any.
        finds_raters: Whether a stage reads the attention of raters, which are chosen from what enters the decoder.
        turned: Decoder layers before which a stage reads the rotary embeddings.
        encodes_text: Signals that stages read from resources, which encode that text.
        encodes: How a run through the tower differs from the model's own: on smaller images ("pixels"), on some patches
            ("subset"), with cuts in the "tower" or behind the "projector", or with all tokens but blocks on fewer rows
            ("thin"). None: it does not differ. Any of the first four may run blocks on fewer rows too.
        in_tower: Whether stages act inside the tower, so that it must run and its output may not be the model's own.
        renumbers: Whether rows are renumbered anywhere.
        plan: Returns how many vision tokens each layer processes for images of given sizes, if that is known
            beforehand (`follow.layer_plan`); cached.
        biased: Whether a stage adds to the logits of keys.
        authors: Methods that are not foveate's own, whose numbers are checked.
        remembered: Layers whose entering rows are read again, each with the last layer before which they are.
        busy: Decoder layers before which a stage runs, or from which a stage reads.
    """

    def __init__(
        self,
        method: Method,
        stages: Sequence[Stage],
        depth: int = 0,
        renumbers: bool = False,
        resources: Mapping[str, Any] | None = None,
    ) -> None:
        self.method = method
        self.resources = resources or {}
        self.stages = tuple(stages)
        self._renumbers = renumbers
        layers = follow.layer_stages(stages)
        self.pixels = follow.at(stages, Place.PIXELS)
        in_tower: tuple[TowerStage, ...] = follow.at(stages, Place.TOWER)  # type: ignore[assignment]
        self.thin = next((stage for stage in in_tower if isinstance(stage, ThinStage)), None)
        self.tower = next((stage for stage in in_tower if stage is not self.thin), None)
        before = follow.at(stages, Place.BEFORE_PROJECTOR)
        behind = follow.at(stages, Place.BEHIND_PROJECTOR)
        self.images: tuple[Stage, ...] = (*before, *behind)
        self.cuts = frozenset(follow.cut_layers(stages))
        self.drops = any(stage.drops and stage.place < Place.CACHE for stage in stages)
        self._before = defaultdict[int, tuple[Stage, ...]](tuple)
        for stage in layers:
            self._before[stage.layer] += (stage,)
        # The tower run has one place to cut. Stages behind the projector then move before layer 0, where the same
        # features arrive.
        if behind and (self.pixels or self.tower is not None or before):
            self.images = before
            self._before[0] = (*behind, *self._before[0])
            self.cuts |= {0}
        self.entering = self.before(0)
        self.openers = follow.openers(stages)
        self.cached = follow.cached_layers(stages)
        self.reads_text = follow.reads_text(stages)
        self.by_frame = any(stage.unit == "frame" for stage in stages)
        self.reading = follow.reading(stages)
        reads = dict.fromkeys((stage.layer, signal) for stage in layers for signal in stage.reads)
        self.reads_cells = any(signal == Cells() for _, signal in reads)
        self.finds_raters = any(getattr(signal, "rows", "") == "raters" for _, signal in reads)
        self.turned = tuple(layer for layer, signal in reads if signal == Rotary())
        self.encodes_text = tuple(dict.fromkeys(signal for _, signal in reads if isinstance(signal, Resource)))
        back = [(layer, signal.back) for layer, signal in reads if isinstance(signal, Hidden) and signal.back]
        self.remembered = {layer - far: layer for layer, far in back}  # layers ascend, so the last one stays
        self._signals_while = defaultdict[int, list[Signal]](list)
        for layer, signal in reads:
            if signal.of_ran:
                self._signals_while[layer - 1].append(signal)
        self.biased = any(stage.bias for stage in layers)
        self.authors = {stage.author for stage in stages if stage.author is not None}
        self.busy = frozenset((*self._before, *self.remembered, *self._signals_while))
        self.encodes = self._encodes()
        self.in_tower = self.thin is not None or self.encodes in ("tower", "subset")
        self.renumbers = self._renumbering(self.stages)
        self.plan = lru_cache(MOST_PLANS)(partial(follow.layer_plan, self.stages, depth))

    @classmethod
    def on(cls, method: Method, family: Family, resources: Mapping[str, Any] | None = None) -> "Program":
        """Build the program of a method on a transformers model.

        Raises:
            BudgetError: If no image of the model can meet the method's budget; the message names the floor.
            SettingError: If the method's cuts do not fit the decoder's depth, or a resource is not one that it reads.
            UnsupportedError: If a stage reads what this model or this engine lacks, or runs at an unsupported place.
        """
        shape = Shape(len(family.layers), family.tower_cls, family.renumbers, frozenset(resources or ()))
        stages = method.placed(shape)
        follow.refuse_shallow(type(method).__name__, stages, shape.depth)
        guards.refuse_stages(method, stages, family, resources or {})
        reading = follow.reading(stages)
        if reading is not None and reading.when == "step":
            guards.refuse_recurrent_reading(reading.layer - 1, family.recurrent, shape.depth)
        one_image = family.fixed_count(family.model.config)
        if one_image is not None:  # a budget that one image cannot meet, several cannot either
            method.check_floor(shape.depth, one_image)
        return cls(method, stages, shape.depth, shape.renumbers, resources)

    def refuse_doubts(self) -> None:
        """Raise if numbers of methods that are not foveate's own could not be ranked; see `Author.refuse_doubts`."""
        for author in self.authors:
            author.refuse_doubts()

    # -- encode ------------------------------------------------------------------------------------------------

    @property
    def early(self) -> tuple[Stage, ...]:
        """Stages that run before decoder layer 1, in order."""
        return tuple(stage for stage in self.stages if stage.order < (Place.LAYER, 1))

    @property
    def late(self) -> tuple[Stage, ...]:
        """The method's other stages: before later layers, in caches, during decoding."""
        return tuple(stage for stage in self.stages if stage.order >= (Place.LAYER, 1))

    def _encodes(self) -> str | None:
        if any(isinstance(stage, PatchStage) for stage in self.pixels):
            return "subset"
        if self.pixels:
            return "pixels"
        before = any(stage.place < Place.BEHIND_PROJECTOR for stage in self.images)
        if self.tower is not None or before:
            return "tower"
        if self.images:
            return "projector"
        if self.thin is None:
            return None
        return "thin"

    # -- begin -------------------------------------------------------------------------------------------------

    def count(self, size: int, grids: Sequence[Grid], video: bool = False) -> int | None:
        """Return how many rows of an image of `size` tokens enter the decoder; None if the image decides."""
        plan = follow.layer_plan(self.early, 1, (size,), (tuple(grids),), (video,))
        if plan is None:
            return None
        return plan[0]

    # -- each layer --------------------------------------------------------------------------------------------

    def before(self, layer: int) -> tuple[Stage, ...]:
        """Return the stages before a decoder layer, in order."""
        return self._before.get(layer, ())

    def signals_while(self, layer: int) -> Sequence[Signal]:
        """Return the signals computed from a layer's queries and keys while it runs, for stages before the next."""
        return self._signals_while.get(layer, ())

    def done_with(self, layer: int) -> Iterator[str]:
        """Yield the names of notes that nothing reads after the stages before a layer."""
        for entered, last in self.remembered.items():
            if last == layer:
                yield hidden_note(entered)
        for signal in self.signals_while(layer - 1):
            yield ran_note(signal, layer - 1)
        if layer in self.turned:
            yield ran_note(Rotary(), layer)

    def biases_before(self, layer: int) -> list[str]:
        """Return the names of notes that are added to the logits of keys from this layer on."""
        stages = [stage for stage in self.before(layer) if isinstance(stage, LayerStage) and stage.bias]
        return [f"{stage.owner} {stage.bias}" for stage in stages]

    # -- positions ---------------------------------------------------------------------------------------------

    def renumbers_before(self, layer: int | None) -> bool:
        """Return whether cuts before this layer (None: before the decoder) renumber rows."""
        if layer is not None:
            return self._renumbering(self.before(layer))
        # A stage moved from behind the projector to before layer 0 renumbers rows there.
        return self._renumbering([stage for stage in self.early if stage not in self.entering])

    def _renumbering(self, stages: Sequence[Stage]) -> bool:
        return self._renumbers and any(stage.positions == "reindex" for stage in stages)


# -- names of notes -----------------------------------------------------------------------------------------------


CELLS = Cells.kind
"""Name of the note that holds the grid positions of rows."""


def hidden_note(layer: int) -> str:
    """Return the name of the note that holds the rows entering a layer."""
    return f"hidden {layer}"


def ran_note(signal: Signal, layer: int) -> str:
    """Return the name of the note that holds a signal of a layer that has run, or `Rotary` for stages before one."""
    return f"{signal!r} {layer}"


def notes_of(notes: Mapping[str, Tensor], stage: Stage) -> dict[str, Tensor]:
    """Return the notes of the chain member that a stage belongs to, by the names the member gave them.

    Args:
        notes: Notes of all members and of the engine itself.
        stage: The stage.
    """
    return {own: notes[name] for own, name in names_of(notes, stage).items()}


def names_of(names: Iterable[str], stage: Stage) -> dict[str, str]:
    """Return the names of notes of the chain member that a stage belongs to, by the names the member gave them."""
    mark = f"{stage.owner} "
    return {name.removeprefix(mark): name for name in names if name.startswith(mark)}
