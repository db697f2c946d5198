"""What each method kept on a picture's way through the model, a stop of a slider for each place: HTML."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.app.replies import Said
from foveate.app.subjects import Subject
from foveate.errors import FoveateError
from foveate.viz.canvas import LEGEND
from foveate.viz.mosaic import StagePanel, plain_panel, stage_panels
from foveate.viz.showing import frames_of

__all__ = ["Stop", "data_url", "stops_of"]

SIDE = 360
"""Pixels of a square panel."""
BEFORE = {"vision tower": -2, "projector": -1}
"""Where stages stand that come before the decoder's layers."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A place on the way through the model.

    Attributes:
        words: Where it is.
        panels: HTML: the picture as every method has it there.
    """

    words: str
    panels: str


def stops_of(subject: Subject, replies: Sequence[Said] = ()) -> list[Stop]:
    """The picture itself, then every place at which a method of these replies dropped something, in order."""
    pictures, depth = subject.pictures, 0
    # What each method's panel shows, and the place from which on: places are numbered as the decoder's layers.
    shown: dict[str, list[tuple[int, str]]] = {}
    for reply in replies:
        if reply.answer is None or not reply.answer.trace.history:
            continue
        record, media, tokens = reply.answer.trace.history[0], reply.answer.prompt.shown, reply.answer.vision_tokens
        depth = record.depth
        try:
            frames, _ = frames_of(record, media, 0)
            drawn = stage_panels(record, media, side=SIDE)
        except FoveateError as error:
            shown[reply.name] = [
                (-3, f"<figure class='fv-panel'><p class='fv-error'>{escape(str(error))}</p></figure>")
            ]
            continue
        pictures = [frame.picture for frame in frames]  # as the model saw them
        shown[reply.name] = [(-3, _figure(reply.name, f"{tokens} of {tokens} tokens", plain_panel(pictures, SIDE)))]
        for panel in drawn:
            if panel.dropped:
                after = _figure(reply.name, f"{panel.after} of {tokens} tokens", panel.pixels)
                shown[reply.name].append((_place(panel, depth), after))
    plain = _figure("the picture", "", plain_panel(pictures, SIDE))
    places = sorted({place for figures in shown.values() for place, _ in figures} | {-3})
    legend = f"<p class='fv-note'>{LEGEND}</p>" if len(places) > 1 else ""
    stops = []
    for place in places:
        latest = [[html for since, html in figures if since <= place][-1] for figures in shown.values()]
        panels = f"<div class='fv-grid fv-panels'>{plain}{''.join(latest)}</div>{legend}"
        stops.append(Stop(_words(place, depth), panels))
    return stops


def _place(panel: StagePanel, depth: int) -> int:
    """Where a stage stands on the way: the tower, the projector, the decoder's layers, then the decoding."""
    if panel.layer is not None:
        return panel.layer
    return BEFORE.get(panel.place, depth)


def _words(place: int, depth: int) -> str:
    """A place in words."""
    if place >= depth:
        return "While the answer is written"
    names = {-3: "The picture", -2: "In the vision tower", -1: "In the projector"}
    return names.get(place, f"Before decoder layer {place} of {depth}")


def _figure(name: str, caption: str, pixels: NDArray[np.uint8]) -> str:
    """A picture with a name and words below."""
    words = f"<figcaption><b>{escape(name)}</b> {escape(caption)}</figcaption>"
    alternative = escape(f"{name}: {caption}", quote=True)
    return f"<figure class='fv-panel'><img src='{data_url(pixels)}' alt='{alternative}'>{words}</figure>"


def data_url(pixels: NDArray[np.uint8]) -> str:
    """A picture, (height, width, 3), as a data URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=88, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
