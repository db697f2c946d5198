"""Finish: where the vision tokens of a prompt went, cut by cut."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from foveate.core.cut import Cut, look_up
from foveate.core.tensors import Change, on_tensors
from foveate.engine.rows import Step

Where = Literal["pixels", "tower", "projector", "layer", "kv"]
"""The place of a cut."""


@dataclass(frozen=True, eq=False)
class Ancestry:
    """Where the vision tokens of one sample went, cut by cut. Nothing is composed before somebody reads it.

    Attributes:
        tokens: Number of tokens that entered.
        steps: What each cut made of the rows before it.
        fixed: If some tokens always stay, which no cut counts: `Sample.ordinals`, and the token of those in whose
            column each row is stored.
    """

    tokens: int
    steps: tuple[Step, ...] = ()
    fixed: tuple[Tensor, Tensor, Tensor] | None = None

    def with_tensors(self, change: Change) -> "Ancestry":
        """Return this with `change` applied to its tensors."""
        steps = tuple([step.map(change) for step in self.steps])
        return Ancestry(self.tokens, steps, on_tensors(self.fixed, change))

    @property
    def merges(self) -> bool:
        """Whether any cut merged tokens."""
        return any(step.went is not None for step in self.steps)

    def composed(self) -> Cut:
        """Return all cuts as one, on the CPU, of all tokens that entered. It has no rows.

        Example: token 0 is a CLS that always stays, tokens 1 to 3 are patches, and the second patch was dropped.

            free 1 2 3, always 0      of the cuts: source 0 2, parent 0 −1 1      of all: source 0 1 3, parent 0 1 −1 2
        """
        here = self.with_tensors(Tensor.cpu)
        source = parent = torch.arange(self.tokens if here.fixed is None else len(here.fixed[0]))
        for own, went in here.steps:
            if went is None:
                went = Cut.take(own, len(source)).parent
            source, parent = look_up(own, source), look_up(parent, went)
        if here.fixed is None:
            return Cut.join(source, parent)
        free, always, slots = here.fixed
        # Rows are listed in the order of their columns.
        order = torch.cat((free[slots], always)).argsort()
        row = order.argsort()  # the inverse: the place of each row in that order
        every = torch.empty(self.tokens, dtype=torch.int64)
        every[free], every[always] = look_up(parent, row), row[len(source) :]
        return Cut.join(torch.cat((look_up(source, free), always))[order], every)


@dataclass(eq=False, repr=False)
class StageRecord:
    """One cut of one prefill.

    Attributes:
        where: "pixels" for a cut before the vision tower, "tower" for a cut in it, "projector" for a cut after the
            projector, "layer" for a cut before a decoder layer, "kv" for the cut of the caches after the prefill.
        layer: The first decoder layer (0-based) that processes fewer tokens; None if the cut is not before a layer.
        before: Number of vision tokens before the cut, one per sample.
        after: Number of vision tokens after the cut, one per sample.
        rows: Whether the stage only merged rows inside the tower, so that no vision token is dropped. Then `before`
            counts a sample's tower rows, `kept` are those that ran in late blocks, and `merged` says which rows each
            stood for.
    """

    where: Where
    layer: int | None
    before: tuple[int, ...]
    after: tuple[int, ...]
    _ancestries: Sequence[tuple[Ancestry, ...]]
    """Of each sample, all cuts up to this one; several of a look that grew, one for each picture."""
    rows: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Pickle with tensors on the host."""
        return {
            **vars(self),
            "_ancestries": [tuple([part.with_tensors(Tensor.cpu) for part in parts]) for parts in self._ancestries],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also read what 0.4.0 wrote: all cuts up to this one, composed."""
        if "_origin" in state:
            ancestries = []
            for origin, assign in zip(state["_origin"], state["_assign"], strict=True):
                tokens = 1 + max(origin.tolist(), default=-1) if assign is None else len(assign)
                ancestries.append((Ancestry(tokens, (Step(origin, assign),)),))
            state = {name: value for name, value in state.items() if name not in ("_origin", "_assign")}
            state["_ancestries"] = ancestries
        self.__dict__.update(state)

    @property
    def place(self) -> str:
        """Where the cut is, in words."""
        names = {
            "pixels": "before the vision tower",
            "tower": "vision tower",
            "projector": "projector",
            "kv": "decoding",
        }
        if self.rows:
            return "rows that ran in the vision tower"
        return names.get(self.where, f"before layer {self.layer}")

    @cached_property
    def origin(self) -> list[Tensor]:
        """The token that each remaining row stands for, in row order: one int64 tensor (on the CPU) per sample.

        Indices into the sample's vision tokens as they entered the model; −1 for a CLS, the target for a merged row.
        """
        return [cut.source for cut in self._composed]

    @cached_property
    def kept(self) -> list[Tensor]:
        """The kept tokens: `origin` in ascending order, without rows that stand for no token."""
        return [origin[origin >= 0].sort().values for origin in self.origin]

    @cached_property
    def merged(self) -> list[list[Tensor]]:
        """The tokens merged into each remaining row: for each sample, one ascending int64 tensor per row."""
        merged = []
        for origin, assign in zip(self.origin, self.assign, strict=True):
            if assign is None:  # each row is one token
                merged.append(list(origin[:, None]))
            else:
                merged.append([(assign == row).nonzero()[:, 0] for row in range(len(origin))])
        return merged

    @cached_property
    def assign(self) -> list[Tensor | None]:
        """The row that each of a sample's vision tokens was merged into, −1 if dropped; None if nothing is merged."""
        pairs = zip(self._ancestries, self._composed, strict=True)
        return [cut.parent if any(part.merges for part in parts) else None for parts, cut in pairs]

    @cached_property
    def _composed(self) -> list[Cut]:
        """All cuts up to this one as one cut of each sample. Pictures of a look that grew follow one another."""
        cuts = []
        for parts in self._ancestries:
            sources, parents, token, row = [], [], 0, 0  # tokens and rows of the parts before
            for cut in [part.composed() for part in parts]:
                sources.append(torch.where(cut.source < 0, cut.source, cut.source + token))
                parents.append(torch.where(cut.parent < 0, cut.parent, cut.parent + row))
                token, row = token + cut.arriving, row + len(cut.source)
            cuts.append(Cut.join(torch.cat(sources), torch.cat(parents)))
        return cuts

    def to_dict(self) -> dict[str, Any]:
        """Return the stage as plain values. `origin` and `assign` are included only if something was merged."""
        values: dict[str, Any] = {
            "where": self.where,
            "layer": self.layer,
            "before": list(self.before),
            "after": list(self.after),
            "kept": [tokens.tolist() for tokens in self.kept],
        }
        if self.rows:
            values["rows"] = True
        if any(assign is not None for assign in self.assign):
            values["origin"] = [tokens.tolist() for tokens in self.origin]
            values["assign"] = [on_tensors(assign, Tensor.tolist) for assign in self.assign]
        return values

    def __repr__(self) -> str:
        return f"StageRecord({self._words()})"

    def _words(self) -> str:
        """Format as `before layer 3: 576 to 288`, summed over all samples."""
        return f"{self.place}: {sum(self.before)} to {sum(self.after)}"
