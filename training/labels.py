"""What the tower's dense losses ask of each patch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.embedded.drawing import COLOURS, SHAPES
from foveate.embedded.questions import MARGIN, neighbours
from foveate.embedded.scenes import CHARACTERS, PATCH, Scene, Thing

__all__ = ["UNKNOWN", "Labels", "labels"]

INK = 12  # pixels of one thing that make a patch (of 196) its own
FAINT = 4  # ... of one character, whose strokes are thin
MOST_PLACES = 8  # dense canvases, with more things, have no places
MOST_COUNTED = 9  # nor counts
UNKNOWN = -100  # what cross-entropy leaves out


@dataclass(frozen=True, slots=True)
class Labels:
    """Targets of one scene; n is the number of patches, row by row.

    Attributes:
        shape: (n,) int64, 0 for none, else 1 + index in SHAPES.
        colour: (n,) int64, 0 for none, else 1 + index in COLOURS.
        character: (n,) int64, 0 for none, else 1 + index in CHARACTERS.
        order: (n,) int64, 0 for none, else the character's place in its text, from 1.
        centre: (n,) float32, 1 where an object's centre lies in the patch.
        xy: (n, 2) float32 in [-1, 1]: centre of the thing or character seen, else of the patch.
        present: (16,) float32: which shapes, then which colours occur anywhere.
        across, down: (n,) int64, 0 for no thing, else the thing's place among all from the left or from
            the top, from 1; UNKNOWN where a neighbour in that order is too near to tell.
        beside: (n, 8) int64, shape and colour, as above, of what stands just beside the thing on each of four sides;
            UNKNOWN where no thing is seen or it is not clear what stands there.
        things, same_shape, same_colour: (n,) int64, 0 for no thing, else how many things there are in all, how many of
            the thing's shape, and how many of its colour; UNKNOWN where there are too many.
    """

    shape: NDArray[np.int64]
    colour: NDArray[np.int64]
    character: NDArray[np.int64]
    order: NDArray[np.int64]
    centre: NDArray[np.float32]
    xy: NDArray[np.float32]
    present: NDArray[np.float32]
    across: NDArray[np.int64]
    down: NDArray[np.int64]
    beside: NDArray[np.int64]
    things: NDArray[np.int64]
    same_shape: NDArray[np.int64]
    same_colour: NDArray[np.int64]


def labels(scene: Scene) -> Labels:
    """Derive the dense targets from a scene's owner map."""
    side, grid = scene.side, scene.side // PATCH
    n = grid * grid
    chars = [(c, k, x, t.y) for t in scene.texts for k, (c, x) in enumerate(zip(t.characters, t.xs, strict=True), 1)]
    marks = len(scene.things) + len(chars)
    # Pixels per (patch, mark), then the mark with most ink.
    patch_of = (np.arange(side) // PATCH)[:, None] * grid + (np.arange(side) // PATCH)[None, :]
    ink = np.bincount((patch_of * (marks + 1) + scene.owner).ravel(), minlength=n * (marks + 1))
    ink = ink.reshape(n, marks + 1)[:, 1:]

    # Shape, colour, character, order, across and down of each mark; last: none.
    kinds = np.zeros((6, marks + 1), dtype=np.int64)
    centres = np.zeros((marks + 1, 2), dtype=np.float32)
    present = np.zeros(len(SHAPES) + len(COLOURS), dtype=np.float32)
    centre = np.zeros(n, dtype=np.float32)
    for i, thing in enumerate(scene.things):
        shape, colour = SHAPES.index(thing.shape), list(COLOURS).index(thing.colour)
        kinds[:2, i] = shape + 1, colour + 1
        centres[i] = thing.x, thing.y
        present[[shape, len(SHAPES) + colour]] = 1
        centre[int(thing.y) // PATCH * grid + int(thing.x) // PATCH] = 1
    kinds[4, : len(scene.things)] = places([thing.x for thing in scene.things])
    kinds[5, : len(scene.things)] = places([thing.y for thing in scene.things])
    for i, (character, order, x, y) in enumerate(chars, start=len(scene.things)):
        kinds[2:4, i] = CHARACTERS.index(character) + 1, order
        centres[i] = x, y

    if marks:
        seen = ink.argmax(axis=1)
        need = np.where(seen < len(scene.things), INK, FAINT)
        seen = np.where(ink.max(axis=1) >= need, seen, marks)
    else:
        seen = np.zeros(n, dtype=np.int64)
    rows, columns = np.divmod(np.arange(n), grid)
    own = np.stack([columns + 0.5, rows + 0.5], axis=1).astype(np.float32) * PATCH
    xy = np.where((seen < marks)[:, None], centres[seen], own) / side * 2 - 1
    shape, colour, character, order, across, down = kinds[:, seen]
    near = np.full((marks + 1, 8), UNKNOWN)
    for i, thing in enumerate(scene.things):
        near[i] = beside(scene, thing)
    counted = np.zeros((3, marks + 1), dtype=np.int64)
    counted[:, : len(scene.things)] = counts(scene.things)
    of_marks = (across, down, near[seen], *counted[:, seen])
    return Labels(shape, colour, character, order, centre, xy.astype(np.float32), present, *of_marks)


def counts(things: Sequence[Thing]) -> NDArray[np.int64]:
    """Of each thing: how many there are in all, of its shape and of its colour; UNKNOWN where too many: (3, n)."""
    if len(things) > MOST_COUNTED:
        return np.full((3, len(things)), UNKNOWN)
    shapes, colours = Counter(thing.shape for thing in things), Counter(thing.colour for thing in things)
    of_each = [(len(things), shapes[thing.shape], colours[thing.colour]) for thing in things]
    return np.array(of_each, dtype=np.int64).reshape(-1, 3).T


def beside(scene: Scene, thing: Thing) -> list[int]:
    """Shape and colour of what stands just beside a thing on each side, 0 for nothing, UNKNOWN where that is open."""
    sides: list[int] = []
    for near in neighbours(scene, thing):
        if len(near) > 1:
            sides += [UNKNOWN, UNKNOWN]
        elif near:
            sides += [SHAPES.index(near[0].shape) + 1, list(COLOURS).index(near[0].colour) + 1]
        else:
            sides += [0, 0]
    return sides


def places(at: list[float]) -> NDArray[np.int64]:
    """Place of each in ascending order, from 1; UNKNOWN beside a near tie and where there are too many."""
    order = np.argsort(at, kind="stable")
    ranks = np.full(len(at), UNKNOWN)
    if 0 < len(at) <= MOST_PLACES:
        near = np.diff(np.asarray(at)[order]) < MARGIN
        clear = ~(np.append(near, False) | np.append(False, near))
        ranks[order] = np.where(clear, np.arange(1, len(at) + 1), UNKNOWN)
    return ranks
