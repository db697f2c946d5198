"""The decoder's shape, and what its layers, its head and its cache cost."""

from collections.abc import Set
from dataclasses import dataclass
from typing import Any, Self

from foveate.core.flops import attention, linear
from foveate.errors import UnsupportedError

__all__ = ["Decoder"]


@dataclass(frozen=True, slots=True)
class Decoder:
    """A dense decoder with a gated MLP, grouped-query attention included.

    Attributes:
        depth: Layers.
        width: The residual stream's.
        inner: The MLP's.
        heads, kv_heads, head_dim: Of the attention; heads · head_dim may differ from `width`.
        vocabulary: Columns of the head; tied to the embedding or not, it computes the same.
        windows: Tokens a row of each layer sees, its own included; None if all.
    """

    depth: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    windows: tuple[int | None, ...]

    @classmethod
    def of(cls, text: Any, known: Set[str]) -> Self:
        """The decoder of a text config whose `model_type` is among the `known`.

        Raises:
            UnsupportedError: If it is not, as with mixtures of experts.
        """
        if text.model_type not in known:
            experts = [n for n in ("num_experts", "num_local_experts", "n_routed_experts") if hasattr(text, n)]
            why = f" (a mixture of experts: {experts[0]}={getattr(text, experts[0])})" if experts else ""
            raise UnsupportedError(
                f"What a decoder of type {text.model_type!r}{why} costs is not known. "
                f"Known in this family: {', '.join(sorted(known))}."
            )
        return cls(
            depth=text.num_hidden_layers,
            width=text.hidden_size,
            inner=text.intermediate_size,
            heads=text.num_attention_heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or text.num_attention_heads,
            head_dim=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            vocabulary=text.vocab_size,
            windows=_windows(text),
        )

    def layer(self, rows: int, keys: int, halved: bool = False) -> int:
        """FLOPs of a layer on `rows` rows that look at `keys` rows; `halved` counts half the attention."""
        queries = 2 * linear(rows, self.width, self.heads * self.head_dim)  # with the output projection
        keys_values = 2 * linear(rows, self.width, self.kv_heads * self.head_dim)
        mlp = linear(rows, self.width, 2 * self.inner) + linear(rows, self.inner, self.width)
        return queries + keys_values + mlp + attention(rows, keys, self.heads * self.head_dim) // (1 + halved)

    def held(self, layer: int, rows: int) -> int:
        """Rows in a layer's cache once `rows` are through: no more than a later one sees."""
        window = self.windows[layer]
        return rows if window is None else min(rows, window - 1)

    def head(self) -> int:
        """FLOPs of the language-model head on one row."""
        return linear(1, self.width, self.vocabulary)

    def cached(self, rows: int) -> int:
        """Numbers a layer keeps for `rows` rows: their keys and values."""
        return 2 * rows * self.kv_heads * self.head_dim


def _windows(text: Any) -> tuple[int | None, ...]:
    """The window of each layer, as transformers' cache reads it from the config: of all where none is named."""
    window: int | None = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
