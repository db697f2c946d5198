"""Where methods look: how long each place of a picture stays, over many pictures; and how far two methods agree."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import combinations_with_replacement

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from foveate.app.kept import data_url, figure
from foveate.ask.generation import Generation
from foveate.ask.pictures import Picture
from foveate.ask.vlm import VLM
from foveate.engine.trace import PrefillRecord
from foveate.errors import FoveateError, InputError
from foveate.video import Clip
from foveate.viz.dim import coverage

__all__ = ["GRID", "HeatMaps", "heat_html", "look", "overlap", "stay", "stay_map"]

GRID = 48
"""Cells of a map along each side."""
SCALE = 5
"""Pixels of a cell along each side."""
STRONG = 0.55
"""From which overlap on letters are white on their colour."""
COLOURS = colormaps["inferno"]
MEANING = (
    "in which share of the decoder's layers the tokens of a place are processed. What was merged away counts as gone."
)
JACCARD = (
    "Jaccard overlap: of all pairs of a token and a layer that either method processes, the share that both do. "
    "Two methods that choose at random share some too: a control such as random shows how much."
)
Floats = NDArray[np.float64]


@dataclass
class HeatMaps:
    """What was seen so far.

    Attributes:
        names: The methods.
        pictures: How many pictures went in.
        sums: Per method, (GRID, GRID): the sum of the pictures' maps.
        overlaps: Per pair of methods, the sum of the pictures' overlaps.
        failed: Why a method is left out, by its name.
    """

    names: list[str]
    pictures: int = 0
    sums: dict[str, Floats] = field(default_factory=dict)
    overlaps: dict[frozenset[str], float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, records: dict[str, PrefillRecord]) -> None:
        """Add what the methods did with one picture.

        Raises:
            InputError: If where the model's tokens look is not known.
        """
        stays = {name: stay(record) for name, record in records.items()}
        for name, record in records.items():
            self.sums[name] = self.sums.get(name, np.zeros((GRID, GRID))) + stay_map(record, stays[name])
        for name, other in combinations_with_replacement(records, 2):
            pair = frozenset((name, other))
            self.overlaps[pair] = self.overlaps.get(pair, 0.0) + overlap(stays[name], stays[other])
        self.pictures += 1

    def overlap_of(self, name: str, other: str) -> float:
        """The mean overlap of two methods, in [0, 1]."""
        return self.overlaps[frozenset((name, other))] / self.pictures


def look(
    vlm: VLM, pictures: Sequence[Picture | Clip], question: str, methods: Sequence[str], retention: float
) -> Iterator[HeatMaps]:
    """Show every picture to every method, one token of an answer each; the maps so far after each picture.

    A method that cannot run is left out, with its reason.

    Raises:
        InputError: If where the model's tokens look is not known.
    """
    maps = HeatMaps(list(methods))
    for picture in pictures:
        prompt = vlm.prepare(picture, question)
        records = {}
        for name in list(maps.names):
            try:
                answer = vlm.answer(prompt, name, retention=retention, generation=Generation(max_new_tokens=1))
                records[name] = answer.trace.latest
            except FoveateError as error:
                maps.names.remove(name)
                maps.failed[name] = str(error)
        maps.add(records)
        yield maps


def stay(record: PrefillRecord, sample: int = 0) -> Floats:
    """The share of decoder layers that process each vision token: (tokens,) in [0, 1].

    A token that was merged into another counts as gone, and the one that it went into as there. For methods that merge
    nothing, the mean is the retention.
    """
    alive = np.ones(record.vision_tokens[sample])
    layers = np.zeros_like(alive)
    since = 0
    for stage in record.stages:
        if stage.where == "kv":  # the decoder has run by then
            continue
        start = stage.layer or 0
        layers += alive * (start - since)
        since = start
        alive = np.zeros_like(alive)
        alive[stage.kept[sample].numpy()] = 1.0
    return (layers + alive * (record.depth - since)) / record.depth


def stay_map(record: PrefillRecord, stays: Floats, sample: int = 0) -> Floats:
    """The same by place in the picture: (GRID, GRID); the mean where several tokens see one place.

    Raises:
        InputError: If where tokens look is not known.
    """
    boxes = record.boxes[sample]
    if any(image is None for image in boxes):
        raise InputError("Where this model's vision tokens look is not known, so there is no map of them.")
    places = np.concatenate([np.asarray(image, dtype=np.float64) for image in boxes if image is not None])
    total = np.zeros((GRID, GRID))
    for value in np.unique(stays).tolist():  # as many values as there are stages
        total += value * coverage(places[stays == value], GRID, GRID)
    return total / np.maximum(coverage(places, GRID, GRID), 1)


def overlap(one: Floats, other: Floats) -> float:
    """Jaccard's overlap of what two methods process: pairs of token and layer in both, of those in either.

    Shapes: two (tokens,) shares of layers -> in [0, 1]. A token leaves once and for all, so the layers that two methods
    both give it are the fewer of the two.
    """
    either = float(np.maximum(one, other).sum())
    if either == 0:
        return 1.0
    return float(np.minimum(one, other).sum()) / either


def heat_html(maps: HeatMaps, total: int) -> str:
    """A map a method, with one scale for all, and a table of how far they agree.

    Args:
        maps: What was seen so far, of one picture or more.
        total: How many pictures there will be.
    """
    failures = "".join(f"<p class='fv-error'>{escape(name)}: {escape(why)}</p>" for name, why in maps.failed.items())
    if not maps.names:
        return failures
    means = {name: maps.sums[name] / maps.pictures for name in maps.names}
    most = max(0.01, *(float(mean.max()) for mean in means.values()))
    figures = ""
    for name, mean in means.items():
        figures += figure(name, f"mean {mean.mean():.0%}", _coloured(mean / most))
    ramp = data_url(_coloured(np.linspace(0, 1, 32)[None]))
    scale = f"<span>0%</span><img alt='colour scale' src='{ramp}'><span>{most:.0%} of the layers</span>"
    done = f"{total} pictures" if maps.pictures == total else f"{maps.pictures} of {total} pictures"
    return (
        f"<div class='fv-grid fv-maps'>{figures}</div><div class='fv-scale'>{scale}</div>"
        f"<p class='fv-note'>Mean over {done}: {MEANING}</p>{_table(maps)}{failures}"
    )


def _coloured(values: Floats) -> NDArray[np.uint8]:
    """(height, width) in [0, 1] -> (SCALE height, SCALE width, 3)."""
    colours: NDArray[np.uint8] = (COLOURS(values)[:, :, :3] * 255).round().astype(np.uint8)
    return colours.repeat(SCALE, axis=0).repeat(SCALE, axis=1)


def _table(maps: HeatMaps) -> str:
    """The overlaps, a row and a column a method; nothing for one method."""
    if len(maps.names) < 2:
        return ""
    heads = "".join(f"<th scope='col'>{escape(name)}</th>" for name in maps.names)
    rows = ""
    for name in maps.names:
        cells = ""
        for other in maps.names:
            value = maps.overlap_of(name, other)
            letters = " class='fv-strong'" if value >= STRONG else ""
            cells += f"<td{letters} style='--share:{value:.3f}'>{value:.2f}</td>"
        rows += f"<tr><th scope='row'>{escape(name)}</th>{cells}</tr>"
    table = f"<table class='fv-overlap'><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<h3>Overlap</h3><div class='fv-scroll'>{table}</div><p class='fv-note'>{JACCARD}</p>"
