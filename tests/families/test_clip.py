import string

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

import foveate as fv
from foveate.families.clip import ClipEncoder
from foveate.testing import tiny_model
from foveate.testing.models import CLIP

LETTERS = string.ascii_lowercase
START, END = 52, 53


class Letters:
    """A model's own tokenizer: letters in the order of the alphabet from 1 on, 0 for what is not said."""

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return "".join(LETTERS[(index - 1) % 26] if index else " " for index in ids)


def small(vision):
    """A random CLIP with this tower and six places for text."""
    torch.manual_seed(0)
    text = {
        "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 54,
        "max_position_embeddings": 6, "bos_token_id": START, "eos_token_id": END, "projection_dim": 16,
    }  # fmt: skip
    return CLIPModel(CLIPConfig(text_config=CLIPTextConfig(**text), vision_config=vision, projection_dim=16)).eval()


def spelling():
    """A tokenizer for it that knows letters."""
    symbols = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[])


@pytest.fixture(scope="module")
def clip():
    return small(CLIPVisionConfig(**CLIP))


@pytest.fixture(scope="module")
def encoder(clip):
    return ClipEncoder(clip, spelling(), Letters())


def of_text(clip, *ids):
    """The unit embedding of one part, as transformers makes it."""
    with torch.no_grad():
        features = clip.get_text_features(torch.tensor([[START, *ids, END]]))
    embeds = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(embeds, dim=-1)[0]


def test_a_text_is_where_clip_puts_it(clip, encoder):
    torch.testing.assert_close(encoder.text(torch.tensor([1, 2, 3])), of_text(clip, 0, 1, 26 + 2))
    torch.testing.assert_close(encoder.text(torch.tensor([0, 1, 0])), of_text(clip, 26 + 0))


def test_a_long_text_is_the_mean_of_its_parts(clip, encoder):
    """Six places less two are four words a part: abcd ef."""
    parts = of_text(clip, 0, 1, 2, 3), of_text(clip, 4, 26 + 5)
    torch.testing.assert_close(encoder.text(torch.tensor([1, 2, 3, 4, 5, 6])), torch.stack(parts).mean(dim=0))


def test_nothing_said_is_nowhere(encoder):
    assert encoder.text(torch.tensor([], dtype=torch.int64)).tolist() == [0.0] * 16
    assert encoder.text(torch.tensor([0, 0])).tolist() == [0.0] * 16


def test_patches_are_where_clip_puts_them(clip, encoder):
    states = torch.randn(1, 7, 16)
    with torch.no_grad():
        wanted = clip.visual_projection(clip.vision_model.post_layernorm(states))[0]
    torch.testing.assert_close(encoder.features(states[0]), wanted)


def test_cdpruner_follows_the_question_in_clips_space(clip, encoder):
    """What is kept first is the patch least like the text, as the sign in the released code says."""
    towers = tiny_model()
    inputs = towers.inputs("tit")
    with torch.no_grad():
        states = towers.model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    patches = torch.nn.functional.normalize(encoder.features(states[-2][0, 1:]), dim=-1)
    likeness = patches @ encoder.text(inputs["input_ids"][0, -3:])
    with fv.drop(towers.model, "cdpruner", tokens=1, resources={"clip": encoder}) as trace, torch.no_grad():
        towers.model(**inputs)
    assert trace.stages[0].kept[0].tolist() == [int(likeness.argmin())]
