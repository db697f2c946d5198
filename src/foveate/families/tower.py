"""Tower: read a vision tower's layers, merge patches inside it, and reduce tokens before the projector."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from foveate.core.cut import Cut
from foveate.core.grid import Grid, into_cells, join
from foveate.core.merge import average
from foveate.core.patching import Patcher
from foveate.core.signals import TowerAttention, TowerSignal
from foveate.core.tensors import without_gradient
from foveate.core.views import PixelView, TowerView
from foveate.errors import UnsupportedError
from foveate.families.placing import rows_left, stays_whole
from foveate.families.tap import Tapped, run_unturned, tap

Inputs = Mapping[str, Any]
"""The arguments of a call of the model, by name."""

Run = Callable[..., Any]
"""Calls a `get_*_features` function of the core. Arguments passed to it replace those of the original call."""

Encoded = tuple[Any, list[Cut | None]]
"""The result of such a call, and the cut of each image's tokens. None: unchanged."""


Grids = Sequence[tuple[Grid, ...]]
"""Rows and columns of the token grids of each image or video, one for each view or frame, in order."""


class ImageReducer(Protocol):
    """Reduces a tower's tokens. The engine passes it to a family.

    Attributes:
        early: True if `merge_early` merges patches inside the tower.
        block: The block of the tower before which it does.
        reads: The signals of the tower that `reduce` reads.
        ran: Which rows of the tower ran, if `leave` dropped some that were restored later.
    """

    early: bool
    block: int
    reads: tuple[TowerSignal, ...]
    ran: list[Any]

    def lengths(self, total: int, pieces: Sequence[int] = ()) -> Sequence[int]:
        """Vision tokens in each image of a call that makes `total` tokens in these pieces, according to the prompt.

        If no prompt was seen, all tokens are one image.
        """

    def leave(self, views: Sequence[PixelView]) -> list[Cut | None]:
        """Select the tokens of each image that the tower makes, from their pixels, ascending. None: all."""

    def merge_early(self, images: Sequence[Tensor], grid: Grid) -> list[Cut | None]:
        """Merge patches of each image before a block, (patches, width) each. The cuts have the new rows.

        All images of a call are given at once, because the host may have to wait for the device. The same holds for
        `reduce`.
        """

    def reduce(self, views: Iterable[TowerView]) -> list[Cut | None]:
        """The cut of each image's tokens, whose count the host knows. None: unchanged."""

    def coarsen(self, grids: Sequence[Grid], entered: int, reserved: int) -> tuple[Grid, ...]:
        """The new token grids of an image's frames or views (see `foveate.contract.stages.PixelStage`)."""


# -- which layers --------------------------------------------------------------------------------------------------


def encoder_layers(tower: nn.Module, path: str = "encoder.layers") -> Any:
    """The tower's layers, wherever its class keeps its encoder.

    Raises:
        UnsupportedError: If it has no layers under this path.
    """
    for name, module in tower.named_modules():
        if f".{name}".endswith(f".{path}") and isinstance(module, nn.ModuleList):
            return module
    raise UnsupportedError(
        f"{type(tower).__name__} has no {path}, so tokens cannot be reduced in this tower. "
        "Use a method that drops between layers, or AveragePool."
    )


def feature_layers(config: Any, depth: int) -> list[int]:
    """The layers, of the tower's `depth` layers, whose output the projector reads: −2 of 24 is 22. By default the last.

    Raises:
        UnsupportedError: If the projector reads the input of the first layer.
    """
    setting = getattr(config, "vision_feature_layer", -1)
    states = [setting] if isinstance(setting, int) else list(setting)
    chosen = []
    for state in states:  # state 0 is the input of the first layer, state l + 1 the output of layer l
        from_start = state + depth + 1 if state < 0 else state
        chosen.append(from_start - 1)
    if min(chosen) < 0:
        raise UnsupportedError(
            f"This model's projector reads the tower's input ({setting}), so tokens cannot be reduced in the tower. "
            "Use a method that drops between layers."
        )
    return chosen


def block_of(signal: TowerSignal, last: int, depth: int, seeing: Sequence[int] | None = None) -> int:
    """The block of a tower that a signal is read from.

    Args:
        signal: The signal, which names the block.
        last: The last block whose output the projector reads.
        depth: Number of blocks in the tower.
        seeing: Blocks that attend to the whole image, ascending. None: all.

    Raises:
        UnsupportedError: If the tower has no such block, or the block has window attention.
    """
    seeing = range(depth) if seeing is None else seeing
    if not seeing:
        raise UnsupportedError(
            f"No block of this tower attends to the whole picture (fullatt_block_indexes names none of its {depth}), "
            "so tokens cannot be ranked there. Use a method that drops between layers."
        )
    if signal.block is None:
        wanted = min(last + signal.layer, depth - 1)
        return max([block for block in seeing if block <= wanted], default=seeing[0])
    if signal.of is not None:
        # Counted from 1, halves rounded up: the 9th of 24 blocks is the 12th of 32, and the 10th of 26.
        wanted = (2 * (signal.block + 1) * depth + signal.of) // (2 * signal.of) - 1
        return min(seeing, key=lambda block: (abs(block - wanted), -block))
    if signal.block not in seeing:
        raise UnsupportedError(
            f"{signal!r} is of block {signal.block}, which this vision tower of {depth} blocks does not have, or which "
            f"attends only within windows there. Blocks {', '.join(map(str, seeing))} attend to the whole picture: use "
            "one of these."
        )
    return signal.block


@dataclass(frozen=True, slots=True)
class TowerLayout:
    """The layout of a call's rows in a tower.

    Attributes:
        lengths: Number of rows in each segment, if segments are packed in order. None: one image in each row of the
            batch.
        grids: Rows and columns of each segment. For a batch, one entry for all images. None entries: on no grid.
        cls: For a batch on no grid, number of rows in front of an image's patches.
        raster: The row at each place of the segments in raster order, (rows,) int64. None: rows are in raster order.
    """

    lengths: Sequence[int] | None
    grids: Sequence[Grid | None]
    raster: Tensor | None = None
    cls: int = 0


@dataclass(frozen=True, slots=True)
class Tower:
    """A vision tower in parts.

    Attributes:
        module: The module that gets pixels.
        blocks: Its blocks, in order.
        attentions: The attention of each block.
        read: Blocks whose output the projector reads.
        layout: Makes the layout from the arguments of a call of the module; or the layout of the only call.
        seeing: Blocks that attend to the whole image, ascending. None: all.
        cls, keys_of, parts: See `Taps`.
    """

    module: Any
    blocks: Sequence[Any]
    attentions: Sequence[Any]
    read: Sequence[int]
    layout: Callable[[Sequence[Any], Mapping[str, Any]], TowerLayout] | TowerLayout
    seeing: Sequence[int] | None = None
    cls: bool = False
    keys_of: "KeysOf | None" = None
    parts: bool = False

    def taps(self, reads: Iterable[TowerSignal]) -> "Taps":
        """Taps of the attention modules from which signals are read. Raises the errors of `block_of`."""
        last, depth = max(self.read), len(self.blocks)
        modules = {signal: self.attentions[block_of(signal, last, depth, self.seeing)] for signal in reads}
        return Taps(modules, [self.module], self.cls, self.keys_of, self.parts)


# -- what layers show ----------------------------------------------------------------------------------------------


KeysOf = tuple[str, Callable[[Any, Tensor], Iterable[Tensor]]] | Literal["unknown"]
"""How keys are made: the name of a part of the attention module, and a function of the module and that part's output.

The function returns the keys of each sample, (heads, tokens, head size). If this is "unknown", keys before RoPE are
made by a second run of the attention.
"""


class Taps:
    """Signals of a tower's attention modules, read sample by sample as the modules run.

    With gradients they are computed after the tower: a checkpointed block runs again in the backward pass without taps,
    and must do then what it did before.

    Args:
        modules: The module that each signal is read from. One module may occur several times.
        towers: The modules whose weights queries and keys depend on.
        cls: True if the first token is a CLS.
        keys_of: In a tower with RoPE, how keys are made, because signals of keys are before RoPE.
        parts: True if a signal is read of parts of a sample. Queries and keys are then kept until the tower has run.
    """

    def __init__(
        self,
        modules: Mapping[TowerSignal, Any],
        towers: Sequence[nn.Module],
        cls: bool = False,
        keys_of: KeysOf | None = None,
        parts: bool = False,
    ) -> None:
        self._cls = cls
        self._keys_of = keys_of
        self._parts = parts
        self._places: dict[TowerSignal, tuple[Any, bool]] = {}  # (module, True for keys before RoPE)
        for signal, module in modules.items():
            self._places[signal] = module, keys_of is not None and not isinstance(signal, TowerAttention)
        self._samples: dict[TowerSignal, list[Any]] = {signal: [] for signal in modules}
        self._later: list[Callable[[], None]] = []
        self._towers = towers
        self._trains = False

    def run(self, run: Callable[[], Any]) -> Any:
        """Call a function with the modules tapped."""
        with Patcher() as patches:
            self.attach(patches)
            return run()

    def attach(self, patches: Patcher) -> None:
        """Tap the modules until the patcher restores them."""
        weights = itertools.chain.from_iterable(tower.parameters() for tower in self._towers)
        self._trains = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
        for place in dict.fromkeys(self._places.values()):
            module, is_plain = place
            if not is_plain:
                tap(patches, module, partial(self._note, place))
            elif isinstance(self._keys_of, tuple):
                part, keys_of = self._keys_of
                patches.hook(getattr(module, part), "after", partial(self._note_keys, place, keys_of))
            else:
                patches.wrap(module, "forward", partial(run_unturned, module, partial(self._note, place)))

    def _note(self, place: tuple[Any, bool], queries: Tensor, keys: Tensor, scaling: float, _: Tensor) -> None:
        def samples(queries: Tensor, keys: Tensor) -> Iterable[Tapped]:
            return (Tapped(*heads, scaling) for heads in zip(queries, keys, strict=True))

        self._keep(place, samples, queries, keys)

    def _note_keys(self, place: Any, keys_of: Callable[..., Any], part: nn.Module, args: Any, output: Tensor) -> None:
        def samples(output: Tensor) -> Iterable[Tapped]:
            return (Tapped(keys, keys, 1.0) for keys in keys_of(place[0], output))  # only keys are read

        self._keep(place, samples, output)

    def _keep(self, place: tuple[Any, bool], samples: Callable[..., Iterable[Tapped]], *tapped: Tensor) -> None:
        if self._trains and not torch.is_grad_enabled():
            tapped = tuple(map(without_gradient, tapped))
        if self._trains or torch.is_grad_enabled():
            self._later.append(partial(self._add, place, samples, *tapped))
        else:
            self._add(place, samples, *tapped)

    def _add(self, place: tuple[Any, bool], samples: Callable[..., Iterable[Tapped]], *tapped: Tensor) -> None:
        signals = [signal for signal, of_signal in self._places.items() if of_signal == place]
        for sample in samples(*tapped):
            for signal in signals:
                self._samples[signal].append(sample if self._parts else sample.read(signal, self._cls))

    def _all(self) -> dict[TowerSignal, list[Any]]:
        """The samples of each signal, those that wait included."""
        later, self._later = self._later, []
        for add in later:
            add()
        return self._samples

    @property
    def lengths(self) -> tuple[int, ...]:
        """Number of rows in each sample, of which parts are read."""
        (some, *_) = self._all().values()
        return tuple(heads.keys.shape[1] for heads in some)

    def samples(self, signal: TowerSignal) -> list[Tapped]:
        """Queries and keys of a signal's module in each sample, of which parts are read: (heads, tokens, head size)."""
        return self._all()[signal]

    def read(self, signal: TowerSignal) -> list[Tensor]:
        """A signal of each sample's patches: (patches, numbers), without a CLS."""
        return self._all()[signal]


# -- smaller pictures ----------------------------------------------------------------------------------------------


def coarser_grids(reducer: ImageReducer, images: Grids, newlines: int = 0) -> tuple[Grids, list[Cut | None]]:
    """The token grids that a method wants for smaller images, and the cell into which each token goes.

    Args:
        reducer: Asks the method.
        images: The usual grids of each image, one for each view or frame.
        newlines: Number of tokens after an image's grids, which stay.

    Returns:
        The new grids of each image; and the cells of its tokens as a cut, None if the grids do not change.
    """
    coarse: list[tuple[Grid, ...]] = []
    cuts: list[Cut | None] = []
    for grids in images:
        cells = reducer.coarsen(grids, sum(map(math.prod, grids)) + newlines, newlines)
        into = [into_cells(*pair) for pair in zip(grids, cells, strict=True)]
        coarse.append(cells)
        cuts.append(None if cells == grids else join([*into, *[into_cells((1, 1), (1, 1))] * newlines]))
    return coarse, cuts


# -- merging inside the tower, reducing before the projector -------------------------------------------------------


class ReducedRun:
    """A run of a LLaVA's `get_image_features` that reduces every image's tokens before the projector.

    The projector works on the rows that are left. Behind it every image has as many rows as before: its own first, then
    zeros, so that the number of placeholders does not change.

    Args:
        tower: CLIP or SigLIP. The original call leaves out a CLS. Scores come from the last of the blocks that are
            read.
        reducer: Reduces the tokens.

    Attributes:
        cuts: The cut of each image's tokens.
    """

    def __init__(self, tower: Tower, reducer: ImageReducer) -> None:
        self.cuts: list[Cut | None] = []
        self._tower, self._reducer, self._taps = tower, reducer, tower.taps(reducer.reads)
        self._cls = int(tower.cls)
        self._states: dict[int, Tensor] = {}
        """Outputs of the blocks that are read, (images, rows, width)."""
        self._grid = 0, 0
        """Rows and columns of an image's patches."""
        self._merges: list[Cut | None] = []
        """The merge of each image inside the tower; None: unchanged."""
        self._lengths: list[int] = []
        """Number of rows of each image from there on, a CLS included."""

    def attach(self, patches: Patcher, projector: nn.Module) -> None:
        """Wrap tower and projector, which gets (images, patches, width), until the patcher restores them.

        Images may differ in length after patches have merged. Between blocks the shorter ones are padded at their ends,
        and each block then runs the images one by one, under any kernel.

        Raises:
            UnsupportedError: If patches would merge behind a block from which the features come.
        """
        self._taps.attach(patches)
        block, read = self._reducer.block, min(self._tower.read)
        if block > read + 1:
            raise UnsupportedError(
                f"This method cuts in the tower before block {block}, and features of this model come from the output "
                f"of block {read}. Cut before block {read + 1} or an earlier one."
            )
        before, later = self._tower.blocks[block - 1], self._tower.blocks[block:]

        def run_before(original: Callable[..., Tensor], hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            merged = self._merge(original(hidden_states, *args, **kwargs))
            if len(set(self._lengths)) > 1:
                for block in later:
                    patches.wrap(block, "forward", self._run_later)
            return merged

        patches.wrap(before, "forward", run_before)
        for at in dict.fromkeys(self._tower.read):
            # Run before the hooks with which transformers captures hidden states. It installs these on first use.
            patches.hook(self._tower.blocks[at], "after", partial(self._note_state, at), prepend=True)
        patches.wrap(projector, "forward", self._project)

    def _note_state(self, at: int, module: nn.Module, args: Any, output: Tensor) -> None:
        self._states[at] = output

    def _merge(self, output: Tensor) -> Tensor:
        """Merge patches in the output of a block, (images, rows, width)."""
        patches = output[:, self._cls :]
        count = patches.shape[1]
        side = int(count**0.5)
        self._grid = side, count // side  # images are squares here
        self._merges = [None] * len(output)
        if self._reducer.early:
            self._merges = self._reducer.merge_early(list(patches), self._grid)
        self._lengths = [self._cls + (count if cut is None else len(cut.source)) for cut in self._merges]
        if all(cut is None for cut in self._merges):
            return output
        images = []
        for rows, cut in zip(output, self._merges, strict=True):
            if cut is not None:
                rows = torch.cat((rows[: self._cls], cut.rows_left(rows[self._cls :])))
            images.append(rows)
        return _pad_rows(images, max(self._lengths))

    def _run_later(self, original: Callable[..., Tensor], hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows = []
        for index, length in enumerate(self._lengths):
            image = hidden_states[index : index + 1, :length]  # as a batch of one
            rows.append(original(image, *args, **kwargs)[0])
        return _pad_rows(rows, max(self._lengths))

    def _project(self, original: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
        """Project the rows that are left: (images, patches, width of the decoder)."""
        # The CLS is already left out. Remove the padding of shorter images.
        images = [image[: length - self._cls] for image, length in zip(features, self._lengths, strict=True)]
        cuts = self._reducer.reduce(self._view(index, image) for index, image in enumerate(images))
        self.cuts.extend(cuts)
        if all(stays_whole(cut) for cut in cuts):
            return original(features)
        rows = [rows_left(image, cut) for image, cut in zip(images, cuts, strict=True)]
        if len({len(image) for image in rows}) == 1:  # project images of equal length together
            projected = list(original(torch.stack(rows)))
        else:
            projected = [original(image[None])[0] for image in rows]
        return _pad_rows(projected, math.prod(self._grid))

    def _view(self, index: int, image: Tensor) -> TowerView:
        merge, cls = self._merges[index], None
        if self._cls:  # in the form of the projector's input: (1, width)
            cls = torch.cat([self._states[at][index, :1] for at in self._tower.read], dim=-1)
        grid = self._grid if merge is None else None
        return TowerView(image, grid, cls, partial(self._read, index, merge), merge=merge, early=self._reducer.early)

    def _read(self, index: int, merge: Cut | None, signal: TowerSignal) -> Tensor:
        """A signal of an image's rows."""
        values = self._taps.read(signal)[index]
        if merge is None or block_of(signal, max(self._tower.read), len(self._tower.blocks)) >= self._reducer.block:
            return values
        return average(values, merge)  # earlier blocks attend before patches merge


def _pad_rows(rows: Sequence[Tensor], length: int) -> Tensor:
    """Pad images' rows, (…, width) each, with zeros: (images, length, width)."""
    # A new tensor, because its views become the features of images. It is filled through slices, because autograd
    # forbids writing into the views that iterating over a tensor returns.
    count, width = len(rows), rows[0].shape[-1]
    padded = rows[0].new_zeros(count * length, width)
    for index, image in enumerate(rows):
        start = index * length
        padded[start : start + len(image)] = image
    return padded.view(count, length, -1)
