"""foveate's side of a comparison: `python ours.py NAME MODEL` answers the requests of `worker.py`."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peers import PEERS
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from worker import HEADS, IMAGE, LAYERS, MLP, TOWER, VISION, VOCABULARY, WIDTH, Arm, Call, Marks, answers, serve

import foveate as fv
from foveate.engine.doors import drop_or_not
from foveate.runs.versions import versions


def make(folder: Path) -> None:
    """Write the model with random weights that both sides load."""
    torch.manual_seed(0)
    text = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=HEADS, vocab_size=VOCABULARY, max_position_embeddings=4096, rms_norm_eps=1e-5,
        bos_token_id=1, eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**TOWER), text_config=text, image_token_index=IMAGE, image_seq_length=VISION,
        vision_feature_layer=-2, vision_feature_select_strategy="default", tie_word_embeddings=False,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.02 if "language_model" in name or "lm_head" in name else 0.08)
    model.save_pretrained(folder)


def arms_of(name: str, folder: Path) -> dict[str, Arm]:
    """The untouched model and the method. The context is opened in each call."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    peer = PEERS[name]
    method = fv.methods()[peer.method](**peer.settings)

    def run(method: fv.Method | None, call: Call, marks: Marks) -> Mapping[str, Any]:
        ids = call.ids(IMAGE, VISION)
        with drop_or_not(model, method) as trace:
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=call.pixels, do_sample=False,
                max_new_tokens=call.tokens, logits_processor=[marks],
            )  # fmt: skip
        if method is None:
            return {}
        return {"layer_tokens": [counts[0] for counts in trace.latest.per_layer]}

    ends = (model.model.multi_modal_projector, model.model.language_model.norm)
    return {
        "untouched": Arm(lambda call, marks: run(None, call, marks), *ends),
        "method": Arm(lambda call, marks: run(method, call, marks), *ends),
    }


if __name__ == "__main__":
    out = answers()
    serve(arms_of(sys.argv[1], Path(sys.argv[2])), versions(), out)
