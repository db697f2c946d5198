"""`Conversation`: chat messages of texts, images and videos, with the files read."""

import base64
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from foveate.ask.media import Picture, read_medium
from foveate.errors import InputError, SettingError, UnsupportedError
from foveate.plain.files import scheme_of
from foveate.plain.spelling import nearest, refuse_keys
from foveate.plain.upstream import brief
from foveate.video import Clip
from foveate.video.wanted import FramesWanted

Part = tuple[str, Any]
MEDIA = ("image", "video")
ROLES = ("system", "user", "assistant")
OWN = ("role", "content", "images")
"""Keys of a message that foveate reads. Others go to the chat template."""
TEXTS = ("text", "content", "stop")
"""Keys whose empty text is a value. Under other keys an empty text counts as absent."""
BEGIN, END = ("start_time", "video_start"), ("end_time", "video_end")
COUNT = ("nframes", "num_frames", "max_frames")
FILM = (*BEGIN, *END, *COUNT, "fps")
"""Keys of a video part that select its frames."""


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """Messages with their media read.

    Attributes:
        turns: Each turn's role and parts: ("text", str), ("image", `Picture`) or ("video", `Clip`).
        more: Further keys of a turn's message for the chat template, such as tool_calls, by the turn's index.
    """

    turns: tuple[tuple[str, tuple[Part, ...]], ...]
    more: Mapping[int, Mapping[str, object]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, messages: Sequence[Mapping[str, object]], frames: int | None = None, fps: float | None = None
    ) -> "Conversation":
        """Read the media of chat messages.

            [{"role": "user", "content": [{"type": "image", "path": "a.png"}, {"type": "text", "text": "What is it?"}]},
             {"role": "assistant", "content": "A cat."},
             {"role": "user", "content": "What does it do?"}]

        An image or video is under "image", "video", "path" or "url". It is anything that `ask` accepts, such as a path,
        a PIL image, a `data:` URL, or a list of frames. Nothing is downloaded. In a video's part, "fps", "nframes",
        "max_frames", "video_start" and "video_end" select the frames and override `frames` and `fps`. With a list of
        frames, "fps" or "sample_fps" is its frame rate.

        Args:
            messages: Mappings with "role" and "content", a text or a list of parts. "images" may list images that come
                before the content. Other keys go to the chat template. None, "", [] and {} count as absent.
            frames: Maximum frames per video.
            fps: Frames per second read from a video.

        Raises:
            InputError: If a message has another shape or an unknown key, or a file cannot be read.
            UnsupportedError: If a part is not text, image or video.
        """
        turns, more = [], {}
        for place, message in enumerate(messages):
            role, content = _role_and_content(message)
            turns.append((role, tuple(_part(part, frames, fps) for part in content)))
            if others := {key: value for key, value in what_is_said(message).items() if key not in OWN}:
                more[place] = others
        if not turns:
            raise InputError("messages is empty: give at least one user turn.")
        return cls(tuple(turns), more)

    @classmethod
    def about(cls, media: Sequence[Picture | Clip], text: str) -> "Conversation":
        """Make one user turn: images and videos first, then the text."""
        parts = [(_kind(medium), medium) for medium in media]
        return cls((("user", (*parts, ("text", text))),))

    def with_system(self, text: str) -> "Conversation":
        """Put a system turn in front.

        Raises:
            SettingError: If there is one already.
        """
        if self.turns[0][0] == "system":
            raise SettingError("messages begin with a system turn already: leave system out, or that turn.")
        more = {place + 1: others for place, others in self.more.items()}
        return Conversation((("system", (("text", text),)), *self.turns), more)

    def with_text(self, *texts: str) -> "Conversation":
        """Append texts, alternately of the user and the assistant.

        The first text joins the last turn if that is the user's.
        """
        turns = list(self.turns)
        for place, text in enumerate(texts):
            role = "assistant" if place % 2 else "user"
            if turns and turns[-1][0] == role:
                turns[-1] = (role, (*turns[-1][1], ("text", text)))
            else:
                turns.append((role, (("text", text),)))
        return replace(self, turns=tuple(turns))

    def without_last_text(self) -> "Conversation":
        """Remove the last part of the last turn, which is a text."""
        role, parts = self.turns[-1]
        last = [(role, parts[:-1])] if len(parts) > 1 else []
        return replace(self, turns=(*self.turns[:-1], *last))

    def with_media_behind(self, parts: Sequence[Part]) -> "Conversation":
        """Append images or videos, in the last turn if that is the user's, else in a new one."""
        if self.turns and self.turns[-1][0] == "user":
            role, last = self.turns[-1]
            return replace(self, turns=(*self.turns[:-1], (role, (*last, *parts))))
        return replace(self, turns=(*self.turns, ("user", tuple(parts))))

    def without_media(self, places: Collection[int]) -> "Conversation":
        """Remove the images and videos with these indices among all media. Turns stay, even if empty."""
        numbers = itertools.count()
        return self._with_parts(lambda part: [part] * (part[0] not in MEDIA or next(numbers) not in places))

    def _with_parts(self, change: Callable[[Part], Sequence[Part]]) -> "Conversation":
        """Replace each part by others; `change` is called in order."""
        turns = [(role, tuple(new for part in parts for new in change(part))) for role, parts in self.turns]
        return replace(self, turns=tuple(turns))

    def split(self, count: int) -> tuple["Conversation", "Conversation"]:
        """Cut the conversation behind its first `count` images and videos; `with_turns` puts it together again.

        Returns:
            The beginning, and what follows: its first turn is the rest of the turn that was cut, even if nothing is.
        """
        left = count
        for place, (role, parts) in enumerate(self.turns):
            for number, (kind, _) in enumerate(parts, start=1):
                left -= kind in MEDIA
                if not left:
                    begun, rest = (role, parts[:number]), (role, parts[number:])
                    behind = Conversation((rest, *self.turns[place + 1 :]))
                    return replace(self, turns=(*self.turns[:place], begun)), behind
        raise SettingError(f"The conversation has {count - left} pictures and films; got count={count}.")

    def with_turns(self, behind: "Conversation") -> "Conversation":
        """Append what follows. Its first turn continues the last one, which has the same role.

        Raises:
            SettingError: If the roles differ.
        """
        (role, parts), (other, more) = self.turns[-1], behind.turns[0]
        if role != other:
            raise SettingError(f"What follows must go on with the turn of the {role}; got one of the {other}.")
        return replace(self, turns=(*self.turns[:-1], (role, (*parts, *more)), *behind.turns[1:]))

    def without_texts(self, start: int, end: int) -> "Conversation":
        """Remove everything from one image on up to another, texts too: the first one's turn goes on with the other.

        Args:
            start, end: Their indices among all media. An `end` behind the last one removes everything from `start` on.
        """
        before = self.split(start + 1)[0].without_media([start])
        if end == len(self.media):
            return before
        upto, behind = self.split(end + 1)
        role, parts = upto.turns[-1]
        later = replace(behind, turns=((role, (parts[-1], *behind.turns[0][1])), *behind.turns[1:]))
        place, gone = len(before.turns) - 1, len(upto.turns) - len(before.turns)
        more = {at - gone * (at > place): others for at, others in self.more.items() if not place < at <= place + gone}
        return replace(before.with_turns(later), more=more)

    @property
    def parts(self) -> list[Part]:
        """All parts, in order."""
        return [part for _, parts in self.turns for part in parts]

    @property
    def media(self) -> list[Picture | Clip]:
        """Images and videos, in order."""
        return [value for kind, value in self.parts if kind in MEDIA]

    @property
    def images(self) -> list[Image.Image]:
        """Images, in order."""
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
        """Notes on the files for the user, such as that only the first frame of one is read."""
        return [medium.note for medium in self.media if medium.note]

    def with_media(self, media: Sequence[Picture | Clip], *, frames_as_images: bool = False) -> "Conversation":
        """Replace the images and videos.

        Args:
            media: The new ones, as many as there are now.
            frames_as_images: Insert a video as one image per frame.
        """
        places = iter(media)

        def change(part: Part) -> list[Part]:
            kind, value = part
            medium = next(places) if kind in MEDIA else value
            if frames_as_images and isinstance(medium, Clip):
                return [("image", Picture(None, image)) for image in medium.images()]
            return [(kind, medium)]

        return self._with_parts(change)

    def with_ocr(self, question: str, tokens: Sequence[str]) -> "Conversation":
        """Add OCR tokens after the question, in the format of LLaVA's TextVQA evaluation."""
        line = f"\nReference OCR token: {', '.join(tokens)}"
        return self._with_parts(lambda part: [_behind(question, line, part)])

    def refuse_more(self, names: Sequence[str] | None = None) -> None:
        """Refuse further keys of messages, because the model would not see them.

        Args:
            names: The keys to refuse. None means that there is no chat template: all keys are refused, and roles
                other than `ROLES` too.

        Raises:
            InputError: If a message has such a key or role.
        """
        for role, _ in self.turns if names is None else ():
            if role not in ROLES:
                raise InputError(f"No role {brief(role)}; there are {', '.join(ROLES)}.{nearest(role, ROLES)}")
        for others in self.more.values():
            refuse_keys("A message for this model's chat template", others if names is None else names, OWN)

    def media_name(self) -> str:
        """Return a hash of the images and videos, or "" if there are none."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(f"{image.size}".encode() + image.tobytes())
        for clip in self.clips:
            digest.update(f"{clip.frames.shape} {clip.seconds}".encode() + clip.frames.tobytes())
        if not self.media:
            return ""
        return digest.hexdigest()[:20]

    def name(self, generation: Mapping[str, object]) -> str:
        """Return a hash of everything besides the model that determines the answer: texts, media, decoding settings."""
        said = [(role, [part if part[0] == "text" else part[0] for part in parts]) for role, parts in self.turns]
        more = [{str(place): others} for place, others in self.more.items()]
        text = json.dumps([said, self.media_name(), dict(generation), *more], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def _behind(question: str, line: str, part: Part) -> Part:
    """Insert a line after the question, if the part is a text with the question and no OCR line yet."""
    kind, text = part
    start = text.lower().find(question.lower()) if kind == "text" else -1
    if start < 0 or "Reference OCR token:" in text:
        return part
    end = start + len(question)
    return kind, text[:end] + line + text[end:]


def what_is_said(values: Mapping[Any, object]) -> dict[str, Any]:
    """Remove keys with empty values: clients send every key, unused ones as None, "", [] or {}."""
    says = {str(key): value for key, value in values.items() if value is not None}
    empty = {key for key, value in says.items() if isinstance(value, str | list | dict) and not value}
    return {key: value for key, value in says.items() if key in TEXTS or key not in empty}


def _role_and_content(message: object) -> tuple[str, list[object]]:
    """Return a message's role and parts. A plain text is one part; "images" come before the content."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise InputError(f'A message must be {{"role": …, "content": …}}; got {brief(message)}.')
    role, content, images = message["role"], message["content"], message.get("images") or ()
    if not isinstance(role, str):
        raise InputError(f'The role of a message must be a text such as "user"; got {brief(role)}.')
    if content is None and set(what_is_said(message)) > {"role"}:
        content = ()
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray):
        raise InputError(f"The content of a message must be a text or a list of parts; got {brief(content)}.")
    if not isinstance(images, list | tuple):
        raise InputError(f'"images" of a message must be a list of images; got {brief(images)}.')
    parts: list[object] = []
    for image in images:
        if isinstance(image, str) and scheme_of(image) is None and not os.path.exists(image):
            with suppress(ValueError):  # bare base64, as in Ollama's API; else a path, a URL or an image
                image = base64.b64decode(image, validate=True)
        parts.append({"type": "image", "image": image})
    return role, [*parts, *content]


def _kind(medium: Picture | Clip) -> str:
    if isinstance(medium, Clip):
        return "video"
    return "image"


def _part(part: object, frames: int | None, fps: float | None) -> Part:
    """Read a part of a message and its file."""
    if not isinstance(part, Mapping) or "type" not in part:
        raise InputError(f'A part of a message must be like {{"type": "text", "text": …}}; got {brief(part)}.')
    kind, part = part["type"], what_is_said(part)
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise InputError(f'A part of type text needs its text under "text"; got the keys {sorted(part)}.')
        refuse_keys("A part of type text", part, ("type", "text"))
        return kind, part["text"]
    kind = str(kind).removesuffix("_url")
    if kind not in MEDIA:
        raise UnsupportedError(
            f"The type of a part must be text, image or video (image_url, video_url); got {brief(part['type'])}."
        )
    source, keys = _source(part, kind), part
    if isinstance(source, Mapping):  # {"type": "image_url", "image_url": {"url": "data:…"}}
        inner = what_is_said(source)
        source, keys = _source(inner, kind), {**part, **inner}
    if isinstance(source, list | tuple) and "fps" not in keys:  # Qwen's key for the rate of a list of frames
        keys = {{"sample_fps": "fps"}.get(name, name): value for name, value in keys.items()}
    _refuse_others(kind, keys)
    asked = [name for name in FILM if name in keys]
    if asked and isinstance(source, Clip | Picture | Image.Image):
        raise InputError(f"{asked[0]} selects frames of a file; got a {type(source).__name__}. Leave it out.")
    frames, fps = _frames(keys, frames, fps)
    start, end = (next((keys[name] for name in names if name in keys), None) for names in (BEGIN, END))
    medium = read_medium(source, FramesWanted(frames, fps, start, end), kind=kind)
    return _kind(medium), medium


def _refuse_others(kind: str, keys: Mapping[str, object]) -> None:
    """Refuse keys of a part that foveate does not support."""
    if keys.get("detail", "auto") not in ("auto", "high"):
        raise InputError(
            f"The detail of a part must be auto or high; got {brief(keys['detail'])}. Make the image smaller instead."
        )
    sources = _sources(kind)
    refuse_keys(f"A part of type {kind}", keys, ("type", "detail", *sources, *(FILM if kind == "video" else ())))


def _frames(keys: Mapping[str, Any], frames: int | None, fps: float | None) -> tuple[int | None, float | None]:
    """Return the frame count and frames per second of a part. Its own keys override the given defaults."""
    counts = [name for name in COUNT if name in keys]
    if len(counts) > 1 or (counts and counts[0] != "max_frames" and "fps" in keys):
        raise InputError(f"A part can have one of {', '.join(COUNT[:2])}, or fps, max_frames or both; got {counts}.")
    if counts:
        frames = keys[counts[0]]
        fps = None if counts[0] != "max_frames" else fps
    return frames, keys.get("fps", fps)


def _sources(kind: str) -> tuple[str, ...]:
    return kind, "path", "url", f"{kind}_url"


def _source(part: Mapping[str, object], kind: str) -> object:
    """Return the source of a part: a path, an image, a clip, or a `data:` URL."""
    named = [name for name in _sources(kind) if name in part]
    if len(named) > 1:
        raise InputError(
            f"A part of type {kind} must have one source; got {' and '.join(named)}. Make two parts of it."
        )
    if named:
        return part[named[0]]
    raise InputError(f'A part of type {kind} needs "{kind}", "path" or "url"; got the keys {sorted(part)}.')
