"""MustDrop: merge in the vision tower, filter by text in prefill, shrink the KV cache for decoding.

Paper: Liu et al., "Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model",
arXiv:2411.10803. Constants the paper leaves open are those of the released code.
"""

import itertools
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from foveate.core.budget import mean_tokens
from foveate.core.merge import Merge, average, merge_windows, window_similarity
from foveate.core.rank import top
from foveate.errors import BudgetError, SettingError
from foveate.methods.base import Cut, Method, Preset, TowerView, View, as_layers, decoder_depth, share

__all__ = ["METHOD", "MustDrop", "counter", "text_attention"]

DEPTH, LAYERS = 32, (2, 6, 10, 14)  # the released code's decoder and its cuts
REFERENCE = 576


@dataclass(frozen=True, slots=True, kw_only=True)
class MustDrop(Method):
    """Drops over a token's whole life: window merging, a dual attention filter, and a final set for decoding.

    A vision token leaves at a cut if the text gives it little attention in all (a share below `global_thr`) and no
    single text token looks at it (below `individual_thr`); the key tokens the tower's CLS attends to never leave.

    Attributes:
        global_thr: γ, a share of the attention all vision tokens get.
        individual_thr: α, an attention probability.
        pruning_layers: Decoder layers whose attention filters; the cut is before the layer after each.
        merge_windows: Merge windows of near-identical patches behind the tower's first layer.
        merge_threshold: Mean cosine from which a window is merged.
        merge_window: Side of a window, in patches.
        key_rate: Share of the tokens that is never dropped.
        filter: Drop in prefill.
        kv: Cut the cache of the filtering layers to the final tokens before decoding.
        mode: "threshold" drops by γ and α, so counts depend on picture and question; "budget" keeps the key tokens and
            the highest scores (share, or attention over α/γ, whichever is more) up to exact `counts`.
        counts: Tokens left at each cut in budget mode, for an image of `reference` tokens; others get their share.
        reference: Vision tokens of the image `counts` is for.
        retention: Instead of `counts`: the share of an image's tokens a layer processes on average. The counts then
            fall geometrically from what the tower's merging leaves of that image, so that every image meets it.
        depth: Decoder layers that `retention` averages over.
        positions: "reindex" numbers rows anew after every cut (the released code), "keep" keeps position ids, and a
            merged token has its window's centre. Families with M-RoPE always keep.
        alpha_relative: Read `individual_thr` as a share of the largest attention any vision token gets.

    Raises:
        SettingError: If settings contradict each other or leave their range.
    """

    name: ClassVar[str] = "mustdrop"

    global_thr: float = 0.001
    individual_thr: float = 0.001
    pruning_layers: tuple[int, ...] = LAYERS
    merge_windows: bool = True
    merge_threshold: float = 0.8
    merge_window: int = 3
    key_rate: float = 0.08
    filter: bool = True
    kv: bool = True
    mode: Literal["threshold", "budget"] = "threshold"
    counts: tuple[int, ...] = ()
    reference: int = REFERENCE
    retention: float = 0.0
    depth: int = DEPTH
    positions: Literal["reindex", "keep"] = "reindex"
    alpha_relative: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "pruning_layers", as_layers(self.pruning_layers))
        object.__setattr__(self, "counts", tuple(int(count) for count in self.counts))
        if self.global_thr < 0 or self.individual_thr < 0:
            raise SettingError(
                f"global_thr and individual_thr cannot be negative; got {self.global_thr} and {self.individual_thr}."
            )
        if not self.pruning_layers or self.pruning_layers[0] < 0:
            raise SettingError(f"pruning_layers are decoder layers from 0 on, one or more; got {self.pruning_layers}.")
        if not 0 <= self.key_rate <= 1 or self.merge_window < 2 or self.reference < 1:
            raise SettingError(
                "key_rate is a share in [0, 1], merge_window 2 or more and reference 1 or more; got "
                f"{self.key_rate}, {self.merge_window} and {self.reference}."
            )
        if self.mode not in ("threshold", "budget"):
            raise SettingError(f"mode is 'threshold' or 'budget'; got {self.mode!r}.")
        wanted = len(self.pruning_layers) if self.retention == 0 else 0
        if self.mode == "budget" and len(self.counts) != wanted:
            raise SettingError(
                f"Budget mode needs a count for each of the {len(self.pruning_layers)} pruning layers, or a retention; "
                f"got counts {self.counts} and retention {self.retention}."
            )
        if self.mode == "threshold" and (self.counts or self.retention):
            raise SettingError(
                f"counts and retention belong to mode='budget'; got {self.counts} and {self.retention} with "
                "mode='threshold'."
            )
        if not 0 <= self.retention <= 1:
            raise SettingError(f"retention is a share in [0, 1]; got {self.retention}.")
        if self.mode == "budget" and self.global_thr == 0:
            raise SettingError("Budget mode weighs the two attentions by individual_thr / global_thr; global_thr is 0.")
        if self.positions not in ("reindex", "keep"):
            raise SettingError(f"positions is 'reindex' or 'keep'; got {self.positions!r}.")

    @property
    def together(self) -> bool:
        return True

    @property
    def reindexes(self) -> bool:
        return self.positions == "reindex"

    @property
    def reads_text(self) -> bool:
        return self.filter

    @property
    def reduces_tower(self) -> bool:
        return self.merge_windows or (self.filter and self.key_rate > 0)

    @property
    def merges_early(self) -> bool:
        return self.merge_windows

    @property
    def adds_rows(self) -> bool:
        return False

    def cuts(self) -> tuple[int, ...]:
        return tuple(layer + 1 for layer in self.pruning_layers) if self.filter else ()

    def kv_layers(self, depth: int) -> Sequence[int]:
        return range(self.pruning_layers[0], self.pruning_layers[-1] + 1) if self.kv and self.filter else ()

    # -- the tower -----------------------------------------------------------------------------------------

    def merge_early(self, rows: Tensor, grid: tuple[int, int]) -> Generator[Tensor, int, Merge | None]:
        if min(grid) < self.merge_window:
            return None
        similarity = window_similarity(rows, *grid, self.merge_window)
        merged = yield (similarity >= self.merge_threshold).sum()
        return merge_windows(similarity, merged, *grid, self.merge_window) if merged else None

    def reduce(self, view: TowerView) -> Generator[Tensor, int, Cut | None]:
        merge, rows, scores = view.merge, view.features, view.attention(1)
        if merge is None and self.merge_windows and not view.early and view.grid is not None:
            # Behind the projector, where the tower itself cannot lose tokens.
            merge = yield from self.merge_early(rows, view.grid)
            if merge is not None:
                rows, scores = average(rows, merge), average(scores[:, None], merge)[:, 0]
        key = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
        key[top(scores, math.ceil(self.key_rate * len(rows)))] = True
        if merge is None:
            every = torch.arange(len(rows), device=rows.device)
            return Cut(every, (len(rows),), notes={"key": key})
        if view.reindex and self.reindexes:
            return Cut(merge.origin, (len(rows),), rows, merge.assign, {"key": key})
        order = merge.origin.argsort()  # ids must ascend where they are kept
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return Cut(merge.origin[order], (len(rows),), rows[order], place[merge.assign], {"key": key[order]})

    # -- prefill -------------------------------------------------------------------------------------------

    def watches(self, layer: int) -> bool:
        return self.filter and layer in self.pruning_layers

    @property
    def observes_attention(self) -> bool:
        """What is left to compute is the products of the text's queries, which `scoring_flops` leaves out."""
        return True

    def observe(self, view: View) -> None:
        statistics = [text_attention(image) for image in view.images()]
        view.notes["share"], view.notes["peak"] = (torch.cat(parts) for parts in zip(*statistics, strict=True))

    def cut(self, view: View) -> Cut | None:
        if "key" not in view.notes:
            view.notes["key"] = torch.zeros_like(view.tokens, dtype=torch.bool)
        assert view.sizes is not None
        if self.mode == "threshold":
            share, peak = view.notes["share"], self._peak(view)
            lazy = (share < self.global_thr) & (peak < self.individual_thr)
            return Cut(~lazy | view.notes["key"])
        return Cut.join([Cut(self._highest(image)) for image in view.images()], view.sizes)

    def _peak(self, view: View) -> Tensor:
        """The largest attention each token gets from one of the text's, in the unit of `individual_thr`."""
        if not self.alpha_relative:
            return view.notes["peak"]
        peaks = [image.notes["peak"] for image in view.images()]
        return torch.cat([peak / peak.amax(dim=0).clamp(min=1e-12) if len(peak) else peak for peak in peaks])

    def _highest(self, view: View) -> Tensor:
        """Which tokens of an image stay in budget mode: ascending indices."""
        if view.text_after == (False,):  # nobody is rated
            return torch.arange(len(view), device=view.tokens.device)
        share, key, peak = view.notes["share"], view.notes["key"], self._peak(view)
        scores = torch.maximum(share, peak * (self.global_thr / self.individual_thr)) if self.individual_thr else share
        entered, started = view.entered_sizes[0], view.started_sizes[0]
        keys = math.ceil(self.key_rate * started) if self.reduces_tower else 0  # as many as `reduce` has marked
        count = min(len(view), self._counts(entered, started, keys)[self.pruning_layers.index(view.layer - 1)])
        return top(scores.masked_fill(key, float("inf")), count)

    def _counts(self, entered: int, started: int, keys: int) -> tuple[int, ...]:
        """Tokens left at each cut in budget mode, of an image that entered the decoder with `started` rows."""
        if self.retention:
            return _geometric(self.retention * entered, started, self.depth, self.pruning_layers, keys)
        return tuple(max(1, keys, math.floor(count * entered / self.reference + 0.5)) for count in self.counts)

    def plan(self, depth: int, sizes: Sequence[int]) -> tuple[int, ...] | None:
        """None where windows may merge or text decides: both depend on what there is to see."""
        if not self.filter and not self.merge_windows:
            return (sum(sizes),) * depth
        return None

    @classmethod
    def for_budget(
        cls,
        model: Any,
        *,
        tokens: float | None = None,
        retention: float | None = None,
        vision_tokens: int | None = None,
        entering: int | None = None,
        key_rate: float = 0.08,
        **settings: Any,
    ) -> Self:
        """Budget mode: geometric counts N · q^i whose mean over decoder layers meets the budget.

        The cuts are those of 32 layers, scaled. The key rate is lowered where the key tokens alone exceed the budget.

        Args:
            model: A model or its config, for its depth.
            tokens: Mean vision tokens a layer processes.
            retention: The same as a share of the vision tokens, in (0, 1].
            vision_tokens: The image's token count; families with a fixed count know their own.
            entering: N, for fixed counts from so many tokens left by the tower. By default every image's own N
                counts, so that all meet the budget; one whose merging leaves less than the budget keeps all it has.
            key_rate: Share of the tokens that is never dropped.
            settings: Other settings of the method.

        Raises:
            BudgetError: If the layers before the first cut alone exceed the budget; the message names the floor.
            SettingError: If the budget is contradictory.
        """
        target, count = share(model, tokens, retention, vision_tokens)
        depth = decoder_depth(model)
        layers = settings.pop("pruning_layers", None) or tuple(
            dict.fromkeys(round(layer * depth / DEPTH) for layer in LAYERS)  # some coincide in the shallowest decoders
        )
        full = count or REFERENCE
        mean, start = target * full, entering or full
        first = layers[0] + 1
        floor = (first * start + (depth - first)) / depth
        if mean < floor:
            raise BudgetError(
                f"MustDrop cannot average {mean:.4g} of {full} vision tokens on {depth} layers: its first cut is "
                f"before layer {first}, so its floor is {floor:.1f} tokens. Ask for more, or give earlier "
                "pruning_layers.",
                floor=floor / full,
            )
        most_keys = (depth * mean - first * start) / (depth - first)
        key_rate = min(key_rate, math.floor(most_keys) / start)
        keys = math.ceil(key_rate * start)
        settings = {"mode": "budget", "pruning_layers": layers, "key_rate": key_rate, "depth": depth, **settings}
        if entering is None and settings.get("merge_windows", True):
            return cls(retention=target, **settings)
        return cls(counts=_geometric(mean, start, depth, layers, keys), reference=full, **settings)


def text_attention(view: View) -> tuple[Tensor, Tensor]:
    """What the text after an image pays to each of its tokens: (share of it all, largest single), (tokens,) float32.

    Head-mean probabilities over all a text token sees, not renormalised. Without text after the image both are
    infinite,
    so that nothing leaves.
    """
    total = view.tokens.new_zeros(len(view), dtype=torch.float32)
    peak = torch.zeros_like(total)
    blocks = 0
    for rows in () if view.text_after == (False,) else view.attention("after"):
        total += rows.sum(dim=0)
        peak = torch.maximum(peak, rows.amax(dim=0))
        blocks += 1
    if not blocks:
        return torch.full_like(total, torch.inf), torch.full_like(peak, torch.inf)
    return total / total.sum(), peak


def counter(per_layer: Sequence[float]) -> float:
    """The released code's mean, which books a layer after its cut: for comparison with published budgets.

    `per_layer` are the vision tokens each decoder layer really processes; their plain mean is the true figure.
    """
    return mean_tokens([*per_layer[1:], per_layer[-1]])


def _geometric(mean: float, start: int, depth: int, layers: Sequence[int], keys: int) -> tuple[int, ...]:
    """start · q^i for i = 1 …, never below `keys`, with q such that the mean over the layers is `mean`."""
    bounds = [*(layer + 1 for layer in layers), depth]

    def sizes(q: float) -> list[float]:
        return [max(keys, 1, start * q**i) for i in range(1, len(layers) + 1)]

    def spent(counts: Sequence[float]) -> float:
        spans = (after - before for before, after in itertools.pairwise(bounds))
        return (bounds[0] * start + sum(n * span for n, span in zip(counts, spans, strict=True))) / depth

    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if spent(sizes(middle)) > mean else (middle, high)
    return tuple(math.floor(size + 0.5) for size in sizes(low))


def _preset(name: str, gamma: float, alpha: float) -> Preset:
    method = MustDrop(global_thr=gamma, individual_thr=alpha)
    return Preset(f"mustdrop/llava-1.5-7b/{name}", method, DEPTH, REFERENCE, "released code")


MustDrop.presets = (
    _preset("192-textvqa", 0.001, 0.001),
    _preset("128-textvqa", 0.0012, 0.001),
    _preset("64-textvqa", 0.011, 0.01),
    _preset("64-vizwiz", 0.005, 0.001),
)

METHOD = MustDrop
