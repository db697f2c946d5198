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

from foveate.engine.cache import PrunedLayer, check_cache, pruned_layer
from foveate.engine.layout import Layout
from foveate.engine.masks import Remap
from foveate.engine.prompt import Item, Prompt, Sample, read_samples
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
        self._backend = "sdpa"
        self._remaps: list[tuple[tuple[Any, Layout | None, Tensor | None], Any]] = []
        self._ended_in_vision: _Ending | None = None

    def attach(self) -> None:
        """Put everything on; nothing stays on if that fails."""
        try:
            core, text = self.family.core, self.family.text
            self._replace(core, "get_placeholder_mask", self._watch_placeholders)
            for modality in ("image", "video"):
                if hasattr(core, f"get_{modality}_features"):
                    self._replace(core, f"get_{modality}_features", functools.partial(self._tag_features, modality))
            self._keep(core.register_forward_pre_hook(self._before_merge, with_kwargs=True))
            self._keep(text.register_forward_pre_hook(self._before_decoder, with_kwargs=True))
            self._keep(text.register_forward_hook(self._after_decoder))
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

    def _tag_features(self, modality: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Let every image's features carry where its tokens look: `generate` makes them long before the call."""
        output = original(*args, **kwargs)
        features = _features(output)
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        given = {name: value for name, value in given.items() if not name.startswith("pixel_values")}
        lengths = [len(one) for one in features]
        for index, one in enumerate(features):
            one._foveate_boxes = functools.partial(_boxes, self.family, modality, given, lengths, index)  # type: ignore[attr-defined]
        self._items[modality] = _items(features)
        return output

    def _before_merge(self, core: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._placeholders, self._items = [], {}
        for modality, output in (kwargs.get("mm_encoder_outputs") or {}).items():
            if output is not None:
                self._items[modality] = _items(_features(output))

    def _watch_placeholders(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(*args, **kwargs).arguments
        placeholders = original(*args, **kwargs)
        for modality, mask in self.family.vision_masks(placeholders, given):
            self._placeholders.append((modality, mask[..., 0] if mask.dim() == 3 else mask))
        return placeholders

    def _before_decoder(self, text: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._prompt, self._remaps = None, []
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
        planned = [self.method.plan(len(self.family.layers), sample.sizes or ()) for sample in samples]
        drops = any(min(plan) < len(s.vision) for plan, s in zip(planned, samples, strict=True))
        cache = kwargs.get("past_key_values")
        if drops:
            check_cache(cache)
            _refuse_packing(kwargs, live)
        self._refuse_split_image(samples, cache, drops)
        rows = tuple(len(s.text) + len(s.vision) for s in samples)
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
        if drops:
            self._prompt = Prompt(self.method, samples, span, record)
        else:  # every layer runs as if nobody were here
            record.note_that_all_stay(self.method.cuts(), [sample.tokens for sample in samples])

    def _note_text_prompt(self, kwargs: dict[str, Any]) -> None:
        """A fresh prompt without pictures is a prefill too, in which nothing can be dropped."""
        embeds, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        given = embeds if embeds is not None else kwargs.get("input_ids")
        if given is None or given.shape[1] == 1 or (cache is not None and _length(cache) != 0):
            return
        mask = kwargs.get("attention_mask")
        live = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        rows = (given.shape[1],) * given.shape[0] if live is None else tuple(live.sum(dim=1).tolist())
        self.trace.history.append(Prefill(len(self.family.layers), rows, (0,) * given.shape[0]))

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
        cache = getattr(output, "past_key_values", None)
        if self.trace.history:
            self.trace.history[-1]._cached = cache is not None
        prompt, self._prompt = self._prompt, None
        if prompt is None:
            return
        prompt.finish()
        if cache is None:
            return
        for index, layer in enumerate(cache.layers):
            if type(layer) is PrunedLayer:
                prompt.record._slots[index] = layer.valid_slots()
        if any(sample.ends for sample in prompt.samples):
            dropped = any(len(sample.tokens) < len(sample.vision) for sample in prompt.samples)
            self._ended_in_vision = _Ending(weakref.ref(cache), _length(cache), dropped)

    # -- the layers ----------------------------------------------------------------------------------------

    def _run_layer(self, index: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run decoder layer `index` on the rows that are left, and put them back into the full-length stream."""
        prompt, cache = self._prompt, kwargs.get("past_key_values")
        hidden = args[0] if args else kwargs["hidden_states"]
        if prompt is not None:
            prompt.enter(index, hidden)
        layout = None if prompt is None or prompt.layout is None else prompt.layout.on(hidden.device)
        pruned = self._pruned(cache, index, make=layout is not None)
        if layout is None:
            if pruned is not None:
                kwargs["attention_mask"] = self._mask(kwargs.get("attention_mask"), index, hidden, pruned=pruned)
                pruned.announce(None, hidden.shape[1])
            return original(*args, **kwargs)
        columns = layout.columns(0 if pruned is None else pruned.seen)
        kwargs["attention_mask"] = self._mask(kwargs.get("attention_mask"), index, hidden, layout, columns, pruned)
        kwargs["position_embeddings"] = layout.rotary(kwargs["position_embeddings"])
        kwargs["position_ids"] = None  # gaps would read as packed sequences; RoPE is in position_embeddings
        if pruned is not None:
            pruned.announce(columns, hidden.shape[1], ragged=layout.valid is not None)
        output = _call(original, layout.gather(hidden), args, kwargs)
        if isinstance(output, tuple):
            return (layout.scatter(hidden, output[0]), *output[1:])
        return layout.scatter(hidden, output)

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


def _features(output: Any) -> list[Tensor]:
    """The features of each image in what a `get_*_features` call answered."""
    features = getattr(output, "pooler_output", output)
    return list(features)


def _items(features: Sequence[Tensor]) -> list[Item]:
    return [Item(len(one), getattr(one, "_foveate_boxes", lambda: None)) for one in features]


def _boxes(family: Family, modality: str, given: dict[str, Any], lengths: list[int], index: int) -> Tensor | None:
    return family.boxes(modality, given, lengths)[index]


def _call(original: Callable[..., Any], hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return original(hidden, *args[1:], **kwargs)
    return original(**{**kwargs, "hidden_states": hidden})


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
