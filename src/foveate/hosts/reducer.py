"""Encode: runs the stages before the decoder for a host with its own decoder, such as vLLM or mlx-vlm.

The host passes in what its tower or its projector made, and puts the rows that are left into a shorter prompt.
"""

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate import registry
from foveate.contract.method import Method
from foveate.contract.stages import Shape
from foveate.core.cut import Cut
from foveate.core.grid import Grid
from foveate.core.signals import Cells, Cls, Deepstack, Features, Hidden, Signal, Text, TowerSignal
from foveate.core.views import TowerView
from foveate.engine.cutting import SampleRows, decide
from foveate.engine.extensions.encoding.reducer import TowerReducer, count_masks
from foveate.engine.media_tokens import MediaTokens
from foveate.engine.program import Program
from foveate.engine.prompt_samples import read_samples
from foveate.engine.rows import Rows
from foveate.errors import UnsupportedError
from foveate.families.base import Family
from foveate.families.newlines import Stats, reduce_apart
from foveate.families.placing import rows_left
from foveate.families.proved import PROVED
from foveate.families.support import refusal
from foveate.families.vision import PictureLayout
from foveate.plain.spelling import unknown

Project = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Projects the rows of each image, (rows, width of the tower) -> (rows, width of the decoder)."""


class Neutral(Family):
    """Family of models that foveate has no family for: no CLS, no known boxes, rows renumbered in a shorter prompt."""

    model_type = "neutral"
    tiled = True  # for all that is known, a run of placeholders may be a tile


@dataclass(frozen=True, slots=True)
class Host:
    """An engine with its own decoder, and what it shows.

    Attributes:
        name: Its name, in errors.
        instead: What to use where it cannot run a method: the last sentence of errors.
        tower: Whether it shows its vision tower. If not, it shows an image's rows behind the projector.
        prompts: Whether it encodes an image for one prompt, so that stages may read the question, and rank the tokens
            of all its images together.
        signals: What it shows of the tower beside these rows, if not the tower itself.
    """

    name: str
    instead: str
    tower: bool = False
    prompts: bool = False
    signals: Collection[Signal] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The rows of one image that enter the decoder. Its length is that of `rows`.

    Attributes:
        rows: (rows, width of the decoder), in the order in which they enter.
        source: The token whose position each row has, (rows,) int64; −1 for none.
        parent: The row that each token went into, or most of it, (tokens,) int64; −1 if it was dropped.
    """

    rows: Any
    source: Any
    parent: Any

    def __len__(self) -> int:
        return len(self.rows)


class Reducer:
    """The stages of a method on a host with its own decoder. It runs those before decoder layer 1.

    Args:
        method: The method.
        depth: Decoder layers.
        model: The model's config, whose `model_type` says which family it is of; or a `model_type` or a family's name,
            such as "qwen2_5_vl" or "Qwen2.5-VL". None: a model of no family.
        host: What the host shows.
        whole: Keep all tokens, even with a method that takes no budget.

    Attributes:
        method: See `Args`.
        family: The model's family; `Neutral` if foveate has none.
        shape: What methods may know of the model.
        program: Where its stages run.
        early: Its stages before decoder layer 1, in order.
        late: Its other stages, which the host runs itself or refuses.

    Raises:
        MethodError: If the stages of a method of your own fail.
        UnknownNameError: If there is no family of that name.
        UnsupportedError: If a stage works or reads where the host shows nothing.
    """

    def __init__(self, method: Method, depth: int, model: Any, host: Host, whole: bool = False) -> None:
        self.family = _family_of(model)
        cls = any(getattr(signal, "by", "") == "cls" for signal in host.signals)
        cls = cls or bool(self.family.cls_in_tower(None if isinstance(model, str) else model))
        self.method, self.shape = method, Shape(depth, cls=cls, renumbers=self.family.renumbers)
        self.program = Program(method, () if whole else method.placed(self.shape))
        self.early, self.late = self.program.early, self.program.late
        lacks = partial(self.family.lacking, tower_cls=cls)
        reason = refusal(self.program.stages, lacks) or self._reason(host)
        if reason is not None:
            raise UnsupportedError(f"Inside {host.name}, {method.name} cannot run: it {reason} {host.instead}")

    def _reason(self, host: Host) -> str | None:
        """Return why the host cannot run a stage before decoder layer 1, as the end of a sentence; None if it can."""
        program, extras = self.program, self.family.defines("view_extras")
        shown = {Hidden(), Cells(), Text(), *host.signals}
        if not extras:
            shown.add(Deepstack())
        if not self.shape.cls:
            shown.add(Cls())
        signals = {signal for stage in self.early for signal in stage.reads} - shown
        if program.pixels or program.tower is not None:
            return "works before the vision tower or inside it, so the picture may decide how many tokens are left."
        if not host.prompts and any(stage.reads_text or stage.unit == "sample" for stage in self.early):
            return "reads the question or ranks all images together (set scope=image), and pictures are encoded alone."
        for signal in itertools.chain.from_iterable(stage.reads for stage in program.entering):
            if not isinstance(signal, Hidden | Text):
                return f"reads {signal!r} before decoder layer 0, which only foveate's own engine computes."
        # On transformers too, these families run a stage before the projector on the rows behind it.
        merging = not self.family.renumbers or not (self.family.defines("encode") or extras)
        rows_do = merging and self.family is not Neutral and signals <= {Features()}
        if host.tower or rows_do or not (signals or (program.encodes == "tower" and not host.signals)):
            return None
        named = ", ".join(sorted(map(repr, signals))) or "its rows"
        return f"reads the vision tower ({named}), of which only the rows behind the projector are shown."

    @property
    def reads(self) -> tuple[TowerSignal, ...]:
        """The signals that stages read from the tower."""
        return TowerReducer(self.program).reads

    def count(self, size: int, grids: Sequence[Grid], video: bool = False) -> int | None:
        """Return how many rows of an image of `size` tokens enter the decoder; None if the image decides."""
        return self.program.count(size, grids, video)

    def enter(self, views: Sequence[TowerView], project: Project, video: bool = False) -> list[Kept]:
        """Return the rows of each image that enter the decoder.

        Args:
            views: The tower's output for each image.
            project: The host's projector. If a tower merges behind its projector, return the rows unchanged.
            video: Whether the images are videos.

        Raises:
            MethodError: If numbers of a method that is not foveate's own cannot be ranked.
        """
        reducer = TowerReducer(self.program, video=video)
        cuts = reducer.reduce(views) if self.program.encodes == "tower" else [None] * len(views)
        rows = project([rows_left(view.features, cut) for view, cut in zip(views, cuts, strict=True)])
        if self.program.encodes == "projector":
            views = [replace(view, features=features) for view, features in zip(views, rows, strict=True)]
            cuts = reducer.reduce(views)
            rows = [rows_left(view.features, cut) for view, cut in zip(views, cuts, strict=True)]
        images = []
        for view, cut in zip(views, cuts, strict=True):
            images.append(MediaTokens(len(view), partial(PictureLayout, view.grids), cut, video=video))
        lasts = self._before_decoder(images, rows)
        self.program.refuse_doubts()
        pairs = zip(images, rows, lasts, strict=True)
        return [_kept(rows_left(own, last), _cut_of(image).then(last)) for image, own, last in pairs]

    def reduce(
        self,
        images: Sequence[Tensor],
        pictures: Sequence[PictureLayout],
        video: bool = False,
        text: Sequence[Tensor] | None = None,
        stats: Stats | None = None,
        more: Callable[[int], Mapping[str, Any]] = lambda index: {},
    ) -> list[Kept]:
        """Return the rows of images behind the projector that enter the decoder. Newlines are not ranked.

        Args:
            images: (tokens, width of the decoder) each.
            pictures: The grids of each image's tokens, and the newlines beside these. Without grids: unknown.
            video: Whether the images are videos.
            text: What follows each image, up to the next one, (words, width of the decoder). The images are then those
                of one prompt, in order. None: each is in a prompt of its own, of which nothing is known.
            stats, more: What the host shows of the tower; see `reduce_apart`.

        Raises:
            MethodError: If numbers of a method that is not foveate's own cannot be ranked.
        """
        cuts = self.cuts(images, pictures, video, text, stats, more)
        return [_kept(rows_left(image, cut), cut) for image, cut in zip(images, cuts, strict=True)]

    def cuts(
        self,
        images: Sequence[Tensor],
        pictures: Sequence[PictureLayout],
        video: bool = False,
        text: Sequence[Tensor] | None = None,
        stats: Stats | None = None,
        more: Callable[[int], Mapping[str, Any]] = lambda index: {},
    ) -> list[Cut]:
        """Return what becomes of the rows of images behind the projector. Arguments as in `reduce`."""
        pictures = [PictureLayout(()) if picture.grids is None else picture for picture in pictures]
        cuts = reduce_apart(images, pictures, TowerReducer(self.program, video=video), stats, more)
        media = []
        for index, (picture, own, cut) in enumerate(zip(pictures, images, cuts, strict=True)):
            is_video = more(index).get("video", video)
            media.append(MediaTokens(len(own), partial(replace, picture), cut, video=is_video))
        whole = list(map(_cut_of, media))
        if self.program.entering:
            rows = [rows_left(own, cut) for own, cut in zip(images, cuts, strict=True)]
            whole = list(map(Cut.then, whole, self._before_decoder(media, rows, text)))
        self.program.refuse_doubts()
        return whole

    def _before_decoder(
        self, images: Sequence[MediaTokens], rows: Sequence[Tensor], text: Sequence[Tensor] | None = None
    ) -> list[Cut]:
        """Run the stages before decoder layer 0 on the rows that the tower left, and return the cut of each image's."""
        if not self.program.entering:
            return [Cut.stay(len(own)) for own in rows]
        if text is None:  # each image has a prompt of its own, with one word behind it
            alone = zip(images, rows, strict=True)
            return [cut for image, own in alone for cut in self._before_decoder([image], [own], [own[:1]])]
        together, words = (parts[0] if len(parts) == 1 else torch.cat(list(parts)) for parts in (rows, text))
        cuts = list(map(_cut_of, images))
        # Of an image of three tokens and two words behind it: 1 1 1 0 0.
        runs = [size for image, more in zip(images, text, strict=True) for size in (image.length, len(more))]
        is_vision = np.repeat([[True, False] * len(images)], runs, axis=1)
        (sample,) = read_samples([(torch.from_numpy(is_vision), images)], None, self.program.by_frame)
        table = Rows.entering([sample], is_vision.shape[1], together.device)
        if self.program.reads_text:
            table.words = (torch.arange(len(words), device=together.device),)
        if not all(cut.stays_whole for cut in cuts):
            table.sizes = (tuple(map(len, rows)),)
            starts = itertools.accumulate((image.length for image in images), initial=0)
            sources = [torch.where(cut.source < 0, -1, cut.source + at) for cut, at in zip(cuts, starts, strict=False)]
            table.tokens = (torch.cat([source.to(together.device) for source in sources]),)
        for name in cuts[0].notes:
            table.put_note(0, name, torch.cat([cut.notes[name] for cut in cuts]))
        decision = decide(SampleRows(0, table, 0, words, _hidden=together), self.program.entering)
        if decision is None:
            return [Cut.stay(len(own)) for own in rows]
        (last,) = count_masks([decision.cut])
        assert last is not None
        known = decision.sizes if decision.cut.stays is None else None
        return [last] if len(images) == 1 else _by_image(last, list(map(len, rows)), known)


def _family_of(model: Any) -> type[Family]:
    """Return the family of a config, a `model_type` or a name."""
    kinds = registry.families()
    if not isinstance(model, str):
        return kinds.get(getattr(model, "model_type", ""), Neutral)
    names = dict.fromkeys(PROVED, Neutral) | {kind.title: kind for kind in kinds.values()} | kinds
    spelled = {re.sub(r"\W|_", "", name).lower(): kind for name, kind in names.items()}
    kind = spelled.get(re.sub(r"\W|_", "", model).lower())
    if kind is None:
        raise unknown("family", model, names, "foveate models")
    return kind


def _cut_of(image: MediaTokens) -> Cut:
    """Return what the stages in the tower and behind it did to an image's tokens."""
    return image.cut or Cut.stay(image.length)


def _kept(rows: Tensor, cut: Cut) -> Kept:
    """Return the rows that a cut leaves with their tokens, on their device."""
    if cut.stays_whole:
        places = torch.arange(len(rows), device=rows.device)
        return Kept(rows, places, places)
    return Kept(rows, cut.source.to(rows.device), cut.parent.to(rows.device))


def _by_image(cut: Cut, arriving: Sequence[int], sizes: Sequence[int] | None) -> list[Cut]:
    """Split a cut of the rows of several images into one of each.

    Args:
        cut: The cut; its rows are in the order of the images.
        arriving: Rows of each image that arrive.
        sizes: Rows of each image that are left. None, or of other units: they are counted, which takes a host sync.
    """
    firsts = [0, *itertools.accumulate(arriving)]
    if sizes is None or len(sizes) != len(arriving):
        # Of images of 3 and 2 rows, 0 2 4 are left: images 0 0 1. A row without a token is of the image before it.
        ends = torch.tensor(firsts[1:], device=cut.source.device)
        images = torch.bucketize(cut.source.cummax(0).values, ends, right=True)
        sizes = images.bincount(minlength=len(arriving)).tolist()
    sources, parents = torch.split(cut.source, list(sizes)), torch.split(cut.parent, list(arriving))
    rows = [None] * len(sizes) if cut.rows is None else torch.split(cut.rows, list(sizes))
    cuts = []
    begins = zip(firsts, itertools.accumulate(sizes, initial=0), strict=False)
    for source, parent, own, (first, begin) in zip(sources, parents, rows, begins, strict=False):
        went = parent - begin
        went = went.masked_fill((went < 0) | (went >= len(source)), -1)
        of_image = Cut.join((source - first).clamp(min=-1), went)
        cuts.append(of_image if own is None else of_image.with_rows(own))
    return cuts
