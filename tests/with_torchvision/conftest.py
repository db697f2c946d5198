"""Tiny random models that read videos, in folders as a user would have them, with their real processors."""

import sys
from pathlib import Path

import pytest

if "torchvision" not in sys.modules:
    collect_ignore_glob = ["test_*.py"]  # tests/test_with_torchvision.py runs them
else:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    from tests.cli.checkpoints import TEMPLATE, save
    from tests.cli.conftest import run  # noqa: F401 - a fixture
    from tests.tiny import IMAGE, VOCABULARY

    WORDS = ["What", "happens", "?", "USER:", "ASSISTANT:"]

    def tokenizer(image: str, video: str) -> transformers.PreTrainedTokenizerFast:
        """Whole words, with the special tokens where the tiny models' configs have them."""
        words = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
        words += [f"w{number}" for number in range(len(words), IMAGE)]
        specials = [image, video, "<|vision_start|>", "<|vision_end|>"]
        words += specials
        words += [f"w{number}" for number in range(len(words), VOCABULARY)]
        words_only = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
        words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=words_only, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
            additional_special_tokens=specials,
        )  # fmt: skip

    def template(image: str, video: str) -> str:
        """Media as they come, each in its own words."""
        shown = f"{{% if part['type'] == 'video' %}}{video} {{% else %}}{image} {{% endif %}}"
        return TEMPLATE.replace("MEDIA", shown)

    def save_qwen2_vl(folder: Path, depth: int = 28) -> Path:
        """Qwen2-VL with tokens of 28 pixels and two frames."""
        from tests.families.qwens import qwen2_vl as config

        plain = config().to_dict()
        plain["text_config"] |= {"num_hidden_layers": depth, "layer_types": None}
        size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 16}
        image, video = "<|image_pad|>", "<|video_pad|>"
        wrapped = [f"<|vision_start|> {one} <|vision_end|>" for one in (image, video)]
        processor = transformers.Qwen2VLProcessor(
            image_processor=transformers.Qwen2VLImageProcessor(size=size),
            video_processor=transformers.Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False),
            tokenizer=tokenizer(image, video),
            chat_template=template(*wrapped),
        )
        return save(folder, transformers.Qwen2VLConfig(**plain), "Qwen2VLForConditionalGeneration", processor)

    def save_onevision(folder: Path, depth: int = 28, side: int = 70) -> Path:
        """LLaVA-OneVision whose frames are `side` pixels, each (side / 14 / 2)² tokens."""
        from tests.families.llavas import onevision as config

        plain = config().to_dict()
        plain["text_config"] |= {"num_hidden_layers": depth, "layer_types": None, "max_position_embeddings": 8192}
        plain["vision_config"] |= {"image_size": side}
        plain["image_grid_pinpoints"] = [[side, side], [side, 2 * side], [2 * side, side]]
        square, kinds = {"height": side, "width": side}, transformers
        processor = kinds.LlavaOnevisionProcessor(
            image_processor=kinds.LlavaOnevisionImageProcessor(
                size=square, image_grid_pinpoints=plain["image_grid_pinpoints"]
            ),
            video_processor=kinds.LlavaOnevisionVideoProcessor(size=square),
            tokenizer=tokenizer("<image>", "<video>"),
            num_image_tokens=(side // 14) ** 2,
            vision_feature_select_strategy="full",
            chat_template=template("<image>", "<video>"),
        )
        return save(folder, kinds.LlavaOnevisionConfig(**plain), "LlavaOnevisionForConditionalGeneration", processor)

    @pytest.fixture(scope="session")
    def folders(tmp_path_factory) -> dict[str, Path]:
        """Both models, with as many layers as the published settings are for."""
        place = tmp_path_factory.mktemp("readers")
        return {
            "qwen2_vl": save_qwen2_vl(place / "qwen2_vl"),
            "llava_onevision": save_onevision(place / "llava_onevision"),
        }
