"""Films: where one scene ends and the next begins, and which places stand still in between."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.merge import first_most, of_length_one
from foveate.core.rank import ranks, top

Scene = tuple[int, int]
"""The first frame of a run of frames, and the one behind its last."""


def likeness(features: Tensor) -> Tensor:
    """The cosine of each row with the one at its place in the frame before: (frames, …, width) -> (frames − 1, …)."""
    unit = of_length_one(features)
    return (unit[1:] * unit[:-1]).sum(dim=-1)


def scenes(likeness: Sequence[float], below: float, least: int) -> list[Scene]:
    """A film cut where neighbouring frames are less alike than `below`, and at the least alike ones.

    Args:
        likeness: Of each frame but the first with the one before it.
        below: Cuts wherever likeness is smaller.
        least: Scenes at the least, as far as there are frames; the least alike are cut, the earlier of equals.
    """
    by_likeness = sorted(range(len(likeness)), key=likeness.__getitem__)
    cuts = {frame + 1 for frame in by_likeness[: least - 1]}
    cuts |= {frame + 1 for frame, alike in enumerate(likeness) if alike < below}
    bounds = [0, *sorted(cuts), len(likeness) + 1]
    return list(itertools.pairwise(bounds))


def still_places(still: Tensor) -> Tensor:
    """How many places stand still through each run of frames: (frames, frames) int64.

    Row f, column n counts the places that did not change at the last n steps up to frame f; column 0 all of them.

    Args:
        still: (frames − 1, places) bool, whether a place shows what it showed one frame earlier.
    """
    steps, places = still.shape
    run = torch.zeros(places, dtype=torch.int64, device=still.device)
    runs = [run]  # of each place, the steps up to this frame at which it stood still
    for step in still:
        run = (run + 1) * step
        runs.append(run)
    length = torch.arange(steps + 1, device=still.device)
    return (torch.stack(runs)[:, None, :] >= length[:, None]).sum(dim=2)


def still_scenes(places: Sequence[Sequence[int]]) -> tuple[list[Scene], int]:
    """The cutting of a film that saves the most tokens where a place that stands still through a scene is kept once.

    A scene of s frames saves (s − 1) times its still places. A dynamic programme over the scene that ends the film so
    far; of equals the shorter one.

    Args:
        places: `still_places`, on the host.

    Returns:
        The scenes, and the tokens they save.
    """
    best = [0]  # saved up to each frame
    lengths = []
    for frame, still in enumerate(places):
        saved, length = best[frame], 1
        for steps in range(1, frame + 1):
            more = best[frame - steps] + still[steps] * steps
            if more > saved:
                saved, length = more, steps + 1
        best.append(saved)
        lengths.append(length)
    scenes, end = [], len(lengths)
    while end:
        scenes.append((end - lengths[end - 1], end))
        end -= lengths[end - 1]
    return scenes[::-1], best[-1]


def trees(
    features: Tensor, alone: Tensor, left: int, above: float, released: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Trees of tokens that show the same over time: each token hangs on the one most like it in the frame before.

    Args:
        features: Of a scene, (frames, tokens of each, width) float32.
        alone: (frames, tokens of each) bool: tokens that hang on none, and on which none hangs.
        left: How many tokens a frame there are left at least, those alone among them; the least alike are not linked.
        above: The cosine above which a token hangs on another.
        released: As FlashVID's code has it: a tree is its sum over one more than the tokens that hang on its first one
            directly, one tree more is left, and in a single frame tokens that are alone are trees as well.

    Returns:
        What each token's tree is, the mean of what hangs on it, (frames, tokens of each, width); whether it is the
        first of a tree, (frames, tokens of each) bool; and which token is the first of its own, (frames · tokens,).
    """
    frames, tokens, _ = features.shape
    itself = torch.arange(frames * tokens, device=features.device).view(frames, tokens)
    if frames == 1:
        return features, ~alone | released, itself.flatten()
    unit = of_length_one(features)
    alike = unit[1:] @ unit[:-1].transpose(1, 2)  # (frames − 1, tokens, tokens of the frame before)
    alike = alike.masked_fill(alone[1:, :, None] | alone[:-1, None], -1.0)
    best, hangs_on = alike.amax(dim=-1), first_most(alike)
    linked = best > above
    most = torch.full_like(linked.sum(), frames * (tokens - left))
    if released:
        most = most - (linked.sum() > most).long()
    linked = linked & (ranks(best.flatten()).view_as(best) < most)
    total, size, root = list(features), list(torch.ones_like(features[..., 0])), list(itself)
    for frame in range(frames - 1, 0, -1):
        up, to = linked[frame - 1].float(), hangs_on[frame - 1]
        more = up if released else up * size[frame]
        total[frame - 1] = total[frame - 1].index_add(0, to, total[frame] * up[:, None])
        size[frame - 1] = size[frame - 1].index_add(0, to, more)
    for frame in range(1, frames):
        root[frame] = torch.where(linked[frame - 1], root[frame - 1][hangs_on[frame - 1]], itself[frame])
    starts = torch.cat((torch.ones_like(linked[:1]), ~linked))
    values = torch.stack(total) / torch.stack(size)[..., None]
    return values, starts & ~alone, torch.cat(root)


class FilmRows:
    """The rows that a film becomes, collected frame by frame; all counts are known to the host.

    Args:
        features: (frames, tokens of each, width) float32.
    """

    def __init__(self, features: Tensor) -> None:
        self._features = features.flatten(0, 1)
        self._parent = torch.full((len(self._features),), -1, device=features.device)
        self._source: list[Tensor] = [self._parent[:0]]
        self._rows: list[Tensor] = [self._features[:0]]
        self._count = 0

    def keep(self, tokens: Tensor) -> None:
        """These tokens stay as they are: (tokens,) int64, of all frames' tokens one behind the other."""
        self._add(tokens, self._features[tokens])

    def join(self, source: Tensor, rows: Tensor, members: Tensor, row: Tensor) -> None:
        """New rows, and what went into them.

        Args:
            source: The token that each row stands for, (rows,) int64.
            rows: (rows, width).
            members: Tokens, (members,) int64.
            row: The row that each of them went into, (members,) int64; −1: none.
        """
        self._parent[members] = torch.where(row < 0, self._parent[members], self._count + row)
        self._add(source, rows)

    def follow(self, root: Tensor) -> None:
        """Every token went where another went, `root`: (tokens,) int64, itself for those that were told of."""
        self._parent = self._parent[root]

    def _add(self, source: Tensor, rows: Tensor) -> None:
        self._source.append(source)
        self._rows.append(rows)
        self._count += len(source)

    def cut(self, attention: Tensor, count: int | None) -> Cut:
        """The cut of all rows.

        Args:
            attention: (frames, tokens of each); where rows are fewer than `count`, the most attended tokens that no
                row stands for stay as well.
            count: How many rows there shall be, at least as many as there are; None: as many as there are, or one.
        """
        count = count or 1
        if count > self._count:
            free = attention.flatten().scatter(0, torch.cat(self._source), float("-inf"))
            more = top(free, count - self._count)
            self._add(more, self._features[more])
        source = torch.cat(self._source)
        parent = self._parent.scatter(0, source, torch.arange(len(source), device=source.device))
        return Cut.merge(source, torch.cat(self._rows), parent)
