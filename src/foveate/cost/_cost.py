"""`cost`: the FLOPs and KV-cache bytes of one prompt, part by part."""

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, Unpack

import torch

from foveate.contract import follow
from foveate.contract.method import Method
from foveate.contract.settings import Count
from foveate.contract.stages import LayerStage, PatchStage, Shape, Stage
from foveate.core.fields import check_call
from foveate.core.signals import Attention, Keys
from foveate.cost._measured import measure
from foveate.cost._prompt import Known, PromptLengths, RunCounts
from foveate.cost._tower import Flops, Pictures
from foveate.errors import SettingError
from foveate.plain.table import SECTION, Column, Table
from foveate.registry import family_kind


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Cost:
    """The cost of one sample's prompt. FLOPs are exact counts of matrix products; a multiply-add counts as two.

    Attributes:
        text_tokens: Rows of the prompt that are not vision tokens; every layer processes all of them.
        vision_tokens: Vision tokens of each image or video, as they enter the decoder.
        tokens: Vision tokens that each decoder layer processes.
        cached: Vision tokens in each layer's cache when decoding starts. Fewer than `tokens` if a method cuts caches.
        read: Cached vision tokens that a decode step reads in each layer. Fewer than `cached` with Read.
        kv_lengths: Rows in each layer's cache after the prefill, including text. A layer with a sliding window has at
            most one row less than its window; a layer with a state has none.
        attention: "full", or "causal" if half of the prefill's attention was counted.
        layer_flops: The prefill of each decoder layer: projections, MLP and attention; and the queries and keys that a
            method has computed ahead of the layer, to score by them (VisionDrop, PyramidDrop).
        tower_flops: The vision tower. None if it is not counted: for models recognised by their structure, and if it
            does not run without weights.
        projector_flops: From the tower's features to the decoder's width (Qwen: the patch mergers). None like
            `tower_flops`.
        head_flops: The language-model head on the last row, which gives the first token.
        decode_flops: The first decode step: the decoder layers on the cached rows that they read, and the head.
        kv_bytes: Keys and values of all decoder layers after the prefill.
        tower_rows: Rows of all pictures that each block of the vision tower runs on, without CLS. Empty if every block
            runs on all rows; ThinTower and PixelPrune run on fewer.
    """

    text_tokens: int
    vision_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    cached: tuple[int, ...]
    read: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    attention: Literal["full", "causal"]
    layer_flops: tuple[int, ...]
    tower_flops: int | None
    projector_flops: int | None
    head_flops: int
    decode_flops: int
    kv_bytes: int
    tower_rows: tuple[int, ...] = ()

    @property
    def prefill_flops(self) -> int:
        """FLOPs of the decoder layers in the prefill: the sum of `layer_flops`."""
        return sum(self.layer_flops)

    @property
    def total_flops(self) -> int | None:
        """FLOPs from the pixels to the first token: tower, projector, prefill and head; None if the tower's are."""
        if self.tower_flops is None or self.projector_flops is None:
            return None
        return self.tower_flops + self.projector_flops + self.prefill_flops + self.head_flops

    @property
    def model_flops(self) -> int | None:
        """The older name of `total_flops`."""
        return self.total_flops

    @property
    def scoring_flops(self) -> int:
        """Deprecated: 0, because scoring is no part of a cost."""
        message = "Leave Cost.scoring_flops out. foveate 0.6 refuses it: a cost no longer has the FLOPs of scoring."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return 0

    @property
    def retention(self) -> float:
        """Mean over decoder layers of the share of vision tokens processed; 1 for a prompt without vision tokens."""
        untouched = len(self.tokens) * sum(self.vision_tokens)
        if not untouched:
            return 1.0
        return sum(self.tokens) / untouched

    @property
    def leaving(self) -> tuple[tuple[str, int, int], ...]:
        """Where vision tokens are dropped: the place, and the tokens before and after it."""
        places = [("before the decoder's first layer", sum(self.vision_tokens), self.tokens[0])]
        for layer, (before, after) in enumerate(pairwise(self.tokens), 1):
            places.append((f"before decoder layer {layer}", before, after))
        # Summed over the layers, because each layer has its own cache.
        places.append(("from the caches, after the prefill", sum(self.tokens), sum(self.cached)))
        places.append(("from the reads of a decode step", sum(self.cached), sum(self.read)))
        return tuple(place for place in places if place[1] != place[2])

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes, and the totals, as plain JSON values."""
        values = dataclasses.asdict(self)
        for name, value in values.items():
            if isinstance(value, tuple):
                values[name] = list(value)
        for name in ("prefill_flops", "total_flops", "retention"):
            values[name] = getattr(self, name)
        return values

    def __repr__(self) -> str:
        return (
            f"Cost(retention {self.retention:.1%}, prefill {flops_words(self.prefill_flops)}, "
            f"total {flops_words(self.total_flops)}, KV {self.kv_bytes / 2**20:.1f} MiB)"
        )

    def _repr_html_(self) -> str:
        return self.table().to_html()

    def table(self, title: str = "Cost of a prompt") -> Table:
        """Return a table of the FLOPs of each part, the memory of the cache, and where vision tokens are dropped."""
        layers = len(self.layer_flops)
        parts = {
            "Vision tower": self.tower_flops,
            "Projector": self.projector_flops,
            f"Prefill of {layers} decoder layers": self.prefill_flops,
            "Language-model head": self.head_flops,
            "To the first token": self.total_flops,
        }
        total_flops = self.total_flops
        rows = [
            (name, flops_words(count), "" if count is None or total_flops is None else f"{count / total_flops:.1%}")
            for name, count in parts.items()
        ]
        total = rows.pop()
        sizes = [
            ("The next token", flops_words(self.decode_flops)),
            ("KV cache after the prefill", f"{self.kv_bytes / 2**20:.1f} MiB"),
        ]
        places = [
            (f"Vision tokens dropped {place}", f"{before} → {after}", f"{after / before:.1%}" if before else "")
            for place, before, after in self.leaving
        ]
        if self.tower_rows:
            most, least = self.tower_rows[0], self.tower_rows[-1]
            first = self.tower_rows.index(least)
            counts = f"{least}" if first == 0 else f"{most} → {least}"
            places.insert(0, (f"Rows in the vision tower from block {first} on", counts, ""))
        mean = sum(self.tokens) / layers
        note = (
            f"Retention {self.retention:.1%}: a decoder layer processes {mean:.1f} of {sum(self.vision_tokens)} vision "
            f"tokens on average, and {self.text_tokens} text tokens."
        )
        numbers = [Column(head, right=True) for head in ("FLOPs and bytes", "Share")]
        shown = [*rows, SECTION, total, SECTION, *sizes]
        if places:
            shown += [SECTION, *places]
        return Table(title, ["", *numbers], shown, [note])


@check_call("A cost")
def cost(
    config: Any,
    *,
    text_tokens: Count,
    vision_tokens: Count | Sequence[Count],
    method: Method | None = None,
    attention: Literal["full", "causal"] = "full",
    dtype: torch.dtype | None = None,
    **known: Unpack[Known],
) -> Cost:
    """Return the cost of one sample's prompt on a model, from its config.

        cost(config, text_tokens=40, vision_tokens=576).prefill_flops / 1e12        # 8.18 on LLaVA-1.5-7B
        cost(config, text_tokens=40, vision_tokens=[576, 576], method=V2Drop()).kv_bytes

    The parts equal torch's `FlopCounterMode` under eager attention. Most methods drop tokens after the tower, so the
    full tower is counted. The exceptions: Resize counts the smaller tower if the grids are known (not for
    LLaVA-OneVision), PixelPrune the remaining patches, and ThinTower the rows that each block runs on.

    Args:
        config: The config of a vision-language model of a supported family, or the model itself.
        text_tokens: Tokens of the prompt that are not vision tokens, including the template and separators.
        vision_tokens: Vision tokens, one count per image or video; an int is one image. Newline rows between
            tiles are vision tokens.
        method: The method that drops tokens; None is the full model.
        attention: "full" counts every query with every key, "causal" half of that. Applies only to the decoder's
            prefill, because a tower attends in both directions and a decoded token attends to all tokens.
        dtype: The dtype of the cache. None uses the config's dtype, or bfloat16 if the config has none.
        known: `tower_images`, `grids` and `videos` describe the media, see `Known`. `tokens`, `tower_tokens` and
            `tower_rows` are results of a run, for methods whose counts depend on the picture (MustDrop): pass
            `**trace.latest.ran()`.

    Raises:
        SettingError: If a keyword is unknown, a method whose counts depend on the picture is given without the results
            of a run, a count is negative or all are zero, the schedule does not fit the depth, or `tower_images`,
            `grids` or `videos` is needed and missing, or contradicts the counts.
        UnsupportedError: If no family supports the config, or its decoder does not run without weights.
    """
    config = getattr(config, "config", config)
    family = family_kind(getattr(config, "model_type", None), type(config).__name__)
    prompt = PromptLengths.of(text_tokens, vision_tokens, known)
    decoder = measure(config)
    depth, tokens = len(decoder.layers), known.get("tokens")
    if tokens is not None and len(tokens) != depth:
        raise SettingError(f"tokens must have one count for each of the {depth} layers; got {len(tokens)} counts.")
    stages: tuple[Stage, ...] = ()
    if method is not None:
        stages = method.placed(Shape(depth))
        follow.refuse_shallow(type(method).__name__, stages, depth)
    ran = RunCounts()
    if any(isinstance(stage, PatchStage) for stage in stages):
        needed: Literal["tower_tokens", "tower_rows"] = "tower_rows"  # for families that restore dropped patches
        if family.defines("encode_subset"):
            needed = "tower_tokens"
        if known.get(needed) is None:
            raise SettingError(
                f"With {type(method).__name__}, the patches that the tower runs on depend on the picture: run it and "
                f"pass **trace.latest.ran(); {needed} is missing."
            )
        ran[needed] = known[needed]

    # Grids from the config take precedence over given ones, because tiles on top of each other look like one grid.
    pictures = family.pictures(config, "image", {}, prompt.sizes)
    known_grids = [picture.grids for picture in pictures if picture.grids is not None]
    grids = known_grids if 0 < len(known_grids) == len(pictures) else prompt.grids
    tower_grids = grids if prompt.grids else None
    prompt = replace(prompt, grids=grids)
    # A method ranks and counts all tokens except those that always stay, such as newlines.
    ranked = list(prompt.sizes)
    if family.keeps_beside:
        ranked = [size - len(picture.beside) for size, picture in zip(prompt.sizes, pictures, strict=True)]
    vision = sum(prompt.sizes)
    always = vision - sum(ranked)
    if tokens is None:
        plan = follow.layer_plan(stages, depth, ranked, grids, prompt.videos)
        if plan is None:
            raise SettingError(
                f"How many tokens {type(method).__name__} keeps depends on more than their number: pass grids=…, and "
                "videos=… for a video. If it also depends on the picture or the question, run it and pass "
                "**trace.latest.ran()."
            )
        tokens = [count + always for count in plan]
    cut = follow.cached_layers(stages)
    cached = tuple(tokens[-1] if layer in cut else count for layer, count in enumerate(tokens))
    # A layer with a window or a state reads everything that it holds.
    read = [
        count if layer.window is not None else less + always
        for layer, count, less in zip(
            decoder.layers, cached, follow.read_plan(stages, [count - always for count in cached]), strict=True
        )
    ]
    of_tower = Flops(None, None)
    if not vision:
        of_tower = Flops(0, 0)
    elif decoder.tower is not None:
        of_tower = Pictures(decoder.tower, family, config, prompt, pictures, ranked, tower_grids).flops(stages, ran)
    cuts = {stage.layer: stage for stage in follow.layer_stages(stages) if stage.drops}
    kv_lengths = [layer.held(text_tokens + count) for layer, count in zip(decoder.layers, cached, strict=True)]
    prefill, step, kv_numbers = [], decoder.head, 0
    of_layers = zip(decoder.layers, (vision, *tokens), tokens, read, kv_lengths, strict=False)
    for index, (layer, arriving, entering, reading, held) in enumerate(of_layers):
        rows = text_tokens + entering
        prefill.append(layer.flops(rows, rows, halved=attention == "causal"))
        if index in cuts and entering < arriving:
            prefill[-1] += layer.ahead(*_read_ahead(cuts[index], text_tokens, arriving, len(ranked)), decoder.width)
        # The first decode step: one query on the cached rows that the layer reads, and on itself.
        step += layer.flops(1, layer.held(text_tokens + reading) + 1)
        kv_numbers += held * layer.stored
    return Cost(
        text_tokens=text_tokens,
        vision_tokens=prompt.sizes,
        tokens=tuple(tokens),
        cached=cached,
        read=tuple(read),
        kv_lengths=tuple(kv_lengths),
        attention=attention,
        layer_flops=tuple(prefill),
        tower_flops=of_tower.tower,
        projector_flops=of_tower.projector,
        head_flops=decoder.head,
        decode_flops=step,
        kv_bytes=kv_numbers * (dtype or _dtype(config)).itemsize,
        tower_rows=of_tower.rows,
    )


def _read_ahead(stage: LayerStage, text: int, arriving: int, images: int) -> tuple[int, int]:
    """Return how many rows a stage has projected to keys, and to queries, ahead of its layer.

    Keys are those of all rows, for each image that is ranked. Text that asks counts as no row: how much of it stands
    behind an image is not known here.
    """
    keys = queries = 0
    for signal in stage.reads:
        units = 1 if stage.unit == "sample" or isinstance(signal, Keys) else images
        if signal.ahead:
            keys = max(keys, units * (text + arriving))
        if signal.ahead and isinstance(signal, Attention) and signal.rows == "vision":
            queries = max(queries, min(arriving, images * (signal.sample or arriving)))
    return keys, queries


def _dtype(config: Any) -> torch.dtype:
    """Return the dtype of the config or of its text config; bfloat16 if neither has one."""
    for part in (config, config.get_text_config()):
        dtype = getattr(part, "dtype", None)
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype, None)
        if isinstance(dtype, torch.dtype):
            return dtype
    return torch.bfloat16


def flops_words(count: float | None) -> str:
    """Format a count of FLOPs with its prefix: 8177382850560 -> 8.18 TFLOP."""
    if count is None:
        return "not counted"
    for prefix in ("", "k", "M", "G", "T"):
        if count < 1000:
            return f"{count:.3g} {prefix}FLOP"
        count /= 1000
    return f"{count:.3g} PFLOP"
