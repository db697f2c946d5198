"""Answers as cards, side by side, and what each method kept at a place in the model: HTML, all text escaped."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from foveate.app.answers import FULL, Reply
from foveate.app.subject import Subject
from foveate.ask.answer import Answer
from foveate.errors import FoveateError
from foveate.viz.mosaic import StagePanel, plain_panel, stage_panels

__all__ = ["Kept", "Places", "cards", "panels", "places_of", "stop_words"]

SIDE = 360
"""Pixels of a square panel."""
QUALITY = 88
PLACES = {"vision tower": -2, "projector": -1}
"""Where stages stand that are not before a decoder layer: those before the decoder, in order."""


# -- answers --------------------------------------------------------------------------------------------------


def cards(replies: Sequence[Reply], right: str | None = None) -> str:
    """A card a reply: the answer, and what it took beside the full model.

    Args:
        replies: In order; those to come have no text yet.
        right: The right answer, where it is known.
    """
    full = next((reply.answer for reply in replies if reply.name == FULL), None)
    made = "".join(_card(reply, full) for reply in replies)
    line = f"<p class='fv-right'>The right answer is <b>{escape(right)}</b>.</p>" if right else ""
    return f"<div class='fv-grid'>{made}</div>{line}"


def _card(reply: Reply, full: Answer | None) -> str:
    badge = "<span class='fv-badge'>picture seen before</span>" if reply.reused else ""
    head = f"<h3>{escape(reply.name)}{badge}</h3>"
    if reply.error is not None:
        return f"<article class='fv-card'>{head}<p class='fv-error' role='alert'>{escape(reply.error)}</p></article>"
    if reply.answer is None:
        words = escape(reply.text) or "…"
        return f"<article class='fv-card fv-waiting'>{head}<p class='fv-text'>{words}</p></article>"
    words = escape(reply.text) or "<i>no words</i>"
    rows = "".join(_row(*row) for row in _measures(reply, reply.answer, full))
    return f"<article class='fv-card'>{head}<p class='fv-text'>{words}</p><dl>{rows}</dl></article>"


def _row(label: str, value: str, share: float | None) -> str:
    """A measure; with a bar where it is a share of the full model's."""
    bar = ""
    if share is not None:
        bar = f"<i class='fv-bar'><i style='width:{100 * min(max(share, 0), 1):.1f}%'></i></i>"
    return f"<div><dt>{label}</dt><dd>{value}{bar}</dd></div>"


def _measures(reply: Reply, answer: Answer, full: Answer | None) -> list[tuple[str, str, float | None]]:
    """Retention, FLOPs, bytes of the KV cache, and times: what is shown, and the share of the full model's."""
    rows: list[tuple[str, str, float | None]] = [
        ("Vision tokens", f"{answer.spent:.0f} of {answer.vision_tokens} ({answer.retention:.0%})", answer.retention)
    ]
    flops = answer.flops
    if flops is not None:
        whole = full.flops if full is not None and full.flops else flops
        rows.append(("FLOPs to the first token", f"{_amount(flops)} ({flops / whole:.0%})", flops / whole))
    if answer.kv_bytes:
        share = answer.kv_bytes / (answer.kv_bytes_whole or answer.kv_bytes)
        rows.append(("KV cache", f"{_size(answer.kv_bytes)} ({share:.0%})", share))
    if reply.first is not None and reply.seconds is not None:
        rows.append(("Time", f"{reply.first:.2f} s to the first words, {reply.seconds:.2f} s in all", None))
    if answer.missed is not None:
        rows.append(("Budget not met", escape(answer.missed), None))
    return rows


def _amount(flops: float) -> str:
    """12.3 G, 4.56 T."""
    for power, letter in ((12, "T"), (9, "G"), (6, "M")):
        if flops >= 10**power:
            return f"{flops / 10**power:.3g} {letter}"
    return f"{flops:.0f}"


def _size(count: float) -> str:
    """3.2 MiB."""
    for power, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 2**power:
            return f"{count / 2**power:.3g} {unit}"
    return f"{count:.0f} B"


# -- what was kept --------------------------------------------------------------------------------------------


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
        if not answer.trace.history:
            return cls(name, answer.vision_tokens)
        try:
            drawn = stage_panels(answer.trace.latest, answer.prompt.shown, answer.sample, SIDE)
        except FoveateError as error:
            return cls(name, answer.vision_tokens, why=str(error))
        depth = answer.trace.latest.depth
        stages = tuple((_order(panel, depth), panel.after, _url(panel.pixels)) for panel in drawn)
        return cls(name, answer.vision_tokens, stages)


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
        names = {number: f"in the {name}" for name, number in PLACES.items()}
        if place >= self.depth:
            return "while the answer is written"
        return names.get(place, f"before decoder layer {place} of {self.depth}")


def places_of(subject: Subject, replies: Sequence[Reply] = ()) -> Places:
    """The picture and what the methods of these replies kept."""
    kept = []
    depth = 0
    for reply in replies:
        if reply.answer is not None and reply.answer.method is not None:
            depth = reply.answer.prompt.loaded.depth
            kept.append(Kept.of(reply.name, reply.answer))
    return Places(_url(plain_panel(subject.pictures, SIDE)), tuple(kept), depth)


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
    words = (
        "In colour: kept. Tinted: merged into the framed patch of the same tint. Dark and hatched: dropped. "
        "Washed out: cut off by the processor."
    )
    return f"<p class='fv-note'>{words}</p>"


def stop_words(places: Places, stop: int) -> str:
    """What the slider stands at, in words."""
    return f"<p class='fv-stop'>{escape(places.words(stop)).capitalize()}</p>"


def _order(panel: StagePanel, depth: int) -> int:
    """Where a stage stands on the way: the tower, the projector, the decoder's layers, then the decoding."""
    if panel.layer is not None:
        return panel.layer
    return PLACES.get(panel.place, depth)


def _url(pixels: np.ndarray) -> str:
    """A picture as a data URL."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "WEBP", quality=QUALITY, method=4)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
