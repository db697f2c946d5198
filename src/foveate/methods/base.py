"""What a method sees and what it answers.

A method ranks; `foveate.core.budget` decides how many stay; the engine moves tensors. A method sees one
sample at a time, so nothing in a method file knows of batches, padding, masks or caches.
"""

import dataclasses
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from foveate.core.budget import keep_count
from foveate.errors import SettingError

__all__ = ["Cut", "Method", "Preset", "View"]


@dataclass(slots=True)
class View:
    """One sample's vision tokens as they stand before a decoder layer.

    Attributes:
        layer: The decoder layer (0-based) these tokens are about to enter.
        tokens: Which tokens are left: (tokens,) int64, ordinals among the sample's vision tokens as they
            entered the model, ascending.
        read: Returns the residual stream entering the layer at these tokens, (tokens, width), model dtype.
        entered: How many vision tokens the sample had when it entered the model.
        sizes: How many of `tokens` belong to each image or video of the sample, in order; None once a cut
            ranked over all of them together, since only the device knows then.
        notes: What a method wants to remember from layer to layer, a tensor a name whose first dimension
            is `tokens`. The engine cuts them with the tokens.
    """

    layer: int
    tokens: Tensor
    read: Callable[[], Tensor]
    entered: int
    sizes: tuple[int, ...] | None = None
    notes: dict[str, Tensor] = field(default_factory=dict)
    _hidden: Tensor | None = None

    @classmethod
    def of(cls, hidden: Tensor, layer: int = 1, **known: Any) -> Self:
        """A view of the given rows, (tokens, width): for tests and for trying a method by hand."""
        count = hidden.shape[0]
        known.setdefault("tokens", torch.arange(count, device=hidden.device))
        known.setdefault("entered", count)
        known.setdefault("sizes", (count,))
        return cls(layer=layer, read=lambda: hidden, **known)

    @property
    def hidden(self) -> Tensor:
        """The residual stream entering the layer at these tokens: (tokens, width), model dtype."""
        if self._hidden is None:
            self._hidden = self.read()
        return self._hidden

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def part(self, start: int, stop: int) -> "View":
        """The view of tokens `start` to `stop` alone."""
        return View(
            layer=self.layer,
            tokens=self.tokens[start:stop],
            read=lambda: self.hidden[start:stop],
            entered=self.entered,
            sizes=(stop - start,),
            notes={name: note[start:stop] for name, note in self.notes.items()},
        )


@dataclass(frozen=True, slots=True)
class Cut:
    """A method's answer at a cut.

    Attributes:
        kept: Which of the view's tokens stay: (count,) int64, ascending.
        sizes: How many of them belong to each image or video, if the method knows.
    """

    kept: Tensor
    sizes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Preset:
    """A setting with a name and a source.

    Attributes:
        name: `method/model/budget`.
        method: The setting itself.
        depth: Decoder layers of the model it was made for.
        vision_tokens: Vision tokens of the model's usual input; None where any count goes.
        source: Where the numbers come from.
    """

    name: str
    method: "Method"
    depth: int
    vision_tokens: int | None
    source: str


class Method(ABC):
    """A way to drop vision tokens: a frozen dataclass of settings and what it does at a cut.

    Subclasses in `foveate/methods/` are found by themselves; others call `foveate.register_method` or
    declare an entry point in the group `foveate.methods`.
    """

    __slots__ = ()

    name: ClassVar[str]
    """The name users type."""
    presets: ClassVar[tuple[Preset, ...]] = ()
    """Published and derived settings."""

    @abstractmethod
    def cuts(self) -> tuple[int, ...]:
        """Decoder layers (0-based) before which tokens leave, ascending."""

    @abstractmethod
    def cut(self, view: View) -> Cut | None:
        """Which tokens of `view` stay before layer `view.layer`; None if all do."""

    @abstractmethod
    def plan(self, depth: int, sizes: Sequence[int]) -> tuple[int, ...]:
        """Vision tokens each of `depth` decoder layers processes, for a sample with images of these sizes."""

    @classmethod
    @abstractmethod
    def for_budget(
        cls,
        model: Any,
        *,
        tokens: float | None = None,
        retention: float | None = None,
        vision_tokens: int | None = None,
        **settings: Any,
    ) -> Self:
        """The setting that spends a budget on `model` (see the subclasses)."""

    def watches(self, layer: int) -> bool:
        """Whether `observe` wants to see the tokens entering `layer`."""
        return False

    def observe(self, view: View) -> None:  # noqa: B027 - most methods take no notes
        """Look at the tokens entering a watched layer, after the cut there, and take notes."""

    def scoring_flops(self, depth: int, width: int, sizes: Sequence[int]) -> int:
        """FLOPs of the method's own arithmetic in a decoder of `depth` layers and residual width `width`, for a
        sample with images of these sizes; sorting and gathering do not count."""
        return 0

    def check(self, depth: int) -> None:
        """Refuse a decoder of `depth` layers that the setting does not fit.

        Raises:
            SettingError: If a cut lies outside the decoder.
        """
        late = [layer for layer in self.cuts() if layer >= depth]
        if late:
            raise SettingError(
                f"{type(self).__name__} cuts before layers {late}, but the decoder has layers 0 to {depth - 1}. "
                f"Use {type(self).__name__}.for_budget(model, …), which fits any depth."
            )

    def to_dict(self) -> dict[str, Any]:
        """The setting as plain values: `{"method": name, …}`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"method": self.name, **values}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The setting that `to_dict` gave.

        Raises:
            SettingError: If a field is unknown or the dictionary belongs to another method.
        """
        values = dict(values)
        if (name := values.pop("method", cls.name)) != cls.name:
            raise SettingError(f"These settings belong to {name!r}, not to {cls.name!r}.")
        known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(values) - known):
            raise SettingError(f"{cls.name} has no setting {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
        return cls(**values)

    def to_json(self) -> str:
        """The setting as a JSON object."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The setting that `to_json` gave."""
        return cls.from_dict(json.loads(text))


def decoder_depth(model: Any) -> int:
    """Decoder layers of a model or of its config."""
    config = getattr(model, "config", model)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(text.num_hidden_layers)


FIXED_COUNT = frozenset({"llava", "vipllava", "paligemma"})  # one token count for every image


def vision_token_count(model: Any, given: int | None) -> int:
    """Vision tokens of the model's usual input: `given`, or the family's fixed count.

    Raises:
        SettingError: If the count depends on the image and none was given.
    """
    if given is not None:
        return given
    config = getattr(model, "config", model)
    if getattr(config, "model_type", None) in FIXED_COUNT:
        return int(config.image_seq_length)
    raise SettingError(
        f"A {getattr(config, 'model_type', 'model')!r} model's token count depends on the image: "
        "give vision_tokens=…, or a share with retention=… instead of tokens=…."
    )


def share(
    model: Any, tokens: float | None, retention: float | None, vision_tokens: int | None
) -> tuple[float, int | None]:
    """The budget as (mean retention in (0, 1], vision tokens if known).

    Raises:
        SettingError: If not exactly one of `tokens` and `retention` is given, or it leaves its range.
    """
    if (tokens is None) == (retention is None):
        raise SettingError(f"Give one of tokens= and retention=; got tokens={tokens}, retention={retention}.")
    if retention is None:
        assert tokens is not None
        vision_tokens = vision_token_count(model, vision_tokens)
        retention = tokens / vision_tokens
    if not 0 < retention <= 1:
        got = f"tokens={tokens} of {vision_tokens}" if tokens is not None else f"retention={retention}"
        raise SettingError(f"A budget lies above 0 and at most at the full count; got {got}.")
    return retention, vision_tokens


def as_layers(layers: Sequence[int]) -> tuple[int, ...]:
    """Layers as a tuple of ints, strictly ascending.

    Raises:
        SettingError: If they are not.
    """
    values = tuple(int(layer) for layer in layers)
    if any(after <= before for before, after in itertools.pairwise(values)):
        raise SettingError(f"Layers must ascend strictly; got {values}.")
    return values


def keep_each(sizes: Sequence[int], ratio: float, minimum: int) -> tuple[int, ...]:
    """`keep_count` of every image."""
    return tuple(keep_count(size, ratio, minimum) for size in sizes)
