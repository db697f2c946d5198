"""A conversation: turns of texts, pictures and videos, with the files read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from foveate.ask.media import read_medium
from foveate.ask.pictures import Picture
from foveate.errors import InputError, UnsupportedError
from foveate.video import Clip

__all__ = ["Conversation"]

Part = tuple[str, Any]
MEDIA = ("image", "video")


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """Messages with their media read.

    Attributes:
        turns: A role and its parts: ("text", str), ("image", `Picture`) or ("video", `Clip`).
    """

    turns: tuple[tuple[str, tuple[Part, ...]], ...]

    @classmethod
    def of(
        cls, messages: Sequence[Mapping[str, Any]], frames: int | None = None, fps: float | None = None
    ) -> "Conversation":
        """Read the media of chat messages.

            [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What is it?"}]},
             {"role": "assistant", "content": "A cat."},
             {"role": "user", "content": "What does it do?"}]

        A picture or video stands under "image", "video", "path" or "url": a path, a PIL picture, a clip, or a
        `data:` URL. Nothing is downloaded.

        Args:
            messages: With "role" and "content", which is a text or a list of parts.
            frames: Most frames of a video.
            fps: How many a second.

        Raises:
            InputError: If a message is not shaped like that, or a file cannot be read.
            UnsupportedError: If there is anything but text, pictures and videos.
        """
        turns = []
        for message in messages:
            role, content = _role_and_content(message)
            turns.append((role, tuple(_part(part, frames, fps) for part in content)))
        if not turns:
            raise InputError("messages is empty: give at least one turn of the user.")
        return cls(tuple(turns))

    @classmethod
    def about(cls, media: Sequence[Picture | Clip], text: str) -> "Conversation":
        """One turn of the user: pictures and clips first, then the text."""
        parts = [(_kind(medium), medium) for medium in media]
        return cls((("user", (*parts, ("text", text))),))

    def with_text(self, *texts: str) -> "Conversation":
        """The same with texts said behind it, by the user and the assistant in turn.

        The first one goes into the last turn, if that is the user's.
        """
        turns = list(self.turns)
        for place, text in enumerate(texts):
            role = "assistant" if place % 2 else "user"
            if turns and turns[-1][0] == role:
                turns[-1] = (role, (*turns[-1][1], ("text", text)))
            else:
                turns.append((role, (("text", text),)))
        return Conversation(tuple(turns))

    def without_last_text(self) -> "Conversation":
        """The same without the part that is said last, a text."""
        role, parts = self.turns[-1]
        last = [(role, parts[:-1])] if len(parts) > 1 else []
        return Conversation((*self.turns[:-1], *last))

    @property
    def parts(self) -> list[Part]:
        """All parts, in order."""
        return [part for _, parts in self.turns for part in parts]

    @property
    def media(self) -> list[Picture | Clip]:
        """Pictures and videos, in order."""
        return [value for kind, value in self.parts if kind in MEDIA]

    @property
    def images(self) -> list[Image.Image]:
        """Pictures, in order."""
        return [value.image for kind, value in self.parts if kind == "image"]

    @property
    def clips(self) -> list[Clip]:
        """Videos, in order."""
        return [value for kind, value in self.parts if kind == "video"]

    @property
    def texts(self) -> list[str]:
        """Texts, in order."""
        return [value for kind, value in self.parts if kind == "text"]

    @property
    def notes(self) -> list[str]:
        """What the user should know of the files, such as that only the first frame of one is read."""
        return [medium.note for medium in self.media if medium.note]

    def with_media(self, media: Sequence[Picture | Clip], *, frames_as_images: bool = False) -> "Conversation":
        """The same with other pictures and clips in the places of these.

        Args:
            media: As many as there are.
            frames_as_images: Whether a clip goes in as pictures, one a frame.
        """
        places = iter(media)
        turns = []
        for role, parts in self.turns:
            replaced: list[Part] = []
            for kind, value in parts:
                medium = next(places) if kind in MEDIA else value
                if frames_as_images and isinstance(medium, Clip):
                    replaced += [("image", Picture(None, image)) for image in medium.images()]
                else:
                    replaced.append((kind, medium))
            turns.append((role, tuple(replaced)))
        return Conversation(tuple(turns))

    def with_ocr(self, question: str, tokens: Sequence[str]) -> "Conversation":
        """The same with the OCR tokens behind the question, as LLaVA's evaluation of TextVQA words them."""
        line = f"\nReference OCR token: {', '.join(tokens)}"
        turns = []
        for role, parts in self.turns:
            longer = [(kind, _behind(question, line, value) if kind == "text" else value) for kind, value in parts]
            turns.append((role, tuple(longer)))
        return Conversation(tuple(turns))

    def media_name(self) -> str:
        """A name for its pictures and videos: equal for two conversations about the same ones, empty for none."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(f"{image.size}".encode() + image.tobytes())
        for clip in self.clips:
            digest.update(f"{clip.frames.shape}".encode() + clip.frames.tobytes())
        return digest.hexdigest()[:20] if self.media else ""

    def name(self, generation: Mapping[str, Any]) -> str:
        """A name for all that decides the answer beside the model: what is said, what is shown, how it is decoded."""
        said = [(role, [part if part[0] == "text" else part[0] for part in parts]) for role, parts in self.turns]
        text = json.dumps([said, self.media_name(), dict(generation)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def _behind(question: str, line: str, text: str) -> str:
    """The text with a line behind the question, where it has the question and no such line yet."""
    start = text.lower().find(question.lower())
    if start < 0 or "Reference OCR token:" in text:
        return text
    end = start + len(question)
    return text[:end] + line + text[end:]


def _role_and_content(message: Any) -> tuple[str, Sequence[Any]]:
    """The role of a message, and its parts; a text alone is one part."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise InputError(f'A message is {{"role": …, "content": …}}; got {message!r:.100}.')
    role, content = message["role"], message["content"]
    if not isinstance(role, str):
        raise InputError(f'The role of a message is a text such as "user"; got {role!r:.100}.')
    if isinstance(content, str):
        return role, [{"type": "text", "text": content}]
    if not isinstance(content, Sequence):
        raise InputError(f"The content of a message is a text or a list of parts; got {content!r:.100}.")
    return role, content


def _kind(medium: Picture | Clip) -> str:
    return "video" if isinstance(medium, Clip) else "image"


def _part(part: Any, frames: int | None, fps: float | None) -> Part:
    """A part of a message with its file read."""
    if not isinstance(part, Mapping) or "type" not in part:
        raise InputError(f'A part of a message is {{"type": "text", "text": …}} or the like; got {part!r:.100}.')
    kind = part["type"]
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise InputError(f'A part of type text has its text under "text"; got the keys {sorted(map(str, part))}.')
        return kind, part["text"]
    kind = str(kind).removesuffix("_url")
    if kind not in MEDIA:
        raise UnsupportedError(f"A message holds {kind}; only texts, pictures and videos can be asked about.")
    source, times = _source(part, kind), part
    if isinstance(source, Mapping):  # {"type": "image_url", "image_url": {"url": "data:…"}}
        source, times = _source(source, kind), {**part, **source}
    start = times.get("start_time", times.get("video_start"))
    end = times.get("end_time", times.get("video_end"))
    medium = read_medium(source, frames, fps, kind=kind, start=start, end=end)
    return _kind(medium), medium


def _source(part: Mapping[str, Any], kind: str) -> Any:
    """What a part shows: a path, a picture, a clip, or a `data:` URL."""
    for name in (kind, "path", "url", f"{kind}_url"):
        if part.get(name) is not None:
            return part[name]
    raise InputError(f'A part of type {kind} names it under "{kind}", "path" or "url"; got the keys {sorted(part)}.')
