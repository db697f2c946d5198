"""Thinning: run late blocks of a vision tower on some of its rows, and restore all rows wherever the tower is read.

The model's code does not change. Only the blocks' `forward` is wrapped, and each kept row counts in attention as many
times as the rows it stands for. Between the places where the tower is read, a block returns its input unchanged, and
the kept rows pass from wrapper to wrapper.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate._transformers import CHECKPOINT, recomputes_from_outside
from foveate.core.cut import Cut
from foveate.core.grid import Grid, join
from foveate.core.patching import Patcher
from foveate.core.tensors import Memo, send, take_along
from foveate.core.thin import ends_of_left, give_back, nearest_kept, sizes, sizes_in_segments
from foveate.core.views import PixelView, TowerView
from foveate.errors import UnsupportedError
from foveate.families.tap import Bias, add_bias, is_tapped
from foveate.families.tower import Encoded, ImageReducer, Inputs, Run, Tower, TowerLayout
from foveate.families.vision import patch_blocks


class Thinner(Protocol):
    """Decides which rows run. The engine passes it to a family."""

    def first(self, blocks: int) -> int:
        """The block before which rows leave, given the number of blocks that are read."""

    def thin(self, segments: Sequence[Tensor], grids: Sequence[Grid | None]) -> list[Cut | None]:
        """Select the rows of each segment that stay, (rows, width) in raster order, and assign others to them."""


class _Plan(NamedTuple):
    """The rows of a call that run: (kept,) if packed, (images, kept) for a batch. For the rest see `core.thin`."""

    kept: Tensor
    parent: Tensor
    sizes: Tensor


def is_compiled(module: Any) -> bool:
    """True if a module is compiled, so that a replacement of its forward would not be called."""
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")


@contextmanager
def running_thin(tower: Tower, thinner: Thinner) -> Iterator[list[Cut]]:
    """While the context lasts, run late blocks of the tower on some rows.

    Yields the cut of each segment, in raster order without a CLS: which rows ran, and which of them the others were
    assigned to.

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
    """All rows before the first block that runs on some of them."""
    handed_on: Tensor = field(init=False)
    """The output of the block that ran last. The next block must get exactly this tensor."""
    short: Tensor = field(init=False)
    """The kept rows after the last block that ran."""
    log_sizes: Tensor = field(init=False)
    """Logarithms of the sizes in the running block: (kept,) or (images, kept)."""
    bias: Bias = field(init=False)
    """What they add to the logits of the block's keys."""
    memo: Memo = field(default_factory=Memo)

    def attach(self, patches: Patcher) -> None:
        tower = self.tower
        first = self.thinner.first(max(tower.read) + 1)
        if first > max(tower.read):
            return
        for module in (tower.module, *tower.blocks):
            if is_compiled(module):
                raise _refusal(tower, f"its {type(module).__name__} is compiled")
            is_wrapped = hasattr(module, "_checkpoint_wrapped_module")  # by torch's checkpoint_wrapper
            if torch.is_grad_enabled() and (is_wrapped or recomputes_from_outside(module)):
                raise _refusal(tower, "checkpointing runs its blocks again without them")
        if isinstance(tower.layout, TowerLayout):
            self.layout = tower.layout
        else:
            patches.wrap(tower.module, "forward", self._note_layout)
        for at, block in enumerate(tower.blocks[first:], first):
            if at > max(tower.read):  # its output is not read
                patches.wrap(block, "forward", lambda original, hidden, *_, **__: hidden)
                continue
            patches.wrap(block, "forward", partial(self._run, at, at == first))
            add_bias(patches, tower.attentions[at], lambda keys: self.bias(keys))
            if hasattr(block, CHECKPOINT):
                patches.wrap(block, CHECKPOINT, partial(self._checkpoint, tower.attentions[at]))

    def _note_layout(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        assert callable(self.tower.layout)
        self.layout = self.tower.layout(args, kwargs)
        try:
            return original(*args, **kwargs)
        finally:
            self.layout, self.plan, self.memo = None, None, Memo()
            self.before = self.handed_on = self.short = self.log_sizes = torch.empty(0)
            self.bias = _bias_of(self.log_sizes)

    def _run(self, at: int, is_first: bool, original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Run a block on the kept rows. Its output has all rows if it is read."""
        hidden, args = (args[0], args[1:]) if args else (kwargs.pop(next(iter(kwargs))), ())
        if is_first and self.layout is not None:
            is_flash = "flash" in str(self.tower.attentions[at].config._attn_implementation)
            if is_flash and _ends_in(kwargs) is None and kwargs.get("position_ids") is not None:
                # As in Pixtral with transformers 5.16. With the rows that leave, ends would be lost.
                raise _refusal(self.tower, "its kernel finds the ends of pictures by position ids")
            self.before = self.handed_on = hidden
            self.plan = self._plan(self.layout, hidden, [*args, *kwargs.values()])
            self.short = take_along(hidden, self.plan.kept[..., None], dim=-2)
        if self.plan is None or hidden is not self.handed_on:
            raise _refusal(self.tower, "something changes rows between its blocks")
        self.log_sizes = self._sizes_for(kwargs).log()
        self.bias = _bias_of(self.log_sizes)
        args_left = [self._argument_left(value) for value in args]
        kwargs_left = {name: self._argument_left(value, name) for name, value in kwargs.items()}
        try:
            self.short = original(self.short, *args_left, **kwargs_left)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _refusal(
                self.tower, f"a block does not run on some of them ({str(error).splitlines()[0]})"
            ) from error
        if not isinstance(self.short, Tensor):
            raise _refusal(self.tower, "its blocks return more than rows")
        if at not in self.tower.read:
            return hidden
        place = self.short.device
        before, index, parent = (part.to(place) for part in (self.before, self.plan.kept, self.plan.parent))
        self.handed_on = give_back(before, self.short, index, parent)
        return self.handed_on

    # -- which rows --------------------------------------------------------------------------------------------

    def _plan(self, layout: TowerLayout, hidden: Tensor, arguments: Sequence[Any]) -> _Plan:
        lengths = layout.lengths
        if lengths is None or (hidden.dim() == 3 and hidden.shape[:2] == (len(lengths), lengths[0])):
            grid = layout.grids[0]
            cls = layout.cls if grid is None else hidden.shape[1] - grid[0] * grid[1]
            return self._plan_batch(hidden, grid, cls, _valid_keys(arguments, hidden.shape[1]))
        if hidden.shape[:-1].numel() != sum(lengths) or layout.cls:
            raise _refusal(self.tower, "it is not known which rows belong to which picture")
        packed = hidden if hidden.dim() == 2 else hidden[0]
        raster = send(layout.raster, hidden.device) if layout.raster is not None else None
        in_order = packed if raster is None else packed[raster]
        cut = join(self._thin(torch.split(in_order, list(lengths)), layout.grids))
        index, parent = cut.source, cut.parent
        if raster is not None:  # from raster order back to the tower's order; `parent` follows the new places in `kept`
            index, order = raster[index].sort()
            parent = torch.zeros_like(parent).scatter(0, raster, order.argsort()[parent])
        plan = _Plan(index, parent, sizes(parent, len(index)))
        if hidden.dim() == 3:
            plan = _Plan(index[None], parent[None], plan.sizes[None])
        return plan

    def _plan_batch(self, hidden: Tensor, grid: Grid | None, cls: int, valid: Tensor | None) -> _Plan:
        """The plan for images in a batch, with `cls` rows in front of each image's patches."""
        patches = hidden[:, cls:]
        if valid is None:
            cuts = self._thin(patches.unbind(), [grid] * len(patches))
            plans = [_Plan(cut.source, cut.parent, sizes(cut.parent, len(cut.source))) for cut in cuts]
        else:
            plans = self._plan_padded(patches, valid[:, cls:].expand(len(patches), -1), grid)
        kept, parent, counted = _rectangular(plans)
        if cls:  # a CLS stays, has size 1, and no row is assigned to it
            own = torch.arange(cls, device=kept.device).expand(len(kept), -1)
            kept, parent = torch.cat((own, kept + cls), dim=1), torch.cat((own, parent + cls), dim=1)
            counted = torch.cat((torch.ones_like(own, dtype=counted.dtype), counted), dim=1)
        return _Plan(kept, parent, counted)

    def _plan_padded(self, patches: Tensor, valid: Tensor, grid: Grid | None) -> list[_Plan]:
        """The plan for each of several images with padding.

        Padding is neither kept nor counted. An image that is all padding is treated as one without padding.
        """
        valid = valid | ~valid.any(dim=1, keepdim=True)
        places, rectangles = list[Tensor](), list[Grid | None]()
        for picture in valid.cpu():
            places.append(send(picture.nonzero()[:, 0], patches.device))
            rectangle = None
            if grid is not None:
                cells = picture.view(grid)
                tall, wide = int(cells.any(dim=1).sum()), int(cells.any(dim=0).sum())
                rectangle = (tall, wide) if tall * wide == int(cells.sum()) else None
            rectangles.append(rectangle)
        cuts = self._thin([rows[at] for rows, at in zip(patches, places, strict=True)], rectangles)
        plans = []
        for rows, at, is_valid, cut in zip(patches, places, valid, cuts, strict=True):
            kept = at[cut.source]
            parent = nearest_kept(rows, kept).scatter(0, at, cut.parent)
            plans.append(_Plan(kept, parent, sizes(parent, len(kept), is_valid)))
        return plans

    def _thin(self, segments: Sequence[Tensor], grids: Sequence[Grid | None]) -> list[Cut]:
        """Select the rows of each segment that run, assign the others to them, and record both."""
        cuts = []
        for rows, cut in zip(segments, self.thinner.thin(segments, grids), strict=True):
            every = torch.arange(len(rows), device=rows.device)
            cuts.append(Cut.join(every, every) if cut is None else Cut.join(cut.source, cut.parent))
        self.ran += cuts
        return cuts

    # -- what blocks get ---------------------------------------------------------------------------------------

    def _argument_left(self, value: Any, name: str = "") -> Any:
        """An argument of a block, at the rows that run."""
        if isinstance(value, tuple):
            return tuple(self._argument_left(part, name) for part in value)
        if not isinstance(value, Tensor):
            return value
        return self.memo.once(lambda: self._rows_left(value, name.startswith("cu_")), value)

    def _rows_left(self, value: Tensor, are_ends: bool) -> Tensor:
        assert self.plan is not None
        rows, index = self.before.shape[-2], self.plan.kept.to(value.device)
        if are_ends:
            stays = torch.zeros(rows, dtype=torch.bool, device=value.device).index_fill(0, index.flatten(), True)
            return ends_of_left(value, stays)
        if value.dim() == 4 and value.shape[-1] == rows:  # a mask: (images or 1, 1, queries or 1, keys)
            if value.shape[-2] == rows:
                value = take_along(value, index[:, None, :, None], dim=-2)
            return take_along(value, index[:, None, None, :], dim=-1)
        if value.dim() == 2 and not value.is_floating_point() and value.shape[-1] == rows:  # (images, keys)
            return take_along(value, index, dim=-1)
        if value.dim() >= 2 and value.shape[-2] == rows:  # tables of positions
            return take_along(value, index[..., None], dim=-2)
        if rows in value.shape:
            raise _refusal(self.tower, f"its blocks get an unknown tensor of shape {tuple(value.shape)}")
        return value

    def _sizes_for(self, kwargs: Mapping[str, Any]) -> Tensor:
        """Number of rows that each kept row stands for in this block, within its segment, which may be a window."""
        assert self.plan is not None
        assert self.layout is not None
        plan, of_layout, ends = self.plan, list(self.layout.lengths or ()), _ends_in(kwargs)
        if ends is None or plan.kept.dim() == 2:
            return plan.sizes

        def between() -> Tensor:
            lengths = ends.diff().tolist()
            return plan.sizes if lengths == of_layout else sizes_in_segments(self.before, plan.kept, lengths)

        return self.memo.once(between, "sizes", ends)

    def _checkpoint(
        self, attention: Any, original: Callable[..., Any], function: Callable[..., Any], *args: Any
    ) -> Any:
        """Checkpoint a block with its bias, which it needs in the backward pass too, when this context has ended."""
        log_sizes = self.log_sizes

        def run(*args: Any) -> Any:
            if is_tapped(attention.config):
                return function(*args)
            with Patcher() as patches:
                add_bias(patches, attention, _bias_of(log_sizes))
                return function(*args)

        return original(run, *args)


def _bias_of(log_sizes: Tensor) -> Bias:
    """Return the bias of one run of a block: the logarithms of the rows that its keys stand for."""
    asked = 0  # packed rows whose sizes a kernel has already requested

    def bias(keys: Tensor) -> Tensor:
        nonlocal asked
        if log_sizes.dim() == 2:
            return log_sizes.to(keys.device)[:, None, None]
        start, asked = asked, asked + keys.shape[2]  # a kernel may get one segment at a time
        return log_sizes.to(keys.device)[None, None, None, start:asked]

    return bias


def _refusal(tower: Tower, why: str) -> UnsupportedError:
    """The error for a tower inside which rows cannot leave."""
    name = type(tower.module).__name__
    return UnsupportedError(f"Rows cannot leave inside the vision tower {name}: {why}. Drop after the tower instead.")


def _ends_in(kwargs: Mapping[str, Any]) -> Any:
    """The tensor of sequence ends among a block's arguments. None if there is none."""
    return next((value for name, value in kwargs.items() if name.startswith("cu_")), None)


def _rectangular(pictures: Sequence[_Plan]) -> _Plan:
    """Join the plans of several images. A shorter list of kept rows is padded with its first row, of size 0."""
    most, evened = max(len(kept) for kept, _, _ in pictures), []
    for kept, parent, counted in pictures:
        if few := most - len(kept):
            kept, counted = torch.cat((kept, kept[:1].expand(few))), pad(counted, (0, few))
        evened.append((kept, parent, counted))
    return _Plan(*map(torch.stack, zip(*evened, strict=True)))


def _valid_keys(arguments: Sequence[Any], rows: int) -> Tensor | None:
    """Mark the rows that are not padding, (images, rows) bool, by the mask among a block's arguments. None: all.

    Masks with more information, such as the image of each row, occur only with packed rows.
    """
    for value in arguments:
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


# -- patches that leave before a tower ------------------------------------------------------------------------------


def encode_leaving(family: Any, run: Run, modality: str, inputs: Inputs, reducer: ImageReducer) -> Encoded:
    """`Family.encode_subset` for a tower that needs all patches: no block runs on the rows of dropped patches.

    These rows are restored after the last block. Then the tokens made only of them are dropped. A unit is a token's
    patches, or one patch if tokens are pooled.
    """
    tower, config = family.tower_parts(modality, run, inputs), family.model.config
    side, size = family.block(config), config.vision_config.patch_size
    pixels = side * (size if isinstance(size, int) else size[0])
    views = [_pixel_view(family, pictures, pixels) for pictures in family.tower_pixels(modality, inputs, reducer)]
    cuts = reducer.leave(views)
    if all(cut is None for cut in cuts):
        return run(), cuts
    stays = units_left(views, cuts)
    del views  # frees the float32 pixels before the tower runs
    tokens = family.tokens_left(modality, stays, inputs)
    leaving = _Leaving(side, list(itertools.chain(*stays)), tokens, reducer.lengths)
    with running_thin(tower, leaving) as reducer.ran:
        encoded: Encoded = family.encode_projected(run, modality, inputs, leaving)
    return encoded


def units_left(views: Sequence[PixelView], cuts: Sequence[Cut | None]) -> list[Tensor]:
    """Mark the units of each image that stay, (images, rows, columns) bool on the host, with one host sync."""
    masks = []
    for view, cut in zip(views, cuts, strict=True):
        stays = torch.ones(len(view), dtype=torch.bool, device=view.device)
        masks.append(stays if cut is None else torch.zeros_like(stays).index_fill(0, cut.source, True))
    images = torch.split(torch.cat(masks).cpu(), [len(mask) for mask in masks])
    return [stays.view(view.units.shape[:3]) for stays, view in zip(images, views, strict=True)]


def _pixel_view(family: Any, pictures: Tensor, side: int) -> PixelView:
    """Split images, (images, channels, height, width), into units of `side` pixels, and leave out incomplete units."""
    rows, columns = (length // side for length in pictures.shape[2:])
    filled = pictures[..., : rows * side, : columns * side].float().permute(0, 2, 3, 1)
    units = patch_blocks(filled, side).view(len(pictures), rows, columns, -1)
    return PixelView(units, *(units.new_tensor(one).repeat(side**2) for one in (family.pixel_mean, family.pixel_std)))


@dataclass(slots=True, eq=False)
class _Leaving:
    """Decides which rows of the tower run, as a `Thinner`, and then which tokens are left, as a `ImageReducer`.

    Attributes:
        side: Patches along a unit's side.
        pictures: Which units stay of each image that the tower has not yet processed, (rows, columns) bool on the host.
        tokens: Which tokens of all images stay, newlines and the like excluded, (tokens,) bool on the host.
        lengths: See `ImageReducer`.
    """

    side: int
    pictures: list[Tensor]
    tokens: Tensor
    lengths: Callable[..., Sequence[int]]
    early, block = False, 1
    reads = ()

    def first(self, blocks: int) -> int:
        """The block before which rows leave: the first one."""
        return 0

    def thin(self, segments: Sequence[Tensor], grids: Sequence[Grid | None]) -> list[Cut | None]:
        """Select the rows of each image that run, at least one, and the nearest of these for each other row."""
        cuts: list[Cut | None] = []
        for rows, grid in zip(segments, grids, strict=True):
            stays = self.pictures.pop(0).repeat_interleave(self.side, 0).repeat_interleave(self.side, 1)
            # Patches that fill no unit run. Padding is not among the rows.
            tall, wide = (cells - there for cells, there in zip(grid or stays.shape, stays.shape, strict=True))
            stays = pad(stays, (0, wide, 0, tall), value=True).flatten()
            if len(stays) != len(rows):
                raise UnsupportedError("Patches cannot leave before the tower if a padded picture is no rectangle.")
            stays[0] |= ~stays.any()
            kept = send(stays.nonzero()[:, 0], rows.device)
            cuts.append(None if len(kept) == len(rows) else Cut.join(kept, nearest_kept(rows, kept)))
        return cuts

    def reduce(self, views: Iterable[TowerView]) -> list[Cut | None]:
        """The tokens that stay."""
        images = list(views)
        cuts: list[Cut | None] = []
        for view, stays in zip(images, torch.split(self.tokens, [len(view) for view in images]), strict=True):
            kept = send(stays.nonzero()[:, 0], view.features.device)
            cuts.append(None if len(kept) == len(view) else Cut.take(kept, len(view)))
        return cuts
