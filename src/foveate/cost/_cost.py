"""`cost`: the FLOPs and KV-cache bytes of one prompt, part by part."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from foveate.core.grid import Grid, closing_rows
from foveate.core.views import Arriving
from foveate.cost._decoder import Decoder
from foveate.cost._peak import peak
from foveate.errors import SettingError
from foveate.methods import follow
from foveate.methods.base import Method
from foveate.methods.stages import Place, Shape, Stage
from foveate.registry import families, no_family

__all__ = ["Cost", "cost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one sample's prompt costs. FLOPs are exact counts of matrix products, a multiply-add counts two.

    Attributes:
        text_tokens: Rows of the prompt that are not vision tokens; each layer processes them all.
        vision_tokens: Vision tokens of each image or video, as they enter the decoder.
        tokens: Vision tokens each decoder layer processes.
        cached: Vision tokens in each layer's cache once decoding starts; fewer where a method cuts caches afterwards.
        kv_lengths: Rows in each layer's cache after the prefill, text included: of a layer with a sliding window at
            most one less than that, of one that keeps a state none.
        attention: "full", or "causal" if the prefill's attention was counted half.
        layer_flops: The prefill of each decoder layer: projections, MLP and attention.
        tower_flops: The vision tower.
        projector_flops: From the tower's features to the decoder's width (Qwen: the patch mergers).
        head_flops: The language-model head on the last row, which gives the first token.
        scoring_flops: The method's own arithmetic.
        decode_flops: The token after the prompt: decoder layers over their caches, and the head.
        kv_bytes: Keys and values of all decoder layers after the prefill.
        peak_bytes: The most bytes of activations, keys and values that live at once from the pixels to the first token,
            weights and inputs apart: one prompt alone, without gradients, padding or an attention matrix (SDPA, flash),
            as transformers 5.23 runs it; so many such prompts in a batch hold so many times as much. Not counted is
            what a kernel takes and gives back inside itself, and what a method makes to score: less than a layer does,
            but in toys. None where it is not known: of most families, behind windows, and under Resize.
    """

    text_tokens: int
    vision_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    cached: tuple[int, ...]
    kv_lengths: tuple[int, ...]
    attention: Literal["full", "causal"]
    layer_flops: tuple[int, ...]
    tower_flops: int
    projector_flops: int
    head_flops: int
    scoring_flops: int
    decode_flops: int
    kv_bytes: int
    peak_bytes: int | None

    @property
    def prefill_flops(self) -> int:
        """The prefill of the decoder layers alone: the sum of `layer_flops`."""
        return sum(self.layer_flops)

    @property
    def total_flops(self) -> int:
        """From the pixels to the first token: tower, projector, prefill, scoring and head."""
        parts = self.tower_flops, self.projector_flops, self.prefill_flops, self.scoring_flops, self.head_flops
        return sum(parts)

    @property
    def retention(self) -> float:
        """Mean over decoder layers of the share of vision tokens processed; 1 for a prompt without any."""
        whole = len(self.tokens) * sum(self.vision_tokens)
        return sum(self.tokens) / whole if whole else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Every figure as plain values that JSON knows."""
        sums = ("prefill_flops", "total_flops", "retention")
        values = {**dataclasses.asdict(self), **{name: getattr(self, name) for name in sums}}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def cost(
    config: Any,
    *,
    text_tokens: int,
    vision_tokens: int | Sequence[int],
    method: Method | None = None,
    attention: Literal["full", "causal"] = "full",
    tower_images: int | Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
    tokens: Sequence[int] | None = None,
    grids: Sequence[Sequence[tuple[int, int]]] | None = None,
) -> Cost:
    """What a prompt of one sample costs on a model, from its config alone.

        cost(config, text_tokens=40, vision_tokens=576).prefill_flops / 1e12        # 8.18 on LLaVA-1.5-7B
        cost(config, text_tokens=40, vision_tokens=[576, 576], method=V2Drop()).kv_bytes

    The parts equal torch's `FlopCounterMode` under eager attention. The tower is counted whole: methods
    drop behind it, but for Resize, whose smaller tower is counted where the grids are known (not LLaVA-OneVision's).

    Args:
        config: The config of a vision-language model of a supported family, or such a model.
        text_tokens: Tokens of the prompt that are not vision tokens, template and separators included.
        vision_tokens: Vision tokens, one count an image or video; an int is one image. Newline rows that a
            model puts between tiles are vision tokens.
        method: What drops; None is the untouched model.
        attention: "full" counts every query with every key, "causal" half of that; only in the decoder's
            prefill, as a tower looks both ways and a decoded token at everything.
        tower_images: Pictures the tower encodes for each image or video: crops (LLaVA-OneVision: the base
            view and its tiles), frames, or temporal patches (Qwen-VL). By default told from the token
            counts: for LLaVA their multiple of a picture's, for LLaVA-OneVision the number that alone gives
            that count, for Qwen-VL one, an image. `Family.tower_images` reads it off a processor's output.
        dtype: Of the cache and the activations; by default the config's, and bfloat16 if it names none.
        tokens: Vision tokens each decoder layer processes, for a method that decides by what the picture shows
            (MustDrop): a trace tells, `[count for (count,) in trace.latest.per_layer]`.
        grids: For methods that work on grids (AveragePool, Resize), and for towers whose cost depends on them
            (Qwen2.5-VL's windows): rows and columns of the tokens of each image's frames or views, `[[(24, 24)]]`
            for one LLaVA-1.5 image, whose grids are known without.

    Raises:
        SettingError: If such a method is given without `tokens`, a count is negative or all are zero, the schedule
            does not fit the depth, or `tower_images` or `grids` is missing where the counts leave it open, or
            contradicts them.
        UnsupportedError: If no family serves the config, or its decoder or tower is of a kind whose cost is
            not known.
    """
    config = getattr(config, "config", config)
    kind = families().get(getattr(config, "model_type", None))  # type: ignore[arg-type]
    if kind is None:
        raise no_family(getattr(config, "model_type", None), type(config).__name__)
    if attention not in ("full", "causal"):
        raise SettingError(f"attention is 'full' or 'causal'; got {attention!r}.")
    sizes = _counts(vision_tokens, "vision_tokens")
    pictures = None if tower_images is None else _counts(tower_images, "tower_images")
    if pictures is not None and len(pictures) != len(sizes):
        raise SettingError(
            f"tower_images has a count for each image or video: got {len(pictures)} for {len(sizes)} in vision_tokens."
        )
    if text_tokens < 0 or text_tokens + sum(sizes) == 0:
        raise SettingError(f"A prompt has at least one token; got {text_tokens} of text and {sum(sizes)} of vision.")

    text = config.get_text_config()
    decoder = Decoder.of(text, kind.decoders)
    free = tuple(size - len(kind.always_kept(config, size)) for size in sizes)  # what a method ranks and counts
    scoring, cached_as = 0, {}
    if tokens is not None and len(tokens) != decoder.depth:
        raise SettingError(f"tokens has a count for each of the {decoder.depth} layers; got {len(tokens)}.")
    if grids and len(grids) != len(sizes):
        raise SettingError(f"grids has an entry for each image: got {len(grids)} for {len(sizes)} images.")
    known = kind.token_grids(config, sizes)  # rather than what boxes show: tiles above each other look like one
    told = grids and (known or grids)
    stages: tuple[Stage, ...] = ()
    if method is not None:
        method.check(decoder.depth)
        stages = follow.in_order(method.stages(Shape(decoder.depth)))
        grids = known or grids
        if tokens is None:
            planned = follow.layer_plan(stages, decoder.depth, free, grids)
            tokens = planned and [count + sum(sizes) - sum(free) for count in planned]
        if tokens is None:
            raise SettingError(
                f"How many tokens {type(method).__name__} leaves depends on the picture: run it and give its counts, "
                "tokens=[count for (count,) in trace.latest.per_layer], or for a method on grids grids=…."
            )
        scoring = follow.scoring_flops(stages, decoder.depth, decoder.width, free)
        cached_as = dict.fromkeys(follow.cached_layers(stages), tokens[-1])
    tokens = tuple(tokens or (sum(sizes),) * decoder.depth)
    cached = tuple(cached_as.get(layer, count) for layer, count in enumerate(tokens))
    rows = [text_tokens + count for count in tokens]
    kept = tuple(map(decoder.held, range(decoder.depth), (text_tokens + count for count in cached)))
    whole = kind.smaller_tower_cost(config, told) if told else None
    tower, projector = whole or (kind.tower_cost(config, sizes, pictures) if sum(sizes) else (0, 0))
    resized = bool(follow.at(stages, Place.PIXELS))
    if resized and grids:
        cells = [_coarsened(stages, tuple(mine), size) for mine, size in zip(grids, free, strict=True)]
        tower, projector = kind.smaller_tower_cost(config, cells) or (tower, projector)
    itemsize, pictured = (dtype or _dtype(config)).itemsize, None
    span, notes = text_tokens + sum(sizes), (0,) * decoder.depth
    if method is not None and min(tokens) < sum(sizes):  # else the model runs as if nobody were here
        notes = follow.held_rows(stages, tokens)
    added = range(1, 1 + (kind.late_additions(config) if sum(sizes) else 0))
    beside = [note + span * (layer in added) for layer, note in enumerate(notes)]
    if decoder.inner is not None and not resized:
        pictured = kind.tower_bytes(config, sizes, pictures, itemsize) if sum(sizes) else (0, 0)
    return Cost(
        text_tokens=text_tokens,
        vision_tokens=sizes,
        tokens=tokens,
        cached=cached,
        kv_lengths=kept,
        attention=attention,
        layer_flops=tuple(decoder.layer(i, n, keys=n, halved=attention == "causal") for i, n in enumerate(rows)),
        tower_flops=tower,
        projector_flops=projector,
        head_flops=decoder.head(),
        scoring_flops=scoring,
        decode_flops=sum(decoder.layer(i, 1, keys=n + 1) for i, n in enumerate(kept)) + decoder.head(),
        kv_bytes=sum(map(decoder.cached, kept)) * itemsize,
        peak_bytes=pictured and peak(decoder, span, rows, beside, pictured, itemsize),
    )


def _coarsened(stages: Sequence[Stage], grids: tuple[Grid, ...], size: int) -> tuple[Grid, ...]:
    """What the token grids of an image of `size` vision tokens become in front of the tower."""
    cells = sum(rows * columns for rows, columns in grids)
    return follow.coarsened(stages, Arriving(cells, size, cells, closing_rows(size - cells), grids))


def _counts(given: int | Sequence[int], name: str) -> tuple[int, ...]:
    """One count an image as a tuple.

    Raises:
        SettingError: If one is negative.
    """
    counts = (given,) if isinstance(given, int) else tuple(int(count) for count in given)
    if any(count < 0 for count in counts):
        raise SettingError(f"{name} cannot be negative; got {given}.")
    return counts


def _dtype(config: Any) -> torch.dtype:
    """The dtype the config names, for the whole or for its text model; else bfloat16."""
    for named in (getattr(config, "dtype", None), getattr(config.get_text_config(), "dtype", None)):
        found = getattr(torch, named, None) if isinstance(named, str) else named
        if isinstance(found, torch.dtype):
            return found
    return torch.bfloat16
