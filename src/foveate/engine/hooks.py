"""Finding the vision tokens of a call, before its first layer; and what is left to do after its last."""

import inspect
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicSlidingWindowLayer, LinearAttentionLayer

from foveate._transformers import FeatureCall
from foveate.engine.cache import PrunedLayer, check_cache
from foveate.engine.call import Call
from foveate.engine.encode import encode, items_of
from foveate.engine.finish import cut_cache
from foveate.engine.guards import refuse_packing, refuse_pages, refuse_recomputing, refuse_router_logits
from foveate.engine.media import MediaTokens
from foveate.engine.prefill import Prefill
from foveate.engine.program import Program
from foveate.engine.runner import LayerRunner
from foveate.engine.samples import Sample, read_samples
from foveate.engine.trace import PrefillRecord, Trace
from foveate.errors import SessionError, UnsupportedError
from foveate.families.base import Family

__all__ = ["ModelHooks"]


class ModelHooks:
    """Watches a model's way from pictures to the decoder, and starts and ends each call.

    Attributes:
        trace: Filled by every prefill.
        layers: Told of every call.
    """

    def __init__(self, family: Family, program: Program) -> None:
        self.family = family
        self.program = program
        self.trace = Trace()
        self.layers = LayerRunner(family, program.reindexes)
        self._placeholders: list[tuple[str, Tensor]] = []
        self._given: dict[str, Any] = {}
        self._encoded: dict[str, Any] = {}
        self._ids: Tensor | None = None
        self._lengths: list[list[int]] | None = None
        self._chunk: int | None = None
        self._splits = False
        self._last_only = False
        self._record: PrefillRecord | None = None
        self._ended_in_vision: _Ending | None = None
        self._encoding = False

    def __deepcopy__(self, memo: Any) -> Any:
        raise SessionError(
            "A model inside a dropping context cannot be copied or pickled: the copy would run the original's layers. "
            "Leave the context, or call foveate.remove(model), first."
        )

    def __reduce__(self) -> Any:
        return self.__deepcopy__(None)

    def generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand around `generate`, which encodes pictures before the model has seen the prompt they are in."""
        given = dict(inspect.signature(original).bind(*args, **kwargs).arguments)
        given.update(given.pop("kwargs", {}))
        ids, mask, cache = (given.get(name) for name in ("input_ids", "attention_mask", "past_key_values"))
        ids = given.get("inputs") if ids is None else ids
        if ids is not None and cache is not None and (mask is None or mask.shape == ids.shape):
            ids = ids[:, max(0, _length(cache)) :]  # as generate itself does: the rest was fed before
        settings = given.get("generation_config") or self.family.model.generation_config
        self._ids, self._chunk = ids, given.get("prefill_chunk_size", getattr(settings, "prefill_chunk_size", None))
        try:
            return original(*args, **kwargs)
        finally:
            self._ids, self._chunk, self._splits = None, None, False

    def encode(self, modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for `get_image_features`, which `generate` calls long before the decoder runs."""
        if self._encoding:  # a model may make a video's features with its images' function
            return original(*args, **kwargs)
        call = FeatureCall(self.family.core, modality, original, args, kwargs)
        self._encoding = True
        try:
            prompt = self._lengths = self._images(None)
            output = encode(self.family, self.program, modality, call.run, call.given, prompt)
        finally:
            self._encoding = False
        if hasattr(output, "pooler_output"):
            self._encoded[modality] = output
            self._note_splits(modality, output, prompt)
        return call.answer(output)

    def _images(self, mask: Tensor | None) -> list[list[int]] | None:
        """Vision tokens of each image of each sample where only the prompt tells, from its ids before there is a mask;
        None where it need not, or nobody has seen it."""
        if not self.family.tiled or (mask is None and self._ids is None):
            return None
        return self.family.image_lengths(self._placed("image") if mask is None else mask, self._ids)

    def _placed(self, modality: str) -> Tensor:
        """Where the prompt has vision tokens."""
        placed: Tensor = self._ids == getattr(self.family.model.config, f"{modality}_token_id")
        return placed

    def _note_splits(self, modality: str, output: Any, prompt: list[list[int]] | None) -> None:
        """Whether chunked prefill will cut an image in two, which may well end between its tokens, in text."""
        if self._chunk is None or self._ids is None:
            return
        lengths = [item.length for item in items_of(output, self.family, self.program, modality, prompt)]
        columns = self._placed(modality).nonzero()[:, 1].cpu() // self._chunk
        if sum(lengths) == len(columns):
            self._splits |= any(int(part[0]) != int(part[-1]) for part in torch.split(columns, lengths))

    def before_model(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Note whether only the last column's logits are asked for, as `generate` does."""
        asked = kwargs.get("logits_to_keep")
        self._last_only = isinstance(asked, int) and asked == 1

    def before_merge(self, core: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._placeholders, self._encoded, self._given, self._lengths = [], {}, kwargs, None
        self._ids = kwargs.get("input_ids", args[0] if args else None)
        for modality, output in (kwargs.get("mm_encoder_outputs") or {}).items():
            if output is not None:
                self._encoded[modality] = output

    def note_ids(self, rotary: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Position ids of the call; the calls made here for renumbered rows come after the model's own."""
        if self.layers.call.ids is None:
            self.layers.call.ids = kwargs["position_ids"] if "position_ids" in kwargs else args[1]

    def watch_placeholders(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        placeholders = original(*args, **kwargs)
        for modality, mask in self.family.vision_masks(placeholders, {**self._given, **given}):
            self._placeholders.append((modality, mask[..., 0] if mask.dim() == 3 else mask))
        return placeholders

    def before_decoder(self, text: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        if "write_index" in kwargs:
            refuse_pages()
        self._record = None
        held = getattr(kwargs.get("past_key_values"), "layers", ())
        idle = not any(type(layer) is PrunedLayer for layer in held)
        self.layers.call = call = Call(str(text.config._attn_implementation), idle=idle)  # type: ignore[union-attr]
        last_only, self._last_only = self._last_only, False  # who calls the core itself reads every column
        found = [(mask, self._items(modality, mask)) for modality, mask in self._placeholders]
        embeds, live = kwargs.get("inputs_embeds"), self._live(kwargs)
        if self._encoded and self._given and not found:
            raise UnsupportedError(
                "Pictures were encoded, but where they are in the prompt was not said: this model cannot be served."
            )
        self._placeholders, self._encoded, self._given, self._ids, self._lengths = [], {}, {}, None, None
        if embeds is None or not found:
            self._note_text_prompt(kwargs, live)
            return None
        span = embeds.shape[1]
        samples = read_samples(found, None if live is None else live[:, -span:], self.program.by_frame)
        drops = self._drops(samples)
        cache = kwargs.get("past_key_values")
        if drops:
            check_cache(cache)
            refuse_packing(kwargs, live)
            refuse_recomputing(self.family.layers[0])
            refuse_router_logits(kwargs)
        self._refuse_split_image(samples, cache, drops)
        rows: Sequence[int] = tuple(s.live for s in samples)
        if live is not None and live.shape[1] > span:
            rows = _Counted(live.sum(dim=1))
        elif live is None and cache is not None:
            rows = tuple(row + max(0, _length(cache)) for row in rows)
        record = PrefillRecord(
            depth=len(self.family.layers),
            rows=rows,
            vision_tokens=tuple(s.vision_tokens for s in samples),
            boxes=[_Each(s.items, lambda item: item.boxes()) for s in samples],
            frames=[_Each(s.items, lambda item: item.frames) for s in samples],
            videos=tuple(tuple(item.video for item in s.items) for s in samples),
            fit=self.family.fit,
        )
        self.trace.history.append(record)
        self._record = record
        if drops:
            added = self.family.added_later(kwargs)
            call.live = live
            device = embeds.device
            call.prompt = Prefill(self.program, samples, span, record, device, added, last_only)
            call.idle = False
            return args, {**kwargs, "inputs_embeds": call.prompt.start(embeds)}
        # Every layer runs as if nobody were here.
        record.note_that_all_stay(self.program.cuts())
        return None

    def _live(self, kwargs: dict[str, Any]) -> Tensor | None:
        """Which columns are no padding, where that is known: a core may make the decoder's masks itself."""
        for mask in (kwargs.get("attention_mask"), self._given.get("attention_mask")):
            if isinstance(mask, Tensor) and mask.dim() == 2:
                return mask
        return None

    def _items(self, modality: str, mask: Tensor) -> list[MediaTokens]:
        if modality not in self._encoded:
            return []
        known = self._lengths if modality == "image" else None
        lengths = self._images(mask) if known is None else known
        return items_of(self._encoded[modality], self.family, self.program, modality, lengths)

    def _drops(self, samples: Sequence[Sample]) -> bool:
        """Whether tokens will leave, as far as can be said beforehand."""
        if any(item.leaves for sample in samples for item in sample.items):
            return True
        plans = [self.program.plan(len(self.family.layers), s.sizes) for s in samples if len(s.vision)]
        counts = [len(s.vision) for s in samples if len(s.vision)]
        return any(plan is None or min(plan) < count for plan, count in zip(plans, counts, strict=True))

    def _note_text_prompt(self, kwargs: dict[str, Any], live: Tensor | None) -> None:
        """A fresh prompt without pictures is a prefill too, in which nothing can be dropped."""
        embeds, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        given = embeds if embeds is not None else kwargs.get("input_ids")
        if given is None or given.shape[1] == 1 or (cache is not None and _length(cache) != 0):
            return
        rows = (given.shape[1],) * given.shape[0] if live is None else _Counted(live.sum(dim=1))
        self._record = PrefillRecord(len(self.family.layers), rows, (0,) * given.shape[0])
        self.trace.history.append(self._record)

    def _refuse_split_image(self, samples: Sequence[Sample], cache: Any, drops: bool) -> None:
        """An image cut in two by chunked prefill would be ranked in two halves."""
        previous, self._ended_in_vision = self._ended_in_vision, None
        halves = False
        # A cache that was collected, and no cache, are both None.
        goes_on = previous is not None and cache is not None and previous.cache() is cache
        if previous is not None and goes_on and previous.length == _length(cache):
            halves = any(sample.starts for sample in samples) and (drops or previous.dropped)
        if halves or (drops and self._splits):
            raise UnsupportedError(
                "Chunked prefill has cut an image in two, so its tokens cannot be ranked together. "
                "Leave prefill_chunk_size unset, or choose it so that no image is split."
            )

    def after_decoder(self, text: nn.Module, args: Any, output: Any) -> None:
        record, self._record = self._record, None
        if record is None:
            return
        cache = getattr(output, "past_key_values", None)
        record._cached = cache is not None
        for index, layer in enumerate(getattr(cache, "layers", ())):
            if isinstance(layer, DynamicSlidingWindowLayer):
                record._held[index] = layer.sliding_window - 1
            elif isinstance(layer, LinearAttentionLayer):
                record._held[index] = 0
        prompt = self.layers.call.prompt
        if prompt is None:
            return
        if not prompt.layouts:
            raise SessionError(
                "Nothing was dropped: the decoder layers got another forward inside the context, as when accelerate's "
                "hooks come off. Leave the context before changing the model, and open a new one after."
            )
        if cache is not None:
            cut_cache(prompt, cache, self.family, self.layers.call.live)
        prompt.finish()
        self.layers.call = Call(backend=self.layers.call.backend)
        if cache is None:
            return
        record._dead = tuple(rows - sample.live for rows, sample in zip(prompt.rows, prompt.samples, strict=True))
        for index, layer in enumerate(cache.layers):
            if type(layer) is PrunedLayer:
                record._slots[index] = layer.valid_slots()
        if any(sample.ends for sample in prompt.samples):
            self._ended_in_vision = _Ending(weakref.ref(cache), _length(cache), prompt.dropped)


@dataclass(frozen=True, slots=True)
class _Ending:
    """That a call ended in the middle of, or right after, an image: on which cache, how long, had tokens left."""

    cache: "weakref.ref[Any]"
    length: int
    dropped: bool


class _Each(Sequence[Any]):
    """Something about each of a sample's images, worked out when asked for."""

    def __init__(self, items: Sequence[MediaTokens], ask: Callable[[MediaTokens], Any]) -> None:
        self._items = items
        self._ask = ask

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._ask(self._items[index])


class _Counted(Sequence[int]):
    """A number for each sample, (samples,) int64, read when asked for: asking the device can wait."""

    def __init__(self, counts: Tensor) -> None:
        self._counts = counts

    @cached_property
    def _read(self) -> tuple[int, ...]:
        return tuple(self._counts.tolist())

    def __len__(self) -> int:
        return self._counts.shape[0]

    def __getitem__(self, index: Any) -> Any:
        return self._read[index]

    def __repr__(self) -> str:
        return repr(self._read)


def _length(cache: Any) -> int:
    """Unpruned tokens in a cache; −1 where only the device knows (static caches), so that nothing syncs."""
    length = cache.get_seq_length()
    return length if isinstance(length, int) else -1
