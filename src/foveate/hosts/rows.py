"""`drop_rows`: rows in, kept rows out, for one prompt and arrays of any library."""

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.utils.dlpack import from_dlpack

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

AS_MADE = {Features(): "made", Deepstack(): "deepstack"}
"""Signals that a `TowerView` has as functions, by attribute."""


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
        InputError: If rows, text or signals are not finite, signals are not values by signal, or `method` names a file
            that cannot be read.
        MethodError: If a method of your own fails.
        SettingError: If the budget is out of range, or does not fit the method.
        ShapeError: If there are no rows, or arrays are not floats, or do not fit together, or are on several devices.
        UnknownNameError: If there is no such method or family.
        UnsupportedError: If the method works between decoder layers, or reads what was not given; the message lists
            those that can run.
    """
    several = isinstance(rows, list | tuple)
    of_pictures = [list(rows) if several else [rows]]
    for name, value in {"grid": grid, "text": text, "signals": signals, "fixed": fixed}.items():
        own = value if several and value is not None else [value] * len(of_pictures[0])
        if not isinstance(own, list | tuple) or len(own) != len(of_pictures[0]):
            raise ShapeError(
                f"{name} must be a list with an entry for each of {len(rows)} pictures; got {brief(value)}."
            )
        of_pictures.append(list(own))
    pictures = [_Picture(*arrays) for arrays in zip(*of_pictures, strict=True)]
    _refuse_arrays([array for picture in pictures for array in picture.arrays])
    shown = set.intersection(*(set(picture.signals) for picture in pictures))
    host = Host("an engine of your own", "", prompts=True, signals=shown)
    has_text = any(picture.words is not None and len(picture.words) for picture in pictures)
    chosen = naming.method_of(method, tokens, retention)
    try:
        reducer = _reducer(chosen, family, host, has_text)
    except UnsupportedError as error:
        names = ", ".join(_runnable(family, host, has_text))
        raise UnsupportedError(
            f"{str(error).strip()} With what was given these can run: {names}. What a vision tower shows goes into "
            "signals=, the text behind a picture into text=."
        ) from None
    kept = [picture.kept(cut) for picture, cut in zip(pictures, _cuts(reducer, pictures), strict=True)]
    return kept if several else kept[0]


class _Picture:
    """One picture: the arrays that were given, and what stages see of them.

    Attributes:
        arrays: Name, array as given, and float32 tensor of everything.
        words: (words, width) float32, the text behind it; None if not given.
        signals: Signals by name, (free tokens, numbers) float32 each; of `Cls` (1, width).
        layout: The grids of the tokens that may leave.
        shown: Attributes of its `TowerView`.
    """

    def __init__(self, rows: Any, grid: Any, text: Any, signals: Any, fixed: Any) -> None:
        self._array, self._rows = rows, _tensor(rows, "rows")
        self._values = self._rows.float()
        self.arrays = [("rows", rows, self._values)]
        count = len(self._rows)
        if not self._rows.numel():
            raise ShapeError(f"A picture without rows was given, {tuple(self._rows.shape)}. Leave it out.")
        self._free: Tensor | None = None
        self._fixed: Tensor | None = None
        if stays := _indices(fixed, count):
            places = torch.tensor(stays), torch.from_numpy(np.delete(np.arange(count), stays))
            self._fixed, self._free = (send(part, self._rows.device) for part in places)
        self.layout, is_film = _layout(grid, count - len(stays))
        self.words: Tensor | None = None
        if text is not None:
            self.words = _tensor(text, "text").float()
            self.arrays.append(("text", text, self.words))
        if not isinstance(signals, Mapping | None) or not all(isinstance(signal, Signal) for signal in signals or ()):
            raise InputError(f"signals must be values by signal, such as {{TowerKeys(): …}}; got {brief(signals)}.")
        self.signals: dict[Signal, Tensor] = {}
        for signal, value in (signals or {}).items():
            values = _tensor(value, str(signal), dims=(1, 2)).float()
            if len(values) != (1 if signal == Cls() else count):
                raise ShapeError(f"{signal} needs a value for each of {count} rows; got {tuple(values.shape)}.")
            self.arrays.append((str(signal), value, values))
            values = values.reshape(len(values), -1)
            self.signals[signal] = values if signal == Cls() else self._of_free(values)
        self.shown: dict[str, Any] = {"video": is_film, "cls": self.signals.get(Cls())}
        for signal in AS_MADE.keys() & self.signals.keys():
            self.shown[AS_MADE[signal]] = partial(self.signals.get, signal)

    @property
    def ranked(self) -> Tensor:
        """The rows that may leave, (free tokens, width) float32."""
        return self._of_free(self._values)

    def _of_free(self, values: Tensor) -> Tensor:
        return values if self._free is None else values[self._free]

    def kept(self, cut: Cut) -> Kept:
        """Return what a cut of the rows that may leave keeps of all rows, in the kind of array that came."""
        device, merged = self._rows.device, cut.rows
        if cut.stays_whole:
            cut = Cut.take(torch.arange(cut.arriving, device=device), cut.arriving)
        source, parent = cut.source.to(device), cut.parent.to(device)
        if self._free is not None and self._fixed is not None:
            # A fixed row stays between the tokens that it stood between. Of tokens 0 to 4 with 2 fixed, rows of the
            # tokens 1 3 have the keys 0 2, and the fixed row 1.
            named, count = look_up(source, self._free), len(self._fixed)
            keys = 2 * torch.searchsorted(self._fixed, named), 2 * torch.arange(count, device=device) + 1
            order = torch.cat(keys).argsort(stable=True)
            source, row = torch.cat((named, self._fixed))[order], order.argsort()
            went = look_up(parent, row[: len(named)])
            parent = row.new_empty(len(self._rows)).index_copy(0, self._free, went)
            parent = parent.index_copy(0, self._fixed, row[len(named) :])
            if merged is not None:
                merged = torch.cat((merged, self._values[self._fixed]))[order]
        array = self._array
        if merged is not None:
            rows = _like(merged.to(self._rows.dtype), array)
        elif _is_standard(array):
            rows = array.__array_namespace__().take(array, _like(source, array), axis=0)
        else:
            rows = self._rows[source]
        return Kept(rows, _like(source, array), _like(parent, array))


def _cuts(reducer: Reducer, pictures: Sequence[_Picture]) -> list[Cut]:
    """Return what becomes of the rows of a prompt's pictures that may leave."""
    has_text = any(picture.words is not None for picture in pictures)
    # Without any, nothing reads it, and one word is as good as many.
    texts = [picture.ranked[: not has_text] if picture.words is None else picture.words for picture in pictures]
    is_number = any(getattr(member, "tokens", None) for member in naming.members_of(reducer.method))
    if len(pictures) > 1 and is_number and any(stage.drops and stage.unit == "sample" for stage in reducer.early):
        # A number is of each picture: rank it by itself, with all text behind it.
        behind = [torch.cat(texts[place:]) for place in range(len(texts))]
        return [_together(reducer, [picture], [text])[0] for picture, text in zip(pictures, behind, strict=True)]
    return _together(reducer, pictures, texts)


def _together(reducer: Reducer, pictures: Sequence[_Picture], texts: Sequence[Tensor]) -> list[Cut]:
    """Return `_cuts` of pictures that are ranked together where the method does that."""
    return reducer.cuts(
        [picture.ranked for picture in pictures],
        [picture.layout for picture in pictures],
        text=texts,
        stats=lambda signal: [picture.signals[signal] for picture in pictures],
        more=lambda index: pictures[index].shown,
    )


def _reducer(method: Method, family: str | None, host: Host, has_text: bool) -> Reducer:
    """Return the stages of a method. Refuse one that works behind the entry of the decoder, or lacks the text."""
    reducer = Reducer(method, DEPTH, family, host)
    if reducer.late:
        raise UnsupportedError(f"{method.name} works between decoder layers, in caches or while decoding.")
    if not has_text and any(stage.reads_text for stage in reducer.early):
        raise UnsupportedError(f"{method.name} reads the text behind the picture, which was not given.")
    return reducer


def _runnable(family: str | None, host: Host, has_text: bool) -> Iterator[str]:
    """Yield the names of the methods that can run."""
    for name, kind in registry.methods().items():
        for written, settings in {name: {}, f"{name}:layers=0": {"layers": (0,)}}.items():
            with suppress(FoveateError, TypeError):  # a method of one's own may have no defaults
                if any(stage.drops for stage in _reducer(kind(**settings), family, host, has_text).early):
                    yield written
                    break


# -- what was given -----------------------------------------------------------------------------------------------


def _indices(fixed: Any, count: int) -> list[int]:
    """Return the rows that always stay, ascending."""
    try:
        listed = [] if fixed is None else list(fixed)
        places = sorted({range(count)[operator.index(place)] for place in listed})
        if any(isinstance(place, bool) for place in listed):  # a mask
            raise TypeError
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


def _tensor(array: Any, what: str, dims: Sequence[int] = (2,)) -> Tensor:
    """View an array as a tensor on its device; NumPy's as float32."""
    tensor = array
    try:
        if isinstance(array, np.ndarray) and array.dtype.kind in "fV":
            odd = any(stride < 0 or stride % 4 for stride in array.strides)  # torch has no such strides
            tensor = torch.from_numpy(np.require(array, np.float32, ("W", "E", "C") if odd else ("W", "E")))
        elif not isinstance(array, Tensor) and hasattr(array, "__dlpack__"):
            tensor = from_dlpack(array)
    except (TypeError, ValueError, BufferError, RuntimeError) as error:
        raise ShapeError(f"{what} cannot be read as floats: {error}.") from None
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dim() not in dims:
        kind = f"{tuple(tensor.shape)} {tensor.dtype}" if isinstance(tensor, Tensor) else brief(array)
        raise ShapeError(f"{what} must be an array of floats, {' or '.join(map(str, dims))} dimensions; got {kind}.")
    return tensor


def _refuse_arrays(arrays: Sequence[tuple[str, Any, Tensor]]) -> None:
    """Refuse no arrays, other widths, several devices, and numbers that are not finite. Waits for the device once."""
    if not arrays:
        raise ShapeError("No pictures were given: rows is an empty list.")
    widths = [tensor.shape[1] for name, _, tensor in arrays if name in ("rows", "text")]
    if len(set(widths)) > 1:
        raise ShapeError(f"rows and text must have one width; got {', '.join(map(str, widths))}.")
    # Two devices of one library may be one to torch.
    devices = {(type(array), str(getattr(array, "device", ""))) for _, array, _ in arrays}
    if len({tensor.device for *_, tensor in arrays}) > 1 or len(devices) > len({kind for kind, _ in devices}):
        raise ShapeError(f"Everything must be on one device; got {', '.join(sorted(place for _, place in devices))}.")
    with torch.no_grad():
        largest = torch.stack([vector_norm(tensor, math.inf) for *_, tensor in arrays if tensor.numel()]).tolist()
    for (name, *_), number in zip((array for array in arrays if array[2].numel()), largest, strict=True):
        if not math.isfinite(number):
            raise InputError(f"{name} has NaN or infinite numbers. Look for an overflow in half precision.")


def _is_standard(array: Any) -> bool:
    """Return whether an array is of a library other than torch that follows the array API standard."""
    return hasattr(array, "__array_namespace__") and not isinstance(array, Tensor)


def _like(tensor: Tensor, array: Any) -> Any:
    """Return a tensor as an array of this kind, on its device."""
    if isinstance(array, np.ndarray):
        return tensor.numpy().astype(array.dtype) if tensor.is_floating_point() else tensor.numpy()
    if not _is_standard(array):
        return tensor
    moved = array.__array_namespace__().from_dlpack(tensor)
    place = getattr(array, "device", None)  # MLX has one memory for all devices
    return moved if place is None or moved.device == place else moved.to_device(place)
