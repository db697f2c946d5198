"""A conversation: turns of texts, pictures and videos, with the files read."""

import base64
import hashlib
import itertools
import json
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from foveate.ask.media import Picture, read_medium
from foveate.errors import InputError, UnsupportedError
from foveate.plain.files import scheme_of
from foveate.plain.spelling import nearest, refuse_keys
from foveate.plain.upstream import brief
from foveate.video import Clip
from foveate.video.wanted import FramesWanted

Part = tuple[str, Any]
MEDIA = ("image", "video")
ROLES = ("system", "user", "assistant")
OWN = ("role", "content", "images")
"""Keys of a message that are read here; others are the chat template's."""
TEXTS = ("text", "content", "stop")
"""Keys under which an empty text is one."""
BEGIN, END = ("start_time", "video_start"), ("end_time", "video_end")
COUNT = ("nframes", "num_frames", "max_frames")
FILM = (*BEGIN, *END, *COUNT, "fps")
"""Keys of a film's part that say which frames are read."""


@dataclass(frozen=True, slots=True, eq=False)
class Conversation:
    """Messages with their media read.

    Attributes:
        turns: A role and its parts: ("text", str), ("image", `Picture`) or ("video", `Clip`).
        more: What else a turn's message has, such as tool_calls, for the chat template: by the turn's place.
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

        A picture or video stands under "image", "video", "path" or "url": whatever `ask` takes for one, such as a path,
        a PIL picture, a `data:` URL, or a list of frames. Nothing is downloaded. Beside a video, "fps", "nframes",
        "max_frames", "video_start" and "video_end" say which frames are read, before `frames` and `fps`; beside a list
        of frames "fps" or "sample_fps" is its rate.

        Args:
            messages: With "role" and "content", which is a text or a list of parts; "images" may hold pictures that
                stand before it. Other keys are the chat template's; None, "", [] and {} say nothing.
            frames: Most frames of a video.
            fps: How many a second.

        Raises:
            InputError: If a message is not shaped like that, has a key that is not read, or a file cannot be read.
            UnsupportedError: If there is anything but text, pictures and videos.
        """
        turns, more = [], {}
        for place, message in enumerate(messages):
            role, content = _role_and_content(message)
            turns.append((role, tuple(_part(part, frames, fps) for part in content)))
            if others := {key: value for key, value in what_is_said(message).items() if key not in OWN}:
                more[place] = others
        if not turns:
            raise InputError("messages is empty: give at least one turn of the user.")
        return cls(tuple(turns), more)

    @classmethod
    def about(cls, media: Sequence[Picture | Clip], text: str) -> "Conversation":
        """One turn of the user: pictures and clips first, then the text."""
        parts = [(_kind(medium), medium) for medium in media]
        return cls((("user", (*parts, ("text", text))),))

    def with_text(self, *texts: str) -> "Conversation":
        """This conversation with texts said behind it, by the user and the assistant in turn.

        The first one goes into the last turn, if that is the user's.
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
        """This conversation without the part that is said last, a text."""
        role, parts = self.turns[-1]
        last = [(role, parts[:-1])] if len(parts) > 1 else []
        return replace(self, turns=(*self.turns[:-1], *last))

    def with_media_behind(self, parts: Sequence[Part]) -> "Conversation":
        """This conversation with pictures or films shown behind it, in the last turn if that is the user's."""
        if self.turns and self.turns[-1][0] == "user":
            role, last = self.turns[-1]
            return replace(self, turns=(*self.turns[:-1], (role, (*last, *parts))))
        return replace(self, turns=(*self.turns, ("user", tuple(parts))))

    def without_media(self, places: Collection[int]) -> "Conversation":
        """This conversation without the pictures and films at these places among them; its turns stay."""
        numbers, turns = itertools.count(), []
        for role, parts in self.turns:
            turns.append((role, tuple(part for part in parts if part[0] not in MEDIA or next(numbers) not in places)))
        return replace(self, turns=tuple(turns))

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
        """This conversation with other pictures and clips in the places of these.

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
        return replace(self, turns=tuple(turns))

    def with_ocr(self, question: str, tokens: Sequence[str]) -> "Conversation":
        """This conversation with OCR tokens behind the question, as LLaVA's evaluation of TextVQA words them."""
        line = f"\nReference OCR token: {', '.join(tokens)}"
        turns = []
        for role, parts in self.turns:
            longer = [(kind, _behind(question, line, value) if kind == "text" else value) for kind, value in parts]
            turns.append((role, tuple(longer)))
        return replace(self, turns=tuple(turns))

    def refuse_more(self, names: Sequence[str] | None = None) -> None:
        """Refuse what messages have beside text and media, or these keys of it: it would not be said.

        Without `names`, there is no chat template that reads roles, and others than the usual ones are refused too.

        Raises:
            InputError: If there is such a key, or role.
        """
        for role, _ in self.turns if names is None else ():
            if role not in ROLES:
                raise InputError(f"No role {brief(role)}; there are {', '.join(ROLES)}.{nearest(role, ROLES)}")
        for others in self.more.values():
            refuse_keys("A message, to this model's chat template,", others if names is None else names, OWN)

    def media_name(self) -> str:
        """A name for its pictures and videos: equal for two conversations about the same ones, empty for none."""
        digest = hashlib.sha256()
        for image in self.images:
            digest.update(f"{image.size}".encode() + image.tobytes())
        for clip in self.clips:
            digest.update(f"{clip.frames.shape} {clip.seconds}".encode() + clip.frames.tobytes())
        if not self.media:
            return ""
        return digest.hexdigest()[:20]

    def name(self, generation: Mapping[str, object]) -> str:
        """A name for all that decides the answer beside the model: what is said, what is shown, how it is decoded."""
        said = [(role, [part if part[0] == "text" else part[0] for part in parts]) for role, parts in self.turns]
        more = [{str(place): others} for place, others in self.more.items()]
        text = json.dumps([said, self.media_name(), dict(generation), *more], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def _behind(question: str, line: str, text: str) -> str:
    """The text with a line behind the question, where it has the question and no such line yet."""
    start = text.lower().find(question.lower())
    if start < 0 or "Reference OCR token:" in text:
        return text
    end = start + len(question)
    return text[:end] + line + text[end:]


def what_is_said(values: Mapping[Any, object]) -> dict[str, Any]:
    """A dictionary without what says nothing: clients write every key, with None, "", [] or {} behind it."""
    says = {str(key): value for key, value in values.items() if value is not None}
    empty = {key for key, value in says.items() if isinstance(value, str | list | dict) and not value}
    return {key: value for key, value in says.items() if key in TEXTS or key not in empty}


def _role_and_content(message: object) -> tuple[str, list[object]]:
    """The role of a message, and its parts; a text alone is one part, pictures beside it stand before it."""
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise InputError(f'A message is {{"role": …, "content": …}}; got {brief(message)}.')
    role, content, images = message["role"], message["content"], message.get("images") or ()
    if not isinstance(role, str):
        raise InputError(f'The role of a message is a text such as "user"; got {brief(role)}.')
    if content is None and set(what_is_said(message)) > {"role"}:
        content = ()
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or isinstance(content, bytes | bytearray):
        raise InputError(f"The content of a message is a text or a list of parts; got {brief(content)}.")
    if not isinstance(images, list | tuple):
        raise InputError(f'A message has a list of pictures under "images"; got {brief(images)}.')
    parts: list[object] = []
    for image in images:
        if isinstance(image, str) and scheme_of(image) is None and not os.path.exists(image):
            with suppress(ValueError):  # bare base64, as Ollama takes it; else a path, a URL or a picture
                image = base64.b64decode(image, validate=True)
        parts.append({"type": "image", "image": image})
    return role, [*parts, *content]


def _kind(medium: Picture | Clip) -> str:
    if isinstance(medium, Clip):
        return "video"
    return "image"


def _part(part: object, frames: int | None, fps: float | None) -> Part:
    """A part of a message with its file read."""
    if not isinstance(part, Mapping) or "type" not in part:
        raise InputError(f'A part of a message is {{"type": "text", "text": …}} or the like; got {brief(part)}.')
    kind, part = part["type"], what_is_said(part)
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise InputError(f'A part of type text has its text under "text"; got the keys {sorted(part)}.')
        refuse_keys("A part of type text", part, ("type", "text"))
        return kind, part["text"]
    kind = str(kind).removesuffix("_url")
    if kind not in MEDIA:
        raise UnsupportedError(
            f"A part of a message is of type text, image or video (image_url, video_url); got {brief(part['type'])}."
        )
    source, keys = _source(part, kind), part
    if isinstance(source, Mapping):  # {"type": "image_url", "image_url": {"url": "data:…"}}
        inner = what_is_said(source)
        source, keys = _source(inner, kind), {**part, **inner}
    if isinstance(source, list | tuple) and "fps" not in keys:  # of frames, Qwen calls their rate so
        keys = {{"sample_fps": "fps"}.get(name, name): value for name, value in keys.items()}
    _refuse_others(kind, keys)
    asked = [name for name in FILM if name in keys]
    if asked and isinstance(source, Clip | Picture | Image.Image):
        raise InputError(f"{asked[0]} chooses frames of a file; got a {type(source).__name__}. Leave it out.")
    frames, fps = _frames(keys, frames, fps)
    start, end = (next((keys[name] for name in names if name in keys), None) for names in (BEGIN, END))
    medium = read_medium(source, FramesWanted(frames, fps, start, end), kind=kind)
    return _kind(medium), medium


def _refuse_others(kind: str, keys: Mapping[str, object]) -> None:
    """Refuse what a part of this kind asks for and does not get."""
    for name in ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"):
        if name in keys:
            raise InputError(f"{name} of a part is not read: the model's processor sizes it. Resize it first.")
    if "min_frames" in keys:
        raise InputError("min_frames of a part is not read. Say how many frames with nframes or max_frames.")
    if keys.get("detail", "auto") not in ("auto", "high"):
        raise InputError(
            f"The detail of a part is auto or high; got {brief(keys['detail'])}. Make the picture smaller."
        )
    sources = _sources(kind)
    refuse_keys(f"A part of type {kind}", keys, ("type", "detail", *sources, *(FILM if kind == "video" else ())))


def _frames(keys: Mapping[str, Any], frames: int | None, fps: float | None) -> tuple[int | None, float | None]:
    """How many frames and how many a second a part asks for, before what is asked for all."""
    counts = [name for name in COUNT if name in keys]
    if len(counts) > 1 or (counts and counts[0] != "max_frames" and "fps" in keys):
        raise InputError(f"A part says one of {', '.join(COUNT[:2])}, or fps, max_frames or both; got {counts}.")
    if counts:
        frames = keys[counts[0]]
        fps = None if counts[0] != "max_frames" else fps
    return frames, keys.get("fps", fps)


def _sources(kind: str) -> tuple[str, ...]:
    return kind, "path", "url", f"{kind}_url"


def _source(part: Mapping[str, object], kind: str) -> object:
    """What a part shows: a path, a picture, a clip, or a `data:` URL."""
    named = [name for name in _sources(kind) if name in part]
    if len(named) > 1:
        raise InputError(f"A part of type {kind} shows one thing; got {' and '.join(named)}. Make two parts of it.")
    if named:
        return part[named[0]]
    raise InputError(f'A part of type {kind} names it under "{kind}", "path" or "url"; got the keys {sorted(part)}.')
