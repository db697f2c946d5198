"""From pictures and a question to what a model gets."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from foveate import embedded
from foveate._upstream import shown
from foveate.ask.conversation import Conversation
from foveate.ask.loaded import Loaded
from foveate.ask.media import Media, as_frames, crop_note, padded, read_media, refuse_thin
from foveate.ask.pictures import Picture
from foveate.ask.prompt import Prompt, is_vision, length_note, refusal, refuse_unknown_tokens
from foveate.ask.quiet import quiet
from foveate.ask.templates import encode, reads_videos
from foveate.errors import FoveateError, InputError, SettingError, UnsupportedError
from foveate.video import Clip

__all__ = ["Fit", "check_text", "conversation_about", "prepare"]

Fit = Literal["own", "pad"]


def conversation_about(
    loaded: Loaded,
    media: Media | None,
    prompt: str | None,
    messages: Sequence[Mapping[str, Any]] | None,
    frames: int | None,
    fps: float | None,
) -> Conversation:
    """The conversation that `VLM.ask` is given, with its files read.

    Raises:
        InputError: If a file cannot be read.
        SettingError: If there is no question, or two.
    """
    if messages is not None:
        if media is not None or prompt is not None:
            raise SettingError("messages hold pictures and texts: leave media and prompt out.")
        return Conversation.of(messages, frames, fps)
    if media is None and loaded.name == embedded.NAME:
        media = embedded.picture()
        prompt = prompt or embedded.QUESTION
    if prompt is None:
        raise SettingError('What is the question? Give a prompt: ask("cat.jpg", "What is it doing?").')
    if not isinstance(prompt, str):
        raise SettingError(f"The question is a text; got {prompt!r}.")
    if media is None:
        media = ()
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
        protocol: How it becomes a text; see `foveate.ask.templates`.
        fit: "pad" shows a picture whole, on a square, where the processor would cut its sides off.
        as_pictures: Whether frames of a film may go in as pictures where the model reads no films.
        few: Whether a few of them must do.

    Raises:
        InputError: If a text is none, a picture is a line of pixels, or the processor refuses the media or makes tokens
            that the model does not have.
        SettingError: If fit is neither of the two.
        UnsupportedError: If the processor or the protocol does not take such media.
    """
    if fit not in ("own", "pad"):
        raise SettingError(f'fit is "own" or "pad"; got {fit!r}.')
    for text in conversation.texts:
        check_text(text)
    notes = list(conversation.notes)
    media: list[Picture | Clip] = []
    split = as_pictures and not reads_videos(loaded.processor)
    crops = protocol == "own" and loaded.crops
    for medium in conversation.media:
        refuse_thin(medium)
        if split and isinstance(medium, Clip):
            medium, words = as_frames(medium, few)
            notes.append(words)
        if crops and (fit == "pad" or loaded.pads):
            medium = padded(medium, loaded.processor)
        media.append(medium)
        if crops and (cropped := crop_note(medium)) is not None:
            notes.append(cropped)
    conversation = conversation.with_media(media, frames_as_images=split)
    inputs = _encoded(loaded, conversation, protocol)
    if media and not is_vision(loaded.model.config, inputs["input_ids"]).any():
        raise UnsupportedError("The processor made a prompt without any vision token; is it the model's own?")
    too_long = length_note(loaded.model.config.get_text_config(), inputs["input_ids"].shape[1])
    if too_long is not None:
        notes.append(too_long)
    return Prompt(loaded, conversation, inputs, tuple(media), tuple(notes))


def check_text(text: str) -> None:
    """Refuse half a letter, as the bytes of a command line that are not UTF-8 become: no tokenizer takes it."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"The question is no text of Unicode: {shown(text, 80)}. Write it in UTF-8.")


def _encoded(loaded: Loaded, conversation: Conversation, protocol: str) -> Mapping[str, Tensor]:
    """The processor's tensors on the model's device, floats in its dtype."""
    with loaded.lock:
        try:
            with quiet():
                inputs = encode(loaded.model, loaded.processor, conversation, protocol)
        except FoveateError:
            raise
        except (ValueError, ZeroDivisionError, MemoryError) as error:
            raise InputError(refusal(loaded.name, conversation, error)) from error
    refuse_unknown_tokens(loaded, inputs)
    moved: Mapping[str, Tensor] = inputs.to(loaded.model.device, dtype=loaded.model.dtype)
    return moved
