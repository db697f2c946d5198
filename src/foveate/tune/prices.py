"""What a setting truly costs on samples, and the largest setting of a shape that a budget pays for."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveate.contract.budget import decoder_depth, half_up
from foveate.contract.follow import refuse_shallow
from foveate.contract.method import Method
from foveate.contract.space import Point, Space
from foveate.contract.stages import Shape
from foveate.cost import cost
from foveate.engine.session import drop_or_not
from foveate.errors import BudgetError, SettingError
from foveate.tune.parts import SampleInputs

KINDS = ("tokens", "retention", "flops", "kv")
HALVINGS = 40
NEAR = 0.01
"""Of a budget: a measured setting that leaves less than that unspent is near enough."""
PASSES = 24
"""Settings that are measured for one that is near enough, at most."""
LEAST_THRESHOLD = 50
"""A threshold of one part in so many times an image's tokens is below the share that any of them gets."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A budget.

    Attributes:
        kind: "tokens" (mean vision tokens a decoder layer processes), "retention" (the same as a share), "flops" or
            "kv" (FLOPs to the first token and bytes of the KV cache, as a share of the untouched model's).
        value: What may be spent.

    Raises:
        SettingError: If it leaves its range.
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        most = float("inf") if self.kind == "tokens" else 1.0
        if isinstance(self.value, bool) or not 0 < self.value <= most:
            raise SettingError(
                f"The budget {self.kind} must be above 0{' and at most 1' * (most == 1)}; got {self.value}."
            )

    @classmethod
    def of(cls, **given: float | None) -> "Limit":
        """The one budget that is given.

        Raises:
            SettingError: If it is not exactly one.
        """
        named = [(kind, value) for kind, value in given.items() if value is not None]
        if len(named) != 1:
            raise SettingError(f"Give one budget: {', '.join(f'{kind}=' for kind in KINDS)}; got {len(named)}.")
        return cls(*named[0])

    def __str__(self) -> str:
        if self.kind == "tokens":
            return f"{self.value:g} tokens"
        return f"{self.value:.1%} {self.kind}"


class Prices:
    """Exact costs of methods on the same samples, from their plans: nothing is run.

    Args:
        model: Of transformers.
        samples: Whose mean cost counts.
        kind: Of the cost, see `Limit`.
    """

    def __init__(self, model: Any, samples: Sequence[SampleInputs], kind: str) -> None:
        self.model = model
        self.kind = kind
        self.depth = decoder_depth(model)
        counted = kind in ("flops", "kv")  # the question's length costs nothing elsewhere
        self._counts = Counter((one.sizes, one.grids, one.text_tokens if counted else 1) for one in samples)
        self._whole: dict[Any, Any] = {}

    @property
    def entered(self) -> int:
        """Vision tokens of the usual sample."""
        ((sizes, _, _), _), *_ = self._counts.most_common(1)
        return int(sum(sizes))

    def of(self, method: Method | None) -> float:
        """The mean cost of a method.

        Raises:
            SettingError: If what it keeps depends on what a picture shows.
        """
        total = sum(self._one(method, *sample) * count for sample, count in self._counts.items())
        return total / self._counts.total()

    def tokens(self, method: Method) -> float:
        """Mean vision tokens that a decoder layer processes."""
        total = 0.0
        for (sizes, grids, _), count in self._counts.items():
            total += count * sum(self.plan(method, sizes, grids)) / self.depth
        return total / self._counts.total()

    def plan(self, method: Method, sizes: Sequence[int] | None = None, grids: Any = None) -> tuple[int, ...]:
        """Vision tokens that each decoder layer processes; without sizes, of the usual sample.

        Raises:
            SettingError: If that depends on what a picture shows.
        """
        if sizes is None:
            ((sizes, grids, _), _), *_ = self._counts.most_common(1)
        method.stages(Shape(self.depth))  # or a refusal of settings
        plan = method.plan(self.depth, sizes, grids)
        if plan is None:
            raise SettingError(
                f"What {method.name} keeps depends on the picture or the question, so its cost is not known before. "
                "Only methods with exact counts and MustDrop's thresholds can be tuned."
            )
        return plan

    def _one(self, method: Method | None, sizes: tuple[int, ...], grids: Any, text: int) -> float:
        """The cost for one kind of sample."""
        if self.kind == "tokens" or self.kind == "retention":
            if method is None:
                mean = float(sum(sizes))
            else:
                mean = sum(self.plan(method, sizes, grids)) / self.depth
            if self.kind == "tokens":
                return mean
            return mean / sum(sizes)
        key = (sizes, grids, text)
        if key not in self._whole:
            self._whole[key] = self._cost(None, *key)
        whole, own = self._whole[key], self._cost(method, *key)
        if self.kind == "flops":
            if whole.total_flops is None:
                raise SettingError(
                    "FLOPs of this model's vision tower are not counted: give a budget in tokens, kv or retention."
                )
            if own.total_flops is None:
                raise SettingError(
                    f"Nobody has counted the FLOPs of {method}: give its stages flops=, or a budget in tokens or kv."
                )
            return float(own.total_flops / whole.total_flops)
        return float(own.kv_bytes / whole.kv_bytes)

    def _cost(self, method: Method | None, sizes: tuple[int, ...], grids: Any, text: int) -> Any:
        return cost(self.model.config, text_tokens=text, vision_tokens=sizes, method=method, grids=grids)


class Measured(Prices):
    """Costs of methods whose counts depend on what a picture shows: the mean of what samples spend when they are run.

    Args:
        model: Of transformers.
        samples: Whose mean cost counts.
        kind: Of the cost: "tokens" or "retention".

    Raises:
        SettingError: If it is another kind.
    """

    def __init__(self, model: Any, samples: Sequence[SampleInputs], kind: str) -> None:
        if kind not in ("tokens", "retention"):
            raise SettingError("MustDrop's thresholds are found for tokens= or retention=, not for flops= or kv=.")
        super().__init__(model, samples, kind)
        self._samples = samples
        self._counts_of: dict[Method, NDArray[np.float64]] = {}

    def of(self, method: Method | None) -> float:
        if method is None:
            return super().of(None)
        if self.kind == "tokens":
            return self.tokens(method)
        entered = [sample.vision_tokens for sample in self._samples]
        return float((self._run(method).mean(axis=1) / entered).mean())

    def tokens(self, method: Method) -> float:
        return float(self._run(method).mean())

    def plan(self, method: Method, sizes: Sequence[int] | None = None, grids: Any = None) -> tuple[int, ...]:
        """Vision tokens that each layer processes on average, of the usual sample's number: whole ones."""
        entered = np.array([sample.vision_tokens for sample in self._samples])
        shares = (self._run(method) / entered[:, None]).mean(axis=0)
        return tuple(half_up(share * self.entered) for share in shares.tolist())

    def _run(self, method: Method) -> NDArray[np.float64]:
        """(samples, layers) vision tokens that were processed."""
        if method not in self._counts_of:
            rows = []
            for sample in self._samples:
                with drop_or_not(self.model, method) as trace, torch.inference_mode():
                    self.model(**{**sample.inputs, "use_cache": False})
                rows.append([sum(layer) for layer in trace.latest.per_layer])
            self._counts_of[method] = np.array(rows, dtype=np.float64)
        return self._counts_of[method]


def solved(space: Space, point: Point, prices: Prices, limit: float) -> Method | None:
    """The largest setting of a point's shape whose mean cost is at most `limit`; None if there is none."""
    if space.solved_for == "threshold":
        return _solved_by_running(space, point, prices, limit)
    if space.solved_for == "tokens":
        return _solved_in_tokens(space, point, prices, limit)
    return _solved_as_a_mean(space, point, prices, limit)


def _solved_by_running(space: Space, point: Point, prices: Prices, limit: float) -> Method | None:
    """For thresholds, whose number is their reciprocal: the lowest one for which the budget pays, or one near it."""
    low, high = 1.0, float(LEAST_THRESHOLD * prices.entered)
    best, spent = _built(space, point, prices, [low])
    if not _pays(limit, spent):
        raise BudgetError(
            f"The budget is {limit:.4g}, but these samples spend {spent:.4g} on average, even with the highest "
            "threshold: key tokens stay. Give a larger budget, or MustDrop(key_rate=…) with a lower rate or earlier "
            "pruning_layers."
        )
    for _ in range(PASSES):
        if limit - spent < NEAR * limit:
            break
        middle = (low * high) ** 0.5
        method, found = _built(space, point, prices, [middle])
        if _pays(limit, found):
            low, best, spent = middle, method, found
        else:
            high = middle
    return best


def _solved_as_a_mean(space: Space, point: Point, prices: Prices, limit: float) -> Method | None:
    """For methods that solve their schedules themselves: the largest mean for which the budget pays."""
    best = None
    low, high = 0.0, float(prices.entered)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        try:
            method, spent = _built(space, point, prices, [middle])
        except BudgetError:  # so few tokens are below what the method can do
            low = middle
            continue
        except SettingError:
            return None
        if _pays(limit, spent):
            low, best = middle, method
        else:
            high = middle
    return best


def _solved_in_tokens(space: Space, point: Point, prices: Prices, limit: float) -> Method | None:
    """The number behind the first cut is halved for; then every number grows by one as long as the budget pays."""
    entered = prices.entered

    def counts_at(first: float) -> list[int]:
        return [max(1, int(min(entered, first * share))) for share in point.shape]

    low, high = 1.0, entered / min(point.shape)
    counts = counts_at(low)
    best = _affordable(space, point, prices, limit, counts)
    if best is None:
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        method = _affordable(space, point, prices, limit, counts_at(middle))
        if method is None:
            high = middle
        else:
            low, best, counts = middle, method, counts_at(middle)
        if counts_at(low) == counts_at(high):
            break
    return _filled_up(space, point, prices, limit, counts, best)


def _filled_up(space: Space, point: Point, prices: Prices, limit: float, counts: list[int], best: Method) -> Method:
    """A setting with one token more behind each cut for which the rest of the budget pays, from the first cut on."""
    for place in range(len(counts)):
        most = prices.entered if place == 0 else counts[place - 1]
        more = [*counts[:place], counts[place] + 1, *counts[place + 1 :]]
        if more[place] > most:
            method = None
        else:
            method = _affordable(space, point, prices, limit, more)
        if method is not None:
            counts, best = more, method
    return best


def _affordable(space: Space, point: Point, prices: Prices, limit: float, counts: Sequence[float]) -> Method | None:
    """The method with these numbers, if there is such a setting and the budget pays for it."""
    try:
        method, spent = _built(space, point, prices, counts)
    except SettingError:
        return None
    if not _pays(limit, spent):
        return None
    return method


def _built(space: Space, point: Point, prices: Prices, counts: Sequence[float]) -> tuple[Method, float]:
    """The method with these numbers, and its mean cost."""
    method = space.build(point.layers, counts, prices.entered, point.values)
    refuse_shallow(type(method).__name__, method.stages(Shape(prices.depth)), prices.depth)
    return method, prices.of(method)


def _pays(limit: float, spent: float) -> bool:
    return spent <= limit * (1 + 1e-9)
