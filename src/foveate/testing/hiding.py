"""The hidden-column oracle: the unmodified model with dropped tokens masked. It shares no code with the engine.

The model runs once on prompt and answer, without a cache. No rows are removed, so positions, routers, deepstack and
windows are the model's own. Only the attention mask of each decoder layer changes: the columns of tokens dropped before
that layer are hidden from all other rows. Example with four columns, of which column 1 was dropped:

    row 0   1 . . .
    row 1   1 1 . .      a dropped row still attends to itself, which keeps its softmax finite; its output is not used
    row 2   1 0 1 .
    row 3   1 0 1 1

A layer with a recurrent state has no columns to hide, so it runs on the remaining rows only.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate._transformers import by_name
from foveate.core.patching import Patcher
from foveate.errors import UnsupportedError
from foveate.families.base import Family

DENSE = ("sdpa", "eager")
"""Attention kernels that take a dense mask."""

Inputs = Mapping[str, Any]


class Oracle:
    """Runs a model with hidden columns.

    Args:
        family: The family of the model, which gives its decoder layers.
        inputs: One sample.
        answer: Token ids after the prompt, (count,).

    Attributes:
        vision: Columns of the vision tokens, ascending; set by the first run.
    """

    def __init__(self, family: Family, inputs: Inputs, answer: Tensor) -> None:
        self._family = family
        self._prompt = inputs["input_ids"].shape[1]
        self._inputs = columns_of(inputs, [[*range(self._prompt), *[self._prompt - 1] * len(answer)]])
        self._inputs["input_ids"][0, self._prompt :] = answer.to(self._inputs["input_ids"])
        self._rows = len(answer) + 1
        self.vision = torch.zeros(0, dtype=torch.long)

    def nothing(self) -> Tensor:
        """Return the argument of `logits` that hides no column."""
        return torch.zeros(len(self._family.layers), 2, self._prompt, dtype=torch.bool)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits of the prompt's last row and of the answer's rows: (1 + count, vocabulary) float32.

        Args:
            hidden: (layers, 2, columns) bool, the columns of the prompt that are hidden in each layer. [:, 0] hides
                from every row, [:, 1] only from rows of the answer, for tokens cut from a cache after the prefill.
        """
        family, config = self._family, self._family.text.config
        self._placed: list[Tensor] = []
        kernel = config._attn_implementation
        try:
            config._attn_implementation = kernel if kernel in DENSE else "eager"  # instead of flash and flex
            with Patcher() as patches:
                if family.merger is None:
                    self._note_masks(family.masks_by_ids(self._inputs))
                else:
                    patches.wrap(family.core, family.merger, self._note_vision)
                for index, layer in enumerate(family.layers):
                    around = self._state_layer if index in family.recurrent else self._attention_layer
                    patches.wrap(layer, "forward", partial(around, layer, hidden[index]))
                return self.plainly()
        finally:
            config._attn_implementation = kernel

    @torch.no_grad()
    def plainly(self) -> Tensor:
        """Return the logits of these rows from the model in its current state."""
        output = self._family.model(**self._inputs, use_cache=False, logits_to_keep=self._rows)
        logits: Tensor = output.logits[0, -self._rows :].float().cpu()
        return logits

    def _note_vision(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        answer = original(*args, **kwargs)
        arguments = inspect.signature(original).bind(*args, **kwargs).arguments
        self._note_masks(self._family.vision_masks(answer, {**self._inputs, **arguments}))
        return answer

    def _note_masks(self, masks: Sequence[tuple[str, Tensor]]) -> None:
        # A merger may be called once for the images and once for the videos, so masks are collected and joined.
        # (1, columns, …) -> (columns,)
        self._placed += [mask[0].flatten(1)[:, 0] if mask.dim() > 2 else mask[0] for _, mask in masks]
        if self._placed:
            self.vision = torch.stack(self._placed).any(dim=0).nonzero()[:, 0].cpu()

    # -- layers -----------------------------------------------------------------------------------------------

    def _attention_layer(self, layer: nn.Module, hidden: Tensor, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a layer on all rows, with the hidden columns added to its own mask."""
        if args[1:]:
            args, kwargs = args[:1], by_name(layer, args, kwargs)
        states = args[0] if args else kwargs["hidden_states"]
        mask, rows = kwargs.get("attention_mask"), self._inputs["input_ids"].shape[1]
        if mask is None:
            mask = torch.ones(1, 1, rows, rows, dtype=torch.bool, device=states.device)
            causal = all(getattr(part, "is_causal", True) for part in layer.modules())
            mask = mask.tril() if causal else mask
        last = mask.shape[-2] if isinstance(mask, Tensor) else 0
        if not isinstance(mask, Tensor) or mask.dim() != 4 or mask.shape[-1] != rows:
            raise UnsupportedError(f"foveate check cannot hide columns in the mask of {type(layer).__name__}.")
        unseen = self._hidden_columns(hidden, rows)[-last:].to(mask.device)  # some layers get only the last rows
        if mask.dtype == torch.bool:
            kwargs["attention_mask"] = mask & ~unseen
        else:
            kwargs["attention_mask"] = mask.masked_fill(unseen, torch.finfo(mask.dtype).min)
        return original(*args, **kwargs)

    def _hidden_columns(self, hidden: Tensor, rows: int) -> Tensor:
        """Return the columns hidden from each row, (rows, rows) bool."""
        column, row = torch.arange(rows), torch.arange(rows)[:, None]  # (rows,) and (rows, 1): broadcast to a matrix
        gone, unread = nn.functional.pad(hidden, (0, rows - self._prompt))  # (2, prompt) -> two of (rows,)
        unseen = gone | (unread & (row >= self._prompt))
        # In a prompt with bidirectional attention (PaliGemma), rows must not attend to the answer after it.
        unseen = unseen | ((column >= self._prompt) & (column > row))
        return torch.logical_and(unseen, column != row)

    def _state_layer(self, _: nn.Module, hidden: Tensor, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a layer with a state on the remaining rows; the others pass through unchanged."""
        states = args[0] if args else kwargs.pop("hidden_states")
        gone = nn.functional.pad(hidden[0], (0, states.shape[1] - self._prompt))
        rows = (~gone).nonzero()[:, 0].to(states.device)
        if kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = kwargs["attention_mask"][:, rows]
        output = original(states[:, rows], *args[1:], **kwargs)
        rows_out = output[0] if isinstance(output, tuple) else output
        rows_of_all = states.index_copy(1, rows, rows_out)
        if isinstance(output, tuple):
            return (rows_of_all, *output[1:])
        return rows_of_all


def columns_of(inputs: Inputs, samples: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Build a left-padded batch from one sample. Tensors of pictures are not changed.

    Args:
        inputs: One sample.
        samples: For each sample of the batch the columns of the input to copy, in order: [[0, 1, 2], [0, 2]] makes a
            batch of two, whose second sample has one column of padding.
    """
    ids = inputs["input_ids"]
    longest = max(map(len, samples))
    # For [[0, 1, 2], [0, 2]]: places [[0, 1, 2], [0, 0, 2]], live [[1, 1, 1], [0, 1, 1]].
    places = torch.tensor([[0] * (longest - len(columns)) + list(columns) for columns in samples])
    live = torch.tensor([[0] * (longest - len(columns)) + [1] * len(columns) for columns in samples])
    places, live = places.to(ids.device), live.to(ids.device)
    batch = dict(inputs)
    batch.setdefault("attention_mask", torch.ones_like(ids))
    for name, values in batch.items():
        if isinstance(values, Tensor) and values.shape == ids.shape:
            batch[name] = values[0][places] * live.to(values.dtype)
    return batch
