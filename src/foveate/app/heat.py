"""Where methods look: how long each place of a picture stays, over many pictures; and how far two methods agree."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from foveate.app.answers import check_method
from foveate.ask.generation import Generation
from foveate.ask.pictures import Picture
from foveate.ask.vlm import VLM
from foveate.engine.trace import PrefillRecord
from foveate.errors import FoveateError, InputError
from foveate.viz.dim import coverage

__all__ = ["GRID", "HeatMaps", "look", "overlap", "stay", "stay_map"]

GRID = 48
"""Cells of a map along each side."""
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
    overlaps: dict[tuple[str, str], float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def map_of(self, name: str) -> Floats:
        """The mean over pictures of the share of decoder layers in which a place is processed: (GRID, GRID)."""
        return self.sums[name] / max(1, self.pictures)

    def overlap_of(self, one: str, other: str) -> float:
        """The mean overlap of two methods, in [0, 1]."""
        if one == other:
            return 1.0
        pair = (one, other) if (one, other) in self.overlaps else (other, one)
        return self.overlaps[pair] / max(1, self.pictures)


def look(
    vlm: VLM, pictures: Sequence[Picture], question: str, methods: Sequence[str], retention: float
) -> Iterator[HeatMaps]:
    """Show every picture to every method, one token of an answer each; the maps so far after each picture.

    A method that cannot run is left out, with its reason.

    Raises:
        InputError: If where the model's tokens look is not known.
    """
    maps = HeatMaps(list(methods))
    for picture in pictures:
        stays: dict[str, Floats] = {}
        prompt = vlm.prepare(picture, question)
        for name in list(maps.names):
            try:
                check_method(name)
                answer = vlm.answer(prompt, name, retention=retention, generation=Generation(max_new_tokens=1))
                record = answer.trace.latest
            except FoveateError as error:
                maps.names.remove(name)
                maps.failed[name] = str(error)
                continue
            stays[name] = stay(record)
            maps.sums[name] = maps.sums.get(name, np.zeros((GRID, GRID))) + stay_map(record, stays[name])
        for pair in combinations(maps.names, 2):
            maps.overlaps[pair] = maps.overlaps.get(pair, 0.0) + overlap(stays[pair[0]], stays[pair[1]])
        maps.pictures += 1
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
