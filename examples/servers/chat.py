"""Parse OpenAI chat completion requests from untrusted JSON, and write answers and errors as JSON.

Needs no web framework; `own.py` in this folder is a server that uses it.
"""

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, Field, ValidationError, model_validator

from foveate.ask.answer import Answer
from foveate.ask.conversation import what_is_said
from foveate.ask.generation import Generation
from foveate.ask.media import decode_url
from foveate.errors import FoveateError, InputError
from foveate.naming import refuse_files
from foveate.plain.files import scheme_of
from foveate.plain.spelling import FOR_ALL, refuse_keys
from foveate.plain.upstream import brief, first_line
from foveate.registry import methods
from foveate.video import shape_of

FILM = {"fps": "fps", "max_frames": "frames", "video_start": "start", "video_end": "end"}
"""Options of a `video_url` part, and their names in `foveate.video.read`."""
KEYS: dict[str, tuple[str, ...]] = {"image_url": ("url", "detail"), "video_url": ("url", *FILM)}
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
SMALL = 2**18
"""Minimum number of pixels that a picture or frame counts as: processors enlarge small ones."""
TYPES = {404: "not_found_error", 429: "rate_limit_error", 500: "server_error", 504: "timeout_error"}
STOPS = 4
NOTHING: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logprobs": (False,), "top_logprobs": (0,), "store": (False,),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "service_tier": ("auto", "default"),
    "tool_choice": ("none", "auto"), "parallel_tool_calls": (True, False),
}  # fmt: skip
"""Unsupported fields that clients send all the same, and the values with which they have no effect."""

Length = Annotated[int, Field(ge=1)] | None


class Refusal(InputError):
    """A request that is rejected.

    Args:
        message: What was wrong, in one line.
        param: The field of the request that is wrong.
        status: The HTTP status.
        code: A machine-readable error code.
        wait: Seconds after which the client may retry.
    """

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, code: str | None = None, wait: int = 0
    ) -> None:
        super().__init__(message)
        self.param = param
        self.status = status
        self.code = code
        self.headers = {"Retry-After": str(wait)} if wait else {}


# -- fields -------------------------------------------------------------------------------------------------------


class Said(BaseModel, extra="forbid"):
    """A JSON object without its empty fields, as `VLM.ask` reads messages."""

    @model_validator(mode="before")
    @classmethod
    def leave_out(cls, values: Any) -> Any:
        """Remove fields without effect. Keep `method: null`, which means the untouched model."""
        if not isinstance(values, dict):
            return values
        kept = {"method": None} if "method" in values else {}
        says = kept | what_is_said(values)
        return {name: value for name, value in says.items() if value not in NOTHING.get(name, ())}


class Message(Said):
    """A turn of the conversation."""

    role: Literal["system", "user", "assistant"]
    content: str | list[dict[str, Any]]


class StreamOptions(Said):
    """Options of a streamed answer."""

    include_usage: bool = False


class Chat(Said):
    """A request: OpenAI's fields, plus `method`, `retention` and `tokens`. Greedy unless it sets a temperature."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: Length = None
    max_completion_tokens: Length = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    user: Any = None
    metadata: Any = None
    method: str | None = Field(None, max_length=1000)
    retention: float | None = Field(None, gt=0, le=1)
    tokens: float | None = Field(None, gt=0)

    def check(self) -> None:
        """Reject fields that contradict each other, a missing question, and a method that is a file.

        Raises:
            FoveateError: In any of these cases.
        """
        if self.method is not None:
            refuse_files(self.method)
        if None not in (self.max_tokens, self.max_completion_tokens):
            raise Refusal("max_tokens and max_completion_tokens mean the same: send one.", "max_tokens")
        if self.stream_options is not None and not self.stream:
            raise Refusal("stream_options needs stream: true.", "stream_options")
        last = self.messages[-1]
        if isinstance(last.content, str):
            parts = [{"text": last.content}]
        else:
            parts = last.content
        if last.role != "user" or not any(str(part.get("text") or "").strip() for part in parts):
            raise Refusal("The last message must be the user's and contain a question; this one does not.", "messages")

    def generation(self, length: int) -> Generation:
        """Return how to decode the answer: at most `length` tokens if the request sets no limit.

        Raises:
            SettingError: If a number is out of range, or sampling settings come without a temperature.
        """
        sampling: dict[str, Any] = {"top_p": self.top_p, "seed": self.seed}
        if self.temperature == 0:  # an explicit 0 means greedy: drop the sampling settings
            sampling = {}
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stop) > STOPS:
            raise Refusal(f"stop takes at most {STOPS} texts; got {len(stop)}.", "stop")
        length = self.max_completion_tokens or self.max_tokens or length
        return Generation(max_new_tokens=length, temperature=self.temperature or 0.0, stop=stop, **sampling)


# -- pictures and films -------------------------------------------------------------------------------------------


def opened(messages: Sequence[Message], most: int) -> list[dict[str, Any]]:
    """Return messages for `VLM.ask` with pictures opened and films as bytes, so that no text is read as a path or URL.

    Only the headers of pictures and films are read.

    Args:
        messages: The messages that a client sent.
        most: Maximum pixels of all pictures and frames together; a small one counts as `SMALL`.

    Raises:
        FoveateError: If a part is neither a text nor a readable picture or film in a `data:` URL; a `Refusal` of
            status 413 if there are too many pixels.
    """
    left = most
    read: list[dict[str, Any]] = []
    for place, message in enumerate(messages):
        if isinstance(message.content, str):
            read.append({"role": message.role, "content": message.content})
            continue
        parts = []
        for number, part in enumerate(message.content):
            where = f"messages.{place}.content.{number}"
            if part.get("type") == "text":
                parts.append(part)
                continue
            url, asked = _url(part, where)
            shown, pixels = _shown(part["type"], url, asked, where)
            if (left := left - pixels) < 0:
                raise Refusal(f"Pictures and films have more than {most:,} pixels. Scale them down.", where, 413)
            parts.append(shown)
        read.append({"role": message.role, "content": parts})
    return read


def _url(part: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Return the `data:` URL of a part and its other options."""
    part = what_is_said(part)
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in KEYS:
        raise Refusal(f"The type of a part must be text, image_url or video_url; got {brief(kind)}.", where)
    asked = {name: value for name, value in part.items() if name not in ("type", kind)}
    source = part.get(kind)
    if isinstance(source, dict):
        source = what_is_said(source)
        if twice := sorted(set(asked) & set(source)):
            raise Refusal(f"A part says {brief(twice[0])} twice. Leave one out.", where)
        asked |= source
        source = asked.pop("url", None)
    refuse_keys(f"A part of type {kind}", asked, KEYS[kind][1:])
    scheme = None
    if isinstance(source, str):
        scheme = scheme_of(source)
    if not isinstance(source, str) or scheme != "data":
        got = "no text" if not isinstance(source, str) else f"a {scheme}: URL" if scheme else "a path"
        raise Refusal(f"{kind} takes a data: URL (data:image/png;base64,…), and nothing else; got {got}.", where)
    return source, asked


def _shown(kind: str, url: str, asked: dict[str, Any], where: str) -> tuple[dict[str, Any], int]:
    """Return a part with its picture opened or its film's bytes, and the number of pixels that it counts as."""
    data = decode_url(url)[1]
    if kind == "video_url":
        wanted = {FILM[name]: value for name, value in asked.items()}
        frames, height, width = shape_of(data, **wanted)
        if not height * width:
            raise Refusal("The film's header has no frame size. Convert it to MP4.", where)
        return {"type": "video", "video": data, **asked}, frames * max(SMALL, height * width)
    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refusal(f"The picture unpacks to too many pixels: {first_line(error)}", where, 413) from error
    except Exception as error:  # decoders raise anything
        raise Refusal("The picture is damaged, or not a PNG, JPEG, WebP or GIF. Export it again.", where) from error
    return {"type": "image", "image": image, **asked}, max(SMALL, image.width * image.height)


# -- answers ------------------------------------------------------------------------------------------------------


def completion(asked: Chat, answer: Answer, reason: str) -> dict[str, Any]:
    """Return a whole answer as JSON. `reason` is "stop" or "length"."""
    message = {"role": "assistant", "content": answer.text}
    choice = {"index": 0, "message": message, "finish_reason": reason}
    return {**_head(asked, "chat.completion"), "choices": [choice], **_spent(answer)}


def events(asked: Chat, pieces: Iterator[str | tuple[Answer, str]]) -> Iterator[str]:
    """Yield an answer as server-sent events.

    Args:
        asked: The request.
        pieces: The pieces of the answer; then the whole answer and why it ended.
    """
    usage = asked.stream_options is not None and asked.stream_options.include_usage
    head = _head(asked, "chat.completion.chunk") | ({"usage": None} if usage else {})

    def event(delta: dict[str, str], reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return _event({**head, "choices": [choice], **more})

    yield event({"role": "assistant", "content": ""})
    try:
        for piece in pieces:
            if isinstance(piece, str):
                yield event({"content": piece})
                continue
            spent = _spent(piece[0])
            yield event({}, piece[1], foveate=spent["foveate"])
            if usage:
                yield _event({**head, "choices": [], "usage": spent["usage"]})
    except Exception as error:  # the status is sent already
        yield _event(error_of(error)[1])
    yield "data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _head(asked: Chat, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": asked.model}


def _spent(answer: Answer) -> dict[str, Any]:
    """Return the usage of an answer: prompt and answer tokens, and what was dropped."""
    prompt, said = answer.prompt.tokens, len(answer.tokens)
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}
    if answer.looked:
        usage["prompt_tokens_details"] = {"cached_tokens": answer.looked}
    return {
        "usage": usage,
        "foveate": {
            "retention": answer.retention,
            "tokens": answer.spent,
            "vision_tokens": answer.vision_tokens,
            "notes": list(answer.notes),
        },
    }


# -- errors -------------------------------------------------------------------------------------------------------


def error_of(error: Exception) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Return an error in OpenAI's format: the HTTP status, the body and headers."""
    if isinstance(error, ValidationError):
        error = _of_field(error)
    elif isinstance(error, FoveateError) and not isinstance(error, Refusal):
        message, no_such_name, _ = str(error).partition(FOR_ALL)
        if no_such_name:  # a client cannot run the command that follows
            message += f" Leave it out, or send one of: {', '.join(sorted(methods()))}."
        error = Refusal(message)
    elif not isinstance(error, Refusal):  # not the client's fault: details go to the log only
        error = Refusal("The server failed; its log has the reason.", status=500)
    kind = TYPES.get(error.status, "invalid_request_error")
    body = {"message": str(error), "type": kind, "param": error.param, "code": error.code}
    return error.status, {"error": body}, error.headers


def _of_field(error: ValidationError) -> Refusal:
    """Return a request's first validation error. For an unknown field, suggest the closest known one."""
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(step) for step in fault["loc"])
    message = f"{place or 'The body'}: {fault['msg']}."
    if fault["type"] == "extra_forbidden":
        parts: dict[Any, type[BaseModel]] = {"messages": Message, "stream_options": StreamOptions}
        try:
            refuse_keys("The request", fault["loc"][-1:], parts.get(fault["loc"][0], Chat).model_fields)
        except InputError as unknown:
            message = str(unknown)
    return Refusal(message, place or None)
