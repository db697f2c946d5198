"""Reducing tokens between a LLaVA's tower and its projector, and merging patches inside the tower."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foveate.core.cut import Cut
from foveate.core.tower import TowerView
from foveate.families._encode import (
    Reducer,
    TowerReader,
    encoder_layers,
    replaced,
    rows_left,
    scoring_layers,
    stays_whole,
)
from foveate.families._tap import tapped

__all__ = ["encode_before_projector"]


def encode_before_projector(
    run: Callable[[], Any], tower: nn.Module, projector: nn.Module, chosen: Sequence[int], cls: bool, reducer: Reducer
) -> tuple[Any, list[Any]]:
    """Run a LLaVA's `get_image_features` with every image's tokens reduced on their way to the projector.

    The projector works on the rows that are left; behind it every image has as many rows as before, its own first
    and zeros after them, so that the placeholders stay whole.

    Args:
        run: Calls the original.
        tower: CLIP or SigLIP: `encoder.layers`, each with a `self_attn`.
        projector: Gets (images, patches, width).
        chosen: Indices of the layers whose output the projector gets; the last of them scores.
        cls: Whether the tower has a CLS, which the original leaves out.
        reducer: What reduces.

    Returns:
        What the original returns, and a cut (or None) an image.
    """
    layers = encoder_layers(tower)
    wanted = scoring_layers(chosen, len(layers))
    ragged = _Ragged(cls, reducer)
    seen: dict[tuple[int, int], tuple[Tensor, Tensor, float]] = {}
    states: dict[int, Tensor] = {}
    cuts: list[Any] = []

    def note_attention(at: int, queries: Tensor, keys: Tensor, scaling: float) -> None:
        for image, *heads in zip(ragged.inside, queries, keys, strict=True):
            seen[at, image] = (*heads, scaling)

    def view(index: int, image: Tensor) -> TowerView:
        merge = ragged.merges[index]
        read = TowerReader(cls, [seen[at, index] for at in wanted], [None if at else merge for at in wanted])
        state = torch.cat([states[at][index, :1] for at in chosen], dim=-1) if cls else None
        grid = ragged.grid if merge is None else None
        return TowerView(image, grid, state, read.scores, read.keys, merge, early=reducer.early)

    def project(features: Tensor) -> Tensor:
        images = [image[: length - int(cls)] for image, length in zip(features, ragged.lengths, strict=True)]
        cuts.extend(reducer.reduce(view(index, image) for index, image in enumerate(images)))
        if all(stays_whole(cut) for image, cut in zip(images, cuts, strict=True)):
            same: Tensor = original(features)
            return same
        rows = [rows_left(image, cut) for image, cut in zip(images, cuts, strict=True)]
        if len({len(row) for row in rows}) == 1:
            projected: Sequence[Tensor] = list(original(torch.stack(rows)))
        else:
            projected = [original(row[None])[0] for row in rows]
        return _padded(projected, ragged.grid[0] * ragged.grid[1])  # fresh: views of it are one image's features each

    with ExitStack() as stack:
        for at in dict.fromkeys(wanted):
            attention: Any = layers[at].self_attn
            stack.enter_context(tapped(attention, functools.partial(note_attention, at)))
        for at, layer in enumerate(layers):
            stack.enter_context(ragged.around(layer, first=at == 0))
        for at in dict.fromkeys(chosen):
            note = functools.partial(_note, states, at)
            stack.enter_context(_hook(layers[at], note))
        original = stack.enter_context(replaced(projector, "forward", project))
        return run(), cuts


class _Ragged:
    """A tower whose images may differ in length behind its first layer, where patches are merged.

    Between layers the shorter ones are padded at their ends; a layer runs them one by one then, whatever its kernel.

    Attributes:
        grid: Rows and columns of an image's patches.
        merges: What was merged in each image.
        lengths: Rows of each image, a CLS among them.
        inside: Which images are in the layer that runs.
    """

    def __init__(self, cls: bool, reducer: Reducer) -> None:
        self.grid = 0, 0
        self.merges: list[Cut | None] = []
        self.lengths: list[int] = []
        self.inside: Sequence[int] = ()
        self._cls = int(cls)
        self._reducer = reducer

    @contextmanager
    def around(self, layer: nn.Module, first: bool) -> Iterator[None]:
        """Stand around a layer's forward."""

        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.inside = range(len(hidden_states))
            if first:
                return self._merged(original(hidden_states, *args, **kwargs))
            if len(set(self.lengths)) == 1:
                same: Tensor = original(hidden_states, *args, **kwargs)
                return same
            rows = []
            for index, length in enumerate(self.lengths):
                self.inside = (index,)
                rows.append(original(hidden_states[index : index + 1, :length], *args, **kwargs)[0])
            return _padded(rows, max(self.lengths))

        with replaced(layer, "forward", forward) as original:
            yield

    def _merged(self, output: Tensor) -> Tensor:
        """What the first layer made, (images, rows, width), with patches merged."""
        count = output.shape[1] - self._cls
        side = int(count**0.5)
        self.grid = side, count // side
        patches = output[:, self._cls :]
        self.merges = (
            self._reducer.merge_early(list(patches), self.grid) if self._reducer.early else [None] * len(output)
        )
        self.lengths = [self._cls + (count if merge is None else len(merge.source)) for merge in self.merges]
        if all(merge is None for merge in self.merges):
            return output
        return _padded(
            [
                one if merge is None else torch.cat((one[: self._cls], rows_of(merge)))
                for one, merge in zip(output, self.merges, strict=True)
            ],
            max(self.lengths),
        )


def _padded(rows: Sequence[Tensor], length: int) -> Tensor:
    """Images' rows, (…, width) each, with zeros after them: (images, length, width)."""
    whole = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
    for place, row in zip(whole, rows, strict=True):
        place[: len(row)] = row
    return whole


def rows_of(merge: Cut) -> Tensor:
    """The rows that patches have become."""
    assert merge.rows is not None
    return merge.rows


def _note(states: dict[int, Tensor], at: int, module: nn.Module, args: Any, output: Tensor) -> None:
    states[at] = output


@contextmanager
def _hook(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    # Before those by which transformers captures hidden states, which it installs when it first needs them.
    handle = module.register_forward_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()
