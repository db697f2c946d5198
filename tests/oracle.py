"""An independent recompute: a plain loop over the layers, one sample, no hooks, no cache, no engine.

It embeds the prompt, walks the decoder on rows alone and, before a cut layer, asks a rule which rows go on. Nothing
here imports foveate.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache


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
    model: Any,
    inputs: Mapping[str, Any],
    generated: Tensor,
    cuts: Mapping[int, Any],
    *,
    reindex: bool = False,
    tower: Callable[[Tensor], list[tuple[Tensor, Tensor]]] | None = None,
    final_from: int | None = None,
) -> tuple[Tensor, dict[int, list[int]]]:
    """Logits of the last prompt token and of every generated one, with vision tokens leaving before the cut layers.

    Args:
        model: A tiny model, eager or SDPA.
        inputs: One unpadded sample.
        generated: Token ids after the prompt, (count,).
        cuts: For each cut layer the tokens that stay, as ordinals of the prompt's vision tokens (an int64 tensor), or
            a rule: called for each picture with (layer, hidden of all rows up to the picture's last, which of them are
            its own, cos and sin of these rows, the rows' states one layer earlier), it answers (its rows that the new
            ones stand for, their new states).
        reindex: Number rows anew, 0 on, at every layer.
        tower: Called with the picture features of each picture, it answers (tokens they stand for, features) of each.
        final_from: Generated tokens see, from this layer on, only the vision tokens left at the end.

    Returns:
        (1 + count, vocabulary) logits, and the tokens left after each cut, in row order.
    """
    text, core = model.model.language_model, model.model
    embeds, vision, deep = embed(model, inputs)
    ids = positions(model, inputs, len(generated))
    ids = ids[0] if ids.shape[0] == 1 else ids
    length = inputs["input_ids"].shape[1]
    picture = torch.full((length,), -1)
    if len(vision):
        starts = torch.cat((torch.tensor([True]), vision.diff() > 1))
        picture[vision] = starts.cumsum(0) - 1
    columns = torch.arange(length)
    token = torch.full((length,), -2)
    token[vision] = torch.arange(len(vision))
    x = embeds[0]
    if tower is not None and len(vision):
        x, token, columns, picture = _reduced(x, token, columns, picture, tower(embeds[0, vision]))
    grown = core.get_input_embeddings()(generated)
    count = len(generated)
    x = torch.cat((x, grown))
    token = torch.cat((token, torch.full((count,), -2)))
    columns = torch.cat((columns, length + torch.arange(count)))
    picture = torch.cat((picture, torch.full((count,), -1)))
    entered: Tensor = x
    kept: dict[int, list[int]] = {}
    final: list[int] | None = None
    if final_from is not None:
        final = _final(model, inputs, cuts, reindex, tower)
    for index, layer in enumerate(text.layers):
        if index in cuts:
            rotary = _rotary(text, x, ids, columns, reindex)
            x, entered, token, columns, picture = _cut(layer, cuts[index], x, entered, token, columns, picture, rotary)
            kept[index] = token[token > -2].tolist()
        cos, sin = _rotary(text, x, ids, columns, reindex)
        if reindex and final is not None and index >= final_from:  # decoding counts on from each layer's own cache
            gone = sum(1 for one in token[token > -2].tolist() if one not in final)
            shifted = torch.arange(len(x))
            if count:
                shifted[-count:] -= gone
            cos, sin = text.rotary_emb(x[None], shifted[None])
        n = len(x)
        mask = torch.ones(n, n, dtype=torch.bool).tril()
        if final is not None and index >= final_from and count:
            gone_rows = torch.tensor([int(t) > -2 and int(t) not in final for t in token])
            mask[-count:, gone_rows] = False
        bias = torch.zeros(n, n).masked_fill(~mask, torch.finfo(torch.float32).min)
        entered = x
        x = layer(x[None], attention_mask=bias[None, None], position_embeddings=(cos, sin), past_key_values=None)[0]
        if index < len(deep):
            there = token >= 0
            x = x.clone()
            x[there] = x[there] + deep[index][token[there]]
    return model.lm_head(text.norm(x))[len(x) - count - 1 :], kept


def _final(model, inputs, cuts, reindex, tower) -> list[int]:
    """The tokens left at the end."""
    _, kept = forward(model, inputs, torch.tensor([], dtype=torch.long), cuts, reindex=reindex, tower=tower)
    return kept[max(kept)] if kept else list(range(10_000))


def _rotary(text: Any, x: Tensor, ids: Tensor, columns: Tensor, reindex: bool) -> tuple[Tensor, Tensor]:
    rows = torch.arange(len(x))[None] if reindex else ids[..., columns]
    return text.rotary_emb(x[None], rows)


def _reduced(x, token, columns, picture, reduced):
    """Rows with every picture's replaced by (tokens, features); a row's column is its token's."""
    parts, start = [], 0
    vision = columns[picture >= 0]
    for index, (tokens, features) in enumerate(reduced):
        mine = (picture == index).nonzero()[:, 0]
        first = len(vision[: (picture[picture >= 0] < index).sum()])
        parts.append((torch.arange(start, int(mine[0])), None, None))
        parts.append((None, torch.where(tokens < 0, tokens, tokens + first), features))
        start = int(mine[-1]) + 1
    parts.append((torch.arange(start, len(x)), None, None))
    rows, names, places, owners, which = [], [], [], [], -1
    for text_rows, tokens, features in parts:
        if tokens is None:
            rows.append(x[text_rows])
            names.append(token[text_rows])
            places.append(columns[text_rows])
            owners.append(picture[text_rows])
        else:
            which += 1
            rows.append(features)
            names.append(tokens)
            places.append(vision[tokens.clamp(min=0)])
            owners.append(torch.full((len(tokens),), which))
    return torch.cat(rows), torch.cat(names), torch.cat(places), torch.cat(owners)


def _cut(layer, rule, x, entered, token, columns, picture, rotary):
    """All rows after one cut, picture by picture."""
    if isinstance(rule, Tensor):
        stays = (token == -2) | torch.isin(token, rule)
        return x[stays], entered[stays], token[stays], columns[stays], picture[stays]
    parts, start = [], 0
    for index in range(int(picture.max()) + 1):
        mine = (picture == index).nonzero()[:, 0]
        if not len(mine):
            continue
        upto = int(mine[-1]) + 1
        cos, sin = rotary[0][0, :upto], rotary[1][0, :upto]
        stand, states = rule(layer, x[:upto], mine, (cos, sin), entered[:upto])
        text_rows = torch.arange(start, int(mine[0]))
        parts.append((x[text_rows], entered[text_rows], token[text_rows], columns[text_rows], picture[text_rows]))
        rows = mine[stand]
        parts.append((states, entered[rows], token[rows], columns[rows], picture[rows]))
        start = upto
    rest = torch.arange(start, len(x))
    parts.append((x[rest], entered[rest], token[rest], columns[rest], picture[rest]))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def least_changed_leave(ratio: float) -> Callable[..., tuple[Tensor, Tensor]]:
    """V2Drop's rule in other words, for one picture: sort by the distance moved, drop from the bottom."""

    def choose(layer, x, mine, rotary, entered):
        moved = (x[mine] - entered[mine]).pow(2).sum(-1)
        stays = max(1, int(len(mine) * ratio))
        stand = torch.tensor(sorted(sorted(range(len(mine)), key=lambda i: (-moved[i].item(), i))[:stays]))
        return stand, x[mine[stand]]

    return choose


def dense_attention(layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], sees_all: Tensor | None = None) -> Tensor:
    """The layer's own eager attention over all rows, causal but for the rows in `sees_all`: (rows, rows), head mean."""
    attention, n = layer.self_attn, len(x)
    sees = torch.ones(n, n, dtype=torch.bool).tril()
    if sees_all is not None:
        sees[sees_all] = True
    bias = torch.zeros(n, n).masked_fill(~sees, torch.finfo(x.dtype).min)
    real = attention.config._attn_implementation
    attention.config._attn_implementation = "eager"
    try:
        _, weights = attention(
            layer.input_layernorm(x[None]),
            position_embeddings=(rotary[0][None], rotary[1][None]),
            attention_mask=bias[None, None],
        )
    finally:
        attention.config._attn_implementation = real
    return weights[0].mean(0)


def keys_after_rope(layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over key heads of the layer's keys after RoPE, read from the cache it writes: (rows, head size)."""
    cache = DynamicCache()
    normed = layer.input_layernorm(x[None])
    attention = layer.self_attn
    index, attention.layer_idx = attention.layer_idx, 0
    try:
        attention(
            normed, position_embeddings=(rotary[0][None], rotary[1][None]), attention_mask=None, past_key_values=cache
        )
    finally:
        attention.layer_idx = index
    return cache.layers[0].keys[0].mean(0)


def merged(
    x: Tensor, scores: Tensor, metric: Tensor, dominant: int, contextual: int, how: str
) -> tuple[Tensor, Tensor]:
    """Dominant and contextual rows, a loop over tokens: (rows they stand for, states)."""
    order = sorted(range(len(x)), key=lambda i: (-scores[i].item(), i))
    kept = sorted(order[:dominant])
    rest = [i for i in range(len(x)) if i not in kept]
    contextual = min(contextual, len(rest))
    step = max(1, len(rest) // contextual) if contextual else 1
    targets = [rest[j * step] for j in range(contextual)]
    joined: dict[int, list[int]] = {target: [] for target in targets}
    unit = metric / metric.norm(dim=-1, keepdim=True)
    for i in rest:
        if targets and i not in targets:
            near = [float(unit[i] @ unit[target]) for target in targets]
            joined[targets[near.index(max(near))]].append(i)
    states = [x[i] for i in kept]
    for target in targets:
        members = [x[i] for i in joined[target]]
        if how == "average":
            states.append(torch.stack([x[target], *members]).mean(0))
        else:
            states.append(x[target] + torch.stack(members).mean(0) if members else x[target])
    return torch.tensor(kept + targets), torch.stack(states)


def vision_decides(counts: Callable[[int], tuple[int, int]], how: str, bidirectional: bool = False):
    """VisionDrop's decoder cut from the layer's own dense attention; `counts` by the rows that arrive."""

    def choose(layer, x, mine, rotary, entered):
        dominant, contextual = counts(len(mine))
        if dominant + contextual >= len(mine):
            return torch.arange(len(mine)), x[mine]
        weights = dense_attention(layer, x, rotary, mine if bidirectional else None)
        scores = weights[mine][:, mine].mean(0)
        return merged(x[mine], scores, keys_after_rope(layer, x, rotary)[mine], dominant, contextual, how)

    return choose


@torch.no_grad()
def greedy(
    model: Any, inputs: Mapping[str, Any], new_tokens: int, cuts: Mapping[int, Any], banned: set[int], **settings: Any
) -> tuple[list[int], Tensor, dict[int, list[int]]]:
    """Greedy tokens by full recompute at every step: (tokens, logits, tokens left after each cut)."""
    tokens: list[int] = []
    logits, first = torch.empty(0), {}
    for step in range(new_tokens):
        generated = torch.tensor(tokens, dtype=torch.long)
        logits, kept = forward(model, inputs, generated, cuts, **settings)
        first = first if step else kept
        last = logits[-1].clone()
        last[list(banned)] = float("-inf")
        tokens.append(int(last.argmax()))
    return tokens, logits, first
