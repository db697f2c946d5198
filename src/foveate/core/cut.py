"""Cut: what becomes of the tokens that arrive at a stage. Every method returns it, for one sample."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.core.rank import put_marked_first
from foveate.errors import ShapeError

NO_NOTES: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, eq=False, repr=False)
class Cut:
    """The result of a stage: which tokens stay, are dropped, or are merged.

    Made by `keep`, `take`, `merge` or `join`. It is immutable. Only the device knows how many tokens a mask keeps: then
    `count` is a tensor, and rows beyond it are meaningless, until the host has learnt it (`first`).

    Example: four tokens arrive, the first is dropped, the last joins the third.

        parent   −1  0  1  1       the row each token went into
        source       1  2          the token each row stands for
        rows         two, made by the method

    Attributes:
        arriving: Number of tokens that arrived.
        notes: Values that the stage remembers: tensors by name, whose first dimension is the rows. Through later cuts a
            row has its source's note, and zeros if it has no source.
    """

    arriving: int
    _count: int | Tensor | None
    """Number of rows that are left. None: those of the mask."""
    _parts: dict[str, Tensor]
    """`stays`, or some of `source`, `parent` and `rows`; the others are computed on first use."""
    notes: Mapping[str, Tensor] = field(default_factory=lambda: NO_NOTES)

    def __reduce__(self) -> Any:
        """Pickle the cut on the CPU."""
        cut = self.to(torch.device("cpu"))
        count = cut._count.cpu() if isinstance(cut._count, Tensor) else cut._count
        return Cut, (cut.arriving, count, cut._parts, dict(cut.notes))

    @classmethod
    def keep(cls, stays: Tensor, notes: Mapping[str, Tensor] = NO_NOTES) -> "Cut":
        """Keep the marked tokens, in order: (arriving,) bool. Only the device knows how many they are.

        Here notes have the arriving tokens as their first dimension.

        Raises:
            ShapeError: If `stays` is not a one-dimensional bool mask.
        """
        if stays.dim() != 1 or stays.dtype != torch.bool:
            raise ShapeError(f"Cut.keep needs a (tokens,) bool tensor; got {tuple(stays.shape)} {stays.dtype}.")
        return cls(len(stays), None, {"stays": stays}, notes)

    @classmethod
    def stay(cls, arriving: int, notes: Mapping[str, Tensor] = NO_NOTES) -> "Cut":
        """Keep all tokens unchanged, and remember notes about them."""
        return cls(arriving, arriving, {}, notes)

    @classmethod
    def take(cls, source: Tensor, arriving: int, notes: Mapping[str, Tensor] = NO_NOTES) -> "Cut":
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
    def merge(cls, source: Tensor, rows: Tensor, parent: Tensor, notes: Mapping[str, Tensor] = NO_NOTES) -> "Cut":
        """Replace the tokens by new rows.

        Args:
            source: (rows,) int64, the token whose position and place each row takes. −1: none, as for a tower's CLS.
            rows: (rows, width).
            parent: (arriving,) int64, the row each token went into, or most of it if it went into several. −1: dropped.
            notes: See `Cut`.

        Raises:
            ShapeError: If there is not one row for each source, or indices are not int64.
        """
        if not (_are_indices(source) and _are_indices(parent)) or len(rows) != len(source):
            raise ShapeError(
                "Cut.merge needs source and parent as int64 tensors of one dimension, and a row for each source; got "
                f"{tuple(source.shape)} {source.dtype}, {tuple(parent.shape)} {parent.dtype} and {len(rows)} rows."
            )
        return cls(len(parent), len(source), {"source": source, "parent": parent, "rows": rows}, notes)

    @classmethod
    def join(cls, source: Tensor, parent: Tensor, notes: Mapping[str, Tensor] = NO_NOTES) -> "Cut":
        """Like `merge`, for rows that are still to be computed from the tokens that joined; see `with_rows`."""
        return cls(len(parent), len(source), {"source": source, "parent": parent}, notes)

    @property
    def count(self) -> int | Tensor:
        """Number of rows that are left: an int, or an int64 tensor without dimensions if only the device knows it."""
        if self._count is None:
            object.__setattr__(self, "_count", self._parts["stays"].sum())
        assert self._count is not None
        return self._count

    @property
    def rows(self) -> Tensor | None:
        """The new rows, (rows, width). None if the remaining tokens are unchanged."""
        return self._parts.get("rows")

    @property
    def stays(self) -> Tensor | None:
        """The mask from which the cut was made, (arriving,) bool. None if it was not made from a mask."""
        return self._parts.get("stays")

    @property
    def source(self) -> Tensor:
        """The token each row stands for: (rows,) int64, −1 for none.

        For a mask it has the shape (arriving,): the tokens that stay, then −1.
        """
        parts = self._parts
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
        return "source" not in self._parts and "stays" not in self._parts

    @property
    def parent(self) -> Tensor:
        """The row each token went into: (arriving,) int64, −1 if it was dropped."""
        parts = self._parts
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
        return Cut(self.arriving, self._count, dict(self._parts), notes)

    def with_owner(self, owner: object) -> "Cut":
        """Return this cut with its notes prefixed by the member of a chain that wrote them: "owner name"."""
        if not self.notes:
            return self
        return self.with_notes({f"{owner} {name}": note for name, note in self.notes.items()})

    def to(self, device: torch.device) -> "Cut":
        """Return this cut with its tensors on a device."""
        if all(tensor.device == device for tensor in (*self._parts.values(), *self.notes.values())):
            return self
        parts, notes = ({name: tensor.to(device) for name, tensor in of.items()} for of in (self._parts, self.notes))
        return Cut(self.arriving, self._count, parts, notes)

    def first(self, count: int) -> "Cut":
        """Return a cut made from a mask as one of indices, when the host has learnt that it keeps `count` tokens."""
        if self.stays is None:
            return self
        source = put_marked_first(self.stays)[:count]
        # A mask's notes have the arriving tokens as their first dimension.
        return Cut.take(source, self.arriving, {name: note[source] for name, note in self.notes.items()})

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
            return later.with_notes(notes | dict(later.notes))
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
        elif "rows" in self._parts:
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
