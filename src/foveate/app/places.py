"""What each method kept on a picture's way through the model, a stop of a slider for each place: HTML."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from foveate.app.answers import Reply
from foveate.app.subject import Subject
from foveate.ask.answer import Answer
from foveate.errors import FoveateError
from foveate.viz.dim import Pixels
from foveate.viz.mosaic import StagePanel, plain_panel, stage_panels
from foveate.viz.prefill import frames_of

__all__ = ["Kept", "Places", "panels", "places_of", "stop_words"]

SIDE = 360
"""Pixels of a square panel."""
QUALITY = 88
BEFORE = {"vision tower": -2, "projector": -1}
"""Where stages stand that come before the decoder's layers."""


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """What one method kept.

    Attributes:
        name: The method.
        tokens: Vision tokens that entered the model.
        stages: In order: where on the way, how many were left, and a picture as a data URL.
        why: Why there is no picture; None where there is one.
    """

    name: str
    tokens: int
    stages: tuple[tuple[int, int, str], ...] = ()
    why: str | None = None

    @classmethod
    def of(cls, name: str, answer: Answer) -> "Kept":
        """From an answer."""
        record = answer.trace.history[0]
        try:
            drawn = stage_panels(record, answer.prompt.shown, side=SIDE)
        except FoveateError as error:
            return cls(name, answer.vision_tokens, why=str(error))
        stages = []
        for panel in drawn:
            if panel.dropped:
                stages.append((_order(panel, record.depth), panel.after, _url(panel.pixels)))
        return cls(name, answer.vision_tokens, tuple(stages))


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """A picture, and what methods kept of it on its way through the model.

    Attributes:
        plain: The picture itself, as a data URL.
        kept: What each method kept.
        depth: Decoder layers; 0 as long as nothing was asked.
    """

    plain: str
    kept: tuple[Kept, ...] = ()
    depth: int = 0

    @property
    def stops(self) -> list[int]:
        """Every place at which a method dropped something, in the order of a token's way."""
        return sorted({place for kept in self.kept for place, _, _ in kept.stages})

    def words(self, stop: int) -> str:
        """What stop number `stop` of the slider is; 0 is the picture itself."""
        if stop == 0 or stop > len(self.stops):
            return "the picture"
        place = self.stops[stop - 1]
        names = {number: f"in the {name}" for name, number in BEFORE.items()}
        if place >= self.depth:
            return "while the answer is written"
        return names.get(place, f"before decoder layer {place} of {self.depth}")


def places_of(subject: Subject, replies: Sequence[Reply] = ()) -> Places:
    """The picture and what the methods of these replies kept."""
    kept = []
    depth = 0
    pictures = subject.pictures
    for reply in replies:
        if reply.answer is not None and reply.answer.trace.history:
            depth = reply.answer.trace.history[0].depth
            kept.append(Kept.of(reply.name, reply.answer))
            pictures = _seen(reply.answer) or pictures
    return Places(_url(plain_panel(pictures, SIDE)), tuple(kept), depth)


def _seen(answer: Answer) -> list[Image.Image]:
    """The pictures and frames as the model saw them; none where that is not known."""
    try:
        frames, _ = frames_of(answer.trace.history[0], answer.prompt.shown, 0)
    except FoveateError:
        return []
    return [frame.picture for frame in frames]


def panels(places: Places, stop: int) -> str:
    """The picture as every method has it at a stop of the slider.

    Args:
        places: What was kept where.
        stop: 0 is the picture itself, 1 the first place at which anything was dropped.
    """
    figures = [_figure("the picture", "", places.plain)]
    stops = places.stops
    until = -100
    if 0 < stop <= len(stops):
        until = stops[stop - 1]
    for kept in places.kept:
        if kept.why is not None:
            figures.append(f"<figure class='fv-panel'><p class='fv-error'>{escape(kept.why)}</p></figure>")
            continue
        count, url = kept.tokens, places.plain
        for place, after, drawn in kept.stages:
            if place <= until:
                count, url = after, drawn
        figures.append(_figure(kept.name, f"{count} of {kept.tokens} tokens", url))
    return f"<div class='fv-grid fv-panels'>{''.join(figures)}</div>{_legend(places)}"


def _figure(name: str, caption: str, url: str) -> str:
    words = f"<b>{escape(name)}</b> {escape(caption)}"
    return (
        f"<figure class='fv-panel'><img src='{url}' alt='{escape(name, quote=True)}: {escape(caption)}'>"
        f"<figcaption>{words}</figcaption></figure>"
    )


def _legend(places: Places) -> str:
    if not places.stops:
        return ""
    words = "In colour: kept. Tinted: merged into the framed patch of the same tint. Dark and hatched: dropped."
    return f"<p class='fv-note'>{words}</p>"


def stop_words(places: Places, stop: int) -> str:
    """What the slider stands at, in words; nothing where there is no slider."""
    if not places.stops:
        return ""
    return f"<p class='fv-stop'>{escape(places.words(stop)).capitalize()}</p>"


def _order(panel: StagePanel, depth: int) -> int:
    """Where a stage stands on the way: the tower, the projector, the decoder's layers, then the decoding."""
    if panel.layer is not None:
        return panel.layer
    return BEFORE.get(panel.place, depth)


def _url(pixels: Pixels) -> str:
    """A picture as a data URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
