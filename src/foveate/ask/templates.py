"""How a conversation becomes a model's input: by its own chat template, or under the conditions of a paper."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from foveate._upstream import first_line, is_out_of_memory
from foveate.ask.conversation import Conversation
from foveate.ask.media import square
from foveate.errors import InputError, UnknownNameError, UnsupportedError

__all__ = ["PROTOCOLS", "check_protocol", "encode", "reads_videos", "text_of"]

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system text of vicuna_v1, under which LLaVA-1.5 was trained and evaluated."""


def encode(model: Any, processor: Any, conversation: Conversation, protocol: str = "own") -> Any:
    """The model's inputs of one conversation, batch 1, on the CPU.

    Args:
        model: A model of transformers.
        processor: Its processor.
        conversation: Messages with their media.
        protocol: "own" is the model's chat template and processor; "llava" the conditions of LLaVA-1.5's papers.

    Raises:
        InputError: If the chat template raises.
        UnknownNameError: If there is no such protocol.
        UnsupportedError: If the protocol or the processor does not take such media.
        ValueError: If the processor refuses them.
    """
    check_protocol(protocol)
    return PROTOCOLS[protocol](model, processor, conversation)


def check_protocol(name: str) -> None:
    """Refuse a protocol that there is not.

    Raises:
        UnknownNameError: The message lists those there are.
    """
    if name not in PROTOCOLS:
        raise UnknownNameError(f"No protocol {name!r}. There are: {', '.join(PROTOCOLS)}.")


def reads_videos(processor: Any) -> bool:
    """Whether a processor takes videos as such; else their frames may go in as pictures."""
    return getattr(processor, "video_processor", None) is not None


def _own(model: Any, processor: Any, conversation: Conversation) -> Any:
    """The model's own chat template and processor; without a template, placeholders before the text."""
    if conversation.clips and not reads_videos(processor):
        raise UnsupportedError(
            f"{type(processor).__name__} reads no videos. Take a model that does, such as LLaVA-OneVision or Qwen2-VL."
        )
    text = text_of(model, processor, conversation)
    options: dict[str, Any] = {}
    if conversation.clips:
        options["videos"] = [clip.frames for clip in conversation.clips]
        options["video_metadata"] = [clip.metadata() for clip in conversation.clips]
        options["do_sample_frames"] = False
    return _tensors(processor, text, conversation.images, **options)


def text_of(model: Any, processor: Any, conversation: Conversation) -> str:
    """A conversation as the model's own chat template writes it, a placeholder for each picture and film.

    Raises:
        InputError: If the chat template raises.
    """
    if not getattr(processor, "chat_template", None):
        pictures = f"{processor.image_token}\n" * sum(kind == "image" for kind, _ in conversation.parts)
        return pictures + "\n".join(conversation.texts)
    turns = [{"role": role, "content": [_slot(*part) for part in parts]} for role, parts in conversation.turns]
    return _rendered(model, processor, turns)


def _rendered(model: Any, processor: Any, turns: Sequence[Mapping[str, Any]]) -> str:
    """The turns as the chat template writes them.

    Raises:
        InputError: For whatever the template raises: it is a program that comes with the model.
    """
    try:
        text: str = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        whose = getattr(model, "name_or_path", "") or type(model).__name__
        raise InputError(
            f"The chat template of {whose} cannot write this conversation: "
            f"{type(error).__name__}: {first_line(error)} "
            "Change the messages, or repair the template in the model's folder (chat_template.jinja)."
        ) from error
    return text


def _slot(kind: str, value: Any) -> dict[str, Any]:
    """A part of a message as chat templates want it: a text, or the place of a picture or a video."""
    if kind == "text":
        return {"type": kind, "text": value}
    return {"type": kind}


def _llava(model: Any, processor: Any, conversation: Conversation) -> Any:
    """The conditions of LLaVA-1.5's papers: vicuna_v1 with its system text, pictures padded to a square."""
    if model.config.model_type != "llava" or conversation.clips:
        what = "a video" if conversation.clips else f"a {model.config.model_type} model"
        raise UnsupportedError(f"The protocol llava is that of LLaVA-1.5 on pictures; this is {what}. Use own.")
    system = SYSTEM
    said = ""
    for role, parts in conversation.turns:
        texts = [value for kind, value in parts if kind == "text"]
        pictures = [value for kind, value in parts if kind == "image"]
        text = "".join(texts)
        if role == "system":
            system = text
        elif role == "assistant":
            said += f" ASSISTANT: {text}</s>"
        else:
            said += " USER: " + f"{processor.image_token}\n" * len(pictures) + text
    images = [square(image, processor) for image in conversation.images]
    return _tensors(processor, f"{system}{said} ASSISTANT:", images)


def _tensors(processor: Any, text: str, images: Sequence[Image.Image], **options: Any) -> Any:
    bos = processor.tokenizer.bos_token
    if bos is not None and text.startswith(bos):
        options["add_special_tokens"] = False
    try:
        return processor(text=[text], images=list(images) or None, return_tensors="pt", **options)
    except (ValueError, ZeroDivisionError):
        raise
    except Exception as error:  # wrong-typed settings lead to anything
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{type(error).__name__}: {first_line(error)}") from error


PROTOCOLS: Mapping[str, Callable[[Any, Any, Conversation], Any]] = {"own": _own, "llava": _llava}
"""How a conversation becomes a model's input, by name."""
