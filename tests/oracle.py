"""An independent recompute: a plain loop over the layers, one sample, no hooks, no cache, no engine.

It embeds the prompt, walks the decoder on rows alone and, before a cut layer, asks a rule which rows go on. Nothing
here imports foveate.
"""

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask

CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
"""What transformers calls the cache of a call: from 5.24 on, and before."""

TILED = {"idefics3", "internvl", "smolvlm"}


def embed(model: Any, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Embeddings (1, columns, width), the picture or video of each column (−1 for text, −2 for a vision token that is
    no patch and always stays), and deepstack features of the vision columns, if the model has them."""
    core, ids = model.model, inputs["input_ids"][0]
    embeds = core.get_input_embeddings()(inputs["input_ids"]).clone()
    owner, deep = torch.full(ids.shape, -1), []
    for modality in ("image", "video"):
        if not (media := features_given(core, inputs, modality)):
            continue
        output = getattr(core, f"get_{modality}_features")(**media)
        names = (f"{modality}_token_id", f"{modality}_token_index")
        if "mm_token_type_ids" in inputs:  # a video's placeholders may be those of images
            there = inputs["mm_token_type_ids"][0] == 1 + (modality == "video")
        else:
            there = ids == next(id_ for name in names if (id_ := getattr(model.config, name, None)) is not None)
        features = by_picture(model, features_of(core, output, media, modality), there)
        embeds[0, there] = torch.cat(features).to(embeds.dtype)
        lengths = torch.tensor([len(one) for one in features])
        owner[there] = torch.repeat_interleave(torch.arange(len(features)), lengths) + int(owner.max()) + 1
        if modality == "video" and model.config.model_type == "video_llava":
            vision = model.config.vision_config
            owner[there.nonzero()[:: (vision.image_size // vision.patch_size) ** 2 + 1]] = -2  # the CLS of each frame
        for depth, added in enumerate(getattr(output, "deepstack_features", None) or []):
            whole = deep.pop(depth) if depth < len(deep) else torch.zeros_like(embeds[0])
            whole[there] = (added if isinstance(added, Tensor) else torch.cat(list(added))).to(whole.dtype)
            deep.insert(depth, whole)
    return embeds, _in_order(owner), [added[owner != -1] for added in deep]


def features_given(core: Any, inputs: Mapping[str, Any], modality: str) -> dict[str, Any]:
    """Of a model's inputs those that its `get_*_features` takes; empty where there are no pictures (or videos)."""
    call = getattr(core, f"get_{modality}_features", None)
    names = {name: name for name in ([] if call is None else inspect.signature(call).parameters)}
    if modality == "video" and "pixel_values" in names:  # transformers 5.16
        names["pixel_values"] = "pixel_values_videos"
    arguments = {name: inputs[from_] for name, from_ in names.items() if from_ in inputs}
    return arguments if any(name.startswith("pixel_values") for name in arguments) else {}


def features_of(core: Any, output: Any, given: Mapping[str, Any], modality: str) -> list[Tensor]:
    """The features of each picture (or video) that takes part in the prompt, (tokens, width) each."""
    features, pixels = list(output.pooler_output), given.get("pixel_values_videos")
    if modality == "video" and "pixel_values" in given and hasattr(core, "image_newline"):  # transformers 5.16
        return [torch.cat((one, core.image_newline[None])) for one in features]
    if pixels is not None and pixels.dim() == 5:  # some models answer frame by frame
        each = len(features) // len(pixels)
        return [torch.cat(features[at : at + each]) for at in range(0, len(features), each)]
    return features


def by_picture(model: Any, features: Any, there: Tensor) -> list[Tensor]:
    """The features of each picture, (tokens, width) each.

    Where they come as tiles or sample by sample, a picture is what stands together in the prompt, with at most four
    tokens of text between its tiles.

    Args:
        model: Tells by its type how features come.
        features: The pieces they come in.
        there: Where the prompt has vision tokens, (columns,) bool.
    """
    if model.config.model_type not in TILED:
        return list(features)
    together, columns = torch.cat([one.flatten(0, -2) for one in features]), there.nonzero()[:, 0]
    ends = [*(columns.diff() > 5).nonzero()[:, 0] + 1, len(columns)]
    return [together[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _in_order(owner: Tensor) -> Tensor:
    """Pictures and videos numbered as they come in the prompt."""
    first = [int((owner == one).nonzero()[0, 0]) for one in range(int(owner.max()) + 1)]
    rank = torch.tensor(first, dtype=torch.long).argsort().argsort()
    return torch.where(owner < 0, owner, rank[owner.clamp(min=0)] if first else owner)


def positions(model: Any, inputs: Mapping[str, Any], extra: int) -> Tensor:
    """Position ids of the prompt and of `extra` tokens after it, (axes, 1, columns)."""
    ids = inputs["input_ids"]
    length = ids.shape[1]
    if not hasattr(model.model, "get_rope_index"):
        first = int(model.config.model_type == "paligemma")  # which counts from 1
        return torch.arange(first, first + length + extra)[None, None]
    if any(name.endswith("grid_thw") for name in inputs):
        call = model.model.get_rope_index
        arguments = {k: inputs[k] for k in inspect.signature(call).parameters if k in inputs and k != "attention_mask"}
        prompt, _ = call(**arguments)
    else:
        prompt = torch.arange(length).expand(3, 1, -1)
    return torch.cat((prompt, prompt[..., -1:] + 1 + torch.arange(extra)), dim=-1)  # as generate counts on


def forward(
    model: Any,
    inputs: Mapping[str, Any],
    generated: Tensor,
    cuts: Mapping[int, Any],
    *,
    reindex: bool = False,
    tower: Callable[[Tensor], list[tuple[Tensor, Tensor, Tensor]]] | None = None,
    final_from: int | None = None,
    sees: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, dict[int, list[int]]]:
    """Logits of the last prompt token and of every generated one, with vision tokens leaving before the cut layers.

    Args:
        model: A tiny model, eager or SDPA.
        inputs: One unpadded sample.
        generated: Token ids after the prompt, (count,).
        cuts: For each cut layer the tokens that stay, as ordinals of the prompt's vision tokens (an int64 tensor), or
            a rule: called for each picture with (layer, hidden of all rows, which of them are its own, cos and sin of
            all, their states one layer earlier, which of them see which), it answers (its rows that the new ones stand
            for, their new states, or None where they go on as they are; and perhaps how much each weighs as a key).
        reindex: Number rows anew, 0 on, at every layer.
        tower: Called with the picture features of each picture, it answers (tokens they stand for, features, features
            of those that always stay) of each.
        final_from: Generated tokens see, from this layer on, only the vision tokens left at the end.
        sees: Which rows see which, in the place of what the family's tests say (`Tiny.sees`).

    Returns:
        (1 + count, vocabulary) logits, and the tokens left after each cut, in row order.
    """
    text, core = model.get_decoder(), model.model
    embeds, picture, deep = embed(model, inputs)
    ids = positions(model, inputs, len(generated))
    ids = ids[0] if ids.shape[0] == 1 else ids
    length = inputs["input_ids"].shape[1]
    vision = (picture != -1).nonzero()[:, 0]
    # A row has the position of its column, by which windows count, and comes before or behind others by its place.
    columns = places = torch.arange(length)
    token = torch.full((length,), -2)
    token[vision] = torch.arange(len(vision))
    x = embeds[0]
    if tower is not None and len(vision):
        x, token, columns, picture, places = _reduced(x, token, columns, picture, tower(embeds[0, vision]))
    grown = core.get_input_embeddings()(generated)
    count = len(generated)
    x = torch.cat((x, grown))
    token = torch.cat((token, torch.full((count,), -2)))
    columns, places = (torch.cat((one, length + torch.arange(count))) for one in (columns, places))
    picture = torch.cat((picture, torch.full((count,), -1)))
    weight = torch.ones(len(x))
    entered: Tensor = x
    kept: dict[int, list[int]] = {}
    final: list[int] | None = None
    if final_from is not None:
        final = _final(model, inputs, cuts, reindex, tower, sees)
    for index, layer in enumerate(text.layers):
        if index in cuts:
            rotary = _rotary(text, index, x, torch.arange(len(x))[None] if reindex else ids[..., columns])
            seen = visible(model, index, places, picture, length, sees, torch.arange(len(x)) if reindex else columns)
            rows = (x, entered, token, columns, picture, places, weight)
            x, entered, token, columns, picture, places, weight = _cut(layer, cuts[index], rows, rotary, seen)
            kept[index] = token[token > -2].tolist()
        cos, sin = _rotary(text, index, x, torch.arange(len(x))[None] if reindex else ids[..., columns])
        if reindex and final is not None and index >= final_from:  # decoding counts on from each layer's own cache
            gone = sum(1 for one in token[token > -2].tolist() if one not in final)
            shifted = torch.arange(len(x))
            if count:
                shifted[-count:] -= gone
            cos, sin = _rotary(text, index, x, shifted[None])
        counts = torch.arange(len(x)) if reindex else columns
        mask = visible(model, index, places, picture, length, sees, counts)
        if final is not None and index >= final_from and count:
            gone_rows = torch.tensor([int(t) > -2 and int(t) not in final for t in token])
            if reindex:  # what is left in the cache is counted anew
                counts = (~gone_rows).cumsum(0) - 1
                mask[-count:] = visible(model, index, places, picture, length, sees, counts)[-count:]
            mask[-count:, gone_rows] = False
        bias = weight.log().expand(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        entered = x
        seen = bias[None, None] if hasattr(layer, "self_attn") else None  # a recurrent layer reads its rows in order
        row = torch.arange(len(x))[None] if reindex else ids[..., columns]
        placed = {"position_ids": row} if _scales(layer) else {}
        if hasattr(layer, "self_attn") and "shared_kv_states" in inspect.signature(layer.forward).parameters:
            placed["shared_kv_states"] = {}  # where layers may share keys, also where none do
        x = layer(x[None], attention_mask=seen, position_embeddings=(cos, sin), **{CACHE: None}, **placed)[0]
        if index < len(deep):
            there = token >= 0
            x = x.clone()
            x[there] = x[there] + deep[index][token[there]]
    logits, cap = (
        model.lm_head(text.norm(x))[len(x) - count - 1 :],
        text.config.to_dict().get("final_logit_softcapping"),
    )
    return (logits if cap is None else cap * torch.tanh(logits / cap)), kept


def _scales(layer: Any) -> bool:
    """Whether its attention scales queries by their positions."""
    return type(getattr(layer, "self_attn", None)).__name__ == "Ministral3Attention"


def _final(model, inputs, cuts, reindex, tower, sees) -> list[int]:
    """The tokens left at the end."""
    nothing = torch.tensor([], dtype=torch.long)
    _, kept = forward(model, inputs, nothing, cuts, reindex=reindex, tower=tower, sees=sees)
    return kept[max(kept)] if kept else list(range(10_000))


def _rotary(text: Any, index: int, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of a layer; some decoders have a RoPE for each type of layer."""
    types = "layer_type" in inspect.signature(text.rotary_emb.forward).parameters
    return text.rotary_emb(x[None], ids, *([text.config.layer_types[index]] if types else []))


def visible(
    model: Any,
    index: int,
    places: Tensor,
    picture: Tensor,
    prompt: int,
    sees: Callable[..., Tensor] | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Which rows each row of a layer sees, (rows, rows) bool: those up to it, or what the family's tests say.

    `counts` is what a window counts, (rows,); None: the rows' places.
    """
    home = f"tests.families.test_{model.config.model_type}"
    if sees is None and importlib.util.find_spec(home):
        sees = importlib.import_module(home).TINY.sees
    causal = torch.ones(len(places), len(places), dtype=torch.bool).tril()
    return causal if sees is None else sees(index, places, picture, prompt, places if counts is None else counts)


def _reduced(x, token, columns, picture, reduced):
    """Rows with every picture's replaced by (tokens, features); a row's column is its token's."""
    x = x.clone()
    x[picture == -2] = torch.cat([fixed for _, _, fixed in reduced])
    parts = [_rows_of_text(picture, x, token, columns, picture, columns)]
    for index, (tokens, features, _) in enumerate(reduced):
        mine = (picture == index).nonzero()[:, 0]
        own = mine[tokens.clamp(min=0)]
        names = torch.where(tokens < 0, tokens, token[own])
        there = _places(mine, own)
        parts.append((there, features, names, columns[own], picture[own], columns[there]))
    return _in_place(parts)


def _cut(layer, rule, rows, rotary, sees):
    """All rows after one cut, picture by picture."""
    x, entered, token, columns, picture, places, weight = rows
    if isinstance(rule, Tensor):
        stays = (token == -2) | torch.isin(token, rule)
        return tuple(one[stays] for one in rows)
    parts = [_rows_of_text(picture, *rows)]
    for index in range(int(picture.max()) + 1):
        mine = (picture == index).nonzero()[:, 0]
        if not len(mine):
            continue
        pair = tuple(table[..., 0, :, :] for table in rotary)
        stand, states, *weights = rule(layer, x, mine, pair, entered, sees)
        own = mine[stand]
        there = own if states is None else _places(mine, own)
        states = x[own] if states is None else states
        heavy = weights[0] if weights else weight[own]
        parts.append((there, states, entered[own], token[own], columns[own], picture[own], places[there], heavy))
    return _in_place(parts)


def _rows_of_text(picture, *states):
    """The rows of no picture, which stay where they are."""
    text = (picture < 0).nonzero()[:, 0]
    return (text, *(one[text] for one in states))


def _in_place(parts):
    """Rows ordered by their places."""
    places, *states = (torch.cat(part) for part in zip(*parts, strict=True))
    return tuple(one[places.argsort()] for one in states)


def _places(mine: Tensor, rows: Tensor) -> Tensor:
    """Where new rows stand: in the first places of the run of the picture that has the row they stand for."""
    places, run = torch.empty_like(rows), torch.cat((torch.zeros(1), (mine.diff() > 1).cumsum(0)))
    for index in range(int(run[-1]) + 1):
        there = torch.isin(rows, mine[run == index]).nonzero()[:, 0]
        places[there] = mine[run == index][: len(there)]
    return places


def least_changed_leave(ratio: float) -> Callable[..., tuple[Tensor, Tensor]]:
    """V2Drop's rule in other words, for one picture: sort by the distance moved, drop from the bottom."""

    def choose(layer, x, mine, rotary, entered, sees):
        moved = (x[mine] - entered[mine]).pow(2).sum(-1)
        stays = max(1, int(len(mine) * ratio))
        stand = torch.tensor(sorted(sorted(range(len(mine)), key=lambda i: (-moved[i].item(), i))[:stays]))
        return stand, None

    return choose


def dense_attention(layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor], sees: Tensor) -> Tensor:
    """The layer's own eager attention over all rows, each seeing what `sees` says: (rows, rows), head mean."""
    attention = layer.self_attn
    bias = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(x.dtype).min)
    real = attention.config._attn_implementation
    attention.config._attn_implementation = "eager"
    try:
        _, weights = attention(
            layer.input_layernorm(x[None]),
            position_embeddings=[table.unsqueeze(-3) for table in rotary],
            attention_mask=bias[None, None],
            **_shared(attention, x),
        )
    finally:
        attention.config._attn_implementation = real
    return weights[0].mean(0)


def _shared(attention: Any, x: Tensor) -> dict[str, Any]:
    """Some attentions must be told where layers share keys, also where none do; or positions, where they do nothing
    yet."""
    if "shared_kv_states" in inspect.signature(attention.forward).parameters:
        return {"shared_kv_states": {}}
    return {"position_ids": torch.zeros(1, len(x))} if type(attention).__name__ == "Ministral3Attention" else {}


def keys_after_rope(layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over key heads of the layer's keys after RoPE: (rows, head size)."""
    return heads_after_rope(layer, x, rotary).mean(0)


def heads_after_rope(layer: Any, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """The layer's keys after RoPE, read from the cache it writes: (key heads, rows, head size)."""
    cache = DynamicCache()
    normed = layer.input_layernorm(x[None])
    attention = layer.self_attn
    index, attention.layer_idx = attention.layer_idx, 0
    try:
        attention(
            normed,
            position_embeddings=[table.unsqueeze(-3) for table in rotary],
            attention_mask=None,
            **{CACHE: cache},
            **_shared(attention, x),
        )
    finally:
        attention.layer_idx = index
    return cache.layers[0].keys[0]


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


def vision_decides(
    counts: Callable[[int], tuple[int, int]], how: str, bidirectional: bool = False, queries: int | None = None
):
    """VisionDrop's decoder cut from the layer's own dense attention; `counts` by the rows that arrive.

    Rows score that stand in the middles of `queries` equal parts of the picture; all, where it has no more.
    """

    def choose(layer, x, mine, rotary, entered, sees):
        dominant, contextual = counts(len(mine))
        if dominant + contextual >= len(mine):
            return torch.arange(len(mine)), None
        if bidirectional:  # all of the picture, whatever the layer lets its rows see
            sees = sees.clone()
            sees[mine, int(mine[0]) : int(mine[-1]) + 1] = True
        weights = dense_attention(layer, x, rotary, sees)
        asking = mine
        if queries is not None and queries < len(mine):
            asking = mine[[int((part + 0.5) * len(mine) / queries) for part in range(queries)]]
        scores = weights[asking][:, mine].mean(0)
        return merged(x[mine], scores, keys_after_rope(layer, x, rotary)[mine], dominant, contextual, how)

    return choose


@torch.no_grad()
def recomputed(
    model: Any, inputs: Mapping[str, Any], out: Any, cuts: Mapping[int, Any], banned: list[int], **settings: Any
) -> tuple[Tensor, dict[int, list[int]]]:
    """Fail unless a greedy answer's tokens are the recompute's likeliest: (its logits, tokens left after each cut).

    No row sees a generated one behind it, so the last step recomputes all.
    """
    tokens = out.sequences[0, inputs["input_ids"].shape[1] :]
    logits, kept = forward(model, inputs, tokens[:-1], cuts, **settings)
    assert logits.index_fill(1, torch.tensor(banned), float("-inf")).argmax(1).tolist() == tokens.tolist()
    return logits, kept
