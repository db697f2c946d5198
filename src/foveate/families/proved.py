"""Models of transformers without a hand-written family: those proved by the tests, and those that cannot be served.

Their parts are found from their structure. Any other model of that kind may run. The models listed here did run, as
tiny random models.
"""

from typing import Literal, NamedTuple

PlaceName = Literal["layer", "projector", "tower"]
"""Where tokens are dropped: between decoder layers, after the projector, or there with values read from the tower."""
DECODER: tuple[PlaceName, ...] = ("layer", "projector")
EVERYWHERE: tuple[PlaceName, ...] = (*DECODER, "tower")
_INDEX = "its layers pick keys by an index over pools of keys, or over their positions"
_DENSE = "more tokens in a layer than its index picks (2,048)"
_BORROWED = "cuts before its last layers, which attend to keys of earlier ones, and Read"
_HYBRID = "each of its layers attends and carries a state, and stores both in one layer of the cache"


class Proved(NamedTuple):
    """The results proved for a `model_type`.

    Attributes:
        title: The usual name of its models, or of a known checkpoint.
        since: The oldest version of transformers it was proved on. Later ones are proved too.
        places: Where tokens are dropped.
        refused: What is not served, in a phrase. Empty if everything is.
        shares: True if questions about one image may share its prefill: the answers equal those of each question alone.
    """

    title: str
    since: str = "5.16.1"
    places: tuple[PlaceName, ...] = EVERYWHERE
    refused: str = ""
    shares: bool = True


PROVED = {
    "apertus1p5": Proved("Apertus 1.5", "5.24", places=DECODER),
    "aria": Proved("Aria", "5.23", places=DECODER),
    "aya_vision": Proved("Aya Vision"),
    "chameleon": Proved("Chameleon", places=DECODER),
    "cohere2_vision": Proved("Command A Vision"),
    "cohere_compass": Proved("North-Micro-Vision-Instruct"),
    "cosmos3_edge": Proved("Cosmos3-Edge"),
    "cosmos3_omni": Proved("Cosmos3-Nano"),
    "deepseek_ocr2": Proved("DeepSeek-OCR-2", places=DECODER, shares=False),
    "deepseek_vl": Proved("DeepSeek-VL-1.3B"),
    "deepseek_vl_hybrid": Proved("DeepSeek-VL-7B", "5.23"),
    "dots3_note": Proved("dots3-note", "5.23", refused=_DENSE, shares=False),
    "emu3": Proved("Emu3-Chat", places=DECODER),
    "ernie4_5_vl_moe": Proved("ERNIE-4.5-VL"),
    "exaone4_5": Proved("EXAONE-4.5"),
    "fast_vlm": Proved("FastVLM", places=DECODER, shares=False),
    "fuyu": Proved("Fuyu-8B", "5.23", places=DECODER),
    "gemma3n": Proved("Gemma 3n", places=DECODER, refused=_BORROWED, shares=False),
    "gemma4_unified": Proved("Gemma 4 12B", "5.23", DECODER, _BORROWED),
    "glm5_next": Proved("GLM-5.3-Flash", "5.16.1", (), _INDEX),
    "glm_ocr": Proved("GLM-OCR", "5.23"),
    "glmga": Proved("GLM-V (glmga)", "5.23", shares=False),
    "got_ocr2": Proved("GOT-OCR-2.0", places=DECODER),
    "granite4_vision": Proved("Granite 4 Vision", "5.23", DECODER, "merging behind the projector", shares=False),
    "granite_docling": Proved("Granite-Docling", "5.23"),
    "hunyuan_vl": Proved("HunyuanOCR", "5.23"),
    "hy_v4_vl": Proved(
        "Hy4", "5.24", DECODER, f"{_DENSE}, and methods that read attention: it has sinks", shares=False
    ),
    "hyperclovax_vision_v2": Proved("HyperCLOVAX-SEED-Think-32B", "5.23"),
    "idefics2": Proved("Idefics2", "5.23", places=DECODER),
    "inkling2": Proved("Inkling-2-Small", "5.23", (), _HYBRID),
    "inkling2_loop": Proved("Inkling-2-Mini", "5.24", (), _HYBRID),
    "inkling_mm_model": Proved("Inkling", "5.16.1", (), _HYBRID),
    "janus": Proved("Janus-Pro"),
    "kimi_k25": Proved("Kimi-K2.5, Kimi-K2.6"),
    "lfm2_vl": Proved("LFM2-VL"),
    "lfm3_vl": Proved("LFM3-VL", "5.23"),
    "lighton_ocr": Proved("LightOnOCR-1B"),
    "llama4": Proved("Llama 4", "5.23", EVERYWHERE, "transformers 5.24 fails on it, with foveate or without"),
    "minicpm_ocr": Proved("MiniCPM-OCR-1.0", "5.23"),
    "minicpmv4_6": Proved("MiniCPM-V-4.6", "5.23"),
    "minicpmv4_7": Proved("MiniCPM-V-4.7", "5.23"),
    "minimax_m3_vl": Proved("MiniMax-M3", "5.23"),
    "mistral_large4": Proved("Mistral-Large-4", "5.23", refused=_DENSE, shares=False),
    "molmo2": Proved("Molmo2", "5.23"),
    "muse_glimmer": Proved("Muse-Glimmer"),
    "muse_spark": Proved("Muse-Spark", "5.23"),
    "nemotron_h_omni": Proved("Nemotron-3-Nano-Omni", "5.23", places=DECODER),
    "ovis2": Proved("Ovis2", shares=False),
    "paddleocr_vl": Proved("PaddleOCR-VL"),
    "perception_lm": Proved("Perception-LM", places=DECODER, refused="films, behind the projector", shares=False),
    "phi4_multimodal": Proved("Phi-4-multimodal", "5.16.1", ("layer",), "dropping behind the projector", shares=False),
    "pp_chart2table": Proved("PP-Chart2Table", places=DECODER),
    "qianfan_ocr": Proved("Qianfan-OCR"),
    "qwen2_5_omni_thinker": Proved("Qwen2.5-Omni"),
    "qwen3_omni_moe_thinker": Proved("Qwen3-Omni"),
    "qwen4_exp": Proved("Qwen4-Exp", "5.16.1", (), _INDEX),
    "shieldgemma2": Proved("ShieldGemma 2"),
    "step3p7": Proved("Step-3.7-Flash", places=DECODER, shares=False),
    "unlimited_ocr": Proved(
        "Unlimited-OCR", "5.23", (), "its cache has layers of a special kind, which never release the prompt"
    ),
    "video_llama_3": Proved("VideoLLaMA 3"),
}
"""The results proved, by `model_type`."""


_CROSS = "its layers read pictures by cross-attention, so the prompt has no vision tokens to drop"
_ENCODER_DECODER = "it is an encoder-decoder: its decoder has no vision tokens to drop"
_QUERIES = "its Q-Former reduces a picture to 32 tokens before the decoder, an OPT or T5 without rotary positions"
_ENCODER = "it is an encoder, which reads in both directions, and foveate drops tokens of decoders"

UNSERVED = {
    "mllama": _CROSS,
    "idefics": _CROSS,
    "blip": "its text decoder reads the picture by cross-attention, so the prompt has no vision tokens to drop",
    "evolla": "it reads a protein's residues by cross-attention, and no pictures",
    "pi0": "it is a robot policy: experts read the cache of a PaliGemma, and nothing is generated",
    "diffusion_gemma": (
        "its answers are blocks that a second stack denoises, which reads every layer's cache at full length"
    ),
    "florence2": _ENCODER_DECODER,
    "pix2struct": _ENCODER_DECODER,
    "pp_formulanet": _ENCODER_DECODER,
    "t5gemma2": _ENCODER_DECODER,
    "udop": _ENCODER_DECODER,
    "vision-encoder-decoder": _ENCODER_DECODER,
    "colmodernvbert": _ENCODER,
    "modernvbert": _ENCODER,
    "neomme": _ENCODER,
    "blip-2": _QUERIES,
    "instructblip": _QUERIES,
    "instructblipvideo": _QUERIES,
    "kosmos-2": "a resampler reduces a picture to 64 tokens, and its decoder has no rotary positions",
    "kosmos-2.5": "a resampler makes 2048 tokens from any picture, and its decoder has no rotary positions",
    "git": "its decoder is a BERT with the picture before the prompt, without placeholders or rotary positions",
}
"""Reasons why a model cannot be served, by `model_type`."""
