"""A vision-language model of a type that nobody knows: other names, another order of arguments, norms behind, and for
each token a further number that layers are handed by place."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, LlamaConfig, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
    eager_attention_forward,
)

from foveate._transformers import cache_of, with_cache
from tests.tiny import IMAGE, PAD, TEXT

WIDTH, HEADS, DEPTH = 32, 4, 6


class OddConfig(PreTrainedConfig):
    model_type = "odd_eyes"
    image_token_id = IMAGE

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pad_token_id = PAD

    @property
    def words(self) -> LlamaConfig:
        if not hasattr(self, "_words"):
            text = {**TEXT, "hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": DEPTH}
            self._words = LlamaConfig(**{**text, "num_key_value_heads": HEADS, "head_dim": WIDTH // HEADS})
            self._words._attn_implementation = "sdpa"
        return self._words

    def get_text_config(self, *args: Any, **kwargs: Any) -> LlamaConfig:
        return self.words


class Mixing(nn.Module):
    is_causal = True

    def __init__(self, config: LlamaConfig, place: int) -> None:
        super().__init__()
        self.config, self.place, self.num_key_value_groups = config, place, 1
        self.scaling = (WIDTH // HEADS) ** -0.5
        self.all_three, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, rows: Tensor, tables: Any, mask: Any, cache: Any) -> Tensor:
        query, key, value = self.all_three(rows).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        query, key = apply_rotary_pos_emb(query, key, *tables)
        if cache is not None:
            key, value = cache.update(key, value, self.place)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, _ = attend(self, query, key, value, mask, scaling=self.scaling, dropout=0.0)
        return self.out(mixed.flatten(2))


class Floor(nn.Module):
    def __init__(self, config: LlamaConfig, place: int) -> None:
        super().__init__()
        self.mixing, self.behind = Mixing(config, place), LlamaRMSNorm(WIDTH)
        self.further, self.last = nn.Linear(WIDTH, WIDTH), LlamaRMSNorm(WIDTH)

    def forward(
        self, rows: Tensor, position_embeddings: Any, gain: Tensor, attention_mask: Any = None, cache: Any = None
    ) -> Tensor:
        rows = rows + self.behind(self.mixing(rows, position_embeddings, attention_mask, cache))
        return rows + self.last(self.further(rows) * gain[..., None])


class Speaker(PreTrainedModel):
    config_class = LlamaConfig
    _supports_sdpa = True

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.table = nn.Embedding(config.vocab_size, WIDTH)
        self.floors = nn.ModuleList(Floor(config, place) for place in range(DEPTH))
        self.rotary_emb, self.end_norm = LlamaRotaryEmbedding(config), LlamaRMSNorm(WIDTH)

    def forward(self, inputs_embeds: Tensor, gain: Tensor, attention_mask: Any = None, cache: Any = None) -> Any:
        past = 0 if cache is None else cache.get_seq_length()
        ids = torch.arange(past, past + inputs_embeds.shape[1], device=inputs_embeds.device)[None]
        mask = create_causal_mask(
            config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=ids,
            **with_cache(cache),
        )  # fmt: skip
        tables, rows = self.rotary_emb(inputs_embeds, ids), inputs_embeds
        for floor in self.floors:
            rows = floor(rows, tables, gain, attention_mask=mask, cache=cache)
        return BaseModelOutputWithPast(last_hidden_state=self.end_norm(rows), **with_cache(cache))


class Eyes(PreTrainedModel):
    config_class = OddConfig
    _supports_sdpa = True

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.look, self.speaker = nn.Linear(12, WIDTH), Speaker(config.words)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=self.look(pixel_values))

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, pixel_values: Any = None, cache: Any = None
    ) -> Any:
        embeds = self.speaker.table(input_ids)
        if pixel_values is not None:
            seen = self.get_image_features(pixel_values).pooler_output.flatten(0, 1)
            embeds = embeds.masked_scatter((input_ids == self.config.image_token_id)[..., None], seen)
        gain = 1 + (input_ids % 7) / 7 + torch.linspace(0, 1, input_ids.shape[1])  # a number for each column
        return self.speaker(embeds, gain, attention_mask, cache)


class OddEyes(PreTrainedModel, GenerationMixin):
    config_class = OddConfig
    _supports_sdpa = True

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.eyes, self.mouth = Eyes(config), nn.Linear(WIDTH, config.words.vocab_size)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, pixel_values: Any = None, cache: Any = None,
        past_key_values: Any = None, use_cache: bool | None = None, logits_to_keep: int = 0, **kwargs: Any,
    ) -> CausalLMOutputWithPast:  # fmt: skip
        cache = cache if cache is not None else past_key_values
        if cache is None and use_cache is not False:
            cache = DynamicCache(config=self.config.words)
        out = self.eyes(input_ids, attention_mask, pixel_values, cache)
        logits = self.mouth(out.last_hidden_state[:, -logits_to_keep:])
        return CausalLMOutputWithPast(logits=logits, **with_cache(cache_of(vars(out)) or cache))


def odd_eyes() -> SimpleNamespace:
    """A tiny model with a prompt of one picture in the middle of text."""
    torch.manual_seed(0)
    model = OddEyes(OddConfig()).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    ids = torch.tensor([[1, 5, 6, *[IMAGE] * 12, 7, 8, 9]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 12, 12)}
    return SimpleNamespace(model=model, inputs=inputs)
