"""From a benchmark's chat messages to what a model gets: by its own template, or by that of the papers."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from foveate._loading import Loaded
from foveate.errors import UnknownNameError, UnsupportedError
from foveate.video import Clip, read

__all__ = ["PROTOCOLS", "Conversation", "encoder"]

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system text of vicuna_v1, under which LLaVA-1.5 was trained and evaluated."""

Encode = Callable[[Loaded, "Conversation"], Any]


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """Messages with their media read.

    Attributes:
        turns: A role and its parts: ("text", str), ("image", picture) or ("video", clip).
    """

    turns: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, Any]], most_frames: int) -> "Conversation":
        """Read the media of lmms-eval's messages; at most `most_frames` of a video.

        Raises:
            InputError: If a file cannot be read.
            UnsupportedError: If there is anything but text, images and videos.
        """
        return cls(tuple((one["role"], tuple(_read(part, most_frames) for part in one["content"])) for one in messages))

    @property
    def images(self) -> list[Image.Image]:
        """Pictures, in order."""
        return [value for _, parts in self.turns for kind, value in parts if kind == "image"]

    @property
    def clips(self) -> list[Clip]:
        """Videos, in order."""
        return [value for _, parts in self.turns for kind, value in parts if kind == "video"]

    def with_ocr(self, question: str, tokens: Sequence[str]) -> "Conversation":
        """The same with the OCR tokens behind the question, as LLaVA's evaluation of TextVQA words them."""
        line = f"\nReference OCR token: {', '.join(tokens)}"

        def told(kind: str, value: Any) -> tuple[str, Any]:
            at = value.lower().find(question.lower()) if kind == "text" else -1
            if at < 0 or "Reference OCR token:" in value:
                return kind, value
            end = at + len(question)
            return kind, value[:end] + line + value[end:]

        return Conversation(tuple((role, tuple(told(*part) for part in parts)) for role, parts in self.turns))

    def media(self) -> str:
        """A name for its pictures and videos: equal for two conversations about the same ones, empty for none."""
        found = hashlib.sha256()
        for image in self.images:
            found.update(f"{image.size}".encode() + image.tobytes())
        for clip in self.clips:
            found.update(f"{clip.frames.shape}".encode() + clip.frames.tobytes())
        return found.hexdigest()[:20] if self.images or self.clips else ""

    def name(self, generation: Mapping[str, Any]) -> str:
        """A name for all that decides the answer beside the model: what is said, what is shown, how it is decoded."""
        said = [(role, [part if part[0] == "text" else part[0] for part in parts]) for role, parts in self.turns]
        text = json.dumps([said, self.media(), dict(generation)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def _read(part: Mapping[str, Any], most_frames: int) -> tuple[str, Any]:
    kind = part["type"]
    if kind == "text":
        return kind, part["text"]
    source = part["url"]
    if kind == "image":
        return kind, (source if isinstance(source, Image.Image) else Image.open(source)).convert("RGB")
    if kind == "video":
        places = source if isinstance(source, Mapping) else {"url": source}
        path = places.get("url") or places.get("path") or places.get("video")
        if isinstance(path, str):
            times = {**part, **places}
            start = times.get("start_time", times.get("video_start"))
            end = times.get("end_time", times.get("video_end"))
            return kind, read(path, frames=most_frames, start=start, end=end)
    raise UnsupportedError(f"A message holds {kind} as {type(source).__name__}; text, pictures and video files go.")


def _own(loaded: Loaded, conversation: Conversation) -> Any:
    """The model's own chat template and processor; without a template, placeholders before the text."""
    processor = loaded.processor
    if conversation.clips and getattr(processor, "video_processor", None) is None:
        raise UnsupportedError(
            f"{type(processor).__name__} reads no videos. Take a model that does, such as LLaVA-OneVision or Qwen2-VL."
        )
    if getattr(processor, "chat_template", None):
        turns = [
            {
                "role": role,
                "content": [{"type": kind} | ({"text": value} if kind == "text" else {}) for kind, value in parts],
            }
            for role, parts in conversation.turns
        ]
        text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    else:
        said = [value for _, parts in conversation.turns for kind, value in parts if kind == "text"]
        text = f"{processor.image_token}\n" * len(conversation.images) + "\n".join(said)
    given: dict[str, Any] = {}
    if conversation.clips:
        given["videos"] = [clip.frames for clip in conversation.clips]
        given["video_metadata"] = [clip.metadata() for clip in conversation.clips]
        given["do_sample_frames"] = False
    return _tensors(processor, text, conversation.images, **given)


def _llava(loaded: Loaded, conversation: Conversation) -> Any:
    """The conditions of LLaVA-1.5's papers: vicuna_v1 with its system text, pictures padded to a square."""
    if loaded.model.config.model_type != "llava" or conversation.clips:
        what = "a video" if conversation.clips else f"a {loaded.model.config.model_type} model"
        raise UnsupportedError(f"The protocol llava is that of LLaVA-1.5 on pictures; this is {what}. Use own.")
    processor = loaded.processor
    told = SYSTEM
    for role, parts in conversation.turns:
        shown = "".join(f"{processor.image_token}\n" for kind, _ in parts if kind == "image")
        said = "".join(value for kind, value in parts if kind == "text")
        if role == "system":
            told = said
        else:
            told += f" ASSISTANT: {said}</s>" if role == "assistant" else f" USER: {shown}{said}"
    mean = tuple(int(255 * share) for share in processor.image_processor.image_mean)
    return _tensors(processor, f"{told} ASSISTANT:", [_square(image, mean) for image in conversation.images])


def _square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """The picture in the middle of a square of this colour; what is odd goes right or below."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _tensors(processor: Any, text: str, images: Sequence[Image.Image], **given: Any) -> Any:
    bos = processor.tokenizer.bos_token
    if bos is not None and text.startswith(bos):
        given["add_special_tokens"] = False
    return processor(text=[text], images=list(images) or None, return_tensors="pt", **given)


PROTOCOLS: Mapping[str, Encode] = {"own": _own, "llava": _llava}
"""How a conversation becomes a model's input, by name."""


def encoder(protocol: str) -> Encode:
    """The protocol of this name.

    Raises:
        UnknownNameError: If there is none.
    """
    if protocol not in PROTOCOLS:
        raise UnknownNameError(f"No protocol {protocol!r}. There are: {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[protocol]
