"""Films: find where scenes begin and end, and which places do not change within them."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.core.cut import Cut
from foveate.core.merge import first_most, of_length_one
from foveate.core.rank import ranks, top

FrameSpan = tuple[int, int]
"""A run of frames: its first frame, and the frame after its last."""


def likeness(features: Tensor) -> Tensor:
    """The cosine of each row with the row at its place in the frame before: (frames, …, width) -> (frames − 1, …)."""
    unit = of_length_one(features)
    return (unit[1:] * unit[:-1]).sum(dim=-1)


def scenes(likeness: Sequence[float], below: float, least: int) -> list[FrameSpan]:
    """Cut a film where neighbouring frames have a likeness under `below`, and at the least similar ones.

    Args:
        likeness: Of each frame but the first with the frame before it.
        below: Cut wherever likeness is smaller than this.
        least: Smallest number of scenes, if there are enough frames. The least similar frames are cut; of equals, the
            earlier.
    """
    by_likeness = sorted(range(len(likeness)), key=likeness.__getitem__)
    cuts = {frame + 1 for frame in by_likeness[: least - 1]}
    cuts |= {frame + 1 for frame, alike in enumerate(likeness) if alike < below}
    bounds = [0, *sorted(cuts), len(likeness) + 1]
    return list(itertools.pairwise(bounds))


def still_places(still: Tensor) -> Tensor:
    """Number of places that are unchanged through each run of frames: (frames, frames) int64.

    Row f, column n counts the places that did not change in the last n steps up to frame f. Column 0 counts all places.

    Args:
        still: (frames − 1, places) bool, True if a place shows the same as one frame earlier.
    """
    steps, places = still.shape
    run = torch.zeros(places, dtype=torch.int64, device=still.device)
    runs = [run]  # (places,) for each frame: how many steps up to it the place has been unchanged
    for step in still:
        run = (run + 1) * step
        runs.append(run)
    length = torch.arange(steps + 1, device=still.device)
    return (torch.stack(runs)[:, None, :] >= length[:, None]).sum(dim=2)


def still_scenes(places: Sequence[Sequence[int]]) -> tuple[list[FrameSpan], int]:
    """Cut a film so that the most tokens are saved when a place that is unchanged through a scene is kept once.

    A scene of s frames saves (s − 1) times its unchanged places. This is a dynamic programme over the last scene of the
    film so far. Of equal choices it takes the shorter scene.

    Args:
        places: Result of `still_places`, on the host.

    Returns:
        The scenes, and the number of tokens they save.
    """
    best = [0]  # tokens saved up to each frame
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
    """Link each token to the most similar token of the frame before; linked tokens form trees over time.

    Args:
        features: Features of a scene, (frames, tokens of each, width) float32.
        alone: (frames, tokens of each) bool: tokens that are never linked, in either direction.
        left: Smallest number of tokens per frame that remain, those of `alone` included. The least similar are not
            linked.
        above: A token is linked if its cosine is above this.
        released: Use the values of FlashVID's code. A tree is its sum divided by one more than the tokens linked
            directly to its root, one more tree is left, and in a single frame the tokens of `alone` are trees as well.

    Returns:
        The value of each token's tree, the mean of its tokens, (frames, tokens of each, width). True for each root of a
        tree, (frames, tokens of each) bool. The root of each token, (frames · tokens,) int64 indices.
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
    linked = linked & (ranks(best.flatten()).view_as(best) < most)  # only the `most` best links
    total, size, root = list(features), list(torch.ones_like(features[..., 0])), list(itself)
    # Add sums and sizes along the links, from the last frame to the first.
    for frame in range(frames - 1, 0, -1):
        up, to = linked[frame - 1].float(), hangs_on[frame - 1]
        more = up if released else up * size[frame]
        total[frame - 1] = total[frame - 1].index_add(0, to, total[frame] * up[:, None])
        size[frame - 1] = size[frame - 1].index_add(0, to, more)
    # Take over the root of the linked token, from the first frame to the last.
    for frame in range(1, frames):
        root[frame] = torch.where(linked[frame - 1], root[frame - 1][hangs_on[frame - 1]], itself[frame])
    starts = torch.cat((torch.ones_like(linked[:1]), ~linked))
    values = torch.stack(total) / torch.stack(size)[..., None]
    return values, starts & ~alone, torch.cat(root)


class FilmRows:
    """Collects the rows that a film becomes, frame by frame. The host knows all counts.

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
        """Keep these tokens unchanged: (tokens,) int64, indices over all frames' tokens in order."""
        self._add(tokens, self._features[tokens])

    def join(self, source: Tensor, rows: Tensor, members: Tensor, row: Tensor) -> None:
        """Add new rows, and the tokens that went into them.

        Args:
            source: The token that each row stands for, (rows,) int64.
            rows: (rows, width).
            members: Tokens, (members,) int64.
            row: The row that each of them went into, (members,) int64; −1: none.
        """
        self._parent[members] = torch.where(row < 0, self._parent[members], self._count + row)
        self._add(source, rows)

    def follow(self, root: Tensor) -> None:
        """Send every token where its root went. `root`: (tokens,) int64; a placed token is its own root."""
        self._parent = self._parent[root]

    def _add(self, source: Tensor, rows: Tensor) -> None:
        self._source.append(source)
        self._rows.append(rows)
        self._count += len(source)

    def cut(self, attention: Tensor, count: int | None) -> Cut:
        """Return the cut of all rows.

        Args:
            attention: (frames, tokens of each). If there are fewer rows than `count`, the most attended tokens that no
                row stands for are kept as well.
            count: Number of rows to return, at least as many as there are. None: as many as there are, at least one.
        """
        count = count or 1
        if count > self._count:
            # Exclude the tokens that rows already stand for.
            free = attention.flatten().scatter(0, torch.cat(self._source), float("-inf"))
            more = top(free, count - self._count)
            self._add(more, self._features[more])
        source = torch.cat(self._source)
        # The token that a row stands for goes into that row, whatever `join` recorded for it.
        parent = self._parent.scatter(0, source, torch.arange(len(source), device=source.device))
        return Cut.merge(source, torch.cat(self._rows), parent)
