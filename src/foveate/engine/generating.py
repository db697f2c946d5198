"""Attach: the call of `generate` that is running."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foveate._transformers import cache_of
from foveate.engine.cache import length_of


@dataclass(slots=True, eq=False)
class Generating:
    """State of the `generate` call that is running. `generate` encodes images before the forward that contains them.

    Attributes:
        runs: Whether a call is running.
        ids: The token ids it will feed, (samples, columns); None: embeddings, or no call is running.
        chunk: Columns per chunk, if it prefills in chunks.
        inside: Cache lengths at which a chunk of its prompt other than the first begins.
        most: The most columns that its prompt and its answer can have; 0 if there is no limit set.
        beams: Number of beams of a beam search.
        splits: Whether chunks cut an image in two, or off the question that the method reads. A chunk that cuts one in
            two may even end in text between its tokens.
        begun: Whether its first forward has run.
    """

    runs: bool = False
    ids: Tensor | None = None
    chunk: int | None = None
    inside: range = range(0)
    most: int = 0
    beams: int = 1
    splits: bool = False
    begun: bool = False

    @classmethod
    def of(cls, arguments: Mapping[str, Any], default: Any) -> "Generating":
        """Return the state of a call.

        Args:
            arguments: Its arguments by name.
            default: The model's own generation config.
        """
        config = arguments.get("generation_config") or default
        set_to = {name: arguments.get(name, getattr(config, name, None)) for name in SETTINGS}
        ids, cache = _new_ids(arguments), cache_of(arguments)
        start, end = 0 if cache is None else max(0, length_of(cache)), 0
        if ids is not None:
            end = start + ids.shape[1]
        elif (embeds := arguments.get("inputs_embeds")) is not None:
            end = embeds.shape[1]
        most = int(set_to["max_length"] or 0)
        if set_to["max_new_tokens"] is not None:
            most = end + int(set_to["max_new_tokens"])
        beams = arguments.get("num_beams") or getattr(config, "num_beams", None) or 1  # None asks for the config's
        return cls(True, ids, set_to["prefill_chunk_size"], range(start + 1, end), most, beams)


SETTINGS = ("prefill_chunk_size", "max_new_tokens", "max_length")
"""Settings of a call, which are arguments or stand in its generation config."""


def _new_ids(arguments: Mapping[str, Any]) -> Tensor | None:
    """Return the ids that `generate` will feed, without those already in its cache."""
    ids = arguments.get("input_ids")
    if ids is None:
        ids = arguments.get("inputs")
    cache, mask = cache_of(arguments), arguments.get("attention_mask")
    if ids is None or cache is None or (mask is not None and mask.shape != ids.shape):
        return ids
    new: Tensor = ids[:, max(0, length_of(cache)) :]
    return new
