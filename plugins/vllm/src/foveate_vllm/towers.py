"""Reads attention and keys of a vLLM vision tower's blocks, from their fused projections."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.models.utils import StageMissingLayer, WeightsMapper, maybe_prefix

from foveate.core.signals import TowerSignal
from foveate.families.tap import Tapped
from foveate.families.tower import block_of, feature_layers
from foveate_vllm import guards
from foveate_vllm.decoder import BetweenLayers
from foveate_vllm.setting import Setting

__all__ = ["RENAMED", "DroppingLlava", "TowerReader", "TowerTaps", "blocks_read", "encoder_layers_of"]

TOWER_PARTS = re.compile(r"vision_tower\.(?=embeddings|pre_layrnorm|encoder|post_layernorm)")
RENAMED = WeightsMapper(orig_to_new_regex={TOWER_PARTS: "vision_tower.vision_model."})
"""Maps weight names: transformers 5 omits a part of the tower's names that vLLM 0.32 expects."""


def encoder_layers_of(tower: nn.Module) -> nn.ModuleList:
    """Return the layers of vLLM's CLIP or SigLIP tower."""
    layers: nn.ModuleList = tower.vision_model.encoder.layers  # type: ignore[union-attr, assignment]
    return layers


def blocks_read(config: Any, reads: Iterable[TowerSignal]) -> dict[TowerSignal, int]:
    """Return the block of a LLaVA's tower that each signal is read in.

    Raises:
        UnsupportedError: If a block is more than one behind the block whose output is projected. vLLM loads no further
            than that, and foveate loads one more.
    """
    depth = config.vision_config.num_hidden_layers
    last = max(feature_layers(config, depth))
    blocks = {signal: block_of(signal, last, depth) for signal in reads}
    for block in blocks.values():
        guards.refuse_unloaded_block(block, min(last + 1, depth - 1))
    return blocks


class TowerReader:
    """Reads signals of one image's patches from queries and keys tapped in a tower.

    Args:
        cls: Whether the first token is a CLS.
        heads: For each signal to read, queries and keys of the image in its block, (heads, tokens, head size), and the
            scaling.
    """

    def __init__(self, cls: bool, heads: Mapping[TowerSignal, Tapped]) -> None:
        self._cls = cls
        self._heads = heads

    def read(self, signal: TowerSignal) -> Tensor:
        """Return a signal: (patches, 1) attention, or (patches, size) keys, float32, without a CLS."""
        return self._heads[signal].read(signal, self._cls)


class TowerTaps:
    """Holds the outputs of some blocks' fused projections in the tower's latest run.

    Args:
        layers: The tower's layers.
        blocks: The block of each signal.
        cls: Whether the first token is a CLS.
    """

    def __init__(self, layers: nn.ModuleList, blocks: dict[TowerSignal, int], cls: bool) -> None:
        self._attentions: dict[int, Any] = {}
        self._blocks = blocks
        self._cls = cls
        self._outputs: dict[int, Tensor] = {}
        for block in set(blocks.values()):
            attention: Any = layers[block].self_attn
            self._attentions[block] = attention
            attention.qkv_proj.register_forward_hook(partial(self._note, block))

    def _note(self, block: int, module: nn.Module, args: Any, output: tuple[Tensor, Any]) -> None:
        self._outputs[block] = output[0]

    def readers(self, pictures: int) -> list[TowerReader]:
        """Return a reader for each image of the latest run, and release the outputs."""
        heads = {block: self._heads(block) for block in self._attentions}
        self._outputs.clear()
        readers = []
        for picture in range(pictures):
            tapped = {signal: heads[block].sample(picture) for signal, block in self._blocks.items()}
            readers.append(TowerReader(self._cls, tapped))
        return readers

    def _heads(self, block: int) -> Tapped:
        """Return queries and keys of all heads: (images, heads, tokens, head size). Every rank gets all heads in the
        same order, so all ranks make the same cut."""
        attention = self._attentions[block]
        queries, keys, _ = self._outputs[block].chunk(3, dim=-1)
        if attention.tp_size > 1:
            queries, keys = _gathered((queries, keys))
        return Tapped(_by_head(queries, attention.head_dim), _by_head(keys, attention.head_dim), attention.scale)


def _gathered(parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """Gather tensors whose last dimension holds this rank's heads, from all ranks in order."""
    stacked: Tensor = tensor_model_parallel_all_gather(torch.stack(list(parts)), dim=-1)
    return stacked.unbind()


def _by_head(rows: Tensor, size: int) -> Tensor:
    """Split heads: (images, tokens, heads · size) -> (images, heads, tokens, size)."""
    return rows.view(*rows.shape[:-1], -1, size).transpose(1, 2)


class DroppingLlava(BetweenLayers):
    """Base class placed before a LLaVA of vLLM. Adds the setting, and reads the tower for the setting's stages."""

    config: Any
    vision_tower: Any
    select_layers: Any = None

    def start_dropping(self, vllm_config: VllmConfig, prefix: str) -> None:
        """Start dropping. Call it after the model's own `__init__`.

        Raises:
            FoveateError: If the setting cannot work on this model.
        """
        self.foveate = Setting.of(self.config)
        self.drop_between(self.foveate)
        guards.refuse_tower(self.config.vision_config.model_type)
        guards.refuse_tower_lora(vllm_config.lora_config)
        self._cls = bool(self.foveate.family.cls_in_tower(self.config))
        blocks = blocks_read(self.config, self.foveate.reads)
        if not isinstance(self.vision_tower, StageMissingLayer):  # then this process encodes no images
            self._load_further(max(blocks.values(), default=0), vllm_config, prefix)
            self._taps = TowerTaps(encoder_layers_of(self.vision_tower), blocks, self._cls)
        self._most = vllm_config.scheduler_config.max_num_encoder_input_tokens
        self.log_start(vllm_config)

    def _load_further(self, block: int, vllm_config: VllmConfig, prefix: str) -> None:
        """Load the tower up to a block that is read, if vLLM has loaded less."""
        if block < len(encoder_layers_of(self.vision_tower)):
            return
        self.select_layers = [self.config.vision_feature_layer]
        with self._mark_tower_model(vllm_config, "image"):  # type: ignore[attr-defined]
            self.vision_tower = type(self.vision_tower)(
                self.config.vision_config,
                quant_config=vllm_config.quant_config,
                num_hidden_layers_override=block + 1,
                require_post_norm=False,
                prefix=maybe_prefix(prefix, "vision_tower"),
            )

    @property
    def _side(self) -> int:
        """Patches along a side of a view."""
        vision = self.config.vision_config
        return int(vision.image_size // vision.patch_size)
