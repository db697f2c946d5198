"""The hidden-column oracle: the untouched model, where no row sees dropped tokens. Nothing of the engine is in it.

The model runs on prompt and answer at once, without a cache. Nothing is gathered: positions, routers, deepstack and
windows are the model's own. Around each decoder layer only the mask changes: of the tokens that have been dropped by
then, the columns are hidden from every other row. An example: of four columns, column 1 was dropped before the layer.

    row 0   1 . . .
    row 1   1 1 . .      a dropped row still sees itself, so that its softmax is finite; nobody reads what it makes
    row 2   1 0 1 .
    row 3   1 0 1 1

A layer that carries a state has no columns to hide, so it runs on the rows that are left.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from foveate._transformers import by_name
from foveate.core.patching import Patcher
from foveate.errors import UnsupportedError
from foveate.families.base import Family

DENSE = ("sdpa", "eager")
"""Kernels whose mask says of every row what it sees."""

Inputs = Mapping[str, Any]


class Oracle:
    """Runs a model with columns hidden.

    Args:
        family: Says where the decoder's layers are.
        inputs: One sample.
        answer: Token ids behind the prompt, (count,).

    Attributes:
        vision: Columns of the vision tokens, in order; known after the first run.
        windows: Whether any layer's last row does not see the whole prompt; known after the first run.
    """

    def __init__(self, family: Family, inputs: Inputs, answer: Tensor) -> None:
        self._family = family
        self._prompt = inputs["input_ids"].shape[1]
        self._inputs = columns_of(inputs, [[*range(self._prompt), *[self._prompt - 1] * len(answer)]])
        self._inputs["input_ids"][0, self._prompt :] = answer.to(self._inputs["input_ids"])
        self._rows = len(answer) + 1
        self.vision = torch.zeros(0, dtype=torch.long)
        self.windows = False

    def nothing(self) -> Tensor:
        """No column is hidden; see `logits`."""
        return torch.zeros(len(self._family.layers), 2, self._prompt, dtype=torch.bool)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of the prompt's last column and of the answer's: (1 + count, vocabulary) float32.

        Args:
            hidden: (layers, 2, columns) bool, which columns of the prompt are hidden in a layer: first from every row,
                then from rows of the answer alone, as those are which were cut from a cache behind the prompt.
        """
        family = self._family
        self._placed: list[Tensor] = []
        with Patcher() as patches, dense_kernel(family):
            if family.merger is None:
                self._note_masks(family.masks_by_ids(self._inputs))
            else:
                patches.wrap(family.core, family.merger, self._note_vision)
            for index, layer in enumerate(family.layers):
                around = self._state_layer if index in family.recurrent else self._attention_layer
                patches.wrap(layer, "forward", partial(around, layer, hidden[index]))
            return self.plainly()

    @torch.no_grad()
    def plainly(self) -> Tensor:
        """Logits of the same rows, of the model as it is now."""
        output = self._family.model(**self._inputs, use_cache=False, logits_to_keep=self._rows)
        logits: Tensor = output.logits[0, -self._rows :].float().cpu()
        return logits

    def _note_vision(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        answer = original(*args, **kwargs)
        arguments = inspect.signature(original).bind(*args, **kwargs).arguments
        self._note_masks(self._family.vision_masks(answer, {**self._inputs, **arguments}))
        return answer

    def _note_masks(self, masks: Sequence[tuple[str, Tensor]]) -> None:
        # A merger may be called once for the images and once for the videos.
        self._placed += [mask[0].flatten(1)[:, 0] if mask.dim() > 2 else mask[0] for _, mask in masks]
        if self._placed:
            self.vision = torch.stack(self._placed).any(dim=0).nonzero()[:, 0].cpu()

    # -- layers -----------------------------------------------------------------------------------------------

    def _attention_layer(self, layer: nn.Module, hidden: Tensor, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a layer on all rows, with its own mask and the hidden columns."""
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
            raise UnsupportedError(f"foveate check cannot hide columns in the mask that {type(layer).__name__} gets.")
        unseen = self._unseen(hidden, rows)[-last:].to(mask.device)  # some layers get the last rows alone
        if mask.dtype == torch.bool:
            self.windows |= not bool(mask[..., -1, :].all())
            kwargs["attention_mask"] = mask & ~unseen
        else:
            self.windows |= bool((mask[..., -1, :] < 0).any())
            kwargs["attention_mask"] = mask.masked_fill(unseen, torch.finfo(mask.dtype).min)
        return original(*args, **kwargs)

    def _unseen(self, hidden: Tensor, rows: int) -> Tensor:
        """What is hidden from each row, (rows, rows) bool."""
        column, row = torch.arange(rows), torch.arange(rows)[:, None]
        gone, unread = nn.functional.pad(hidden, (0, rows - self._prompt))
        unseen = gone | (unread & (row >= self._prompt))
        # Where all of a prompt sees all of it (PaliGemma), it must not see the answer that comes later.
        unseen = unseen | ((column >= self._prompt) & (column > row))
        return torch.logical_and(unseen, column != row)

    def _state_layer(self, _: nn.Module, hidden: Tensor, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a layer with a state on the rows that are left; the others stay as they come."""
        states = args[0] if args else kwargs.pop("hidden_states")
        gone = nn.functional.pad(hidden[0], (0, states.shape[1] - self._prompt))
        rows = (~gone).nonzero()[:, 0].to(states.device)
        if kwargs.get("attention_mask") is not None:
            kwargs["attention_mask"] = kwargs["attention_mask"][:, rows]
        output = original(states[:, rows], *args[1:], **kwargs)
        made = output[0] if isinstance(output, tuple) else output
        rows_of_all = states.index_copy(1, rows, made)
        if isinstance(output, tuple):
            return (rows_of_all, *output[1:])
        return rows_of_all


def columns_of(inputs: Inputs, samples: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A left-padded batch, each sample made of these columns of one sample's; tensors of pictures stay as they are."""
    ids = inputs["input_ids"]
    longest = max(map(len, samples))
    places = torch.tensor([[0] * (longest - len(columns)) + list(columns) for columns in samples])
    live = torch.tensor([[0] * (longest - len(columns)) + [1] * len(columns) for columns in samples])
    places, live = places.to(ids.device), live.to(ids.device)
    batch = dict(inputs)
    batch.setdefault("attention_mask", torch.ones_like(ids))
    for name, values in batch.items():
        if isinstance(values, Tensor) and values.shape == ids.shape:
            batch[name] = values[0][places] * live.to(values.dtype)
    return batch


@contextmanager
def dense_kernel(family: Family) -> Iterator[None]:
    """Let the decoder attend by a kernel that takes a dense mask: its own, or eager in the place of flash and flex."""
    config = family.text.config
    kernel = config._attn_implementation
    try:
        config._attn_implementation = kernel if kernel in DENSE else "eager"
        yield
    finally:
        config._attn_implementation = kernel
