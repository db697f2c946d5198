"""Encode: runs the stages before the decoder for a host with its own decoder, such as vLLM or mlx-vlm.

The host passes in what its tower or its projector made, and puts the rows that are left into a shorter prompt.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foveate import registry
from foveate.contract.method import Method
from foveate.contract.stages import Shape
from foveate.core.cut import Cut, look_up
from foveate.core.signals import Cells, Deepstack, Features, Hidden, Text
from foveate.core.views import TowerView
from foveate.engine.cutting import SampleRows, decide
from foveate.engine.encode import TowerReducer, count_masks
from foveate.engine.left import Left
from foveate.engine.media_tokens import MediaTokens
from foveate.engine.program import Program
from foveate.engine.prompt_samples import read_samples
from foveate.errors import UnsupportedError
from foveate.families.base import Family
from foveate.families.newlines import Stats, reduce_apart
from foveate.families.placing import rows_left
from foveate.families.support import refusal
from foveate.families.vision import PictureLayout

Project = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Projects the rows of each image, (rows, width of the tower) -> (rows, width of the decoder)."""


class Neutral(Family):
    """Family of models that foveate has no family for: no CLS, no known boxes, rows renumbered in a shorter prompt."""

    model_type = "neutral"


@dataclass(frozen=True, slots=True)
class Host:
    """An engine with its own decoder, and what it shows.

    Attributes:
        name: Its name, in errors.
        instead: What to use where it cannot run a method: the last sentence of errors.
        tower: Whether it shows its vision tower. If not, it shows an image's rows behind the projector.
        prompts: Whether it encodes an image for one prompt, so that stages may read the question, and rank the tokens
            of all its images together.
    """

    name: str
    instead: str
    tower: bool = False
    prompts: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Entered:
    """The rows of one image that enter the decoder. Its length is that of `rows`.

    Attributes:
        rows: (rows, width of the decoder), in the order in which they enter.
        source: The token whose position each row has, (rows,) int64; −1 for none.
    """

    rows: Tensor
    source: Tensor

    def __len__(self) -> int:
        return len(self.rows)


class Reducer(Program):
    """The stages of a method on a host with its own decoder. It runs those before decoder layer 1.

    Args:
        method: The method.
        depth: Decoder layers.
        config: The model's config. Its `model_type` says which family it is of.
        host: What the host shows.
        whole: Keep all tokens, even with a method that takes no budget.

    Attributes:
        family: The model's family; `Neutral` if foveate has none.
        shape: What methods may know of the model.

    Raises:
        UnsupportedError: If a stage works or reads where the host shows nothing.
    """

    def __init__(self, method: Method, depth: int, config: Any, host: Host, whole: bool = False) -> None:
        self.family = registry.families().get(config.model_type, Neutral)
        self.shape = Shape(depth, cls=bool(self.family.cls_in_tower(config)), renumbers=self.family.renumbers)
        super().__init__(method, () if whole else method.placed(self.shape))
        reason = refusal(self.stages, partial(self.family.lacking, tower_cls=self.shape.cls)) or self._reason(host)
        if reason is not None:
            raise UnsupportedError(f"Inside {host.name}, {method.name} cannot run: it {reason} {host.instead}")

    def _reason(self, host: Host) -> str | None:
        """Return why the host cannot run a stage before decoder layer 1, as the end of a sentence; None if it can."""
        extras = self.family.defines("view_extras")
        shown = {Hidden(), Cells(), Text(), *([] if extras else [Deepstack()])}
        signals = {signal for stage in self.early for signal in stage.reads} - shown
        if self.pixels or self.tower is not None:
            return "works before the vision tower or inside it, so the picture may decide how many tokens are left."
        if not host.prompts and any(stage.reads_text or stage.unit == "sample" for stage in self.early):
            return "reads the question or ranks all images together (set scope=image), and pictures are encoded alone."
        for signal in itertools.chain.from_iterable(stage.reads for stage in self.entering):
            if not isinstance(signal, Hidden | Text):
                return f"reads {signal!r} before decoder layer 0, which only foveate's own engine computes."
        # On transformers too, these families run a stage before the projector on the rows behind it.
        merging = not self.family.renumbers or not (self.family.defines("encode") or extras)
        rows_do = merging and self.family is not Neutral and signals <= {Features()}
        if host.tower or rows_do or not (signals or self.encodes == "tower"):
            return None
        return "reads the vision tower, of which only the rows behind the projector are shown."

    def enter(self, views: Sequence[TowerView], project: Project, video: bool = False) -> list[Entered]:
        """Return the rows of each image that enter the decoder.

        Args:
            views: The tower's output for each image.
            project: The host's projector. If a tower merges behind its projector, return the rows unchanged.
            video: Whether the images are videos.
        """
        reducer = TowerReducer(self, video=video)
        cuts = reducer.reduce(views) if self.encodes == "tower" else [None] * len(views)
        rows = project([rows_left(view.features, cut) for view, cut in zip(views, cuts, strict=True)])
        if self.encodes == "projector":
            views = [replace(view, features=features) for view, features in zip(views, rows, strict=True)]
            cuts = reducer.reduce(views)
            rows = [rows_left(view.features, cut) for view, cut in zip(views, cuts, strict=True)]
        images = []
        for view, cut in zip(views, cuts, strict=True):
            images.append(MediaTokens(len(view), partial(PictureLayout, view.grids), cut, video=video))
        return self._before_decoder(images, rows)

    def reduce(
        self,
        images: Sequence[Tensor],
        pictures: Sequence[PictureLayout],
        video: bool = False,
        text: Sequence[Tensor] | None = None,
        stats: Stats | None = None,
        more: Callable[[int], Mapping[str, Any]] = lambda index: {},
    ) -> list[Entered]:
        """Return the rows of images behind the projector that enter the decoder. Newlines are not ranked.

        Args:
            images: (tokens, width of the decoder) each.
            pictures: The grids of each image's tokens, and the newlines beside these. Without grids: unknown.
            video: Whether the images are videos.
            text: What follows each image, up to the next one, (words, width of the decoder). The images are then those
                of one prompt, in order. None: each is in a prompt of its own, of which nothing is known.
            stats, more: What the host shows of the tower; see `reduce_apart`.
        """
        pictures = [PictureLayout(()) if picture.grids is None else picture for picture in pictures]
        cuts = reduce_apart(images, pictures, TowerReducer(self, video=video), stats, more)
        rows = [rows_left(image, cut) for image, cut in zip(images, cuts, strict=True)]
        media = []
        for picture, own, cut in zip(pictures, images, cuts, strict=True):
            media.append(MediaTokens(len(own), partial(replace, picture), cut, video=video))
        return self._before_decoder(media, rows, text)

    def _before_decoder(
        self, images: Sequence[MediaTokens], rows: Sequence[Tensor], text: Sequence[Tensor] | None = None
    ) -> list[Entered]:
        """Run the stages before decoder layer 0 on the rows that the tower left, and return the rows of each image."""
        if text is None:  # each image has a prompt of its own, with one word behind it
            alone = zip(images, rows, strict=True)
            return [entered for image, own in alone for entered in self._before_decoder([image], [own], [own[:1]])]
        hidden, words = torch.cat(list(rows)), torch.cat(list(text))
        cuts = [image.cut or Cut.stay(image.length) for image in images]
        starts = [0, *itertools.accumulate(image.length for image in images)]
        sources = [
            torch.where(cut.source < 0, -1, cut.source + start) for cut, start in zip(cuts, starts, strict=False)
        ]
        source = torch.cat(sources).to(hidden.device)
        if self.entering:
            # Of an image of three tokens and two words behind it: 1 1 1 0 0.
            columns = [
                torch.arange(cut.arriving + len(more)) < cut.arriving for cut, more in zip(cuts, text, strict=True)
            ]
            (sample,) = read_samples([(torch.cat(columns)[None], images)], None, self.by_frame)
            left = Left.of(0, sample, hidden.device)
            if len(hidden) < starts[-1]:
                left.sizes = tuple(map(len, rows))
            left.source, left.words = source, torch.arange(len(words), device=hidden.device)
            left.notes |= {name: torch.cat([cut.notes[name] for cut in cuts]) for name in cuts[0].notes}
            decision = decide(SampleRows(0, left, words, _hidden=hidden), self.entering)
            (last,) = count_masks([decision and decision.cut])
            if last is not None:
                hidden, source = rows_left(hidden, last), look_up(last.source, source)
        if len(images) == 1:
            return [Entered(hidden, source)]
        # Of images of 3 and 2 tokens, 0 2 4 are left: images 0 0 1. A row without a token is of the image before it.
        image_of = torch.bucketize(source.cummax(0).values, torch.tensor(starts[1:], device=source.device), right=True)
        owns = image_of == torch.arange(len(images), device=source.device)[:, None]  # (images, rows)
        pairs = zip(owns, starts, strict=False)
        return [Entered(hidden[own], (source[own] - start).clamp(min=-1)) for own, start in pairs]
