"""Write the embedded model as the two GGUF files that llama.cpp reads: its decoder, and its tower with the projector.

    pip install gguf
    python examples/llama_cpp/gguf_files.py FOLDER

A checkpoint that llama.cpp's own converter knows does not need this file.
"""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.torch import load_file

from foveate import embedded

DECODER, TOWER = "decoder.gguf", "tower.gguf"

BLOCK = {
    "ln1": "layer_norm1",
    "ln2": "layer_norm2",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.out_proj",
    "ffn_up": "mlp.fc1",
    "ffn_down": "mlp.fc2",
}
"""What llama.cpp calls the weights of a CLIP block, and what transformers calls them."""


def write(folder: Path) -> None:
    """Write `DECODER` and `TOWER` into a folder, in float32.

    Raises:
        FileExistsError: If one of them is there already.
    """
    for name in (DECODER, TOWER):
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} exists already. Name another folder, or delete it.")
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((embedded.path() / "config.json").read_text())
    weights = {
        name: weight.float().numpy() for name, weight in load_file(embedded.path() / "model.safetensors").items()
    }
    write_decoder(folder / DECODER, config["text_config"], weights)
    write_tower(folder / TOWER, config["vision_config"], config["text_config"]["hidden_size"], weights)


def write_decoder(file: Path, config: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
    """Write the decoder and its vocabulary. The tokenizer of the example is transformers'."""
    heads, width = config["num_attention_heads"], config["hidden_size"]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(width // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    add_vocabulary(writer, config["vocab_size"])

    writer.add_tensor("token_embd.weight", weights["language_model.model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["language_model.model.norm.weight"])
    for index in range(config["num_hidden_layers"]):
        layer, block = f"language_model.model.layers.{index}", f"blk.{index}"
        for letter, count in (("q", heads), ("k", config["num_key_value_heads"])):
            weight = interleave(weights[f"{layer}.self_attn.{letter}_proj.weight"], count)
            writer.add_tensor(f"{block}.attn_{letter}.weight", weight)
        writer.add_tensor(f"{block}.attn_v.weight", weights[f"{layer}.self_attn.v_proj.weight"])
        writer.add_tensor(f"{block}.attn_output.weight", weights[f"{layer}.self_attn.o_proj.weight"])
        writer.add_tensor(f"{block}.attn_norm.weight", weights[f"{layer}.input_layernorm.weight"])
        writer.add_tensor(f"{block}.ffn_norm.weight", weights[f"{layer}.post_attention_layernorm.weight"])
        for part in ("gate", "up", "down"):
            writer.add_tensor(f"{block}.ffn_{part}.weight", weights[f"{layer}.mlp.{part}_proj.weight"])
    close(writer)


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Add the embedded model's vocabulary, which llama.cpp wants in every decoder's file."""
    tokenizer = json.loads((embedded.path() / "tokenizer.json").read_text())
    words = {index: word for word, index in tokenizer["model"]["vocab"].items()}
    control = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    words |= control
    types = [gguf.TokenType.NORMAL] * size
    for index in range(size):
        if index not in words:
            types[index] = gguf.TokenType.UNUSED
        elif index in control:
            types[index] = gguf.TokenType.CONTROL
    writer.add_vocab_size(size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([words.get(index, f"[{index}]") for index in range(size)])
    writer.add_token_types(types)
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a query or key projection, (heads * size, width), for llama.cpp's rotary embedding.

    transformers rotates row i of a head with row i + size/2, llama.cpp row 2i with row 2i + 1: of a head of four rows,
    0 1 2 3 becomes 0 2 1 3.
    """
    rows, width = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, width)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, width))


def write_tower(file: Path, config: dict[str, Any], width: int, weights: dict[str, np.ndarray]) -> None:
    """Write the CLIP tower and the projector.

    llama.cpp puts the CLS row behind the patches, but gives position 0 to the first patch, as if CLS were still there
    (its issue 25814). So the table of positions is turned by one row here: every row gets its own position again.
    """
    writer = gguf.GGUFWriter(file, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    numbers = {
        "embedding_length": config["hidden_size"],
        "attention.head_count": config["num_attention_heads"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "projection_dim": width,
        "image_size": config["image_size"],
        "patch_size": config["patch_size"],
    }
    for name, number in numbers.items():
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", config["layer_norm_eps"])
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])

    writer.add_tensor("v.class_embd", weights["vision_tower.embeddings.class_embedding"])
    writer.add_tensor("v.patch_embd.weight", weights["vision_tower.embeddings.patch_embedding.weight"])
    positions = np.roll(weights["vision_tower.embeddings.position_embedding.weight"], -1, axis=0)
    writer.add_tensor("v.position_embd.weight", positions)
    for kind in ("weight", "bias"):
        writer.add_tensor(f"v.pre_ln.{kind}", weights[f"vision_tower.pre_layrnorm.{kind}"])
        writer.add_tensor(f"mm.0.{kind}", weights[f"multi_modal_projector.linear_1.{kind}"])
        writer.add_tensor(f"mm.2.{kind}", weights[f"multi_modal_projector.linear_2.{kind}"])
        for index in range(config["num_hidden_layers"]):
            for name, theirs in BLOCK.items():
                weight = weights[f"vision_tower.encoder.layers.{index}.{theirs}.{kind}"]
                writer.add_tensor(f"v.blk.{index}.{name}.{kind}", weight)
    close(writer)


def close(writer: gguf.GGUFWriter) -> None:
    """Write the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: python examples/llama_cpp/gguf_files.py FOLDER")
    write(Path(sys.argv[1]))
