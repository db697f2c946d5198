"""Running decoder layers on the rows that are left."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from foveate._transformers import scales_by_position
from foveate.core.host import send
from foveate.engine.bucket import Bucket
from foveate.engine.cache import PrunedLayer, pruned_layer
from foveate.engine.call import Call
from foveate.engine.masks import Remap, visibility
from foveate.engine.reader import AttentionReader, past_keys
from foveate.engine.rows import RowMap, rows_of
from foveate.errors import UnsupportedError
from foveate.families.base import Family, heard_in, unreadable

__all__ = ["LayerRunner"]


class LayerRunner:
    """Stands around every decoder layer's forward.

    Attributes:
        call: The call under way, set before its first layer.
    """

    def __init__(self, family: Family, reindex: bool) -> None:
        self.call = Call()
        self._family = family
        self._recurrent = family.recurrent
        self._reindex = reindex
        self._devices: dict[int, torch.device] = {}  # of each layer, as its last prefill found it
        self._kinds = [family.rotary_type(index) for index in range(len(family.layers))] if reindex else []
        attentions = (getattr(layer, "self_attn", None) for layer in family.layers)
        self._scaled = {index for index, one in enumerate(attentions) if one is not None and scales_by_position(one)}

    def run(self, index: int, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run decoder layer `index` on the rows that are left, and put them back into the full-length stream."""
        if self.call.idle:
            return original(*args, **kwargs)
        prompt, cache = self.call.prompt, kwargs.get("past_key_values")
        hidden = args[0] if args else kwargs["hidden_states"]
        pruned = _pruned(cache, index, make=False)
        if prompt is None and pruned is None:
            return original(*args, **kwargs)
        if prompt is not None or index not in self._devices:
            self._devices[index] = _device_of(self._family.layers[index], hidden)
        if hidden.device != self._devices[index] or kwargs["position_embeddings"][0].device != hidden.device:
            hidden = hidden.to(self._devices[index])
            kwargs["position_embeddings"] = tuple(self._here(one, hidden) for one in kwargs["position_embeddings"])
        kwargs["attention_mask"] = self._here(kwargs.get("attention_mask"), hidden)
        if pruned is not None and pruned.shift is not None:
            kwargs["position_embeddings"] = self._shifted(index, pruned.shift, hidden)
            if index in self._scaled:
                kwargs["position_ids"] = self._moved_up(pruned.shift).to(hidden.device)
        whole = hidden
        if prompt is not None:
            hidden = prompt.enter(index, whole, functools.partial(self._attend, index, kwargs, pruned))
        heeded = self._heeded(index, kwargs, pruned, hidden)
        if prompt is None or prompt.layout is None:
            if pruned is not None:
                kwargs["attention_mask"] = self._mask(kwargs.get("attention_mask"), index, hidden, pruned=pruned)
                pruned.announce(None, hidden.shape[1])
            with heeded:
                return _call(original, hidden, args, kwargs)
        layout = prompt.layout.on(hidden.device)
        pruned = _pruned(cache, index, make=index not in self._recurrent)
        columns = layout.columns(0 if pruned is None else pruned.seen)
        if index in self._recurrent:
            kwargs["attention_mask"] = _padding(kwargs.get("attention_mask"), index, layout, cache)
        else:
            kwargs["attention_mask"] = self._mask(kwargs.get("attention_mask"), index, hidden, layout, columns, pruned)
        kwargs["position_embeddings"] = self._tables(index, layout, hidden, kwargs["position_embeddings"], pruned)
        kwargs["position_ids"] = self._asked_ids(index, kwargs.get("position_ids"), layout, hidden, pruned)
        if pruned is not None:
            pruned.announce(columns, hidden.shape[1], ragged=layout.valid is not None)
            if layout.numbered:
                pruned.shift = layout.shift(pruned.shift, prompt.rows)
        rows, hidden = layout.gather(hidden), whole  # a copy with merged rows in it has done its duty
        with heeded:
            rows = _call(original, rows, args, kwargs)
        if isinstance(rows, tuple):
            return (self._put_back(index, layout, hidden, rows[0]), *rows[1:])
        return self._put_back(index, layout, hidden, rows)

    def _here(self, given: Any, hidden: Tensor) -> Any:
        """A table or mask on the layer's device, moved there once for all its layers."""
        if not isinstance(given, Tensor) or given.device == hidden.device:
            return given
        for known, moved in self.call.moved:
            if known is given and moved.device == hidden.device:
                return moved
        moved = given.to(hidden.device)
        self.call.moved.append((given, moved))
        return moved

    def _put_back(self, index: int, layout: RowMap, hidden: Tensor, rows: Tensor) -> Tensor:
        """The full-length stream with a layer's rows in it.

        Behind the last layer, an image's last column has the last row that is left before what follows: from it the
        first token of that text is predicted, and the column's own token may have left.
        """
        full, prompt = layout.scatter(hidden, rows), self.call.prompt
        if prompt is None or not rows.shape[1] or index < len(self._family.layers) - 1:
            return full
        if prompt.image_ends is not None:
            samples, columns = (send(places, full.device) for places in prompt.image_ends)
            return full.index_put((samples, columns), full[samples, layout.last_rows(samples, columns)])
        return torch.cat((full[:, :-1], rows[:, -1:]), dim=1) if prompt.ends else full

    def _tables(
        self, index: int, layout: RowMap, hidden: Tensor, pair: tuple[Tensor, Tensor], pruned: PrunedLayer | None
    ) -> tuple[Tensor, Tensor]:
        """(cos, sin) of the rows: each at its own position, or numbered on from what the layer's cache holds."""
        if not layout.numbered:
            return layout.rotary((pair[0], None), lambda: layout.pick(pair))
        shift, kind = None if pruned is None else pruned.shift, self._kinds[index]
        return layout.rotary((shift, kind), lambda: self._renumbered(index, layout, hidden, shift))

    def _renumbered(self, index: int, layout: RowMap, hidden: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        pair = self._family.rotary(index, hidden, self._numbers(layout, hidden, shift))
        return pair[0].to(hidden.device), pair[1].to(hidden.device)

    def _numbers(self, layout: RowMap, hidden: Tensor, shift: Tensor | None) -> Tensor:
        """Position ids of rows that are numbered anew, (samples, rows)."""
        given, prompt = self.call.ids, self.call.prompt
        assert given is not None
        assert prompt is not None
        device = given.device
        ids = given.expand(hidden.shape[0], -1)
        first = ids.gather(1, prompt.first.to(device)[:, None])[:, 0]
        if shift is not None:
            first = first - shift.to(device)
        return layout.on(device).renumbered(first)

    def _asked_ids(
        self, index: int, given: Tensor | None, layout: RowMap, hidden: Tensor, pruned: PrunedLayer | None
    ) -> Tensor | None:
        """Position ids of the rows, (samples, rows), if the layer's attention scales queries by them; else None: RoPE
        is in position_embeddings, and flash attention reads gaps as packed sequences."""
        if index not in self._scaled:
            return None
        if "flash" in self.call.backend:
            raise UnsupportedError(
                f"Layer {index} needs the positions of its rows, whose gaps flash attention would read as the ends of "
                "packed sequences. Load the model with attn_implementation='sdpa'."
            )
        if layout.numbered:
            return self._numbers(layout, hidden, None if pruned is None else pruned.shift).to(hidden.device)
        assert given is not None
        return given.to(hidden.device).expand(hidden.shape[0], -1).gather(1, layout.source.clamp(min=0))

    def _shifted(self, index: int, shift: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of all rows of the call, moved up by what has left before them, made once a call."""
        kind = self._kinds[index]
        for (moved, of), made in self.call.rotaries:
            if moved is shift and of == kind:
                return made
        pair = self._family.rotary(index, hidden, self._moved_up(shift))
        self.call.rotaries.append(((shift, kind), pair))
        return pair

    def _moved_up(self, shift: Tensor) -> Tensor:
        """Position ids of all rows of the call, moved up by what has left before them."""
        assert self.call.ids is not None
        return self.call.ids - shift.to(self.call.ids.device)[:, None]

    def _attend(
        self,
        index: int,
        kwargs: dict[str, Any],
        pruned: PrunedLayer | None,
        hidden: Tensor,
        group: Bucket,
        heard: Sequence[tuple[Tensor, Tensor, float]] | None = None,
    ) -> AttentionReader:
        """Attention of layer `index` for samples alike, over the rows that have not left yet: from queries, keys and
        scaling that will have been `heard` of it when it is asked for, or else made from its input."""
        if index in self._recurrent:
            readable = [str(layer) for layer in range(len(self._family.layers)) if layer not in self._recurrent]
            raise UnsupportedError(
                f"Layer {index} pays no attention but carries a state from token to token, so there is nothing to rank "
                f"by. Read attention at layers {', '.join(readable)}, or use a method that reads none (V2Drop)."
            )
        prompt = self.call.prompt
        assert prompt is not None
        pair, cache = kwargs["position_embeddings"], kwargs.get("past_key_values")
        layout, whole = prompt.present.on(hidden.device), len(group.members) == len(prompt.samples)
        shortest = min(layout.lengths[member] for member in group.members)
        ragged = shortest < max(layout.lengths[member] for member in group.members)
        start = 0 if ragged else layout.index.shape[1] - shortest  # no pad in front of anybody's rows
        of: Tensor | slice = slice(None) if whole else group.samples
        columns = layout.index[of, start:]
        # The last of equals: pads in front repeat the first row.
        vision = torch.searchsorted(columns.contiguous(), group.columns, right=True) - 1
        past, stored, seen, pads = past_keys(cache, index, of, self.call.live) or (None, columns[:, :0], 0, False)
        self._refuse_scaled(index, seen + hidden.shape[1])
        coming = layout.columns(seen)[of, start:]
        sees = visibility(
            kwargs.get("attention_mask"),
            group.samples,
            torch.cat((stored, coming), dim=1),
            seen,
            seen + hidden.shape[1],
            ragged or pads,
            self._causal(index),
        )
        layer, count, live = self._family.layers[index], columns.shape[1], self.call.live

        if heard is None:
            tables = layout.pick(pair) if prompt.layout is None else self._tables(index, layout, hidden, pair, pruned)
            cos, sin = (table[..., of, start:, :] for table in tables)

        def ask(rows: Tensor) -> tuple[Tensor, Tensor, float]:
            if heard is None:
                given = rows_of(hidden, columns, group.owners)
                return self._family.queries_and_keys(layer, given, rows, (cos, sin))
            query, keys, scaling = heard[0]
            query, keys = query[of], keys[of, :, -query.shape[2] :]
            if prompt.layout is not None:
                query, keys = query[:, :, start:], keys[:, :, start:]
            elif count < hidden.shape[1]:  # the layer has all columns in it, padding too
                rows, keys = columns.gather(1, rows), keys.take_along_dim(columns[:, None, :, None], dim=2)
            return query.take_along_dim(rows[:, None, :, None], dim=2), keys, scaling

        return AttentionReader(
            ask,
            count,
            vision,
            past,
            sees=sees and (lambda rows: sees(columns.gather(1, rows))),
            real=live
            if live is None
            else lambda: live[of, -hidden.shape[1] :].to(columns.device).gather(1, columns) != 0,
            text_after=group.text_behind,
            softcap=self._family.softcap(layer),
            block=len(columns) * count * hidden.shape[-1],  # less than the layer itself will hold
        )

    def _heeded(
        self, index: int, kwargs: dict[str, Any], pruned: PrunedLayer | None, hidden: Tensor
    ) -> AbstractContextManager[None]:
        """While the layer runs, show the method what its attention comes to, where it wants to see that.

        To be called while arguments and cache are still those of the rows that come.
        """
        prompt, layer = self.call.prompt, self._family.layers[index]
        if prompt is None or not prompt.listens(index):
            return nullcontext()
        heard: list[tuple[Tensor, Tensor, float]] = []
        known = {
            group.members: self._attend(index, kwargs, pruned, hidden, group, heard)
            for group in prompt.groups
            if group.left
        }

        def see(queries: Tensor, keys: Tensor, scaling: float) -> None:
            heard.append((queries, keys, scaling))
            prompt.listen(index, hidden, lambda _, group: known[group.members])
            heard.clear()
            known.clear()  # nothing of it lives on while the MLP runs

        @contextmanager
        def heeding() -> Iterator[None]:
            with heard_in(layer, see):
                yield
            if known:
                raise unreadable(layer.self_attn)

        return heeding()

    def _mask(
        self,
        mask: Any,
        index: int,
        hidden: Tensor,
        layout: RowMap | None = None,
        columns: Tensor | None = None,
        pruned: PrunedLayer | None = None,
    ) -> Any:
        """The mask of layer `index`, made once for all layers whose rows and slots stand for the same columns."""
        self._refuse_sliding_flash(index)
        ragged = (layout is not None and layout.valid is not None) or (pruned is not None and pruned.ragged)
        if mask is None and not ragged:
            return None
        base, end = (None, 0) if pruned is None else (pruned.base, pruned.base_end)
        for key, made in self.call.masks:
            if key[0] is mask and key[1] is layout and key[2] is base and key[3] == end:
                return made
        samples, span, device = hidden.shape[0], hidden.shape[1], hidden.device
        past = 0 if pruned is None else pruned.seen
        coming: Tensor | int = span if columns is None else columns
        if pruned is not None:
            keys = pruned.columns(coming, samples, device)
        else:
            assert columns is not None
            keys = columns
        queries = layout.index if layout is not None else torch.arange(span, device=device).expand(samples, -1)
        made = Remap(queries, keys, past, past + span, ragged, self._causal(index))(mask, self.call.backend)
        self.call.masks.append(((mask, layout, base, end), made))
        return made

    def _causal(self, index: int) -> bool:
        """Whether a layer's kernel, given no mask, lets a row see those before it alone."""
        return bool(getattr(getattr(self._family.layers[index], "self_attn", None), "is_causal", True))

    def _refuse_scaled(self, index: int, length: int) -> None:
        """Scores leave out what an attention scales queries by, which is 1 in the prompts its model first learnt on."""
        if index in self._scaled:
            most = self._family.text.config.rope_parameters["original_max_position_embeddings"]
            if length > most:
                raise UnsupportedError(
                    f"Layer {index} scales queries from position {most} on, and scores here do not. Use a method that "
                    "reads no attention (V2Drop), or a shorter prompt."
                )

    def _refuse_sliding_flash(self, index: int) -> None:
        if "flash" in self.call.backend:
            attention = getattr(self._family.layers[index], "self_attn", None)
            if getattr(attention, "sliding_window", None) is not None:
                raise UnsupportedError(
                    f"Layer {index} has a sliding window, which flash attention counts in stored tokens: with tokens "
                    "dropped it would reach too far. Load the model with attn_implementation='sdpa'."
                )


def _pruned(cache: Any, index: int, make: bool) -> PrunedLayer | None:
    """The cache's pruned layer at `index`, made if tokens have left; None if there is none."""
    if cache is None:
        return None
    if make:
        return pruned_layer(cache, index)
    layers = getattr(cache, "layers", ())
    layer = layers[index] if index < len(layers) else None
    return layer if type(layer) is PrunedLayer else None


def _padding(mask: Tensor | None, index: int, layout: RowMap, cache: Any) -> Tensor | None:
    """Which rows of a recurrent layer are no padding, (samples, rows) bool; None if all are.

    Raises:
        UnsupportedError: If padding would come between a state and the rows that go on from it: it makes states fade.
    """
    if layout.valid is not None and cache is not None and cache.has_previous_state(index):
        raise UnsupportedError(
            f"Layer {index} carries a state on from an earlier call, and the samples of this batch keep different "
            "numbers of tokens: the padding between would change it. Go on with one sample at a time."
        )
    if mask is None:
        return layout.valid
    real = layout.gather(mask[..., None])[..., 0] != 0
    return real if layout.valid is None else real & layout.valid


def _device_of(layer: nn.Module, hidden: Tensor) -> torch.device:
    """Where a layer computes: accelerate moves its input there inside the forward that is wrapped here.

    Offloaded weights come to where the input is.
    """
    weight = next(layer.parameters(), hidden)
    return hidden.device if weight.is_meta else weight.device


def _call(original: Callable[..., Any], hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return original(hidden, *args[1:], **kwargs)
    return original(**{**kwargs, "hidden_states": hidden})
