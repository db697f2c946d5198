"""A method's stages on one model, in the form that the present engine asks for: the adapter between the two."""

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from foveate.core.cut import Cut, note_of
from foveate.core.grid import Grid
from foveate.core.merge import average
from foveate.core.signals import Attention, Cls, Hidden, Keys, Signal, TowerAttention, TowerKeys
from foveate.core.tower import TowerView
from foveate.core.views import Arriving, ImageView, LayerView, PatchView, View
from foveate.engine.forms import EngineCut, EngineView
from foveate.errors import UnsupportedError
from foveate.families.base import Family
from foveate.methods import follow
from foveate.methods.base import Method
from foveate.methods.stages import Place, Shape, Stage
from foveate.support import refusal

__all__ = ["Program"]


class Program:
    """What the stages of a method make the engine do, place by place.

    Args:
        method: Whose stages.
        family: Of the model.

    Raises:
        UnsupportedError: If a stage reads what this model or this engine has not, or stands where nothing runs.
    """

    def __init__(self, method: Method, family: Family) -> None:
        self.method = method
        shape = Shape(len(family.layers), cls=family.tower_cls, renumbers=family.renumbers)
        self.stages = follow.in_order(method.stages(shape))
        self._refuse(family)
        self._pixels = follow.at(self.stages, Place.PIXELS)
        self._tower = follow.at(self.stages, Place.TOWER)
        before = follow.at(self.stages, Place.BEFORE_PROJECTOR)
        behind = follow.at(self.stages, Place.BEHIND_PROJECTOR)
        # One run through the tower has one place to cut at: what comes behind it then stands before layer 0, where the
        # same features arrive.
        self._late = behind if self._pixels or self._tower or before else ()
        self._images = (*before, *(() if self._late else behind))
        layers = follow.layer_stages(self.stages)
        self._at_layer = {
            layer: tuple(stage for stage in layers if stage.layer == layer) for layer in {s.layer for s in layers}
        }
        self._cuts = frozenset(follow.cut_layers(self.stages)) | frozenset({0} if self._late else ())
        self._remembers: dict[int, int] = {}
        """A layer whose input is remembered, and the last layer before which it is read."""
        self._ran: dict[int, list[Attention]] = {}
        """A layer whose attention is reduced while it runs, and what for."""
        for stage in layers:
            for signal in stage.reads:
                if isinstance(signal, Hidden) and signal.back:
                    entered = stage.layer - signal.back
                    self._remembers[entered] = max(stage.layer, self._remembers.get(entered, 0))
                elif isinstance(signal, Attention) and signal.layer == "ran":
                    wanted = self._ran.setdefault(stage.layer - 1, [])
                    wanted.extend([] if signal in wanted else [signal])
        self._renumbers = family.renumbers

    def _refuse(self, family: Family) -> None:
        reason = refusal(self.stages, family.lacks)
        if reason is not None:
            raise UnsupportedError(f"{self.method.name} {reason}")

    # -- what the engine asks beforehand -----------------------------------------------------------------------

    @property
    def together(self) -> bool:
        """Whether stages may look at many samples at once."""
        return not any(stage.host for stage in self.stages)

    @property
    def reindexes(self) -> bool:
        """Whether rows are numbered anew anywhere."""
        return self._renumbers and any(stage.positions == "renumber" for stage in self.stages)

    @property
    def reads_text(self) -> bool:
        """Whether text decides what is left."""
        return follow.reads_text(self.stages)

    @property
    def by_frame(self) -> bool:
        """Whether the frames of a video are counted one by one."""
        return any(stage.unit == "frame" for stage in self.stages)

    @property
    def adds_rows(self) -> bool:
        """Whether rows may come that are no tokens of their own."""
        return any(stage.ownerless for stage in self.stages)

    @property
    def encodes(self) -> str | None:
        """How a run through the tower is made: "pixels", "tower" or "projector"; None: as the model does."""
        if self._pixels:
            return "pixels"
        before = any(stage.place < Place.BEHIND_PROJECTOR for stage in self._images)
        if self._tower or before:
            return "tower"
        return "projector" if self._images else None

    @property
    def merges_early(self) -> bool:
        """Whether a stage stands inside the tower."""
        return bool(self._tower)

    def cuts(self) -> tuple[int, ...]:
        """Decoder layers before which tokens may leave."""
        return tuple(sorted(self._cuts))

    def kv_layers(self) -> range:
        """Decoder layers whose caches are cut after prefill."""
        return follow.cached_layers(self.stages)

    def plan(self, depth: int, sizes: Sequence[int]) -> tuple[int, ...] | None:
        """Vision tokens that each layer processes, as far as that is known beforehand."""
        return follow.layer_plan(self.stages, depth, sizes)

    def renumbers(self, layer: int | None) -> bool:
        """Whether rows are numbered anew by what cuts before this layer (None: before the decoder)."""
        early = [stage for stage in self.stages if stage.place < Place.LAYER]
        here = early if layer is None else self._at_layer.get(layer, ())
        return self._renumbers and any(stage.positions == "renumber" for stage in here)

    # -- the tower ---------------------------------------------------------------------------------------------

    def coarsen(self, grids: Sequence[Grid], entered: int, reserved: int) -> tuple[Grid, ...]:
        """What the token grids of an image's frames or views become."""
        tokens = sum(rows * columns for rows, columns in grids)
        return follow.coarsened(self.stages, Arriving(tokens, entered, tokens, reserved, tuple(grids)))

    def merge_early(self, rows: Tensor, grid: Grid) -> Generator[Tensor, int, Cut | None]:
        """Which patches become one after the tower's first layer: (patches, width) of one image in raster order."""
        (stage,) = self._tower
        cut = stage.cut(PatchView(rows, grid))
        if cut is None:
            return None
        count = cut.count if isinstance(cut.count, int) else (yield cut.count)
        return cut.first(count) if count < len(rows) else None

    def reduce(self, view: TowerView) -> Generator[Tensor, int, Cut | None]:
        """What becomes of one image's tokens on their way out of the tower, newlines apart."""
        base = Cut.stay(len(view))  # what happened to patches
        pooled: Cut | None = None
        if view.merge is not None:
            base = Cut.merge(view.merge.source, view.features, view.merge.parent)
        elif self._tower and not view.early and view.grid is not None:
            # Behind the projector, where the tower itself cannot lose tokens.
            cut = yield from self.merge_early(view.features, view.grid)
            if cut is not None:
                base = pooled = cut
        done = Cut.stay(len(_rows(base, view.features)))  # what the image stages make of it
        for stage in self._images:
            cut = stage.cut(self._image_view(stage, view, base, done, pooled))
            if cut is not None:
                known = cut if isinstance(cut.count, int) else cut.first((yield cut.count))
                done = done.then(_named(known, stage))
        return _of_image(base.then(done), view.features)

    def _image_view(self, stage: Stage, view: TowerView, base: Cut, done: Cut, pooled: Cut | None) -> ImageView:
        features = _rows(done, _rows(base, view.features))
        whole = base.stays_whole and done.stays_whole

        def read(signal: Signal) -> Tensor:
            if isinstance(signal, TowerAttention):
                scores = view.attention(signal.layer)[:, None]
            else:
                assert isinstance(signal, TowerKeys)
                scores = view.keys(signal.layer)
            if pooled is not None:  # the mean of a token's patches
                scores = average(scores, pooled)
            if not done.stays_whole:  # of a row that a stage has made, what its source has
                scores = scores[done.source.clamp(min=0)]
            return scores[:, 0] if isinstance(signal, TowerAttention) else scores

        signals: dict[Signal, Tensor | Callable[[], Tensor]] = {}
        for signal in stage.reads:
            if not isinstance(signal, Cls):
                signals[signal] = partial(read, signal)
            elif view.cls is not None:
                signals[signal] = view.cls
        return ImageView(
            features,
            grid=view.grid if whole else None,
            grids=view.grids if whole else (),
            merged=base.rows is not None or done.rows is not None,
            tokens=None if whole else base.then(done).source,
            arriving=Arriving(len(features), view.entered, len(features), view.reserved, view.grids if whole else ()),
            notes=_Mine(done.notes, stage),
            signals=signals,
        )

    # -- the decoder -------------------------------------------------------------------------------------------

    def remembers(self, layer: int) -> bool:
        """Whether the rows entering `layer` are read again later."""
        return layer in self._remembers

    def listens(self, layer: int) -> bool:
        """Whether `listen` wants the attention of `layer` while it attends."""
        return layer in self._ran

    def looks(self, layer: int) -> bool:
        """Whether `look` has something to do before `layer`, where nothing is cut."""
        return layer in self._at_layer or layer in self._remembers

    def remember(self, view: EngineView) -> None:
        """Remember the rows entering a layer, after the cut there."""
        view.notes[f"hidden {view.layer}"] = view.hidden

    def look(self, view: EngineView) -> None:
        """Take notes before a layer where nothing is cut."""
        self.cut(view)
        if self.remembers(view.layer):
            self.remember(view)

    def listen(self, view: EngineView) -> None:
        """Reduce the attention of a layer while it attends."""
        for signal, value in self._attention(view, self._ran[view.layer]).items():
            view.notes[f"{signal!r} {view.layer}"] = value

    def cut(self, view: EngineView) -> EngineCut | None:
        """What the stages before `view.layer` leave."""
        done: tuple[Cut, tuple[int, ...] | None] | None = None
        stages = (*(self._late if view.layer == 0 else ()), *self._at_layer.get(view.layer, ()))
        for stage in stages:
            if done is not None:
                view = _after(view, *done, stage)
            found = self._cut(view, stage)
            if found is not None:
                done = found if done is None else (done[0].then(found[0]), found[1])
        for entered, last in self._remembers.items():
            if last == view.layer:
                view.notes.pop(f"hidden {entered}", None)  # nobody reads it again
        for signal in self._ran.get(view.layer - 1, ()):
            view.notes.pop(f"{signal!r} {view.layer - 1}", None)
        return None if done is None else _of_layer(*done)

    def _cut(self, view: EngineView, stage: Stage) -> tuple[Cut, tuple[int, ...] | None] | None:
        """What one stage makes of a sample, unit by unit; and how many rows of each image that leaves."""
        units = [view] if stage.unit == "sample" else _units(view, stage)
        views = [self._view(unit, stage) for unit in units]
        cuts = [stage.cut(unit) if len(unit) else None for unit in views]
        if not stage.drops:
            for name in next((cut.notes for cut in cuts if cut is not None), ()):
                notes = [cut.notes[name] for cut in cuts if cut is not None]
                view.notes[_name(stage, name)] = notes[0] if len(notes) == 1 else torch.cat(notes)
            return None
        if all(cut is None for cut in cuts):
            return None
        cut = _joined([cut and _named(cut, stage) for cut in cuts], units)
        if cut.stays is not None or view.sizes is None or len(view.sizes) != len(units):
            return cut, None
        counts = [len(unit) if cut is None else cut.count for cut, unit in zip(cuts, units, strict=True)]
        known = tuple(count for count in counts if isinstance(count, int))
        return cut, known if len(known) == len(units) else None

    def _view(self, view: EngineView, stage: Stage) -> View:
        arriving = Arriving(len(view), view.entered, sum(view.started_sizes), in_sample=view.in_sample)
        notes = _Mine(view.notes, stage)
        if stage.place is not Place.LAYER:
            return ImageView(view.hidden, tokens=lambda: view.tokens, arriving=arriving, notes=notes, merged=True)
        given = {signal: partial(self._read, view, signal) for signal in stage.reads if not isinstance(signal, Hidden)}
        hidden = [signal for signal in stage.reads if isinstance(signal, Hidden)]
        before = next((f"hidden {view.layer - signal.back}" for signal in hidden if signal.back), None)
        return LayerView(
            hidden=(lambda: view.hidden) if hidden else None,
            hidden_before=None if before is None else (lambda: view.notes[before]),
            count=len(view),
            tokens=lambda: view.tokens,
            device=view.sample_tokens.device,
            arriving=arriving,
            notes=notes,
            signals=given,
            text_behind=any(view.text_after),
        )

    def _read(self, view: EngineView, signal: Signal) -> Tensor:
        if isinstance(signal, Keys):
            return view.keys
        assert isinstance(signal, Attention)
        if signal.layer == "ran":
            return view.notes[f"{signal!r} {view.layer - 1}"]
        return self._attention(view, [signal])[signal]

    def _attention(self, view: EngineView, signals: Iterable[Attention]) -> dict[Attention, Tensor]:
        """Attention rows reduced, each kind of row streamed once; an image's own where the text behind it pays."""
        found = {}
        streams: dict[Attention, list[Attention]] = {}
        for signal in signals:
            streams.setdefault(replace(signal, over="sum"), []).append(signal)
        for stream, wanted in streams.items():
            apart = stream.rows != "last" and view.sizes is not None
            parts = [_reduced(part, stream, wanted) for part in (view.images() if apart else [view])]
            for signal in wanted:
                values = [part[signal] for part in parts]
                found[signal] = values[0] if len(values) == 1 else torch.cat(values)
        return found


def _reduced(view: EngineView, stream: Attention, wanted: Sequence[Attention]) -> dict[Attention, Tensor]:
    """Reductions of one stream of attention rows over the tokens of a view; zeros where nobody asks."""
    over = {signal.over for signal in wanted}
    found: dict[str, Tensor] = {}
    asking: int | Tensor = 0
    for rows in () if _silent(view, stream) else view.attention(stream.rows, stream.both_ways, stream.heads):
        # Where samples differ in how much text is behind, rows of zeros fill up: they ask for nothing.
        filled = stream.rows == "after" and (stream.renormalise or "mean" in over)
        sums = rows.sum(dim=-1, keepdim=True) if filled or stream.renormalise else None
        if "mean" in over:
            asking = asking + ((sums > 0).sum() if filled and sums is not None else rows.shape[0])
        if stream.renormalise:
            assert sums is not None
            rows = rows / (sums.clamp(min=torch.finfo(torch.float32).tiny) if filled else sums)
        if over - {"max"}:
            part = rows.sum(dim=0)
            found["sum"] = found["sum"] + part if "sum" in found else part
        if "max" in over:
            highest = rows.amax(dim=0)
            found["max"] = torch.maximum(found["max"], highest) if "max" in found else highest
    if not found:
        return dict.fromkeys(wanted, view.sample_tokens.new_zeros(len(view), dtype=torch.float32))
    if "mean" in over:
        found["mean"] = found["sum"] / (asking.clamp(min=1) if isinstance(asking, Tensor) else asking)
    if "share" in over:
        found["share"] = found["sum"] / found["sum"].sum()
    return {signal: found[signal.over] for signal in wanted}


def _silent(view: EngineView, stream: Attention) -> bool:
    """Whether there is no text that could ask."""
    return stream.rows == "after" and view.text_after == (False,)


# -- from cuts of units to the engine's ----------------------------------------------------------------------------


def _units(view: EngineView, stage: Stage) -> list[EngineView]:
    if view.sizes is None:
        raise UnsupportedError(
            f"{stage} ranks each {stage.unit} by itself, behind a cut that ranked all of a sample's images together: "
            "how many tokens of each are left is not known. Give both the same scope."
        )
    if stage.unit == "image" and view.several_frames:
        raise UnsupportedError(
            f"{stage} ranks each video as a whole beside a stage that ranks frame by frame: give both the same scope."
        )
    return view.images()


def _joined(cuts: Sequence[Cut | None], units: Sequence[EngineView]) -> Cut:
    """One cut of a sample from those of its units, one behind the other."""
    if len(cuts) == 1 and cuts[0] is not None:
        return cuts[0]
    pairs = [(cut or Cut.stay(len(unit)), unit) for cut, unit in zip(cuts, units, strict=True)]
    whole = sum(len(unit) for unit in units)
    notes = {name: torch.cat([cut.notes[name] for cut, _ in pairs]) for name in _in_all([cut for cut, _ in pairs])}
    if any(cut.stays is not None for cut, _ in pairs):
        return Cut.keep(torch.cat([_mask(cut, unit) for cut, unit in pairs]), notes)
    starts = [0, *itertools.accumulate(len(unit) for unit in units)]
    sources = [
        torch.arange(len(unit), device=unit.sample_tokens.device) if cut.stays_whole else cut.source
        for cut, unit in pairs
    ]
    moved = [_moved(source, start, cut) for source, start, (cut, _) in zip(sources, starts, pairs, strict=False)]
    if all(cut.rows is None for cut, _ in pairs):
        return Cut.take(torch.cat(moved), whole, notes)
    firsts = [0, *itertools.accumulate(len(source) for source in sources)]
    parents = [
        torch.where(parent < 0, parent, parent + first)
        for parent, first in zip((_parent(cut, unit) for cut, unit in pairs), firsts, strict=False)
    ]
    rows = torch.cat([_rows(cut, unit.hidden) for cut, unit in pairs])
    return Cut.merge(torch.cat(moved), rows, torch.cat(parents), notes)


def _moved(source: Tensor, start: int, cut: Cut) -> Tensor:
    """Sources of a unit as places in its sample."""
    if not start:
        return source
    return source + start if cut.rows is None else torch.where(source < 0, source, source + start)


def _parent(cut: Cut, unit: EngineView) -> Tensor:
    return torch.arange(len(unit), device=unit.sample_tokens.device) if cut.stays_whole else cut.parent


def _in_all(cuts: Sequence[Cut]) -> set[str]:
    return set.intersection(*(set(cut.notes) for cut in cuts))


def _mask(cut: Cut, unit: EngineView) -> Tensor:
    if cut.stays is not None:
        return cut.stays
    return (
        torch.ones(len(unit), dtype=torch.bool, device=unit.sample_tokens.device)
        if cut.stays_whole
        else cut.parent >= 0
    )


def _rows(cut: Cut, arrived: Tensor) -> Tensor:
    """The rows a cut leaves of those that arrived."""
    if cut.rows is not None:
        return cut.rows
    return arrived if cut.stays_whole else arrived[cut.source]


def _after(view: EngineView, cut: Cut, sizes: tuple[int, ...] | None, stage: Stage) -> EngineView:
    """The view that a second stage before the same layer has, behind the first one's cut."""
    ahead = [signal for signal in stage.reads if getattr(signal, "layer", "") == "next" or isinstance(signal, Keys)]
    if cut.stays is not None or ahead:
        raise UnsupportedError(
            f"Two stages cut before layer {view.layer}, and the second reads what is only known behind the first: let "
            "them cut before different layers."
        )
    source = cut.source.clamp(min=0)
    notes = {name: note_of(note, cut.source, cut.rows) for name, note in view.notes.items()} | dict(cut.notes)
    hidden = view.hidden
    return replace(
        view,
        sample_tokens=torch.where(cut.source < 0, -1, view.tokens[source]),
        read=lambda: _rows(cut, hidden),
        sizes=sizes,
        notes=notes,
        _hidden=None,
    )


def _of_layer(cut: Cut, sizes: tuple[int, ...] | None) -> EngineCut:
    if cut.stays is not None:
        return EngineCut(cut.stays)
    if cut.rows is None:
        return EngineCut(cut.source, sizes, notes=cut.notes)
    return EngineCut(cut.source, sizes, cut.rows, cut.parent, cut.notes)


def _of_image(cut: Cut, features: Tensor) -> Cut | None:
    if cut.stays_whole:
        return cut if cut.notes else None
    return cut.with_rows(_rows(cut, features))


# -- notes belong to a member of a chain ---------------------------------------------------------------------------


def _name(stage: Stage, name: str) -> str:
    return f"{stage.owner} {name}"


class _Mine(Mapping[str, Tensor]):
    """The notes of a stage's own member, by the names that it gave them."""

    def __init__(self, notes: Mapping[str, Tensor], stage: Stage) -> None:
        self._notes = notes
        self._mark = _name(stage, "")

    def __getitem__(self, name: str) -> Tensor:
        return self._notes[self._mark + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._mark) for name in self._notes if name.startswith(self._mark))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _named(cut: Cut, stage: Stage) -> Cut:
    """The cut, its notes named for the member that wrote them."""
    if cut.notes:
        cut.notes = {_name(stage, name): note for name, note in cut.notes.items()}
    return cut
