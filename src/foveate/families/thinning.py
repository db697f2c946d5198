"""Blocks of a vision tower on some of its rows: these leave before one block, and all are there wherever it is read.

No code of a model changes: only blocks' `forward` is wrapped, and kept rows count in attention as so many as they stand
for. Between places where the tower is read, a block hands on what it was given, and the kept rows go from wrapper to
wrapper.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.core.cut import Cut
from foveate.core.grid import Grid, join
from foveate.core.patching import Patcher
from foveate.core.tensors import Memo, send, take_along
from foveate.core.thin import ends_of_left, give_back, nearest, sizes, sizes_in_segments
from foveate.errors import UnsupportedError
from foveate.families.tap import biased
from foveate.families.tower import Tower, TowerLayout


class Thinner(Protocol):
    """Says which rows run: what the engine hands a family."""

    def first(self, blocks: int) -> int:
        """The block before which rows leave, of so many that are read."""
        ...

    def thin(self, segments: Sequence[Tensor], grids: Sequence[Grid | None]) -> list[Cut | None]:
        """Which rows of each segment stay, (rows, width) each in raster order, and which the others go with."""
        ...


@dataclass(slots=True, eq=False)
class _Plan:
    """Which rows of a call run: (kept,) of packed rows, (pictures, kept) of a batch; the rest as in `core.thin`."""

    index: Tensor
    parent: Tensor
    sizes: Tensor


def is_compiled(module: Any) -> bool:
    """Whether a module is compiled, so that what is put in its forward's place is not called."""
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")


@contextmanager
def running_thin(tower: Tower, thinner: Thinner) -> Iterator[list[Cut]]:
    """While the context lasts, late blocks of the tower run on some rows; answers which of each segment, a CLS apart,
    in raster order, and which of these the others went with.

    Raises:
        UnsupportedError: If its blocks are compiled.
    """
    run = _ThinRun(tower, thinner)
    with Patcher() as patches:
        run.attach(patches)
        yield run.ran


@dataclass(slots=True, eq=False)
class _ThinRun:
    tower: Tower
    thinner: Thinner
    ran: list[Cut] = field(default_factory=list)
    layout: TowerLayout | None = None
    plan: _Plan | None = None
    before: Tensor = field(init=False)
    """All rows in front of the first block that runs on some."""
    handed_on: Tensor = field(init=False)
    """What the block that ran last has answered: nothing else may reach the next one."""
    short: Tensor = field(init=False)
    """The kept rows behind the last block that ran."""
    log_sizes: Tensor = field(init=False)
    """Of the block that runs: (kept,) or (pictures, kept)."""
    asked: int = 0
    """Packed rows of this block whose sizes a kernel has asked for."""
    memo: Memo = field(default_factory=Memo)

    def attach(self, patches: Patcher) -> None:
        tower = self.tower
        first = self.thinner.first(max(tower.read) + 1)
        if first > max(tower.read):
            return
        for module in (tower.module, *tower.blocks):
            if is_compiled(module):
                raise _refusal(tower, f"its {type(module).__name__} is compiled")
        if isinstance(tower.layout, TowerLayout):
            self.layout = tower.layout
        else:
            patches.wrap(tower.module, "forward", partial(self._note_layout, tower.layout))
        for at, block in enumerate(tower.blocks[first:], first):
            if at > max(tower.read):  # nobody reads what it makes
                patches.wrap(block, "forward", lambda original, hidden, *_, **__: hidden)
                continue
            patches.wrap(block, "forward", partial(self._run, at, at == first))
            biased(patches, tower.attentions[at], self._bias)

    def _note_layout(
        self,
        layout: Callable[[Sequence[Any], Mapping[str, Any]], TowerLayout],
        original: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        self.layout = layout(args, kwargs)
        try:
            return original(*args, **kwargs)
        finally:
            self.layout, self.plan, self.memo = None, None, Memo()
            self.before = self.handed_on = self.short = self.log_sizes = torch.empty(0)

    def _run(self, at: int, is_first: bool, original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """A block, on the kept rows; its output is full where somebody reads it."""
        hidden, args = (args[0], args[1:]) if args else (kwargs.pop(next(iter(kwargs))), ())
        if is_first and self.layout is not None:
            self._refuse_ends_by_position(at, kwargs)
            self.before = self.handed_on = hidden
            self.plan = self._planned(self.layout, hidden, [*args, *kwargs.values()])
            self.short = take_along(hidden, self.plan.index[..., None], dim=-2)
        if self.plan is None or hidden is not self.handed_on:
            raise _refusal(self.tower, "something changes rows between its blocks")
        self.log_sizes, self.asked = self._sizes_for(kwargs).log(), 0
        given = [self._left(value) for value in args]
        named = {name: self._left(value, name) for name, value in kwargs.items()}
        try:
            self.short = original(self.short, *given, **named)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _refusal(
                self.tower, f"a block does not run on some of them ({str(error).splitlines()[0]})"
            ) from error
        if not isinstance(self.short, Tensor):
            raise _refusal(self.tower, "its blocks answer more than rows")
        if at not in self.tower.read:
            return hidden
        place = self.short.device
        before, index, parent = (part.to(place) for part in (self.before, self.plan.index, self.plan.parent))
        self.handed_on = give_back(before, self.short, index, parent)
        return self.handed_on

    def _refuse_ends_by_position(self, at: int, kwargs: Mapping[str, Any]) -> None:
        """Refuse a flash kernel that is told by position ids alone where pictures end, as Pixtral's is in transformers
        5.16: with the rows that leave, ends would be lost."""
        is_flash = "flash" in str(self.tower.attentions[at].config._attn_implementation)
        is_told = any(name.startswith("cu_") for name in kwargs)
        if is_flash and not is_told and kwargs.get("position_ids") is not None:
            raise _refusal(self.tower, "its kernel is told by position ids where pictures end")

    # -- which rows --------------------------------------------------------------------------------------------

    def _planned(self, layout: TowerLayout, hidden: Tensor, given: Sequence[Any]) -> _Plan:
        lengths = layout.lengths
        if lengths is None or (hidden.dim() == 3 and hidden.shape[:2] == (len(lengths), lengths[0])):
            grid = layout.grids[0]
            if grid is None:
                cls = layout.cls
            else:
                cls = hidden.shape[1] - grid[0] * grid[1]
            return self._planned_batch(hidden, grid, cls, _valid_keys(given, hidden.shape[1]))
        if hidden.shape[:-1].numel() != sum(lengths) or layout.cls:
            raise _refusal(self.tower, "how its rows stand in pictures is not known")
        packed = hidden if hidden.dim() == 2 else hidden[0]
        raster = None
        if layout.raster is not None:
            raster = send(layout.raster, hidden.device)
        in_order = packed if raster is None else packed[raster]
        cut = join(self._thinned(torch.split(in_order, list(lengths)), layout.grids))
        index, parent = cut.source, cut.parent
        if raster is not None:  # into the order in which rows stand: places in `kept` move with them
            index, order = raster[index].sort()
            parent = torch.zeros_like(parent).scatter(0, raster, order.argsort()[parent])
        plan = _Plan(index, parent, sizes(parent, len(index)))
        if hidden.dim() == 3:
            plan = _Plan(index[None], parent[None], plan.sizes[None])
        return plan

    def _planned_batch(self, hidden: Tensor, grid: Grid | None, cls: int, valid: Tensor | None) -> _Plan:
        """Of pictures in a batch, with so many rows in front of a picture's."""
        patches = hidden[:, cls:]
        if valid is None:
            cuts = self._thinned(patches.unbind(), [grid] * len(patches))
            of_all = [(cut.source, cut.parent, sizes(cut.parent, len(cut.source))) for cut in cuts]
            kept, parent, counted = _rectangular(of_all)
        else:
            kept, parent, counted = self._planned_padded(patches, valid[:, cls:].expand(len(patches), -1), grid)
        if cls:  # stays, stands for itself, and nobody goes with it
            own = torch.arange(cls, device=kept.device).expand(len(kept), -1)
            kept, parent = torch.cat((own, kept + cls), dim=1), torch.cat((own, parent + cls), dim=1)
            counted = torch.cat((torch.ones_like(own, dtype=counted.dtype), counted), dim=1)
        return _Plan(kept, parent, counted)

    def _planned_padded(self, patches: Tensor, valid: Tensor, grid: Grid | None) -> tuple[Tensor, Tensor, Tensor]:
        """Of pictures with padding: kept rows, those that others go with, and sizes.

        Padding is neither kept nor counted. A picture of padding alone is taken for one without.
        """
        valid = valid | ~valid.any(dim=1, keepdim=True)
        places = [send(one.nonzero()[:, 0], patches.device) for one in valid.cpu()]
        rectangles = [None if grid is None else _rectangle(one.view(grid)) for one in valid.cpu()]
        cuts = self._thinned([rows[at] for rows, at in zip(patches, places, strict=True)], rectangles)
        of_all = []
        for rows, at, is_valid, cut in zip(patches, places, valid, cuts, strict=True):
            kept = at[cut.source]
            parent = nearest(rows, kept).scatter(0, at, cut.parent)
            of_all.append((kept, parent, sizes(parent, len(kept), is_valid)))
        return _rectangular(of_all)

    def _thinned(self, segments: Sequence[Tensor], grids: Sequence[Grid | None]) -> list[Cut]:
        """Which rows of each segment run, and which of these each row goes with, of which note is taken."""
        cuts = []
        for rows, cut in zip(segments, self.thinner.thin(segments, grids), strict=True):
            every = torch.arange(len(rows), device=rows.device)
            cuts.append(Cut.join(every, every) if cut is None else Cut.join(cut.source, cut.parent))
        self.ran += cuts
        return cuts

    # -- what blocks get ---------------------------------------------------------------------------------------

    def _left(self, value: Any, name: str = "") -> Any:
        """An argument of a block, at the rows that run."""
        if isinstance(value, tuple):
            return tuple(self._left(part, name) for part in value)
        if not isinstance(value, Tensor):
            return value
        return self.memo.once(lambda: self._taken(value, name.startswith("cu_")), value)

    def _taken(self, value: Tensor, are_ends: bool) -> Tensor:
        assert self.plan is not None
        rows, index = self.before.shape[-2], self.plan.index.to(value.device)
        if are_ends:
            stays = torch.zeros(rows, dtype=torch.bool, device=value.device).index_fill(0, index.flatten(), True)
            return ends_of_left(value, stays)
        if value.dim() == 4 and value.shape[-1] == rows:  # a mask: (pictures or 1, 1, queries or 1, keys)
            if value.shape[-2] == rows:
                value = take_along(value, index[:, None, :, None], dim=-2)
            return take_along(value, index[:, None, None, :], dim=-1)
        if value.dim() == 2 and not value.is_floating_point() and value.shape[-1] == rows:  # (pictures, keys)
            return take_along(value, index, dim=-1)
        if value.dim() >= 2 and value.shape[-2] == rows:  # tables of positions
            return take_along(value, index[..., None], dim=-2)
        if rows in value.shape:
            raise _refusal(self.tower, f"its blocks get a tensor of shape {tuple(value.shape)}, which is not known")
        return value

    def _sizes_for(self, kwargs: Mapping[str, Any]) -> Tensor:
        """How many rows each kept one stands for in this block: of its own segment, which may be a window."""
        assert self.plan is not None
        ends = next((value for name, value in kwargs.items() if name.startswith("cu_")), None)
        if ends is None or self.plan.index.dim() == 2:
            return self.plan.sizes
        return self.memo.once(partial(self._sizes_between, ends), "sizes", ends)

    def _sizes_between(self, ends: Tensor) -> Tensor:
        assert self.plan is not None
        assert self.layout is not None
        lengths = ends.diff().tolist()
        if lengths == list(self.layout.lengths or ()):
            return self.plan.sizes
        return sizes_in_segments(self.before, self.plan.index, lengths)

    def _bias(self, keys: Tensor) -> Tensor:
        """What is added to the logits of these keys: the logarithms of what they stand for."""
        count = keys.shape[2]
        log_sizes = self.log_sizes.to(keys.device)
        if log_sizes.dim() == 2:
            return log_sizes[:, None, None]
        start, self.asked = self.asked, self.asked + count  # a kernel may get one segment after the other
        return log_sizes[None, None, None, start : start + count]


def _refusal(tower: Tower, why: str) -> UnsupportedError:
    """Why rows cannot leave inside a tower."""
    name = type(tower.module).__name__
    return UnsupportedError(f"Rows cannot leave inside the vision tower {name}: {why}. Use one that drops behind it.")


def _rectangular(pictures: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Kept rows of each picture, those that others go with, and sizes; a shorter list of kept rows repeats its first
    one, of size 0."""
    most, evened = max(len(kept) for kept, _, _ in pictures), []
    for kept, parent, counted in pictures:
        if few := most - len(kept):
            kept, counted = torch.cat((kept, kept[:1].expand(few))), pad(counted, (0, few))
        evened.append((kept, parent, counted))
    all_kept, parents, sizes = map(torch.stack, zip(*evened, strict=True))
    return all_kept, parents, sizes


def _valid_keys(given: Sequence[Any], rows: int) -> Tensor | None:
    """Which rows are no padding, (pictures, rows) bool, by the mask among a block's arguments; None: all.

    Where a mask says more, as that pictures see themselves alone, rows are packed.
    """
    for value in given:
        if not isinstance(value, Tensor) or value.shape[-1:] != (rows,):
            continue
        if value.dim() == 4:
            keys = value[:, 0, 0]
            if keys.is_floating_point():
                return keys == 0
            return keys.bool()
        if value.dim() == 2 and not value.is_floating_point():
            return value.bool()
    return None


def _rectangle(valid: Tensor) -> Grid | None:
    """Rows and columns of the cells that are no padding, (rows, columns) bool; None where they are no rectangle."""
    tall, wide = int(valid.any(dim=1).sum()), int(valid.any(dim=0).sum())
    if tall * wide != int(valid.sum()):
        return None
    return (tall, wide)
