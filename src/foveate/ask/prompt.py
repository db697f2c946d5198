"""`Prompt`: one prepared sample with its media, text, tensors and cost. `prepare` makes it; `collate` batches it."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from foveate import embedded
from foveate._transformers import PreTrainedConfig, PreTrainedModel
from foveate.ask.conversation import Conversation
from foveate.ask.loaded import Card, Loaded, quiet
from foveate.ask.media import Media, Picture, as_frames, crop_note, pad, read_media, refuse_thin, square
from foveate.contract.method import Method
from foveate.core.grid import Grid
from foveate.cost import Cost, RunCounts, cost
from foveate.engine.trace import Trace
from foveate.errors import FoveateError, InputError, SettingError, UnknownNameError, UnsupportedError
from foveate.families.vision import PictureLayout
from foveate.naming import asked_share
from foveate.plain.upstream import brief, first_line, is_out_of_memory, trim
from foveate.video import Clip

TOKENS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


@dataclass(frozen=True, eq=False)
class Prompt:
    """A question prepared for a model.

    Attributes:
        card: Description of the model it was made for.
        conversation: The texts and media.
        inputs: The model's arguments: tensors of one sample (batch 1), on the model's device.
        media: The images and videos, in order. A video stays one entry even if its frames go in as images.
        notes: Notes for the user, such as that an image is cropped.
        system: The text of `system=`, which is the first turn and shared with other prompts. None without it.
    """

    card: Card
    conversation: Conversation
    inputs: Mapping[str, Tensor]
    media: tuple[Picture | Clip, ...] = ()
    notes: tuple[str, ...] = ()
    system: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle tensors on the CPU, because another process may not have the device."""
        return {
            **vars(self),
            "inputs": {name: value if value.is_meta else value.cpu() for name, value in self.inputs.items()},
        }

    @property
    def text(self) -> str:
        """The last text of the user: the question."""
        turns = [parts for role, parts in self.conversation.turns if role == "user"]
        texts = [value for parts in turns for kind, value in parts if kind == "text"]
        return texts[-1] if texts else ""

    @property
    def single_turn(self) -> bool:
        """Whether the conversation has no answer yet."""
        return not any(role == "assistant" for role, _ in self.conversation.turns)

    @property
    def shown(self) -> list[Image.Image | Clip]:
        """The media as the model sees them, for `Trace.show` to draw on."""
        return [medium if isinstance(medium, Clip) else medium.image for medium in self.media]

    @property
    def clips(self) -> list[Clip]:
        """The videos among the media."""
        return [medium for medium in self.media if isinstance(medium, Clip)]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Vision tokens of each image or video. One sum if the template writes nothing between them."""
        ids = self.inputs["input_ids"][0].cpu()
        # A run of vision tokens ends at a text token, or where an image's id changes to a video's.
        # ids [T, I, I, T, V] -> marks [-1, I, -1, V], counts [1, 2, 1, 1] -> runs (2, 1).
        marks, counts = torch.unique_consecutive(
            torch.where(is_vision(self.card.config, ids), ids, -1), return_counts=True
        )
        runs = tuple(counts[marks >= 0].tolist())
        if len(runs) in (0, len(self.kinds)):
            return runs
        return (sum(runs),)

    @property
    def vision_tokens(self) -> int:
        """Number of vision tokens."""
        return sum(self.sizes)

    @property
    def first(self) -> int:
        """Column of the first vision token."""
        return int(is_vision(self.card.config, self.inputs["input_ids"][0]).nonzero()[0])

    @property
    def looks(self) -> int:
        """How many times the model processes the images, each time with its own budget."""
        return 1

    def budget_share(self, method: Method) -> float | None:
        """Return the share of the vision tokens that a method's budget requests, or None without a budget."""
        return asked_share(method, self.vision_tokens)

    @property
    def tokens(self) -> int:
        """Number of tokens, text and vision."""
        return int(self.inputs["input_ids"].shape[1])

    @property
    def text_tokens(self) -> int:
        """Number of text tokens."""
        return self.tokens - self.vision_tokens

    @cached_property
    def kinds(self) -> list[str]:
        """How the model reads each medium: "image" or "video"."""
        return [kind for kind, _ in self.conversation.parts if kind != "text"]

    def warn(self, stacklevel: int) -> None:
        """Emit the notes as warnings."""
        for note in self.notes:
            warnings.warn(note, stacklevel=stacklevel + 1)

    def cost(self, method: Method | None = None, trace: Trace | None = None, sample: int = 0) -> Cost:
        """Return the cost of this prompt with a method, or of the untouched model.

        Args:
            method: The method.
            trace: The trace of a run. Methods whose token counts depend on the image need it.
            sample: Index of this prompt in the trace.

        Raises:
            SettingError: If the method's counts depend on the image and there is no trace.
        """
        ran = RunCounts()
        if trace is not None and trace.history:
            ran = trace.history[0].ran(sample)
        return cost(
            self.card.config,
            text_tokens=self.text_tokens,
            vision_tokens=self.sizes,
            method=method,
            tower_images=self.tower_images,
            dtype=self.card.dtype,
            grids=self.grids,
            videos=self.videos,
            **ran,
        )

    @property
    def _layouts(self) -> list[PictureLayout]:
        """How each medium becomes vision tokens. Empty if the family does not tell them apart."""
        sizes: Sequence[int] = self.sizes
        if len(sizes) != len(self.kinds):  # one sum
            sizes = [0] * len(self.kinds)
        by_kind = {}
        for kind in set(self.kinds):
            own = [size for size, other in zip(sizes, self.kinds, strict=True) if other == kind]
            layouts = self.card.family.pictures(self.card.config, kind, self.inputs, own)
            if len(layouts) != len(own):
                return []
            by_kind[kind] = iter(layouts)
        return [next(by_kind[kind]) for kind in self.kinds]

    @property
    def tower_images(self) -> list[int] | None:
        """Images that the vision tower encodes for each of `sizes`, or None if unknown; see `foveate.cost`."""
        counts = [picture.tower_images for picture in self._layouts if picture.tower_images is not None]
        if len(counts) < len(self.kinds):
            return None
        return counts if len(counts) == len(self.sizes) else [sum(counts)]  # `sizes` is one sum

    @property
    def videos(self) -> list[bool] | None:
        """Whether each of `sizes` is a video. None if `sizes` is one sum over several media."""
        if len(self.sizes) != len(self.kinds):
            return None
        return [kind == "video" for kind in self.kinds]

    @property
    def grids(self) -> list[tuple[Grid, ...]] | None:
        """Rows and columns of the tokens of each image or frame, or None if unknown."""
        if not self.sizes or len(self.sizes) != len(self.kinds):  # `sizes` is one sum
            return None
        grids = [picture.grids for picture in self._layouts if picture.grids is not None]
        return grids if len(grids) == len(self.sizes) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the input as plain values."""
        images = [str(medium.path) for medium in self.media if isinstance(medium, Picture) and medium.path is not None]
        videos = [
            {"path": str(clip.path), "frames": len(clip), "seconds": list(clip.seconds), "note": clip.note}
            for clip in self.clips
        ]
        return {
            "model": self.card.to_dict(),
            "images": images,
            "videos": videos,
            "prompt": self.text,
            "text_tokens": self.text_tokens,
            "vision_tokens": list(self.sizes),
        }

    def __repr__(self) -> str:
        return f"Prompt({self.text!r:.60}, {self.vision_tokens} vision and {self.text_tokens} text tokens)"


def is_vision(config: PreTrainedConfig, ids: Tensor) -> Tensor:
    """Return which ids are placeholders of vision tokens: bool, the shape of `ids`, on the CPU."""
    return torch.isin(ids.cpu(), torch.tensor(sorted(placeholders(config))))


def placeholders(config: PreTrainedConfig) -> set[int]:
    """Return the ids that are placeholders of vision tokens."""
    ids = (getattr(config, name, None) for name in TOKENS)
    return {number for number in ids if number is not None}


# -- making one ---------------------------------------------------------------------------------------------------

Fit = Literal["own", "pad"]

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system text of vicuna_v1, with which LLaVA-1.5 was trained and evaluated."""


def conversation_about(
    loaded: Loaded,
    media: Media | None,
    prompt: str | None,
    messages: Sequence[Mapping[str, object]] | None,
    showing: Mapping[str, Any],
) -> Conversation:
    """Make the conversation of `VLM.ask`'s arguments and read its files.

    `showing` may hold `frames`, `fps` and `system`.

    Raises:
        InputError: If a file cannot be read.
        SettingError: If the question or the media are missing, or given twice; also a system turn.
        UnsupportedError: If the chat template does not begin with the system text.
    """
    frames, fps, system = (showing.get(name) for name in ("frames", "fps", "system"))
    if system is not None:
        refuse_behind(loaded, system)
        others = {**showing, "system": None}
        return conversation_about(loaded, media, prompt, messages, others).with_system(system)
    if messages is not None:
        if media is not None or prompt is not None:
            raise SettingError("messages already hold the pictures and texts: leave media and prompt out.")
        return Conversation.of(messages, frames, fps)
    if media is None:
        raise SettingError("media is missing: name a picture or film, or pass [] to ask without one.")
    if prompt is None:
        raise SettingError('The question is missing: pass a prompt, as in ask("cat.jpg", "What is it doing?").')
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
    """Prepare a conversation for the model.

    Args:
        loaded: The model and its processor.
        conversation: The texts and media.
        protocol: How the conversation is encoded; see `encode`.
        fit: "pad" pads an image to a square, so that the processor does not crop it.
        as_pictures: Allow a video's frames to go in as images if the model reads no videos.
        few: Whether the user set no number of frames. Then a default maximum applies: the processor's `most_frames`,
            and `foveate.ask.media.FEW` for frames that go in as images.

    Raises:
        InputError: If a text is invalid, an image is extremely thin, or the processor refuses the media or makes
            tokens that the model does not have.
        SettingError: If all texts are empty.
        UnsupportedError: If the processor or the protocol does not support the media.
    """
    check_texts(loaded, conversation.texts, conversation.texts)
    split = as_pictures and not reads_videos(loaded.processor)
    crops = protocol == "own" and loaded.crops
    notes = list(conversation.notes)
    if loaded.name in embedded.NAMES and not loaded.warned:
        frames = [clip.images()[len(clip) // 2] for clip in conversation.clips]
        loaded.warned = not all(map(embedded.is_drawn, [*conversation.images, *frames]))
        notes += [embedded.STRANGE] * loaded.warned
    media: list[Picture | Clip] = []
    try:
        for medium in conversation.media:
            refuse_thin(medium)
            if few and isinstance(medium, Clip) and not medium.chosen:
                medium = medium.thinned(getattr(loaded.processor, "most_frames", len(medium)))
            if split and isinstance(medium, Clip):
                medium, words = as_frames(medium, few)
                if loaded.name == embedded.NAME:
                    words += f" The embedded model for videos is {embedded.FILMS}."
                notes.append(words)
            if crops and (fit == "pad" or loaded.pads):
                medium = pad(medium, loaded.processor)
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
        raise UnsupportedError("The processor made a prompt without any vision token. Use the model's own processor.")
    too_long = length_note(loaded.model.config.get_text_config(), ids.shape[1])
    if too_long is not None:
        notes.append(too_long)
    device = "cpu" if loaded.model.device.type == "meta" else loaded.model.device  # a model without its weights
    inputs: Mapping[str, Tensor] = encoded.to(device, dtype=loaded.model.dtype)
    return Prompt(loaded.card, conversation, inputs, tuple(media), tuple(notes))


def refuse_behind(loaded: Loaded, system: str) -> None:
    """Refuse a system text that the chat template does not write before pictures and questions.

    The model remembers the last text that passed with its template, because every prompt of a batch asks.

    Raises:
        InputError: If it is not valid Unicode, or contains a special token.
        SettingError: If it is empty.
        UnsupportedError: If the template leaves it out, changes it or writes it later.
    """
    check_text(system, "The system text")
    checked = system, getattr(loaded.processor, "chat_template", None)
    if loaded.system_checked == checked:
        return
    refuse_special(loaded, system)
    if not system.strip():
        raise SettingError("The system text is empty. Write one, or leave system out.")
    picture = Conversation((("user", (("image", None), ("text", "?"))),))
    asked = (picture.with_system(system), Conversation.about([], "?").with_system(system))
    text, other = (text_of(loaded.model, loaded.processor, conversation) for conversation in asked)
    before, words, _ = text.partition(system.strip())
    if not words or not other.startswith(before + words):
        raise UnsupportedError(
            f"The chat template of {loaded.name} does not write a system text before everything else, so the text "
            "cannot be shared. Write it into the question."
        )
    loaded.system_checked = checked


def begun_by(loaded: Loaded, system: str) -> Tensor:
    """Return the ids that every prompt with a system text begins with, (1, tokens) int64 on the model's device.

    They are those that two questions have in common, so letters of the text that share a token with what follows them
    are left out.

    Raises:
        FoveateError: As in `refuse_behind`.
    """
    refuse_behind(loaded, system)
    with loaded.lock, quiet():
        first, other = (
            encode(loaded.model, loaded.processor, Conversation.about([], text).with_system(system))["input_ids"][0]
            for text in ("What is it?", "\nIs it?")
        )
    begun: Tensor = first[None, : in_common(first, other)].to(loaded.model.device)
    return begun


def in_common(first: Tensor, other: Tensor) -> int:
    """Return how many ids two texts, (ids,) int64 each, both begin with."""
    shorter = min(len(first), len(other))
    return int((first[:shorter] == other[:shorter]).cumprod(dim=0).sum())


def check_text(text: object, name: str = "The question") -> None:
    """Refuse a value that is not a text, or a text with lone surrogates (from a command line that is not UTF-8)."""
    if not isinstance(text, str):
        raise SettingError(f"{name} must be a text; got {brief(text)}.")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InputError(f"{name} is not valid Unicode: {trim(text, 80)}. Write it in UTF-8.")


def check_texts(loaded: Loaded, texts: Sequence[str], asked: Sequence[str]) -> None:
    """Refuse a text that is invalid, and a question, `asked`, that is empty.

    Raises:
        InputError: If a text is none, or contains a special token.
        SettingError: If all that is asked is empty.
    """
    for text in texts:
        check_text(text)
        refuse_special(loaded, text)
    if not any(text.strip() for text in asked):
        raise SettingError('The question is empty. Ask one, such as "What is it?".')


def refuse_special(loaded: Loaded, text: str) -> None:
    """Refuse a text that contains a special token, such as the end of a sequence or an image placeholder.

    Raises:
        InputError: If it does.
    """
    tokenizer = loaded.tokenizer
    places = tokenizer.convert_ids_to_tokens(sorted(placeholders(loaded.model.config)))
    for token in (*tokenizer.all_special_tokens, *places):
        if token and token in text:
            raise InputError(f"The text holds {token!r}, which is a special token of {loaded.name}. Leave it out.")


def _refusal(name: str, conversation: Conversation, error: Exception) -> str:
    """Return the message for media that the processor refuses.

    Some processors, such as LLaVA-OneVision's, need the same number of frames of each video, which is hinted at.
    """
    sizes = ", ".join([*map(_size_words, conversation.images), *map(_size_words, conversation.clips)])
    why = str(error).partition("\n")[0] or "out of memory"
    if not why.endswith("."):
        why += "."
    lengths = {len(clip) for clip in conversation.clips}
    hint = ""
    if len(lengths) > 1:
        hint = f" Take the same number of frames of each video: {min(lengths)}."
    elif lengths == {1}:
        hint = " Pass a single frame as a picture instead."
    return f"The processor of {name} refuses {sizes} pixels: {why}{hint}"


def _size_words(medium: Image.Image | Clip) -> str:
    """Format a size: 640 x 480, or 8 frames of 640 x 480."""
    if isinstance(medium, Image.Image):
        return f"{medium.width} x {medium.height}"
    frames = "frame" if len(medium) == 1 else "frames"
    return f"{len(medium)} {frames} of {medium.frames.shape[2]} x {medium.frames.shape[1]}"


def length_note(config: PreTrainedConfig, tokens: int) -> str | None:
    """Return a note if a prompt is longer than the decoder's maximum, or None.

    With M-RoPE there is none, because an image takes fewer positions than tokens.
    """
    most = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if not most or tokens <= most or "mrope_section" in rope:
        return None
    return (
        f"the prompt has {tokens:,} tokens and this model was made for {most:,}: the answer may be poor. "
        "Use fewer frames or pictures."
    )


# -- templates ----------------------------------------------------------------------------------------------------


def encode(
    model: PreTrainedModel, processor: ProcessorMixin, conversation: Conversation, protocol: str = "own"
) -> BatchFeature:
    """Return the model's inputs for one conversation, batch 1, on the CPU.

    Args:
        model: A transformers model.
        processor: Its processor.
        conversation: Messages with their media.
        protocol: "own" uses the model's chat template and processor, "llava" the conditions of LLaVA-1.5's papers.

    Raises:
        InputError: If the chat template raises.
        UnknownNameError: If the protocol is unknown.
        UnsupportedError: If the protocol or the processor does not support the media.
        ValueError: If the processor refuses the media.
    """
    check_protocol(protocol)
    return PROTOCOLS[protocol](model, processor, conversation)


def check_protocol(name: str) -> None:
    """Refuse an unknown protocol.

    Raises:
        UnknownNameError: If it is unknown. The message lists the protocols.
    """
    if name not in PROTOCOLS:
        raise UnknownNameError(f"No protocol {name!r}. There are: {', '.join(PROTOCOLS)}.")


def reads_videos(processor: ProcessorMixin) -> bool:
    """Return whether a processor accepts videos. If not, their frames may go in as images."""
    return getattr(processor, "video_processor", None) is not None


def _own(model: PreTrainedModel, processor: ProcessorMixin, conversation: Conversation) -> BatchFeature:
    """Encode with the model's chat template and processor. Without a template, placeholders come before the text."""
    if conversation.clips and not reads_videos(processor):
        raise UnsupportedError(
            f"{type(processor).__name__} reads no videos. Use a model that does, such as LLaVA-OneVision or Qwen2-VL."
        )
    text = text_of(model, processor, conversation)
    options: dict[str, object] = {}
    if conversation.clips:
        least = getattr(processor.video_processor, "temporal_patch_size", 1)
        options["videos"] = [  # repeat a single frame if the processor needs two or more, as transformers does
            clip.frames.repeat(least, 0) if len(clip) == 1 < least else clip.frames for clip in conversation.clips
        ]
        options["video_metadata"] = [clip.metadata() for clip in conversation.clips]
        options["do_sample_frames"] = False
    return _tensors(processor, text, conversation.images, **options)


def text_of(model: PreTrainedModel, processor: ProcessorMixin, conversation: Conversation) -> str:
    """Return a conversation as text, written by the model's chat template with a placeholder per image and video.

    Raises:
        InputError: If the chat template raises, or ignores a key of a message.
    """
    if not getattr(processor, "chat_template", None):
        conversation.refuse_more()
        pictures = f"{processor.image_token}\n" * sum(kind == "image" for kind, _ in conversation.parts)
        return pictures + "\n".join(conversation.texts)
    turns: list[dict[str, object]] = []
    for place, (role, parts) in enumerate(conversation.turns):
        content = [{"type": kind, "text": value} if kind == "text" else {"type": kind} for kind, value in parts]
        turns.append({"role": role, "content": content, **conversation.more.get(place, {})})
    text = _write(model, processor, turns)
    for place, others in conversation.more.items():
        for name in others if place < len(turns) else ():
            without = {key: value for key, value in turns[place].items() if key != name}
            if _write(model, processor, [*turns[:place], without, *turns[place + 1 :]]) == text:
                conversation.refuse_more([name])
    return text


def _write(model: PreTrainedModel, processor: ProcessorMixin, turns: list[dict[str, object]]) -> str:
    """Write turns with the chat template."""
    try:
        text: str = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is code that comes with the model, and can raise anything
        if is_out_of_memory(error):
            raise
        whose = getattr(model, "name_or_path", "") or type(model).__name__
        raise InputError(
            f"The chat template of {whose} cannot write this conversation: "
            f"{type(error).__name__}: {first_line(error)} "
            "Change the messages, or repair the template in the model's folder (chat_template.jinja)."
        ) from error
    return text


def _llava(model: PreTrainedModel, processor: ProcessorMixin, conversation: Conversation) -> BatchFeature:
    """Encode as in LLaVA-1.5's papers: vicuna_v1 with its system text, and images padded to a square."""
    if model.config.model_type != "llava" or conversation.clips:
        what = "a video"
        if not conversation.clips:
            what = f"a {model.config.model_type} model"
        raise UnsupportedError(f"The protocol llava is for LLaVA-1.5 on pictures; this is {what}. Use own.")
    conversation.refuse_more()
    system = SYSTEM
    said = ""
    for place, (role, parts) in enumerate(conversation.turns):
        if role == "system" and place:
            raise UnsupportedError("The protocol llava has one system text, before all others. Use own.")
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
    except Exception as error:  # settings of a wrong type can raise anything
        if is_out_of_memory(error):
            raise
        raise ValueError(f"{type(error).__name__}: {first_line(error)}") from error


PROTOCOLS: Mapping[str, Callable[[PreTrainedModel, ProcessorMixin, Conversation], BatchFeature]] = {
    "own": _own,
    "llava": _llava,
}
"""Functions that encode a conversation, by protocol."""


# -- batches ------------------------------------------------------------------------------------------------------


def collate(samples: Sequence[Mapping[str, Tensor]], pad: int) -> dict[str, Tensor]:
    """Batch samples (batch 1 each): pad per-token tensors on the left, and concatenate all others.

    `pad` fills input_ids, 0 the others. With pad 9: ids [[1, 2]] and [[3]] -> [[1, 2], [9, 3]].
    """
    if len(samples) == 1:
        return dict(samples[0])
    text = samples[0]["input_ids"].shape
    longest = max(sample["input_ids"].shape[1] for sample in samples)
    batch = {}
    for name, first in samples[0].items():
        values = [sample[name] for sample in samples]
        if first.shape == text:
            fill = pad if name == "input_ids" else 0
            values = [torch.nn.functional.pad(value, (longest - value.shape[1], 0), value=fill) for value in values]
        batch[name] = torch.cat(values)
    return batch
