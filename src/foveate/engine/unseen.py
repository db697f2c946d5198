"""Begin: refuses a prompt into which pictures may have come past the model's own encoder."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.engine.cache import length_of
from foveate.engine.forward import Arrival, Forward
from foveate.errors import UnsupportedError

PART = 4096
"""Tokens whose embeddings are looked up at once."""


def refuse_unseen(forward: Forward, arrival: Arrival, handed: Mapping[str, Any], cache: Any) -> None:
    """Refuse a prompt in which no vision token is known, if there may be some.

    Args:
        forward: The forward.
        arrival: Knows what ran before the decoder.
        handed: The arguments of the core's forward, or of the decoder's if the core did not run.
        cache: The cache that it begins with; None if there is none.

    Raises:
        UnsupportedError: If pictures were encoded past `get_*_features`, or rows are the embedding of no token.
    """
    family, live, ids, embeds = forward.family, forward.live, arrival.generate_ids, handed.get("inputs_embeds")
    seen, is_fresh = arrival.unseen, cache is None or length_of(cache) == 0
    if embeds is None and not is_fresh:
        seen = ""  # ids behind a cache are text, even if the model gets the pictures of an earlier turn again
    elif embeds is not None and not seen:
        # Rows that are no tokens may also be learned prompts, which PEFT puts before known ids, even at every step.
        places = [place for place in map(family.placeholder, ("image", "video")) if place is not None]
        may_show = ids is None or (is_fresh and bool(torch.isin(ids, ids.new_tensor(places)).any()))
        rows = embeds if live is None else embeds[live[:, -embeds.shape[1] :].to(embeds.device) != 0]
        if may_show and not _are_tokens(rows, family.model.get_input_embeddings()):
            seen = "Some rows of inputs_embeds are the embedding of no token"
    if seen:
        core = type(family.core).__name__
        raise UnsupportedError(
            f"{seen}, and {core} shows no vision token in this prompt: its pictures were merged into embeddings "
            f"elsewhere, so nothing would be dropped. Pass input_ids and pixel_values to {core} or the model around "
            "it, or exit the context for this prompt."
        )


def _are_tokens(rows: Tensor, embedding: Any) -> bool:
    """Return whether each row, (…, width), is the embedding of a token."""
    # Compare the first 8 bytes of each row: two numbers in float32, four in bfloat16.
    numbers = 8 // rows.element_size()
    # accelerate's hooks load weights when they are needed.
    device = rows.device if embedding.weight.is_meta else embedding.weight.device
    ids = torch.arange(embedding.num_embeddings, device=device)
    # Call the module, since some scale what they look up; in parts, since the whole table may not fit twice.
    table = torch.cat([embedding(part)[:, :numbers] for part in torch.split(ids, PART)])
    marks = [part.detach().to(rows).contiguous().view(torch.int64) for part in (rows[..., :numbers], table)]
    return bool(torch.isin(*marks).all())
