"""Every refusal of the plug-in: said when the server starts, or to the request that cannot be served."""

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.contract.method import Method
from foveate.engine.program import Program
from foveate.errors import SettingError, UnsupportedError

__all__ = [
    "refuse_early",
    "refuse_engine_of_mrope",
    "refuse_image_at_end",
    "refuse_more_than_all",
    "refuse_rate_between_layers",
    "refuse_tower",
    "refuse_tower_lora",
    "refuse_unknown_count",
    "refuse_unknown_keys",
    "refuse_unloaded_block",
    "refuse_wrong_count",
    "refuse_wrong_rate",
]

REDUCED = "Make its rows on transformers with foveate.integrations.vllm.embeddings, which stock vLLM takes as they are."


# -- the method -----------------------------------------------------------------------------------------------


def refuse_early(stages: Program) -> None:
    """A server's tower runs whole pictures, and a prompt is made before any picture is seen."""
    name = stages.method.name
    if stages.pixels:
        raise UnsupportedError(
            f"{name} makes pictures smaller, which vLLM's vision towers cannot take. Use averagepool, or let the "
            "client send smaller pictures."
        )
    if stages.tower is not None:
        raise UnsupportedError(
            f"{name} merges patches inside the vision tower, so that the picture decides how many are left; vLLM makes "
            f"room for them before. {REDUCED}"
        )
    for stage in stages.early:
        if stage.reads_text:
            raise UnsupportedError(
                f"{name} reads the question before the decoder, and vLLM encodes a picture for any question. {REDUCED}"
            )
        if stage.unit == "sample":
            raise UnsupportedError(
                f"{name} ranks the tokens of all images of a request together, and vLLM encodes them one by one. Set "
                "scope=image."
            )


def refuse_unknown_count(method: Method, count: int | None) -> int:
    """The count, where it is known; a prompt is as long as it is before the picture is seen."""
    if count is None:
        raise UnsupportedError(
            f"{method.name} lets the picture decide how many tokens stay, and vLLM must know it before it has seen the "
            f"picture. Set tokens or retention. {REDUCED}"
        )
    return count


def refuse_tower(model_type: str) -> None:
    """Towers whose attention foveate cannot read in vLLM."""
    if model_type not in ("clip_vision_model", "siglip_vision_model"):
        raise UnsupportedError(f"foveate cannot drop tokens of {model_type} towers in vLLM. Use transformers.")


def refuse_tower_lora(lora: Any) -> None:
    """vLLM tells a tower's LoRA how many tokens there are by what is left in the prompt."""
    if getattr(lora, "enable_tower_connector_lora", False):
        raise UnsupportedError(
            "enable_tower_connector_lora counts an image's tokens in the prompt, from which foveate drops some. Use "
            "LoRA on the decoder alone."
        )


def refuse_unloaded_block(block: int, loaded: int) -> None:
    """vLLM loads the tower as far as the decoder needs it."""
    if block > loaded:
        raise UnsupportedError(
            f"This method reads block {block} of the vision tower, and foveate loads blocks 0 to {loaded} in vLLM. "
            "Name an earlier block."
        )


# -- the engine -----------------------------------------------------------------------------------------------


def refuse_engine_of_mrope(vllm_config: Any) -> None:
    """Ways to run a Qwen model in which rows would lose their places, or the tower would show nothing."""
    media, lora = vllm_config.model_config.multimodal_config, vllm_config.lora_config
    reasons = {
        "pipeline_parallel_size above 1: only the first stage learns the places of rows. Use tensor parallelism": (
            vllm_config.parallel_config.pipeline_parallel_size > 1
        ),
        "speculative decoding: its drafts are made without the places of rows. Leave speculative_config unset": (
            vllm_config.speculative_config is not None
        ),
        "video_pruning_rate: vLLM's own way with videos has another form of places. Leave it unset": (
            bool(media.video_pruning_rate)
        ),
        "mm_encoder_tp_mode='data': each process would see other images. Leave it at 'weights'": (
            media.mm_encoder_tp_mode == "data" and vllm_config.parallel_config.tensor_parallel_size > 1
        ),
        "LoRA on the vision tower: vLLM counts its tokens by what is left. Leave enable_tower_connector_lora unset": (
            lora is not None and lora.enable_tower_connector_lora
        ),
        "a compiled vision tower: it shows no attention. Leave compile_mm_encoder unset": (
            vllm_config.compilation_config.compile_mm_encoder
        ),
    }
    for reason, refused in reasons.items():
        if refused:
            raise UnsupportedError(f"foveate cannot drop tokens of this model with {reason}.")


# -- a request ------------------------------------------------------------------------------------------------


def refuse_unknown_keys(values: Mapping[str, Any], known: Sequence[str]) -> None:
    """Keys of `mm_processor_kwargs` that look like foveate's and are not: transformers would ignore them.

    Raises:
        SettingError: A ValueError, so that the server answers 400.
    """
    wrong = [key for key in values if _is_ours(key) and key not in known]
    for scope, inner in values.items():
        if isinstance(inner, Mapping):  # such as images_kwargs
            wrong += [f"{key} in {scope}" for key in inner if _is_ours(key)]
    if wrong:
        raise SettingError(
            f"mm_processor_kwargs takes {' or '.join(known)}; the method is set when the server starts. "
            f"Got {', '.join(wrong)}."
        )


def _is_ours(key: str) -> bool:
    return key.lower().startswith("foveate")


def refuse_wrong_rate(tokens: Any, retention: Any) -> None:
    """A rate is a whole number of tokens or a share, not both.

    Raises:
        SettingError: A ValueError, so that the server answers 400.
    """
    if tokens is not None and retention is not None:
        raise SettingError(f"Give foveate_tokens or foveate_retention, not both; got {tokens!r} and {retention!r}.")
    if tokens is not None and (type(tokens) is not int or tokens < 1):
        raise SettingError(f"foveate_tokens must be a whole number, 1 or more; got {tokens!r}.")
    if retention is not None and not (type(retention) in (int, float) and 0 < retention <= 1):
        raise SettingError(f"foveate_retention must be a share above 0 and at most 1; got {retention!r}.")


def refuse_rate_between_layers(stages: Program) -> None:
    """A request's own rate, where counts between layers are those of the server's method."""
    if stages.late:
        raise SettingError(
            f"{stages.method.name} drops tokens between decoder layers, at counts that were fixed when the server "
            "started: requests cannot have rates of their own. Leave foveate_tokens and foveate_retention out."
        )


def refuse_more_than_all(tokens: int | None, size: int) -> None:
    """A rate of more tokens than the image has."""
    if tokens is not None and tokens > size:
        raise SettingError(f"foveate_tokens must be between 1 and {size} for this image; got {tokens}.")


def refuse_image_at_end(end: int, length: int) -> None:
    """Behind a cut image the text goes on from where the whole one would end; without text nothing says where."""
    if end == length:
        raise SettingError(
            "The prompt ends in an image. Put text, or the token that ends an image, behind it; the model's chat "
            "template does."
        )


def refuse_wrong_count(rows: int, count: int) -> None:
    """The prompt has as many places as the processor counted."""
    if rows != count:
        raise RuntimeError(
            f"{rows} rows of an image are left, but the prompt has {count} places for them. This is a mistake of "
            "foveate's; please report it with the method and the rate."
        )
