"""Attaching a method to a model and taking it off again."""

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.engine.attend import LayerAttention, past_keys
from foveate.engine.cache import PrunedLayer, check_cache, pruned_layer
from foveate.engine.layout import Layout
from foveate.engine.masks import Remap
from foveate.engine.prompt import Item, Prompt, Sample, read_samples
from foveate.engine.tower import encode, items_of
from foveate.engine.trace import Prefill, Trace
from foveate.errors import SessionError, SettingError, UnsupportedError
from foveate.families.base import Family
from foveate.methods.base import Method
from foveate.registry import family_for

__all__ = ["apply", "drop", "remove"]

_sessions: "weakref.WeakKeyDictionary[nn.Module, Session]" = weakref.WeakKeyDictionary()


@contextmanager
def drop(model: nn.Module, method: Method) -> Iterator[Trace]:
    """Drop vision tokens while the context is open.

        with foveate.drop(model, foveate.V2Drop()) as trace:
            ids = model.generate(**inputs)

    The model is as it was before when the context ends, also by an exception. A model serves one context
    and one thread at a time.

    Args:
        model: An unmodified vision-language model of transformers.
        method: What drops: a method with its settings, or a `foveate.preset`.

    Yields:
        The trace, filled by every prefill inside.

    Raises:
        SessionError: If the model is inside such a context already.
        SettingError: If the method's cuts do not fit the decoder's depth.
        UnsupportedError: If no family serves the model.
    """
    session = _attach(model, method)
    try:
        yield session.trace
    finally:
        session.detach()


def apply(model: nn.Module, method: Method) -> Trace:
    """Drop vision tokens from now until `foveate.remove(model)`; see `drop`."""
    return _attach(model, method).trace


def remove(model: nn.Module) -> None:
    """Take off what `foveate.apply` put on.

    Raises:
        SessionError: If nothing is on.
    """
    session = _sessions.get(family_for(model).core)
    if session is None:
        raise SessionError(f"Nothing to remove: no method is applied to this {type(model).__name__}.")
    session.detach()


def _attach(model: nn.Module, method: Method) -> "Session":
    if not isinstance(method, Method):
        hint = f"; a preset is foveate.preset({method!r})" if isinstance(method, str) else ""
        raise SettingError(f"The second argument is a method such as foveate.V2Drop(); got {method!r}{hint}.")
    family = family_for(model)
    if (running := _sessions.get(family.core)) is not None:
        raise SessionError(
            f"This {type(model).__name__} is already dropping with {running.method}. Contexts cannot be nested: "
            "leave the first one, or call foveate.remove(model)."
        )
    method.check(len(family.layers))
    session = Session(family, method)
    session.attach()
    return session


class Session:
    """A method on a model: what was attached, and the state of the call under way."""

    def __init__(self, family: Family, method: Method) -> None:
        self.family = family
        self.method = method
        self.trace = Trace()
        self._undo: list[Callable[[], None]] = []
        self._placeholders: list[tuple[str, Tensor]] = []
        self._items: dict[str, list[Item]] = {}
        self._prompt: Prompt | None = None
        self._record: Prefill | None = None
        self._backend = "sdpa"
        self._reindex = method.reindexes and family.renumbers
        self._ids: Tensor | None = None
        self._rotaries: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []
        self._live: Tensor | None = None
        self._remaps: list[tuple[tuple[Any, Layout | None, Tensor | None], Any]] = []
        self._ended_in_vision: _Ending | None = None

    def __deepcopy__(self, memo: Any) -> Any:
        raise SessionError(
            "A model inside a dropping context cannot be copied or pickled: the copy would run the original's layers. "
            "Leave the context, or call foveate.remove(model), first."
        )

    def __reduce__(self) -> Any:
        return self.__deepcopy__(None)

    def attach(self) -> None:
        """Put everything on; nothing stays on if that fails."""
        try:
            core, text = self.family.core, self.family.text
            self._replace(core, "get_placeholder_mask", self._watch_placeholders)
            for modality in ("image", "video"):
                if hasattr(core, f"get_{modality}_features"):
                    self._replace(core, f"get_{modality}_features", functools.partial(self._encode, modality))
            self._keep(core.register_forward_pre_hook(self._before_merge, with_kwargs=True))
            self._keep(text.register_forward_pre_hook(self._before_decoder, with_kwargs=True))
            self._keep(text.register_forward_hook(self._after_decoder))
            if self._reindex:
                self._keep(text.rotary_emb.register_forward_pre_hook(self._note_ids, with_kwargs=True))
            if self.method.reads_text and hasattr(self.family.model, "generate"):
                self._replace(self.family.model, "generate", _refuse_candidates)
            for index, layer in enumerate(self.family.layers):
                # The layer's forward, not a hook: hooks of others then all see the full-length stream.
                self._replace(layer, "forward", functools.partial(self._run_layer, index))
            _sessions[core] = self
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Take everything off; calling it again does nothing."""
        while self._undo:
            self._undo.pop()()
        if _sessions.get(self.family.core) is self:
            del _sessions[self.family.core]
        self._prompt, self._placeholders, self._items, self._remaps = None, [], {}, []

    def _keep(self, handle: Any) -> None:
        self._undo.append(handle.remove)

    def _replace(self, module: nn.Module, name: str, around: Callable[..., Any]) -> None:
        """Put `around(original, *args, **kwargs)` in the place of a method, on this one object."""
        original, own = getattr(module, name), name in module.__dict__

        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        def restore() -> None:
            if own:
                setattr(module, name, original)
            else:
                delattr(module, name)

        setattr(module, name, wrapped)
        self._undo.append(restore)

    # -- the prompt: where its vision tokens are -----------------------------------------------------------

    def _encode(self, modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Stand in for `get_image_features`, which `generate` calls long before the decoder runs."""
        given = dict(inspect.signature(original).bind(*args, **kwargs).arguments)
        given.update(given.pop("kwargs", {}))

        def run(**other: Any) -> Any:
            return original(**{**given, **other}) if other else original(*args, **kwargs)

        items = dict(self._items)
        output = encode(self.family, self.method, modality, run, given, self._reindex)
        self._items = items  # a family may make a video's features with its images' function
        if hasattr(output, "pooler_output"):
            self._items[modality] = items_of(output, self.method)
        return output

    def _before_merge(self, core: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._placeholders, self._items = [], {}
        for modality, output in (kwargs.get("mm_encoder_outputs") or {}).items():
            if output is not None:
                self._items[modality] = items_of(output, self.method)

    def _note_ids(self, rotary: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        """Position ids of the call; the calls made here for renumbered rows come after the model's own."""
        if self._ids is None:
            self._ids = kwargs["position_ids"] if "position_ids" in kwargs else args[1]

    def _watch_placeholders(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        placeholders = original(*args, **kwargs)
        for modality, mask in self.family.vision_masks(placeholders, given):
            self._placeholders.append((modality, mask[..., 0] if mask.dim() == 3 else mask))
        return placeholders

    def _before_decoder(self, text: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._prompt, self._record, self._remaps, self._rotaries, self._ids = None, None, [], [], None
        self._live = None
        self._backend = str(text.config._attn_implementation)  # type: ignore[union-attr]
        found = [(mask, self._items.get(modality, [])) for modality, mask in self._placeholders]
        self._placeholders = []
        embeds = kwargs.get("inputs_embeds")
        if embeds is None or not found:
            self._note_text_prompt(kwargs)
            return
        mask = kwargs.get("attention_mask")
        live = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        span = embeds.shape[1]
        samples = read_samples(found, None if live is None else live[:, -span:], embeds.device)
        drops = self._drops(samples)
        cache = kwargs.get("past_key_values")
        if drops:
            check_cache(cache)
            _refuse_packing(kwargs, live)
        self._refuse_split_image(samples, cache, drops)
        rows = tuple(s.live for s in samples)
        if live is not None and live.shape[1] > span:
            rows = tuple(live.sum(dim=1).tolist())
        elif live is None and cache is not None:
            rows = tuple(row + max(0, _length(cache)) for row in rows)
        record = Prefill(
            depth=len(self.family.layers),
            rows=rows,
            vision_tokens=tuple(len(s.vision) for s in samples),
            boxes=[_Boxes(s.items) for s in samples],
            fit=self.family.fit,
        )
        self.trace.history.append(record)
        self._record = record
        self._live = live
        if drops:
            added = self.family.added_later(kwargs)
            self._prompt = Prompt(self.method, samples, span, record, self._reindex, added)
            self._prompt.start()
        else:  # every layer runs as if nobody were here
            record.note_that_all_stay(self.method.cuts(), [sample.tokens for sample in samples])

    def _drops(self, samples: Sequence[Sample]) -> bool:
        """Whether tokens will leave, as far as can be said beforehand."""
        if any(item.leaves for sample in samples for item in sample.items):
            return True
        plans = [self.method.plan(len(self.family.layers), s.sizes or ()) for s in samples if len(s.vision)]
        counts = [len(s.vision) for s in samples if len(s.vision)]
        return any(plan is None or min(plan) < count for plan, count in zip(plans, counts, strict=True))

    def _note_text_prompt(self, kwargs: dict[str, Any]) -> None:
        """A fresh prompt without pictures is a prefill too, in which nothing can be dropped."""
        embeds, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        given = embeds if embeds is not None else kwargs.get("input_ids")
        if given is None or given.shape[1] == 1 or (cache is not None and _length(cache) != 0):
            return
        mask = kwargs.get("attention_mask")
        live = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        rows = (given.shape[1],) * given.shape[0] if live is None else tuple(live.sum(dim=1).tolist())
        self._record = Prefill(len(self.family.layers), rows, (0,) * given.shape[0])
        self.trace.history.append(self._record)

    def _refuse_split_image(self, samples: Sequence[Sample], cache: Any, drops: bool) -> None:
        """An image cut in two by chunked prefill would be ranked in two halves."""
        previous, self._ended_in_vision = self._ended_in_vision, None
        if previous is None or previous.cache() is not cache or previous.length != _length(cache):
            return
        if any(sample.starts for sample in samples) and (drops or previous.dropped):
            raise UnsupportedError(
                "Chunked prefill has cut an image in two, so its tokens cannot be ranked together. "
                "Leave prefill_chunk_size unset, or choose it so that no image is split."
            )

    def _after_decoder(self, text: nn.Module, args: Any, output: Any) -> None:
        record, self._record = self._record, None
        if record is None:
            return
        cache = getattr(output, "past_key_values", None)
        record._cached = cache is not None
        prompt, self._prompt = self._prompt, None
        if prompt is None:
            return
        if cache is not None:
            self._cut_cache(prompt, cache)
        prompt.finish()
        if cache is None:
            return
        dead = torch.tensor([rows - sample.live for rows, sample in zip(prompt.rows, prompt.samples, strict=True)])
        for index, layer in enumerate(cache.layers):
            if type(layer) is PrunedLayer:
                prompt.record._slots[index] = layer.valid_slots() - dead.to(layer.keys.device)
        if any(sample.ends for sample in prompt.samples):
            dropped = any(len(sample.tokens) < len(sample.vision) for sample in prompt.samples)
            self._ended_in_vision = _Ending(weakref.ref(cache), _length(cache), dropped)

    def _cut_cache(self, prompt: Prompt, cache: Any) -> None:
        """Cut earlier layers' keys and values down to the tokens left at the end, where the method wants that."""
        layers = [index for index in self.method.kv_layers(len(self.family.layers)) if index < len(cache.layers)]
        if not layers or prompt.layout is None:
            return
        final, wanted = prompt.final(), None
        for index in layers:
            layout = prompt.layouts[index]
            if layout is prompt.layout:
                continue
            pruned = pruned_layer(cache, index)
            device = pruned.keys.device
            if layout is None:
                wanted = final.to(device)
                if self._live is not None:
                    wanted = wanted & (self._live[:, -prompt.span :].to(device) != 0)
            else:
                layout = layout.on(device)
                source = layout.source
                wanted = final.to(device).take_along_dim(source.clamp(min=0), dim=1) & (source >= 0)
                if layout.valid is not None:
                    wanted = wanted & layout.valid
            pruned.keep(wanted)
            if self._reindex:
                rows = prompt.rows if layout is None else layout.lengths
                pruned.shift = prompt.layout.on(device).shift(pruned.shift, rows)
        prompt.note_cache_cut()

    # -- the layers ----------------------------------------------------------------------------------------

    def _run_layer(self, index: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run decoder layer `index` on the rows that are left, and put them back into the full-length stream."""
        prompt, cache = self._prompt, kwargs.get("past_key_values")
        hidden = args[0] if args else kwargs["hidden_states"]
        pruned = self._pruned(cache, index, make=False)
        if prompt is None and pruned is None:
            return original(*args, **kwargs)
        if pruned is not None and pruned.shift is not None:
            kwargs["position_embeddings"] = self._shifted(pruned.shift, hidden)
        if prompt is not None:
            hidden = prompt.enter(index, hidden, functools.partial(self._attend, index, kwargs, pruned))
        if prompt is None or prompt.layout is None:
            if pruned is not None:
                kwargs["attention_mask"] = self._mask(kwargs.get("attention_mask"), index, hidden, pruned=pruned)
                pruned.announce(None, hidden.shape[1])
            return _call(original, hidden, args, kwargs)
        layout = prompt.layout.on(hidden.device)
        pruned = self._pruned(cache, index, make=True)
        columns = layout.columns(0 if pruned is None else pruned.seen)
        kwargs["attention_mask"] = self._mask(kwargs.get("attention_mask"), index, hidden, layout, columns, pruned)
        kwargs["position_embeddings"] = self._tables(layout, hidden, kwargs["position_embeddings"], pruned)
        kwargs["position_ids"] = None  # gaps would read as packed sequences; RoPE is in position_embeddings
        if pruned is not None:
            pruned.announce(columns, hidden.shape[1], ragged=layout.valid is not None)
            if self._reindex:
                pruned.shift = layout.shift(pruned.shift, prompt.rows)
        output = _call(original, layout.gather(hidden), args, kwargs)
        if isinstance(output, tuple):
            return (layout.scatter(hidden, output[0]), *output[1:])
        return layout.scatter(hidden, output)

    def _tables(
        self, layout: Layout, hidden: Tensor, pair: tuple[Tensor, Tensor], pruned: PrunedLayer | None
    ) -> tuple[Tensor, Tensor]:
        """(cos, sin) of the rows: each at its own position, or numbered on from what the layer's cache holds."""
        if not self._reindex:
            return layout.rotary(pair[0], lambda: layout.pick(pair))
        shift = None if pruned is None else pruned.shift
        return layout.rotary(shift, lambda: self._renumbered(layout, hidden, shift))

    def _renumbered(self, layout: Layout, hidden: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self._ids is not None
        assert self._prompt is not None
        device = self._ids.device
        ids = self._ids.expand(hidden.shape[0], -1)
        first = ids.gather(1, self._prompt.first.to(device)[:, None])[:, 0]
        if shift is not None:
            first = first - shift.to(device)
        pair: tuple[Tensor, Tensor] = self.family.text.rotary_emb(hidden, layout.on(device).renumbered(first))
        return pair[0].to(hidden.device), pair[1].to(hidden.device)

    def _shifted(self, shift: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of all rows of the call, moved up by what has left before them, made once a call."""
        for known, made in self._rotaries:
            if known is shift:
                return made
        assert self._ids is not None
        ids = self._ids - shift.to(self._ids.device)[:, None]
        pair: tuple[Tensor, Tensor] = self.family.text.rotary_emb(hidden, ids)
        self._rotaries.append((shift, pair))
        return pair

    def _attend(
        self, index: int, kwargs: dict[str, Any], pruned: PrunedLayer | None, hidden: Tensor, sample: int
    ) -> LayerAttention:
        """Attention of layer `index` for one sample, over the rows that have not left yet."""
        prompt = self._prompt
        assert prompt is not None
        pair, cache = kwargs["position_embeddings"], kwargs.get("past_key_values")
        state = prompt.samples[sample]
        if prompt.layout is None:
            columns = state.rows().to(hidden.device)
            cos, sin = (table[sample if table.shape[0] > 1 else 0][columns] for table in pair)
        else:
            layout = prompt.layout.on(hidden.device)
            start = layout.index.shape[1] - layout.lengths[sample]
            columns = layout.index[sample, start:]
            cos, sin = (table[sample, start:] for table in self._tables(layout, hidden, pair, pruned))
        vision = torch.searchsorted(columns, state.vision[state.slots].to(hidden.device))
        live = None if self._live is None else self._live[sample] != 0
        past = past_keys(cache, index, sample, live)
        layer = self.family.layers[index]
        return LayerAttention(self.family, layer, hidden[sample, columns], (cos, sin), vision, past)

    def _mask(
        self,
        mask: Any,
        index: int,
        hidden: Tensor,
        layout: Layout | None = None,
        columns: Tensor | None = None,
        pruned: PrunedLayer | None = None,
    ) -> Any:
        """The mask of layer `index`, made once for all layers whose rows and slots stand for the same columns."""
        ragged = (layout is not None and layout.valid is not None) or (pruned is not None and pruned.ragged)
        if mask is None and not ragged:
            return None
        base = None if pruned is None else pruned.base
        for key, made in self._remaps:
            if key[0] is mask and key[1] is layout and key[2] is base:
                return made
        self._refuse_sliding_flash(index)
        samples, span, device = hidden.shape[0], hidden.shape[1], hidden.device
        past = 0 if pruned is None else pruned.seen
        coming: Tensor | int = span if columns is None else columns
        if pruned is not None:
            keys = pruned.columns(coming, samples, device)
        else:
            assert columns is not None
            keys = columns
        queries = layout.index if layout is not None else torch.arange(span, device=device).expand(samples, -1)
        valid = None if layout is None else layout.valid
        made = Remap(queries, valid, keys, past, past + span, ragged)(mask, self._backend)
        self._remaps.append(((mask, layout, base), made))
        return made

    @staticmethod
    def _pruned(cache: Any, index: int, make: bool) -> PrunedLayer | None:
        """The cache's pruned layer at `index`, made if tokens have left; None if there is none."""
        if cache is None:
            return None
        if make:
            return pruned_layer(cache, index)
        layers = getattr(cache, "layers", ())
        layer = layers[index] if index < len(layers) else None
        return layer if type(layer) is PrunedLayer else None

    def _refuse_sliding_flash(self, index: int) -> None:
        if "flash" in self._backend:
            attention = getattr(self.family.layers[index], "self_attn", None)
            if getattr(attention, "sliding_window", None) is not None:
                raise UnsupportedError(
                    f"Layer {index} has a sliding window, which flash attention counts in stored tokens: with tokens "
                    "dropped it would reach too far. Load the model with attn_implementation='sdpa'."
                )


@dataclass(frozen=True, slots=True)
class _Ending:
    """That a call ended in the middle of, or right after, an image: on which cache, how long, had tokens left."""

    cache: "weakref.ref[Any]"
    length: int
    dropped: bool


class _Boxes(Sequence[Tensor | None]):
    """Where the tokens of a sample's images look, worked out when asked for."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index].boxes()


def _call(original: Callable[..., Any], hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return original(hidden, *args[1:], **kwargs)
    return original(**{**kwargs, "hidden_states": hidden})


def _refuse_candidates(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Assisted decoding puts its candidates behind the prompt, into the very call that ranks by the text after it."""
    settings = [kwargs, vars(kwargs.get("generation_config") or object.__new__(_Nothing))]
    for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit"):
        if any(given.get(name) is not None for given in settings):
            raise UnsupportedError(
                f"{name} puts candidate tokens into the prefill, where this method would read them as the prompt. "
                "Decode without it, or use a method that reads no text (V2Drop, VisionDrop)."
            )
    return original(*args, **kwargs)


class _Nothing:
    """A generation config without settings."""


def _length(cache: Any) -> int:
    """Unpruned tokens in a cache; −1 where only the device knows (static caches), so that nothing syncs."""
    length = cache.get_seq_length()
    return length if isinstance(length, int) else -1


def _refuse_packing(kwargs: dict[str, Any], live: Tensor | None) -> None:
    """Several samples in one row, told apart by position ids alone, would be ranked together."""
    ids = kwargs.get("position_ids")
    packed = kwargs.get("cu_seq_lens_q") is not None
    if not packed and live is None and isinstance(ids, Tensor) and ids.shape[-1] > 1:
        row = ids if ids.dim() == 2 else ids[0] if ids.shape[0] == 4 else None
        packed = row is not None and bool((row.diff(dim=-1) <= 0).any())
    if packed:
        raise UnsupportedError(
            "Several samples packed into one row cannot be told apart when tokens are ranked. "
            "Pass them as a padded batch with an attention_mask."
        )
