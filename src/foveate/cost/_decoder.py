"""The decoder's shape, what its layers, its head and its cache cost."""

from collections.abc import Set
from dataclasses import dataclass
from typing import Any, Self

from foveate.core.flops import attention, delta_rule, linear
from foveate.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder with gated MLPs or mixtures of experts, grouped-query attention included.

    Attributes:
        depth: Layers.
        width: The residual stream's.
        rows: FLOPs of each layer's projections and MLP on one row; in a mixture, of the router and the experts that a
            row goes to.
        pairs: FLOPs of each layer's attention for a row that looks at a row.
        keys: FLOPs of each layer for a row that is looked at, however many look: where it is expanded anew (MLA).
        stored: Numbers that each layer keeps for a row: its key and value.
        recurrent: Layers with a state instead of attention (the gated delta rule).
        state: Heads, key size and value size of the recurrent layers.
        vocabulary: Columns of the head; tied to the embedding or not, it computes the same.
        windows: Tokens a row of each layer sees, its own included; None if all.
    """

    depth: int
    width: int
    rows: tuple[int, ...]
    pairs: tuple[int, ...]
    keys: tuple[int, ...]
    stored: tuple[int, ...]
    recurrent: frozenset[int]
    state: tuple[int, int, int]
    vocabulary: int
    windows: tuple[int | None, ...]

    @classmethod
    def of(cls, text: Any, known: Set[str]) -> Self:
        """The decoder of a text config whose `model_type` is among the `known`.

        Raises:
            UnsupportedError: If it is not.
        """
        if text.model_type not in known:
            experts = _experts(text)
            why = ""
            if experts:
                why = f" (a mixture of {experts} experts)"
            raise UnsupportedError(
                f"The cost of a decoder of type {text.model_type!r}{why} is not known. "
                f"Known in this family: {', '.join(sorted(known)) or 'none'}."
            )
        kinds = _of(text, "layer_types") or ("full_attention",) * text.num_hidden_layers
        heads, width, depth = text.num_attention_heads, text.hidden_size, text.num_hidden_layers
        head = _of(text, "head_dim") or width // heads
        keys = (_of(text, "num_key_value_heads") or heads) * head
        return cls(
            depth=depth,
            width=width,
            rows=tuple(_projections(text, kind) + _mlp(text, layer) for layer, kind in enumerate(kinds)),
            pairs=(attention(1, 1, heads * head),) * depth,
            keys=(0,) * depth,
            stored=(2 * keys,) * depth,
            recurrent=frozenset(layer for layer, kind in enumerate(kinds) if kind == "linear_attention"),
            state=_state(text),
            vocabulary=text.vocab_size,
            windows=_windows(text),
        )

    def layer(self, index: int, rows: int, keys: int, halved: bool = False) -> int:
        """FLOPs of layer `index` on `rows` rows that look at `keys` rows; `halved` counts half the attention."""
        if index in self.recurrent:
            return rows * self.rows[index] + delta_rule(rows, *self.state)
        looking = rows * keys * self.pairs[index]
        if halved:
            looking //= 2
        return rows * self.rows[index] + keys * self.keys[index] + looking

    def held(self, index: int, rows: int) -> int:
        """Rows in the cache of layer `index` after `rows` rows: those that the next row sees; none beside a state."""
        if index in self.recurrent:
            return 0
        window = self.windows[index]
        if window is None:
            return rows
        return min(rows, window - 1)

    def head(self) -> int:
        """FLOPs of the language-model head on one row."""
        return linear(1, self.width, self.vocabulary)

    def cached(self, index: int, rows: int) -> int:
        """Numbers that layer `index` keeps for `rows` rows: their keys and values."""
        return rows * self.stored[index]


def _experts(text: Any) -> int:
    """Experts of a mixture; 0 for a dense decoder."""
    for name in ("num_experts", "n_routed_experts", "num_local_experts"):
        if count := _of(text, name):
            return int(count)
    return 0


def _state(text: Any) -> tuple[int, int, int]:
    """Heads, key size and value size of recurrent layers."""
    return _of(text, "linear_num_value_heads"), _of(text, "linear_key_head_dim"), _of(text, "linear_value_head_dim")


def _projections(text: Any, kind: str) -> int:
    """FLOPs of a layer's projections on one row: before and behind its attention, or its state."""
    width, heads = text.hidden_size, text.num_attention_heads
    states, key, value = _state(text)
    if kind == "linear_attention":
        # Queries, keys and values; then the gate and the output, (states · value) wide, and two numbers for each state.
        mixed = 2 * _of(text, "linear_num_key_heads") * key + states * value
        gates_decay_output = 2 * linear(1, width, states * value + states)
        return linear(1, width, mixed) + gates_decay_output
    head_dim = _of(text, "head_dim") or width // heads
    wide = 2 * heads  # queries and output
    if states:  # beside recurrent layers, attention has a gate
        wide += heads
    narrow = 2 * (_of(text, "num_key_value_heads") or heads)  # keys and values
    return linear(1, width, (wide + narrow) * head_dim)


def _mlp(text: Any, layer: int) -> int:
    """FLOPs of a layer's MLP on one row: dense; or router, chosen experts and the shared one, as the config says."""
    width: int = text.hidden_size

    def gated(inner: int) -> int:
        return linear(1, width, 2 * inner) + linear(1, inner, width)

    experts = _experts(text)
    # The first layers of some mixtures are dense, as are all but every second one where the step is 2.
    early = layer < _of(text, "first_k_dense_replace") or layer in (_of(text, "mlp_only_layers") or ())
    between = (layer + 1) % (_of(text, "decoder_sparse_step") or 1) != 0
    if not experts or early or between:
        return gated(text.intermediate_size)
    flops: int = linear(1, width, experts) + text.num_experts_per_tok * gated(text.moe_intermediate_size)
    if shared := _of(text, "shared_expert_intermediate_size"):
        return flops + gated(shared) + linear(1, width, 1)  # and its gate
    return flops + gated(_of(text, "n_shared_experts") * text.moe_intermediate_size)


def _of(text: Any, name: str) -> Any:
    """A number or list of a config; 0 where it has none."""
    return getattr(text, name, None) or 0


def _windows(text: Any) -> tuple[int | None, ...]:
    """The window of each layer, as transformers' cache reads it from the config: of all where none is named."""
    window: int | None = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
