"""The tokens that each method keeps, place by place through the model: HTML for a slider."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveate.app.replies import Said
from foveate.app.subjects import MOST_FRAMES, Subject
from foveate.errors import FoveateError
from foveate.viz.canvas import LEGEND, data_url
from foveate.viz.mosaic import plain_panel, stage_panels
from foveate.viz.showing import frames_shown

SIDE = 360
"""Pixels of a square panel."""
COUNTS = "Here: tokens left from this place on. In a card: their mean over all layers."
BEFORE = {"vision tower": -2, "projector": -1}
"""Numbers of the places before decoder layer 0."""


Part = tuple[str, str, int, int]
"""A piece of HTML that is shown for some positions of the slider: its tag, its content, the first and the last one."""


@dataclass(frozen=True, slots=True)
class Way:
    """The panels for a picture, with one position of the slider for each place where tokens are dropped.

    Attributes:
        words: The name of each place.
        panels: The picture and the panels of each method.
    """

    words: tuple[str, ...]
    panels: tuple[Part, ...]

    def to_html(self, stop: int = 0) -> str:
        """HTML of all positions, of which one is shown. The browser shows and hides them when the slider moves."""
        places = _parts_at(stop, [("p", words, place, place) for place, words in enumerate(self.words)])
        grid = _parts_at(stop, self.panels)
        legend = ""
        if len(self.words) > 1:
            legend = f"<p class='fv-note'>{LEGEND} {COUNTS}</p>"
        return f"<div class='fv-places'>{places}</div><div class='fv-grid fv-panels'>{grid}</div>{legend}"


def _parts_at(stop: int, parts: Sequence[Part]) -> str:
    """HTML of the parts for one position of the slider."""
    html = ""
    for tag, inside, since, until in parts:
        hidden = "" if since <= stop <= until else " hidden"
        html += f"<{tag} class='fv-panel' data-since='{since}' data-until='{until}'{hidden}>{inside}</{tag}>"
    return html


SHOW_STOP = """() => {
    const stop = Number(document.querySelector("#stages input[type=range]").value);
    for (const part of document.querySelectorAll("#panels [data-since]"))
        part.hidden = stop < Number(part.dataset.since) || stop > Number(part.dataset.until);
}"""
"""Shows the panels for the slider's position. It runs in the browser, so that no move of the slider is lost."""


def way_of(subject: Subject, replies: Sequence[Said] = ()) -> Way:
    """The whole picture, then each place where one of the methods dropped tokens, in order."""
    whole, depth = plain_panel(subject.pictures, SIDE, MOST_FRAMES), 0
    # By method and place, the panel to show from this place on. Places are numbered like the decoder's layers.
    shown: dict[str, dict[int, str]] = {}
    for reply in replies:
        if (answer := reply.dropping) is None:
            continue
        record, media, tokens = answer.trace.history[0], answer.prompt.shown, answer.vision_tokens
        depth = record.depth
        try:
            frames, _ = frames_shown(record, media, 0)
            drawn = stage_panels(record, media, side=SIDE, most=MOST_FRAMES)
        except FoveateError as error:
            shown[reply.name] = {-3: f"<p class='fv-error'>{escape(str(error))}</p>"}
            continue
        whole = plain_panel([frame.picture for frame in frames], SIDE, MOST_FRAMES)  # as the model saw them
        shown[reply.name] = {-3: _panel(reply.name, f"{tokens} of {tokens} tokens here", whole)}
        for panel in drawn:
            if panel.dropped and not panel.rows:  # tokens of which none is dropped there
                place = BEFORE.get(panel.place, depth) if panel.layer is None else panel.layer
                shown[reply.name][place] = _panel(reply.name, f"{panel.after} of {tokens} tokens here", panel.pixels)
    places = sorted({-3}.union(*shown.values()))
    last = len(places) - 1
    parts = [("figure", _panel(f"the {subject.noun}", "", whole), 0, last)]
    for panels in shown.values():
        stops = sorted(panels)
        for place, following in zip(stops, [*stops[1:], None], strict=True):
            until = last
            if following is not None:
                until = places.index(following) - 1
            parts.append(("figure", panels[place], places.index(place), until))
    return Way(tuple(_words(place, depth, subject.noun) for place in places), tuple(parts))


def _words(place: int, depth: int, noun: str) -> str:
    """The name of a place."""
    if place >= depth:
        return "While the answer is written"
    names = {-3: f"The {noun}", -2: "In the vision tower", -1: "In the projector"}
    return names.get(place, f"Before decoder layer {place} of {depth}")


def _panel(name: str, caption: str, pixels: NDArray[np.uint8]) -> str:
    """A picture with a caption. A click or the space bar enlarges it to the window, and back."""
    alternative = escape(": ".join(filter(None, (name, caption))), quote=True)
    return (
        f"<label class='fv-zoom'><input type='checkbox' aria-label='Enlarge {alternative}'>"
        f"<img src='{data_url(Image.fromarray(pixels))}' alt='{alternative}'></label>"
        f"<figcaption><b>{escape(name)}</b> {escape(caption)}</figcaption>"
    )
