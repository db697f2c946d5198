"""Cut: what becomes of the tokens that arrive at a stage. Every method returns it, for one sample or many at once."""

from collections.abc import Callable, Mapping
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.core.rank import put_marked_first
from foveate.core.tensors import Tensors, on_tensors
from foveate.errors import ShapeError

NOTHING: Mapping[str, Tensor] = MappingProxyType({})
_set = object.__setattr__
"""A cut sets its attributes when it is made, and computes some of them on first use."""


class Cut:
    """The result of a stage: which tokens stay, are dropped, or are merged.

    Made by `keep`, `take`, `merge` or `join`. It is immutable, so samples may share one. Shapes do not depend on
    values, so a cut can be returned from `torch.func.vmap`. If only the device knows how many rows are left, `count` is
    a tensor, and rows beyond it are meaningless.

    Example: four tokens arrive, the first is dropped, the last joins the third.

        parent   −1  0  1  1       the row each token went into
        source       1  2          the token each row stands for
        rows         two, made by the method

    Attributes:
        arriving: Number of tokens that arrived.
        notes: Values that the stage remembers: tensors by name, whose first dimension is the rows. Through later cuts a
            row has its source's note, and zeros if it has no source.
    """

    __slots__ = ("_count", "_make", "_parts", "arriving", "notes")

    arriving: int
    notes: Mapping[str, Tensor]
    _count: int | Tensor | None
    _make: "Callable[..., Cut] | None"
    _parts: dict[str, Any]

    def __init__(
        self,
        arriving: int,
        count: int | Tensor | None,
        parts: dict[str, Any],
        notes: Mapping[str, Tensor] = NOTHING,
        make: "Callable[..., Cut] | None" = None,
    ) -> None:
        """Use `keep`, `take`, `merge` and so on.

        Args:
            arriving: See `Cut`.
            count: Number of rows that are left. None: those of the mask.
            parts: `stays`, or some of `source`, `parent` and `rows`; the others are computed on first use. For a
                deferred merge, `inputs`: tensors by their place.
            notes: See `Cut`.
            make: Makes the deferred merge from its inputs.
        """
        _set(self, "arriving", arriving)
        _set(self, "notes", notes)
        _set(self, "_count", count)
        _set(self, "_parts", parts)
        _set(self, "_make", make)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"A cut cannot be changed; got a new {name}. Use with_notes for a cut with other notes.")

    def __reduce__(self) -> Any:
        """Pickle the cut on the CPU, with deferred work done."""
        cut = self._finish().to(torch.device("cpu"))
        count = cut._count.cpu() if isinstance(cut._count, Tensor) else cut._count
        return Cut, (cut.arriving, count, cut._parts, dict(cut.notes))

    @classmethod
    def keep(cls, stays: Tensor, notes: Mapping[str, Tensor] = NOTHING) -> "Cut":
        """Keep the marked tokens, in order: (arriving,) bool. Only the device knows how many they are.

        Here notes have the arriving tokens as their first dimension.

        Raises:
            ShapeError: If `stays` is not a one-dimensional bool mask.
        """
        if stays.dim() != 1 or stays.dtype != torch.bool:
            raise ShapeError(f"Cut.keep needs a (tokens,) bool tensor; got {tuple(stays.shape)} {stays.dtype}.")
        return cls(len(stays), None, {"stays": stays}, notes)

    @classmethod
    def stay(cls, arriving: int, notes: Mapping[str, Tensor] = NOTHING) -> "Cut":
        """Keep all tokens unchanged, and remember notes about them."""
        return cls(arriving, arriving, {}, notes)

    @classmethod
    def take(cls, source: Tensor, arriving: int, notes: Mapping[str, Tensor] = NOTHING) -> "Cut":
        """Keep these tokens, in this order: (rows,) int64 indices into the `arriving` tokens, no index twice.

        Raises:
            ShapeError: If `source` is not a tensor of indices, or has more of them than tokens arrive.
        """
        if not _are_indices(source) or len(source) > arriving:
            raise ShapeError(
                f"Cut.take needs a (rows,) int64 tensor of at most {arriving} indices; "
                f"got {tuple(source.shape)} {source.dtype}."
            )
        return cls(arriving, len(source), {"source": source}, notes)

    @classmethod
    def merge(cls, source: Tensor, rows: Tensor, parent: Tensor, notes: Mapping[str, Tensor] = NOTHING) -> "Cut":
        """Replace the tokens by new rows.

        Args:
            source: (rows,) int64, the token whose position and place each row takes. −1: none, as for a tower's CLS.
            rows: (rows, width).
            parent: (arriving,) int64, the row each token went into, or most of it if it went into several. −1: dropped.
            notes: See `Cut`.

        Raises:
            ShapeError: If there is not one row for each source, or indices are not int64.
        """
        if not (_are_indices(source) and _are_indices(parent)):
            raise ShapeError(
                "Cut.merge needs source and parent as int64 tensors of one dimension; got "
                f"{tuple(source.shape)} {source.dtype} and {tuple(parent.shape)} {parent.dtype}."
            )
        if len(rows) != len(source):
            raise ShapeError(
                f"Cut.merge needs one row for each source; got {len(rows)} rows for {len(source)} sources."
            )
        return cls(len(parent), len(source), {"source": source, "parent": parent, "rows": rows}, notes)

    @classmethod
    def join(cls, source: Tensor, parent: Tensor, notes: Mapping[str, Tensor] = NOTHING) -> "Cut":
        """Like `merge`, for rows that are still to be computed from the tokens that joined; see `with_rows`."""
        return cls(len(parent), len(source), {"source": source, "parent": parent}, notes)

    @classmethod
    def fewer(cls, arriving: int, count: Tensor, make: "Callable[..., Cut]", *inputs: Tensor) -> "Cut":
        """A deferred merge, for which only the device knows how many rows are left.

        It is made when that number is known, if at all.

        Args:
            arriving: Number of tokens that arrive.
            count: Number of rows that are left, an int64 tensor without dimensions; `arriving` if nothing merges.
            make: Makes a merge with a place for every token, of which the first `count` are rows.
            inputs: Arguments of `make`: all tensors that it works on.
        """
        by_place = {str(place): tensor for place, tensor in enumerate(inputs)}
        return cls(arriving, count, {"inputs": by_place}, make=make)

    @property
    def count(self) -> int | Tensor:
        """Number of rows that are left: an int, or an int64 tensor without dimensions if only the device knows it."""
        if self._count is None:
            _set(self, "_count", self._parts["stays"].sum())
        assert self._count is not None
        return self._count

    @property
    def rows(self) -> Tensor | None:
        """The new rows, (rows, width). None if the remaining tokens are unchanged."""
        rows: Tensor | None = self._finish()._parts.get("rows")
        return rows

    def _finish(self) -> "Cut":
        """Make a deferred merge, if there is one, and return this cut."""
        if self._make is None:
            return self
        merge = self.make_merge()
        _set(self, "_parts", merge._parts)  # without the inputs, which frees them
        _set(self, "notes", merge.notes)
        _set(self, "_make", None)
        return self

    @property
    def stays(self) -> Tensor | None:
        """The mask from which the cut was made, (arriving,) bool. None if it was not made from a mask."""
        return self._parts.get("stays")

    @property
    def source(self) -> Tensor:
        """The token each row stands for: (rows,) int64, −1 for none.

        For a mask it has the shape (arriving,): the tokens that stay, then −1.
        """
        parts = self._finish()._parts
        if "source" not in parts:
            stays = parts.get("stays")
            places = torch.arange(self.arriving, device=None if stays is None else stays.device)
            if stays is not None:
                # Fill up with −1, so that the shape does not depend on the count: mask 1 0 1 gives 0 2 −1.
                places = put_marked_first(stays).masked_fill(places >= self.count, -1)
            parts["source"] = places
        source: Tensor = parts["source"]
        return source

    @property
    def stays_whole(self) -> bool:
        """True if all tokens stay unchanged."""
        return self._make is None and "source" not in self._parts and "stays" not in self._parts

    @property
    def parent(self) -> Tensor:
        """The row each token went into: (arriving,) int64, −1 if it was dropped."""
        parts = self._finish()._parts
        if "parent" not in parts and "stays" in parts:
            # Number the tokens that stay in order: mask 1 0 1 gives 0 −1 1.
            parts["parent"] = torch.where(parts["stays"], parts["stays"].cumsum(0) - 1, -1)
        elif "parent" not in parts:
            source = self.source
            if len(source) == self.arriving:  # the same tokens in another order
                parts["parent"] = source.argsort()
            else:
                # Invert `source`, with −1 where no row stands for a token: source 0 2 of three tokens gives 0 −1 1.
                rows = torch.arange(len(source), device=source.device)
                dropped = torch.full((self.arriving,), -1, device=source.device)
                parts["parent"] = dropped.scatter(0, source, rows)
        parent: Tensor = parts["parent"]
        return parent

    def rows_left(self, arrived: Tensor) -> Tensor:
        """The rows that the cut leaves of those that arrived, (arriving, width)."""
        if self.rows is not None:
            return self.rows
        if self.stays_whole:
            return arrived
        return arrived[self.source]

    def with_rows(self, rows: Tensor) -> "Cut":
        """Return this cut with new rows, (rows, width)."""
        return Cut.merge(self.source, rows, self.parent, self.notes)

    def with_notes(self, notes: Mapping[str, Tensor]) -> "Cut":
        """Return this cut with these notes instead of its own."""
        cut = self._finish()
        return Cut(cut.arriving, cut._count, dict(cut._parts), notes)

    def with_owner(self, owner: object) -> "Cut":
        """Return this cut with its notes prefixed by the member of a chain that wrote them: "owner name"."""
        make = self._make
        if make is not None:  # its notes come with it
            return Cut(self.arriving, self._count, self._parts, make=lambda *inputs: make(*inputs).with_owner(owner))
        if not self.notes:
            return self
        return self.with_notes({f"{owner} {name}": note for name, note in self.notes.items()})

    def to(self, device: torch.device) -> "Cut":
        """Return this cut with its tensors on a device."""
        tensors = [*self._parts.get("inputs", self._parts).values(), *self.notes.values()]
        if all([tensor.device == device for tensor in tensors]):
            return self
        return self.with_tensors(on_tensors(self.tensors(), lambda tensor: tensor.to(device)))

    def tensors(self) -> dict[str, Any]:
        """The tensors of the cut by name, in a form that `torch.func.vmap` can return."""
        tensors = {**self._parts, "notes": dict(self.notes)}
        if self._make is not None:
            tensors["count"] = self._count
        return tensors

    def with_tensors(self, tensors: Mapping[str, Any]) -> "Cut":
        """Return a cut like this one, made from the `tensors` of other tokens."""
        parts = {name: part for name, part in tensors.items() if name not in ("count", "notes")}
        return Cut(self.arriving, tensors.get("count", self._count), parts, tensors["notes"], self._make)

    @property
    def put_off(self) -> bool:
        """True if this is a merge that is still to be made."""
        return self._make is not None

    def make_merge(self) -> "Cut":
        """Make the deferred merge, with a place for every token."""
        assert self._make is not None
        return self._make(*self._parts["inputs"].values())

    def first(self, count: int) -> "Cut":
        """Return this cut when the host has learnt that the first `count` rows are real."""
        if "stays" in self._parts:  # its notes have the arriving tokens as their first dimension
            source = put_marked_first(self._parts["stays"])[:count]
            notes = {name: note[source] for name, note in self.notes.items()}
            return Cut.take(source, self.arriving, notes)
        parts = {"source": self.source, **self._parts}
        for name in ("source", "rows"):
            if name in parts:
                parts[name] = parts[name][:count]
        notes = {name: note[:count] for name, note in self.notes.items()}
        return Cut(self.arriving, count, parts, notes)

    def then(self, later: "Cut") -> "Cut":
        """Combine two cuts, the second made from the rows that the first left. The host must know both counts."""
        if later.stays_whole:
            return self.with_notes({**self.notes, **later.notes})
        if self.stays_whole and not self.notes:
            return later
        if self.stays_whole:
            notes = dict(self.notes)
            if later.stays is None:  # a mask's notes have the arriving tokens as their first dimension
                notes = {name: note_of(note, later.source, later.rows) for name, note in notes.items()}
            return later.with_tensors({**later.tensors(), "notes": notes | dict(later.notes)})
        rows = later.rows
        parts = {"parent": look_up(self.parent, later.parent)}
        if rows is not None:
            parts |= {"source": look_up(later.source, self.source), "rows": rows}
        else:  # the later cut only selects rows of the first one, so no source is −1
            parts["source"] = self.source[later.source]
            if self.rows is not None:
                parts["rows"] = self.rows[later.source]
        notes = {name: note_of(note, later.source, rows) for name, note in self.notes.items()}
        return Cut(self.arriving, later._count, parts, {**notes, **later.notes})

    def __repr__(self) -> str:
        kind = "take"
        if "stays" in self._parts:
            kind = "keep"
        elif "rows" in self._parts or self._make is not None:
            kind = "merge"
        count = self._count if isinstance(self._count, int) else "?"
        return f"Cut.{kind}({self.arriving} to {count})"


def _are_indices(tensor: Tensor) -> bool:
    return tensor.dim() == 1 and tensor.dtype == torch.int64


def note_of(note: Tensor, source: Tensor, rows: Tensor | None) -> Tensor:
    """Turn a note of the tokens that arrive at a cut into a note of the rows it leaves.

    A row has its source's note, and zeros if its source is −1, which only new `rows` may have.
    """
    if rows is None:
        return note[source]
    none = note.new_zeros(1, *note.shape[1:])
    return torch.cat((note, none))[source]  # index −1 reads the appended zeros


def look_up(places: Tensor, to: Tensor) -> Tensor:
    """Look up each place: `to[place]`, and −1 for −1."""
    return pad(to, (0, 1), value=-1)[places]  # index −1 reads the appended −1


# -- many samples at once ------------------------------------------------------------------------------------------


Pick = Callable[[Tensor], Tensor]
"""Selects, from a tensor with samples as its first dimension, the part of the current sample."""


def together(look: Callable[[Tensors, Pick], Cut | None], samples: Tensors) -> list[Cut | None]:
    """Apply a function to each of some samples of equal shapes. Several samples run at once under vmap.

    Args:
        look: Takes the tensors of one sample, without the sample dimension, and a `Pick` for further tensors. Under
            vmap it runs once for all samples.
        samples: Tensors by name, with samples as their first dimension; an entry may be a mapping of such tensors.

    Returns:
        A cut for each sample, with its own tensors. A deferred merge remains deferred. All are None if `look` returns
        None.
    """
    first = _first_of(samples)
    if len(first) == 1:
        tensors = {name: part[0] if isinstance(part, Tensor) else _firsts(part) for name, part in samples.items()}
        return [look(tensors, itemgetter(0))]
    cuts: list[Cut | None] = []

    def of_sample(place: Tensor, sample: Tensors) -> Tensors:
        # Under vmap `place` is not a number, so index with a tensor: (samples, …) to (1, …) to (…).
        cut = look(sample, lambda tensor: tensor[place.expand(1)][0])
        cuts.append(cut)
        if cut is None:
            return {}
        return cut.tensors()

    tensors = torch.func.vmap(of_sample)(torch.arange(len(first), device=first.device), samples)
    (cut,) = cuts
    if cut is None:
        return [None] * len(first)
    unbound = on_tensors(tensors, Tensor.unbind)
    return [cut.with_tensors(_at(unbound, place)) for place in range(len(first))]


def _first_of(tensors: Tensors) -> Tensor:
    """The first tensor, at any depth of the nest."""
    value = next(iter(tensors.values()))
    if isinstance(value, Tensor):
        return value
    return _first_of(value)


def _at(unbound: dict[str, Any], place: int) -> Tensors:
    """The tensors of one sample, from those of all samples by name."""
    return {name: part[place] if isinstance(part, tuple) else _at(part, place) for name, part in unbound.items()}


def _firsts(tensors: Tensors) -> Tensors:
    return {name: tensor[0] for name, tensor in tensors.items()}
