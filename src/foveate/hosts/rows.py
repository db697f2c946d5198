"""`drop_rows`: rows in, kept rows out, for one prompt and arrays of any library."""

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveate import naming, registry
from foveate.contract.method import Method
from foveate.core.cut import Cut, look_up
from foveate.core.fields import check_call
from foveate.core.signals import Cls, Deepstack, Features, Signal
from foveate.core.tensors import send
from foveate.errors import FoveateError, InputError, ShapeError, UnsupportedError
from foveate.families.support import DEPTH
from foveate.families.vision import PictureLayout
from foveate.hosts.reducer import Host, Kept, Reducer
from foveate.plain.upstream import brief

PARTS = {Cls(): "cls", Features(): "made", Deepstack(): "deepstack"}
"""Signals that a `TowerView` has as attributes."""


@check_call("drop_rows")
def drop_rows(
    rows: Any,
    method: Method | str,
    *,
    tokens: float | None = None,
    retention: float | None = None,
    grid: Any = None,
    text: Any = None,
    signals: Any = None,
    fixed: Any = None,
    family: str | None = None,
) -> Any:
    """Choose which rows of a picture enter a decoder, in an engine of your own (docs/guides/own-engine.md).

        kept = foveate.drop_rows(rows, "divprune", retention=1 / 3, grid=(24, 24))
        kept.rows, kept.source

    Rows are a torch tensor, a NumPy array or any array with `__array_namespace__`, and come back in kind, on their
    device and in their dtype. Other arrays with DLPack come back as torch. Scores and merged rows are computed in
    float32; a row that stays is the row that came, bit for bit. Rows come back in the order in which they enter the
    decoder: that of their tokens, and merged ones in the method's order. A torch row that stays carries its token's
    gradient, a merged row those of its tokens; which tokens stay carries none.

    Several pictures are a list and one prompt, and a list comes back. `grid`, `text`, `signals` and `fixed` are then
    lists too, with one entry for each. `tokens` is the budget of each picture; `retention` that of the prompt.

    Args:
        rows: (tokens, width) as the projector made them, float of any kind, on any device. Or a list of these.
        method: A method or its name, with settings or in a chain; a name alone keeps a third.
        tokens: How many tokens of a picture stay, those in `fixed` not counted.
        retention: Instead of `tokens`: the share that stays.
        grid: (rows, columns) of the tokens, or (frames, rows, columns) of a film's; they cover every row that is not in
            `fixed`, in raster order. None: unknown, and methods that need it refuse.
        text: (words, width), the embeddings of the text behind the picture, up to the next one. Read by methods that
            read the question.
        signals: What methods read of the vision tower, by signal: `{TowerAttention(by="patches"): …}`, a value for each
            of `rows`, (tokens,) or (tokens, numbers); of `Cls()` (1, width). Merged rows are made of `rows`.
        fixed: Indices of rows that always stay and are not ranked, such as newlines or a CLS.
        family: The model's `model_type` or its family's name. Needed only by methods that work on the projector's rows
            in some families alone (MMTok). None: any model.

    Returns:
        The rows that enter the decoder, with the token that each stands for, and the row that each token went into.

    Raises:
        InputError: If a row is not finite.
        SettingError: If the budget is out of range, or does not fit the method.
        ShapeError: If there are no rows, or arrays are not floats, or do not fit together, or are on several devices.
        UnknownNameError: If there is no such method or family.
        UnsupportedError: If the method works between decoder layers, or reads what was not given; the message lists
            those that can run.
    """
    several = isinstance(rows, list | tuple)
    parts: list[Sequence[Any]] = [rows] if several else [[rows]]
    for name, value in {"grid": grid, "text": text, "signals": signals, "fixed": fixed}.items():
        own = value if several else [value]
        if several and value is None:
            own = [None] * len(rows)
        if not isinstance(own, list | tuple) or len(own) != len(parts[0]):
            raise ShapeError(
                f"{name} must be a list with an entry for each of {len(rows)} pictures; got {brief(value)}."
            )
        parts.append(own)
    pictures = [_Picture(*of_picture) for of_picture in zip(*parts, strict=True)]
    _refuse_arrays(pictures)
    chosen = naming.method_of(method, tokens, retention)
    shown = set.intersection(*(set(picture.signals) for picture in pictures))
    host = Host("an engine of your own", "", prompts=True, signals=shown)
    has_text = any(picture.text is not None for picture in pictures)
    try:
        reducer = _reducer(chosen, family, host, has_text)
    except UnsupportedError as error:
        names = ", ".join(_runnable(family, host, has_text))
        raise UnsupportedError(
            f"{str(error).strip()} With what was given these can run: {names}. What a vision tower shows goes into "
            "signals=, the text behind a picture into text=."
        ) from None
    cuts = _cuts(reducer, pictures)
    packs = reducer.program.encodes is not None
    kept = [picture.kept(cut, packs) for picture, cut in zip(pictures, cuts, strict=True)]
    return kept if several else kept[0]


class _Picture:
    """One picture: the arrays as they came, and as tensors.

    Attributes:
        array: The rows as they came.
        rows: (tokens, width), in the dtype that came, or float32 of NumPy's.
        text: (words, width); None if not given.
        signals: Signals that were given: (free tokens, numbers) float32, of `Cls` (1, width).
        layout: The grids of the tokens that are free to leave.
        film: Whether they are frames.
        free, fixed: Indices of the tokens that may leave and of those that stay, int64; both None if all may leave.
        arrays: Everything that was given, by name.
    """

    def __init__(self, rows: Any, grid: Any, text: Any, signals: Any, fixed: Any) -> None:
        self.array, self.rows = rows, _tensor(rows, "rows")
        self.arrays: dict[str, tuple[Any, Tensor]] = {"rows": (rows, self.rows)}
        count, device = len(self.rows), self.rows.device
        if not count or not self.rows.shape[1]:
            raise ShapeError(f"A picture without rows was given, {tuple(self.rows.shape)}. Leave it out.")
        self.free = self.fixed = None
        stays = _indices(fixed, count)
        if stays:
            leaves = np.delete(np.arange(count), stays)
            self.free, self.fixed = (send(torch.tensor(part), device) for part in (leaves, stays))
        self.layout, self.film = _layout(grid, count - len(stays))
        self.text = None
        if text is not None:
            self.text = _tensor(text, "text")
            self.arrays["text"] = text, self.text
        self.signals: dict[Signal, Tensor] = {}
        for signal, value in _pairs(signals):
            tensor = _tensor(value, f"signals[{signal!r}]", dims=(1, 2))
            if len(tensor) != (1 if signal == Cls() else count):
                raise ShapeError(f"{signal!r} needs a value for each of {count} rows; got {tuple(tensor.shape)}.")
            self.arrays[f"signals[{signal!r}]"] = value, tensor
            tensor = tensor.float().reshape(len(tensor), -1)
            self.signals[signal] = tensor if self.free is None or signal == Cls() else tensor[self.free]

    @property
    def ranked(self) -> Tensor:
        """The rows that may leave, (free tokens, width) float32."""
        rows = self.rows.float()
        return rows if self.free is None else rows[self.free]

    def kept(self, cut: Cut, packs: bool) -> Kept:
        """Return what a cut of the rows that may leave keeps of all rows, in the kind of array that came.

        If it `packs` or merges, rows take the first places that are free, as on transformers; else their own.
        """
        device, merged = self.rows.device, cut.rows
        if cut.stays_whole:
            cut = Cut.take(torch.arange(cut.arriving, device=device), cut.arriving)
        source, parent = cut.source.to(device), cut.parent.to(device)
        order: Tensor | None = None
        if self.free is not None and self.fixed is not None:
            named = look_up(source, self.free)
            places = self.free[: len(source)] if packs or merged is not None else named
            order = torch.cat((places, self.fixed)).argsort()
            source, row = torch.cat((named, self.fixed))[order], order.argsort()
            went = row.new_empty(len(self.rows))
            went[self.free], went[self.fixed] = look_up(parent, row[: len(named)]), row[len(named) :]
            parent = went
        if merged is None:
            rows = _take(self.array, self.rows, source)
        else:
            if order is not None:
                merged = torch.cat((merged, self.rows[self.fixed].float()))[order]
            rows = _like(merged.to(self.rows.dtype), self.array)
        return Kept(rows, _like(source, self.array), _like(parent, self.array))


def _cuts(reducer: Reducer, pictures: Sequence[_Picture]) -> list[Cut]:
    """Return what becomes of the rows of a prompt's pictures that may leave."""
    texts = [picture.rows[:0] if picture.text is None else picture.text for picture in pictures]
    if all(picture.text is None for picture in pictures):  # nothing reads it
        texts = [picture.rows[:1] for picture in pictures]
    total = any(stage.drops and stage.unit == "sample" for stage in reducer.program.early)
    has_number = any(getattr(member, "tokens", None) for member in naming.members_of(reducer.method))
    if len(pictures) > 1 and total and has_number:  # a number is of each picture: rank it by itself
        behind = [torch.cat(texts[place:]) for place in range(len(texts))]
        return [
            cut for picture, text in zip(pictures, behind, strict=True) for cut in _together(reducer, [picture], [text])
        ]
    return _together(reducer, pictures, texts)


def _together(reducer: Reducer, pictures: Sequence[_Picture], texts: Sequence[Tensor]) -> list[Cut]:
    """Return `_cuts` of pictures that are ranked together where the method does that."""

    def more(index: int) -> dict[str, Any]:
        signals = pictures[index].signals
        extras: dict[str, Any] = {"video": pictures[index].film}
        for signal in signals.keys() & PARTS.keys():
            value = signals[signal]
            extras[PARTS[signal]] = value if signal == Cls() else lambda value=value: value
        return extras

    return reducer.cuts(
        [picture.ranked for picture in pictures],
        [picture.layout for picture in pictures],
        text=[text.float() for text in texts],
        stats=lambda signal: [picture.signals[signal] for picture in pictures],
        more=more,
    )


def _reducer(method: Method, family: str | None, host: Host, has_text: bool) -> Reducer:
    """Return the stages of a method. Refuse one that does not drop all its tokens before the decoder."""
    reducer = Reducer(method, DEPTH, family, host)
    early = reducer.program.early
    if reducer.program.late or not any(stage.drops for stage in early):
        raise UnsupportedError(f"{method.name} drops between decoder layers, in caches or not at all by itself.")
    if not has_text and any(stage.reads_text for stage in early):
        raise UnsupportedError(f"{method.name} reads the text behind the picture, which was not given.")
    return reducer


def _runnable(family: str | None, host: Host, has_text: bool) -> Iterator[str]:
    """Yield the names of the methods that can run."""
    for name, kind in registry.methods().items():
        for written, settings in {name: {}, f"{name}:layers=0": {"layers": (0,)}}.items():
            with suppress(FoveateError, TypeError):  # a method of one's own may have no defaults
                _reducer(kind(**settings), family, host, has_text)
                yield written
                break


# -- what was given -----------------------------------------------------------------------------------------------


def _indices(fixed: Any, count: int) -> list[int]:
    """Return the rows that always stay, ascending."""
    try:
        places = sorted({range(count)[operator.index(place)] for place in (() if fixed is None else fixed)})
    except (TypeError, IndexError):
        raise ShapeError(f"fixed must be indices of the {count} rows; got {brief(fixed)}.") from None
    if len(places) == count:
        raise ShapeError(f"fixed names all {count} rows, so none could be dropped. Leave the picture out.")
    return places


def _layout(grid: Any, count: int) -> tuple[PictureLayout, bool]:
    """Return the grids of `count` tokens, and whether they are frames of a film."""
    if grid is None:
        return PictureLayout(), False
    try:
        sizes = tuple(map(operator.index, grid))
    except TypeError:
        sizes = ()
    if len(sizes) not in (2, 3) or min(sizes) < 1 or math.prod(sizes) != count:
        raise ShapeError(
            f"grid must be (rows, columns), or (frames, rows, columns) of a film, of the {count} rows that are not in "
            f"fixed=; got {brief(grid)}."
        )
    *frames, rows, columns = sizes
    return PictureLayout(((rows, columns),) * math.prod(frames)), bool(frames)


def _pairs(signals: Any) -> Iterable[tuple[Signal, Any]]:
    """Return the signals that were given, each with its values."""
    if signals is None:
        return ()
    if not isinstance(signals, Mapping) or not all(isinstance(signal, Signal) for signal in signals):
        raise InputError(f"signals must be values by signal, such as {{TowerKeys(): …}}; got {brief(signals)}.")
    return signals.items()


def _tensor(array: Any, what: str, dims: Sequence[int] = (2,)) -> Tensor:
    """View an array as a tensor on its device; NumPy's as float32."""
    tensor = array
    try:
        if isinstance(array, np.ndarray) and array.dtype.kind in "fV":
            odd = any(stride < 0 or stride % 4 for stride in array.strides)  # torch has no such strides
            tensor = torch.from_numpy(np.require(array, np.float32, ["W", "E", *(["C"] if odd else [])]))
        elif not isinstance(array, Tensor) and hasattr(array, "__dlpack__"):
            tensor = torch.from_dlpack(array)
    except (TypeError, ValueError, BufferError, RuntimeError) as error:
        raise ShapeError(f"{what} cannot be read as floats: {error}.") from None
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dim() not in dims:
        kind = f"{tuple(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else brief(array)
        raise ShapeError(f"{what} must be an array of floats, {' or '.join(map(str, dims))} dimensions; got {kind}.")
    return tensor


def _refuse_arrays(pictures: Sequence[_Picture]) -> None:
    """Refuse no pictures, other widths, several devices, and numbers that are not finite, in one host sync."""
    if not pictures:
        raise ShapeError("No pictures were given: rows is an empty list.")
    arrays = [pair for picture in pictures for pair in picture.arrays.items()]
    widths = [tensor.shape[1] for name, (_, tensor) in arrays if name in ("rows", "text")]
    if len(set(widths)) > 1:
        raise ShapeError(f"rows and text must have one width; got {', '.join(map(str, widths))}.")
    # Two devices of one library may be one to torch.
    devices = {(type(array), str(getattr(array, "device", ""))) for _, (array, _) in arrays}
    of_torch = {tensor.device for _, (_, tensor) in arrays}
    if len(of_torch) > 1 or len(devices) > len({kind for kind, _ in devices}):
        raise ShapeError(f"Everything must be on one device; got {', '.join(sorted(place for _, place in devices))}.")
    filled = [(name, tensor) for name, (_, tensor) in arrays if tensor.numel()]
    ends = torch.stack([end.float() for _, tensor in filled for end in tensor.detach().aminmax()]).tolist()
    for (name, _), *lowest_and_highest in zip(filled, ends[::2], ends[1::2], strict=True):
        if not all(map(math.isfinite, lowest_and_highest)):
            raise InputError(f"{name} has NaN or infinite numbers. Look for an overflow in half precision.")


# -- what comes back ----------------------------------------------------------------------------------------------


def _take(array: Any, tensor: Tensor, source: Tensor) -> Any:
    """Return the rows of an array that stay, in kind."""
    if isinstance(array, Tensor) or not hasattr(array, "__array_namespace__"):
        return tensor[source]
    return array.__array_namespace__().take(array, _like(source, array), axis=0)


def _like(tensor: Tensor, array: Any) -> Any:
    """Return a tensor as an array of this kind, on its device."""
    if isinstance(array, np.ndarray):
        return tensor.numpy().astype(array.dtype) if tensor.is_floating_point() else tensor.numpy()
    if isinstance(array, Tensor) or not hasattr(array, "__array_namespace__"):
        return tensor
    moved = array.__array_namespace__().from_dlpack(tensor)
    return moved if moved.device == array.device else moved.to_device(array.device)
