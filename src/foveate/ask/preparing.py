"""From pictures and a question to what a model gets: files read, a text made of them, the processor called on both.

The text is the model's own chat template's, or that of the papers of LLaVA-1.5.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from foveate._transformers import PreTrainedConfig, PreTrainedModel
from foveate.ask.conversation import Conversation
from foveate.ask.loaded import Loaded, quiet
from foveate.ask.media import Media, as_frames, crop_note, padded, read_media, refuse_thin, square
from foveate.ask.pictures import Picture
from foveate.ask.prompt import Prompt, is_vision, placeholders
from foveate.errors import FoveateError, InputError, SettingError, UnknownNameError, UnsupportedError
from foveate.plain.upstream import brief, first_line, is_out_of_memory, shown
from foveate.video import Clip

Fit = Literal["own", "pad"]

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system text of vicuna_v1, under which LLaVA-1.5 was trained and evaluated."""


def conversation_about(
    loaded: Loaded,
    media: Media | None,
    prompt: str | None,
    messages: Sequence[Mapping[str, object]] | None,
    showing: Mapping[str, Any],
) -> Conversation:
    """The conversation that `VLM.ask` is given, with its files read; `showing` may hold `frames` and `fps`.

    Raises:
        InputError: If a file cannot be read.
        SettingError: If there is no question, or two, or neither a picture nor a film nor [].
    """
    frames, fps = showing.get("frames"), showing.get("fps")
    if messages is not None:
        if media is not None or prompt is not None:
            raise SettingError("messages hold pictures and texts: leave media and prompt out.")
        return Conversation.of(messages, frames, fps)
    if media is None:
        raise SettingError("What is it about? Name a picture or film; [] asks a question without one.")
    if prompt is None:
        raise SettingError('What is the question? Give a prompt: ask("cat.jpg", "What is it doing?").')
    check_text(prompt)
    return Conversation.about(read_media(media, frames, fps), prompt)


def prepare(
    loaded: Loaded,
    conversation: Conversation,
    *,
    protocol: str = "own",
    fit: Fit = "own",
    as_pictures: bool = False,
    few: bool = False,
) -> Prompt:
    """A conversation as the model gets it.

    Args:
        loaded: The model.
        conversation: What is said and shown.
        protocol: How it becomes a text; see `encode`.
        fit: "pad" shows a picture whole, on a square, where the processor would cut its sides off.
        as_pictures: Whether frames of a film may go in as pictures where the model reads no films.
        few: Whether nobody said how many: then a few must do, or as many as the processor's `most_frames` says.

    Raises:
        InputError: If a text is none, a picture is a line of pixels, or the processor refuses the media or makes tokens
            that the model does not have.
        SettingError: If fit is neither of the two, or nothing is said.
        UnsupportedError: If the processor or the protocol does not take such media.
    """
    if fit not in ("own", "pad"):
        raise SettingError(f'fit is "own" or "pad"; got {brief(fit)}.')
    for text in conversation.texts:
        check_text(text)
        refuse_special(loaded, text)
    if not any(text.strip() for text in conversation.texts):
        raise SettingError('The question is empty. Ask one, such as "What is it?".')
    split = as_pictures and not reads_videos(loaded.processor)
    crops = protocol == "own" and loaded.crops
    notes = list(conversation.notes)
    media: list[Picture | Clip] = []
    try:
        for medium in conversation.media:
            refuse_thin(medium)
            if few and isinstance(medium, Clip) and not medium.chosen:
                medium = medium.thinned(getattr(loaded.processor, "most_frames", len(medium)))
            if split and isinstance(medium, Clip):
                medium, words = as_frames(medium, few)
                notes.append(words)
            if crops and (fit == "pad" or loaded.pads):
                medium = padded(medium, loaded.processor)
            media.append(medium)
            if crops and (cropped := crop_note(medium)) is not None:
                notes.append(cropped)
        conversation = conversation.with_media(media, frames_as_images=split)
        with loaded.lock, quiet():
            encoded = encode(loaded.model, loaded.processor, conversation, protocol)
    except FoveateError:
        raise
    except (ValueError, ZeroDivisionError, MemoryError) as error:
        raise InputError(_refusal(loaded.name, conversation, error)) from error
    ids = encoded["input_ids"]
    vision, vocabulary = is_vision(loaded.model.config, ids), loaded.model.get_input_embeddings().num_embeddings
    most = max(ids[~vision].tolist(), default=0)
    if most >= vocabulary:
        raise InputError(loaded.misfit(f"token {most} is not among its {vocabulary:,}."))
    if media and not vision.any():
        raise UnsupportedError("The processor made a prompt without any vision token; is it the model's own?")
    too_long = length_note(loaded.model.config.get_text_config(), ids.shape[1])
    if too_long is not None:
        notes.append(too_long)
    device = "cpu" if loaded.model.device.type == "meta" else loaded.model.device  # a model without its weights
    inputs: Mapping[str, Tensor] = encoded.to(device, dtype=loaded.model.dtype)
    return Prompt(loaded.card, conversation, inputs, tuple(media), tuple(notes))


def check_text(text: object, name: str = "The question") -> None:
    """Refuse what is no text, or has half a letter, as bytes of a command line that are not UTF-8 become."""
    if not isinstance(text, str):
        raise SettingError(f"{name} is a text; got {brief(text)}.")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"{name} is no text of Unicode: {shown(text, 80)}. Write it in UTF-8.")


def refuse_special(loaded: Loaded, text: str) -> None:
    """Refuse a text that holds a token with a meaning, such as the end of a sequence or the place of a picture.

    Raises:
        InputError: If it does.
    """
    tokenizer = loaded.tokenizer
    places = tokenizer.convert_ids_to_tokens(sorted(placeholders(loaded.model.config)))
    for token in (*tokenizer.all_special_tokens, *places):
        if token and token in text:
            raise InputError(f"The text holds {token!r}, which means something else to {loaded.name}. Leave it out.")


def _refusal(name: str, conversation: Conversation, error: Exception) -> str:
    """Why a processor takes no such media; a batch of videos, as LLaVA-OneVision's, has so many frames of each."""
    sizes = ", ".join([*map(_size_words, conversation.images), *map(_size_words, conversation.clips)])
    why = str(error).partition("\n")[0] or "out of memory"
    if not why.endswith("."):
        why += "."
    lengths = {len(clip) for clip in conversation.clips}
    hint = ""
    if len(lengths) > 1:
        hint = f" Take as many frames of each video: {min(lengths)}."
    elif lengths == {1}:
        hint = " Of one frame, give the model a picture."
    return f"The processor of {name} refuses {sizes} pixels: {why}{hint}"


def _size_words(medium: Image.Image | Clip) -> str:
    """640 x 480, or 8 frames of 640 x 480."""
    if isinstance(medium, Image.Image):
        return f"{medium.width} x {medium.height}"
    frames = "frame" if len(medium) == 1 else "frames"
    return f"{len(medium)} {frames} of {medium.frames.shape[2]} x {medium.frames.shape[1]}"


def length_note(config: PreTrainedConfig, tokens: int) -> str | None:
    """A sentence where a prompt has more positions than the decoder was made for; M-RoPE gives a picture fewer."""
    most = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if not most or tokens <= most or "mrope_section" in rope:
        return None
    return (
        f"the prompt has {tokens:,} tokens and this model was made for {most:,}: the answer may be poor. "
        "Take fewer frames or pictures."
    )


# -- templates ----------------------------------------------------------------------------------------------------


def encode(
    model: PreTrainedModel, processor: ProcessorMixin, conversation: Conversation, protocol: str = "own"
) -> BatchFeature:
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


def reads_videos(processor: ProcessorMixin) -> bool:
    """Whether a processor takes videos as such; else their frames may go in as pictures."""
    return getattr(processor, "video_processor", None) is not None


def _own(model: PreTrainedModel, processor: ProcessorMixin, conversation: Conversation) -> BatchFeature:
    """The model's own chat template and processor; without a template, placeholders before the text."""
    if conversation.clips and not reads_videos(processor):
        raise UnsupportedError(
            f"{type(processor).__name__} reads no videos. Take a model that does, such as LLaVA-OneVision or Qwen2-VL."
        )
    text = text_of(model, processor, conversation)
    options: dict[str, object] = {}
    if conversation.clips:
        least = getattr(processor.video_processor, "temporal_patch_size", 1)
        options["videos"] = [  # a lone frame is doubled, as transformers does where a processor takes two or more
            clip.frames.repeat(least, 0) if len(clip) == 1 < least else clip.frames for clip in conversation.clips
        ]
        options["video_metadata"] = [clip.metadata() for clip in conversation.clips]
        options["do_sample_frames"] = False
    return _tensors(processor, text, conversation.images, **options)


def text_of(model: PreTrainedModel, processor: ProcessorMixin, conversation: Conversation) -> str:
    """A conversation as the model's own chat template writes it, a placeholder for each picture and film.

    Raises:
        InputError: If the chat template raises, or does not read a key of a message.
    """
    if not getattr(processor, "chat_template", None):
        conversation.refuse_more()
        pictures = f"{processor.image_token}\n" * sum(kind == "image" for kind, _ in conversation.parts)
        return pictures + "\n".join(conversation.texts)
    turns: list[dict[str, object]] = [
        {"role": role, "content": [_slot(*part) for part in parts], **conversation.more.get(place, {})}
        for place, (role, parts) in enumerate(conversation.turns)
    ]
    text = _written(model, processor, turns)
    for place, others in conversation.more.items():
        for name in others if place < len(turns) else ():
            without = {key: value for key, value in turns[place].items() if key != name}
            if _written(model, processor, [*turns[:place], without, *turns[place + 1 :]]) == text:
                conversation.refuse_more([name])
    return text


def _written(model: PreTrainedModel, processor: ProcessorMixin, turns: list[dict[str, object]]) -> str:
    """Turns as the chat template writes them."""
    try:
        text: str = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program that comes with the model
        if is_out_of_memory(error):
            raise
        whose = getattr(model, "name_or_path", "") or type(model).__name__
        raise InputError(
            f"The chat template of {whose} cannot write this conversation: "
            f"{type(error).__name__}: {first_line(error)} "
            "Change the messages, or repair the template in the model's folder (chat_template.jinja)."
        ) from error
    return text


def _slot(kind: str, value: object) -> dict[str, object]:
    """A part of a message as chat templates want it: a text, or the place of a picture or a video."""
    if kind == "text":
        return {"type": kind, "text": value}
    return {"type": kind}


def _llava(model: PreTrainedModel, processor: ProcessorMixin, conversation: Conversation) -> BatchFeature:
    """The conditions of LLaVA-1.5's papers: vicuna_v1 with its system text, pictures padded to a square."""
    if model.config.model_type != "llava" or conversation.clips:
        what = "a video"
        if not conversation.clips:
            what = f"a {model.config.model_type} model"
        raise UnsupportedError(f"The protocol llava is that of LLaVA-1.5 on pictures; this is {what}. Use own.")
    conversation.refuse_more()
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


def _tensors(processor: ProcessorMixin, text: str, images: Sequence[Image.Image], **options: object) -> BatchFeature:
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


PROTOCOLS: Mapping[str, Callable[[PreTrainedModel, ProcessorMixin, Conversation], BatchFeature]] = {
    "own": _own,
    "llava": _llava,
}
"""How a conversation becomes a model's input, by name."""
