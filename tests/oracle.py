"""An independent recompute: a plain loop over the layers, one sample, no hooks, no cache, no engine.

It embeds the prompt, walks the decoder and, before a cut layer, throws rows away. Positions are those of the
unpruned prompt. Nothing here imports foveate.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Choose = Callable[[int, list[Tensor], Tensor], Tensor]
"""(layer, every layer's input so far over all columns, vision columns alive) -> which of them stay (indices)."""


def embed(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Embeddings (1, columns, width), vision columns, and deepstack features if the model has them."""
    core, ids = model.model, inputs["input_ids"]
    embeds = core.get_input_embeddings()(ids)
    vision = ids[0] == model.config.image_token_id
    deep: list[Tensor] = []
    if "pixel_values" in inputs:
        given = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_sizes", "image_grid_thw")}
        output = core.get_image_features(**given)
        embeds = embeds.clone()
        embeds[0, vision] = torch.cat(list(output.pooler_output)).to(embeds.dtype)
        deep = [torch.cat(list(one)) for one in getattr(output, "deepstack_features", None) or []]
    return embeds, vision.nonzero()[:, 0], deep


def positions(model: Any, inputs: Mapping[str, Any], extra: int) -> Tensor:
    """Position ids of the prompt and of `extra` tokens after it, (axes, 1, columns)."""
    ids = inputs["input_ids"]
    length = ids.shape[1]
    if not hasattr(model.model, "get_rope_index"):
        return torch.arange(length + extra)[None, None]
    if "image_grid_thw" in inputs:
        prompt, _ = model.model.get_rope_index(
            ids, mm_token_type_ids=inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
        )
    else:
        prompt = torch.arange(length).expand(3, 1, -1)
    after = prompt.max() + 1 + torch.arange(extra)
    return torch.cat((prompt, after.expand(3, 1, -1)), dim=-1)


def forward(
    model: Any, inputs: Mapping[str, Any], generated: Tensor, cuts: Mapping[int, Tensor | Choose]
) -> tuple[Tensor, dict[int, Tensor]]:
    """Logits of the last prompt token and of every generated one, with tokens thrown away before the cut layers.

    Args:
        model: A tiny model, eager or SDPA.
        inputs: One unpadded sample.
        generated: Token ids after the prompt, (count,).
        cuts: For each cut layer, the kept ordinals of the prompt's vision tokens, or how to choose them.

    Returns:
        (1 + count, vocabulary) logits, and the kept ordinals before each cut layer.
    """
    text = model.model.language_model
    embeds, vision, deep = embed(model, inputs)
    embeds = torch.cat((embeds, model.model.get_input_embeddings()(generated[None])), dim=1)
    ids = positions(model, inputs, len(generated))
    ids = ids[0] if ids.shape[0] == 1 else ids
    columns = torch.arange(embeds.shape[1])
    alive, kept, stream, entered = vision, {}, embeds, []
    ordinal = {int(column): i for i, column in enumerate(vision)}
    for index, layer in enumerate(text.layers):
        entered.append(stream)
        if index in cuts:
            rule = cuts[index]
            alive = alive[rule(index, entered, alive)] if callable(rule) else vision[rule]
            kept[index] = torch.tensor([ordinal[int(column)] for column in alive], dtype=torch.long)
        is_vision = torch.zeros(embeds.shape[1], dtype=torch.bool)
        is_vision[vision] = True
        stays = ~is_vision
        stays[alive] = True
        rows = columns[stays]
        part = stream[:, rows]
        rotary = text.rotary_emb(part, ids[..., rows])
        causal = torch.full((len(rows), len(rows)), torch.finfo(part.dtype).min).triu(1)
        out = layer(part, attention_mask=causal[None, None], position_embeddings=rotary, past_key_values=None)
        stream = stream.clone()
        stream[:, rows] = out
        if index < len(deep):
            stream[:, vision] = stream[:, vision] + deep[index]
    last = inputs["input_ids"].shape[1] - 1
    return model.lm_head(text.norm(stream))[0, last:], kept


def least_changed_leave(ratio: float) -> Choose:
    """V2Drop's rule in other words: sort by the distance moved, drop from the bottom."""

    def choose(layer: int, entered: list[Tensor], alive: Tensor) -> Tensor:
        moved = (entered[layer][0, alive] - entered[layer - 1][0, alive]).float().pow(2).sum(-1)
        stays = max(1, int(len(alive) * ratio))
        return torch.tensor(sorted(sorted(range(len(alive)), key=lambda i: (-moved[i].item(), i))[:stays]))

    return choose


@torch.no_grad()
def greedy(
    model: Any, inputs: Mapping[str, Any], new_tokens: int, cuts: Mapping[int, Tensor | Choose], banned: set[int]
) -> tuple[list[int], Tensor, dict[int, Tensor]]:
    """Greedy tokens by full recompute at every step, the prompt's selection held: (tokens, logits, kept)."""
    tokens: list[int] = []
    frozen: Mapping[int, Tensor | Choose] = cuts
    logits, first = torch.empty(0), {}
    for step in range(new_tokens):
        logits, kept = forward(model, inputs, torch.tensor(tokens, dtype=torch.long), frozen)
        if step == 0:
            first = kept
            frozen = kept
        last = logits[-1].clone()
        last[list(banned)] = float("-inf")
        tokens.append(int(last.argmax()))
    return tokens, logits, first
