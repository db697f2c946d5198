"""Scores come from rows: no attention matrix is ever made, and the peak is never above the untouched model's."""

from contextlib import nullcontext

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.clip import CLIPVisionConfig

import foveate as fv
from foveate.core.attention import BLOCK_NUMBERS
from foveate.methods.mustdrop import MustDrop
from foveate.methods.visiondrop import VisionDrop
from tests.models import IMAGE, PAD

BEFORE, AFTER = 35, 20  # tokens of text


class Watch(TorchDispatchMode):
    """Notes the largest tensor that comes to be, and the most bytes that live at once.

    Only what is made inside counts: weights and inputs do not.
    """

    def __init__(self):
        super().__init__()
        self.largest, self.where = 0, ""
        self.peak = 0
        self._live = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {self._key(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)}
        made = function(*args, **(kwargs or {}))
        self._live = {key: held for key, held in self._live.items() if not held[0].expired()}
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and self._key(leaf) not in given:
                storage = leaf.untyped_storage()
                self._live[self._key(leaf)] = (StorageWeakRef(storage), storage.nbytes())
                if storage.nbytes() // leaf.element_size() > self.largest:
                    self.largest = storage.nbytes() // leaf.element_size()
                    self.where = f"{function} {tuple(leaf.shape)}"
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return made

    @staticmethod
    def _key(tensor):
        return tensor.untyped_storage()._cdata


def text_config(kind, width, layers):
    return kind(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=96, max_position_embeddings=8192, pad_token_id=PAD,
    )  # fmt: skip


def vision_settings(side, width):
    return {
        "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 3, "num_attention_heads": 2,
        "patch_size": 14, "image_size": side,
    }  # fmt: skip


def llava(side, width=32, tower=16, layers=6):
    torch.manual_seed(0)
    config = LlavaConfig(
        text_config=text_config(LlamaConfig, width, layers),
        vision_config=CLIPVisionConfig(**vision_settings(side, tower)),
        image_token_index=IMAGE, image_seq_length=(side // 14) ** 2,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config).eval(), prompt((side // 14) ** 2, torch.randn(1, 3, side, side))


def onevision(side, width=32, tower=16, layers=6):
    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        text_config=text_config(Qwen2Config, width, layers),
        vision_config=SiglipVisionConfig(**vision_settings(side, tower), vision_use_head=False),
        image_token_index=IMAGE, vision_feature_layer=-1, image_grid_pinpoints=[[side, side]],
    )  # fmt: skip
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    pictures = {"pixel_values": torch.randn(1, 2, 3, side, side), "image_sizes": torch.tensor([[side, side]])}
    with torch.no_grad():
        count = len(model.model.get_image_features(**pictures).pooler_output[0])
    return model, {**prompt(count, pictures["pixel_values"]), "image_sizes": pictures["image_sizes"]}


def prompt(vision, pixels):
    ids = torch.cat((torch.full((BEFORE,), 7), torch.full((vision,), IMAGE), torch.full((AFTER,), 8)))[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def watched(model, inputs, method):
    context = nullcontext() if method is None else fv.drop(model, method)
    with torch.no_grad(), context, Watch() as watch:
        model(**inputs, use_cache=True)
    return watch


METHODS = {
    "visiondrop": VisionDrop(
        dominant=400, contextual=60, layer_list=(2, 4), image_token_list=((300, 40), (200, 30)), reference=576
    ),
    "visiondrop, decoder alone": VisionDrop(
        dominant=0, contextual=0, layer_list=(2, 4), image_token_list=((300, 40), (200, 30)), reference=576
    ),
    "visiondrop, both ways": VisionDrop(
        dominant=0, contextual=0, layer_list=(2,), image_token_list=((300, 0),), bidirectional=True, positions="keep"
    ),
    "mustdrop": MustDrop(pruning_layers=(1, 3), global_thr=0.0005, individual_thr=0.0005),
    "v2drop": fv.V2Drop(layers=(2, 4), keep=(0.5, 0.5)),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("build", [llava, onevision])
def test_no_attention_matrix_is_made_while_scoring(build, name):
    model, inputs = build(side=672)
    rows = inputs["input_ids"].shape[1]
    vision = rows - BEFORE - AFTER
    whole = watched(model, inputs, None)
    assert max(whole.largest, BLOCK_NUMBERS) < vision**2  # so that a matrix would be seen even of one head
    found = watched(model, inputs, METHODS[name])
    blocks = 4 * AFTER * rows if name == "mustdrop" and build is llava else BLOCK_NUMBERS  # rows of text, of a CLS
    assert found.largest <= max(whole.largest, blocks), found.where


@pytest.mark.parametrize("name", METHODS)
def test_the_peak_is_never_above_the_untouched_models(name):
    model, inputs = llava(side=336, width=512, tower=128)
    whole, found = (watched(model, inputs, method) for method in (None, METHODS[name]))
    assert found.peak <= 1.01 * whole.peak, f"{found.peak / whole.peak:.3f}"
