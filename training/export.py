"""Write the trained network as a `LlavaForConditionalGeneration` folder.

python training/export.py CHECKPOINT FOLDER
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AddedToken,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from network import Network, Shape
from tokenizer import BOS, EOS, IMAGE, PAD, build

__all__ = ["export", "import_network", "llava", "processor"]

SIDE = 336

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% elif message['role'] == 'assistant' %}ASSISTANT:"
    "{% elif message['role'] != 'system' %}"
    "{{ raise_exception('No role ' ~ message['role'] ~ '; there are system, user and assistant.') }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

TOWER = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.out_proj"}
TOWER |= {"norm1": "layer_norm1", "norm2": "layer_norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
DECODER = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj"}
DECODER |= {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
DECODER |= {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}


def config(s: Shape) -> LlavaConfig:
    """The Hugging Face configuration of a network of this shape at 336 px."""
    vision = CLIPVisionConfig(
        hidden_size=s.width,
        intermediate_size=s.tower_mlp,
        num_hidden_layers=s.tower_layers,
        num_attention_heads=s.heads,
        image_size=SIDE,
        patch_size=s.patch,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=s.eps,
        projection_dim=s.width,
    )
    text = LlamaConfig(
        vocab_size=s.vocabulary,
        hidden_size=s.width,
        intermediate_size=s.mlp,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.heads,
        max_position_embeddings=2048,
        rms_norm_eps=s.eps,
        rope_theta=s.rope,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(SIDE // s.patch) ** 2,
        tie_word_embeddings=True,
    )


def names(own: Iterable[str]) -> dict[str, str]:
    """Our name of each tensor that is exported as it is -> Hugging Face's."""
    vision, language = "model.vision_tower", "model.language_model"
    theirs = {
        "decoder.embed.weight": f"{language}.embed_tokens.weight",
        "decoder.norm.weight": f"{language}.norm.weight",
    }
    for kind in ("weight", "bias"):
        theirs[f"tower.pre_norm.{kind}"] = f"{vision}.pre_layrnorm.{kind}"
        theirs[f"tower.post_norm.{kind}"] = f"{vision}.post_layernorm.{kind}"
        for number in (1, 2):
            theirs[f"project{number}.{kind}"] = f"model.multi_modal_projector.linear_{number}.{kind}"
    for name in own:
        part, *rest = name.split(".")
        if rest[:1] == ["layers"]:
            table, home = (TOWER, f"{vision}.encoder") if part == "tower" else (DECODER, language)
            theirs[name] = f"{home}.layers.{rest[1]}.{table[rest[2]]}.{rest[3]}"
    return theirs


def weights(network: Network) -> dict[str, Tensor]:
    """The network's tensors under the names of `LlavaForConditionalGeneration`."""
    own = network.state_dict()
    vision = "model.vision_tower"
    patch = own["tower.patch.weight"]
    tensors = {
        f"{vision}.embeddings.class_embedding": own["tower.cls"],
        f"{vision}.embeddings.patch_embedding.weight": patch.view(len(patch), 3, *[network.shape.patch] * 2),
        f"{vision}.embeddings.position_embedding.weight": torch.cat(
            [own["tower.cls_position"][None], network.tower.positions(SIDE // network.shape.patch)]
        ),
        "lm_head.weight": own["decoder.embed.weight"],
    }
    tensors |= {other: own[name] for name, other in names(own).items()}
    return tensors


@torch.no_grad()
def llava(network: Network) -> LlavaForConditionalGeneration:
    """The same function as `network` in float32, ready to save or to generate."""
    model = LlavaForConditionalGeneration(config(network.shape))
    model.load_state_dict(weights(network), strict=True)
    model.generation_config = GenerationConfig(
        bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, do_sample=False, max_new_tokens=48
    )
    return model.eval()


def processor() -> LlavaProcessor:
    """Tokenizer, chat template and the Pillow form of LLaVA's image processor, which pads to a square."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=build(),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=[
            "<image>",
            *(AddedToken(role, lstrip=True, rstrip=True, special=True) for role in ("USER:", "ASSISTANT:")),
        ],
        padding_side="left",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
    images = LlavaImageProcessorPil(
        do_pad=True,
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def export(network: Network, folder: Path) -> None:
    """Save model and processor; weights in bfloat16."""
    llava(network).to(torch.bfloat16).save_pretrained(folder)
    processor().save_pretrained(folder)


def import_network(folder: Path) -> Network:
    """Read an exported folder back, so that training can go on from it alone.

    The position grid comes back at the exported size; auxiliary heads, which are not exported, are new.
    """
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    vision, text = model.config.vision_config, model.config.text_config
    network = Network(
        Shape(
            width=text.hidden_size,
            heads=text.num_attention_heads,
            tower_layers=vision.num_hidden_layers,
            tower_mlp=vision.intermediate_size,
            layers=text.num_hidden_layers,
            mlp=text.intermediate_size,
            vocabulary=text.vocab_size,
            grid=vision.image_size // vision.patch_size,
            patch=vision.patch_size,
            eps=text.rms_norm_eps,
            rope=text.rope_parameters["rope_theta"],
        )
    )
    theirs, own = model.state_dict(), network.state_dict()
    position = theirs["model.vision_tower.embeddings.position_embedding.weight"]
    own["tower.cls_position"], grid = position[0], position[1:]
    own["tower.position"] = grid.view_as(own["tower.position"])
    own["tower.cls"] = theirs["model.vision_tower.embeddings.class_embedding"]
    own["tower.patch.weight"] = theirs["model.vision_tower.embeddings.patch_embedding.weight"].flatten(1)
    for name, other in names(own).items():
        own[name] = theirs[other]
    network.load_state_dict(own)
    return network.eval()


def main() -> None:
    """Read a checkpoint, write a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    state = torch.load(args.checkpoint, weights_only=True)
    network = Network(Shape(**state["shape"]))
    network.load_state_dict(state["network"])
    export(network, args.folder)


if __name__ == "__main__":
    main()
