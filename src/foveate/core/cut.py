"""What becomes of the tokens that arrive at a stage: the one form every method answers in, for many samples at once."""

from collections.abc import Callable, Mapping
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.nn.functional import pad

from foveate.core.rank import marked_first
from foveate.core.tensors import Tensors, on_tensors
from foveate.errors import ShapeError

NOTHING: Mapping[str, Tensor] = MappingProxyType({})
_set = object.__setattr__
"""A cut sets its attributes when it is made, and works some of them out when they are first asked for."""


class Cut:
    """What becomes of the tokens that arrive at a stage.

    Made by `keep`, `take`, `merge` or `join`, and never changed: samples may share one. Shapes do not depend on values,
    so that a cut comes out of `torch.func.vmap`. Where only the device knows how many rows are left, `count` is a
    tensor, and what stands behind that many rows means nothing.

    An example: four tokens arrive, the first is dropped, the last joins the third.

        parent   −1  0  1  1       the row each token went into
        source       1  2          the token each row stands for
        rows         two, made by the method

    Attributes:
        arriving: Tokens that arrived.
        notes: What the stage wants to remember: a tensor a name, whose first dimension is the rows. Through later cuts
            a row has its source's note, and zeros where it has no source.
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
            count: Rows that are left; None: those of the mask.
            parts: `stays`, or some of `source`, `parent` and `rows`; the others are worked out when they are first
                asked for. Of a merge that is put off, `inputs`: tensors by their place.
            notes: See `Cut`.
            make: Gives the merge that is put off, from its inputs.
        """
        _set(self, "arriving", arriving)
        _set(self, "notes", notes)
        _set(self, "_count", count)
        _set(self, "_parts", parts)
        _set(self, "_make", make)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"A cut is never changed, so not its {name}; with_notes makes one with other notes.")

    def __reduce__(self) -> Any:
        """Pickled as it is on the host, with what was put off made."""
        cut = self._finish().to(torch.device("cpu"))
        count = cut._count.cpu() if isinstance(cut._count, Tensor) else cut._count
        return Cut, (cut.arriving, count, cut._parts, dict(cut.notes))

    @classmethod
    def keep(cls, stays: Tensor, notes: Mapping[str, Tensor] = NOTHING) -> "Cut":
        """These stay, in order: (arriving,) bool. How many they are, only the device knows.

        Notes have the arriving tokens as their first dimension here.

        Raises:
            ShapeError: If it is no mask of one dimension.
        """
        if stays.dim() != 1 or stays.dtype != torch.bool:
            raise ShapeError(f"Cut.keep needs a (tokens,) bool tensor; got {tuple(stays.shape)} {stays.dtype}.")
        return cls(len(stays), None, {"stays": stays}, notes)

    @classmethod
    def stay(cls, arriving: int, notes: Mapping[str, Tensor] = NOTHING) -> "Cut":
        """All stay as they are, and something is remembered of them."""
        return cls(arriving, arriving, {}, notes)

    @classmethod
    def take(cls, source: Tensor, arriving: int, notes: Mapping[str, Tensor] = NOTHING) -> "Cut":
        """These stay, in this order: (rows,) int64 indices into the `arriving` tokens, none of them twice.

        Raises:
            ShapeError: If it is no tensor of indices, or has more of them than tokens arrive.
        """
        if not _are_indices(source) or len(source) > arriving:
            raise ShapeError(
                f"Cut.take needs a (rows,) int64 tensor of at most {arriving} indices; "
                f"got {tuple(source.shape)} {source.dtype}."
            )
        return cls(arriving, len(source), {"source": source}, notes)

    @classmethod
    def merge(cls, source: Tensor, rows: Tensor, parent: Tensor, notes: Mapping[str, Tensor] = NOTHING) -> "Cut":
        """New rows take the tokens' place.

        Args:
            source: (rows,) int64, the token whose position and place each row has; −1: none, as a tower's CLS.
            rows: (rows, width).
            parent: (arriving,) int64, the row each token went into, the largest share of it where it went into
                several; −1: dropped.
            notes: See `Cut`.

        Raises:
            ShapeError: If there is not one row for each source, or indices are no int64.
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
        """As `merge`, of rows that are still to be worked out from the tokens that joined: see `with_rows`."""
        return cls(len(parent), len(source), {"source": source, "parent": parent}, notes)

    @classmethod
    def fewer(cls, arriving: int, count: Tensor, make: "Callable[..., Cut]", *inputs: Tensor) -> "Cut":
        """A merge of which only the device knows how many rows it leaves. It is made once that is known, if at all.

        Args:
            arriving: Tokens that arrive.
            count: Rows that are left, an int64 tensor without dimensions; `arriving` if nothing merges.
            make: Gives a merge with a place for every token, of which the first `count` are rows.
            inputs: What it is given: all the tensors that it works on.
        """
        by_place = {str(place): tensor for place, tensor in enumerate(inputs)}
        return cls(arriving, count, {"inputs": by_place}, make=make)

    @property
    def count(self) -> int | Tensor:
        """Rows that are left: an int, or an int64 tensor without dimensions where only the device knows."""
        if self._count is None:
            _set(self, "_count", self._parts["stays"].sum())
        assert self._count is not None
        return self._count

    @property
    def rows(self) -> Tensor | None:
        """The new rows, (rows, width); None where those that stay are as they were."""
        rows: Tensor | None = self._finish()._parts.get("rows")
        return rows

    def _finish(self) -> "Cut":
        """This cut, what was put off done."""
        if self._make is None:
            return self
        merge = self.make_merge()
        _set(self, "_parts", merge._parts)  # without the inputs, so that they are freed
        _set(self, "notes", merge.notes)
        _set(self, "_make", None)
        return self

    @property
    def stays(self) -> Tensor | None:
        """The mask it was made of, (arriving,) bool; None if it was not made of one."""
        return self._parts.get("stays")

    @property
    def source(self) -> Tensor:
        """The token each row stands for: (rows,) int64, −1 for none.

        Of a mask it is (arriving,): the tokens that stay, then −1.
        """
        parts = self._finish()._parts
        if "source" not in parts:
            stays = parts.get("stays")
            places = torch.arange(self.arriving, device=None if stays is None else stays.device)
            if stays is not None:
                # Behind those that stay −1, so that the shape does not depend on how many they are: 0 2 −1.
                places = marked_first(stays).masked_fill(places >= self.count, -1)
            parts["source"] = places
        source: Tensor = parts["source"]
        return source

    @property
    def stays_whole(self) -> bool:
        """Whether all tokens stay as they are."""
        return self._make is None and "source" not in self._parts and "stays" not in self._parts

    @property
    def parent(self) -> Tensor:
        """The row each token went into: (arriving,) int64, −1 if it was dropped."""
        parts = self._finish()._parts
        if "parent" not in parts and "stays" in parts:
            # Tokens that stay are counted in order: 1 0 1 (stay) gives 0 −1 1.
            parts["parent"] = torch.where(parts["stays"], parts["stays"].cumsum(0) - 1, -1)
        elif "parent" not in parts:
            source = self.source
            if len(source) == self.arriving:  # the same tokens in another order
                parts["parent"] = source.argsort()
            else:
                # The inverse of `source`, with −1 where no row stands for a token: 0 2 of three gives 0 −1 1.
                rows = torch.arange(len(source), device=source.device)
                dropped = torch.full((self.arriving,), -1, device=source.device)
                parts["parent"] = dropped.scatter(0, source, rows)
        parent: Tensor = parts["parent"]
        return parent

    def rows_left(self, arrived: Tensor) -> Tensor:
        """The rows that it leaves of those that arrived, (arriving, width)."""
        if self.rows is not None:
            return self.rows
        if self.stays_whole:
            return arrived
        return arrived[self.source]

    def with_rows(self, rows: Tensor) -> "Cut":
        """This cut with new rows, (rows, width)."""
        return Cut.merge(self.source, rows, self.parent, self.notes)

    def with_notes(self, notes: Mapping[str, Tensor]) -> "Cut":
        """This cut with notes in the place of its own."""
        cut = self._finish()
        return Cut(cut.arriving, cut._count, dict(cut._parts), notes)

    def with_owner(self, owner: object) -> "Cut":
        """This cut, its notes named for the member of a chain that wrote them: "owner name"."""
        make = self._make
        if make is not None:  # its notes come with it
            return Cut(self.arriving, self._count, self._parts, make=lambda *inputs: make(*inputs).with_owner(owner))
        if not self.notes:
            return self
        return self.with_notes({f"{owner} {name}": note for name, note in self.notes.items()})

    def to(self, device: torch.device) -> "Cut":
        """This cut with its tensors on a device."""
        tensors = [*self._parts.get("inputs", self._parts).values(), *self.notes.values()]
        if all([tensor.device == device for tensor in tensors]):
            return self
        return self.with_tensors(on_tensors(self.tensors(), lambda tensor: tensor.to(device)))

    def tensors(self) -> dict[str, Any]:
        """What it is made of, by name: what `torch.func.vmap` can hand out."""
        tensors = {**self._parts, "notes": dict(self.notes)}
        if self._make is not None:
            tensors["count"] = self._count
        return tensors

    def with_tensors(self, tensors: Mapping[str, Any]) -> "Cut":
        """This cut of other tokens, made of their `tensors`."""
        parts = {name: part for name, part in tensors.items() if name not in ("count", "notes")}
        return Cut(self.arriving, tensors.get("count", self._count), parts, tensors["notes"], self._make)

    @property
    def put_off(self) -> bool:
        """Whether it is a merge that is still to be made."""
        return self._make is not None

    def make_merge(self) -> "Cut":
        """The merge that was put off, with a place for every token."""
        assert self._make is not None
        return self._make(*self._parts["inputs"].values())

    def first(self, count: int) -> "Cut":
        """This cut where the host knows by now that `count` rows are real."""
        if "stays" in self._parts:  # its notes have the arriving tokens as their first dimension
            source = marked_first(self._parts["stays"])[:count]
            notes = {name: note[source] for name, note in self.notes.items()}
            return Cut.take(source, self.arriving, notes)
        parts = {"source": self.source, **self._parts}
        for name in ("source", "rows"):
            if name in parts:
                parts[name] = parts[name][:count]
        notes = {name: note[:count] for name, note in self.notes.items()}
        return Cut(self.arriving, count, parts, notes)

    def then(self, later: "Cut") -> "Cut":
        """One cut from two, the second made of the rows that the first left; both counts are known to the host."""
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
        else:  # then the rows are some of the first cut's, and no source is −1
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
    """A note of the tokens that arrive at a cut, as a note of the rows it leaves.

    A row has its source's note, and zeros where its source is −1, which only new `rows` may have.
    """
    if rows is None:
        return note[source]
    none = note.new_zeros(1, *note.shape[1:])
    return torch.cat((note, none))[source]  # −1 finds what was put behind


def look_up(places: Tensor, to: Tensor) -> Tensor:
    """Where each of some places leads: `to[place]`, and −1 for −1."""
    return pad(to, (0, 1), value=-1)[places]  # −1 finds what was put behind


# -- samples alike -------------------------------------------------------------------------------------------------


Pick = Callable[[Tensor], Tensor]
"""Of a tensor with the samples in front, the part of the sample that is looked at."""


def together(look: Callable[[Tensors, Pick], Cut | None], samples: Tensors) -> list[Cut | None]:
    """What a function makes of each of some samples that are alike; by vmap where there are several.

    Args:
        look: Takes the tensors of one sample, without the samples in front, and a `Pick` for further tensors. Under
            vmap it runs once for all samples.
        samples: Tensors by name, with the samples in front; an entry may be a mapping of such.

    Returns:
        A cut for each sample, with tensors of its own: a merge that was put off is put off still. All are None where
        `look` answers None.
    """
    first = _first_of(samples)
    if len(first) == 1:
        tensors = {name: part[0] if isinstance(part, Tensor) else _firsts(part) for name, part in samples.items()}
        return [look(tensors, itemgetter(0))]
    cuts: list[Cut | None] = []

    def of_sample(place: Tensor, sample: Tensors) -> Tensors:
        # Under vmap `place` is no number, so it is an index tensor: (samples, …) to (1, …) to (…).
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
    """The first of them, wherever it stands in the nest."""
    value = next(iter(tensors.values()))
    if isinstance(value, Tensor):
        return value
    return _first_of(value)


def _at(unbound: dict[str, Any], place: int) -> Tensors:
    """The tensors of one sample, from those of all by name."""
    return {name: part[place] if isinstance(part, tuple) else _at(part, place) for name, part in unbound.items()}


def _firsts(tensors: Tensors) -> Tensors:
    return {name: tensor[0] for name, tensor in tensors.items()}
