"""What stands between the network and Gradio: nothing is fetched for others, and uploads are bounded."""

import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import unquote

from foveate.app.folder import Folder
from foveate.app.limits import LIMITS, Limits

__all__ = ["Guard", "is_open"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN = (
    "", "config", "info", "startup-events", "theme.css", "robots.txt", "favicon.ico", "manifest.json", "pwa_icon",
    "queue", "run", "upload", "upload_progress", "heartbeat", "cancel", "reset", "app_id", "login_check", "user",
    "token",
)  # fmt: skip
"""First parts of the paths that the page needs; Gradio has more, some of which fetch addresses for anyone."""
FILES = ("static/", "assets/", "file=", "svelte/", "custom_component/")
HEADERS = {
    "content-security-policy": (
        "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        "style-src 'self' 'unsafe-inline'; base-uri 'self'; object-src 'none'; form-action 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""With these a browser loads nothing from another address, whatever a page says."""
LONGEST = 2**20
"""Bytes of an event."""
ENVELOPE = 2**16
"""Bytes that a form adds to the file in it."""


class Guard:
    """Gradio's application, with less open.

    Args:
        application: What is served, by the ASGI protocol.
        folder: Where uploads and results lie.
        limits: How much is taken.
    """

    def __init__(self, application: Any, folder: Folder, limits: Limits = LIMITS) -> None:
        self.application = application
        self.folder = folder
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return
        if not is_open(scope["path"]):
            await _refuse(send, 404, "There is nothing here.")
            return
        refusal = None
        if scope["method"] == "POST" and _part(scope["path"]) == "upload":
            refusal = self._too_large(scope)
        elif scope["method"] == "POST":
            body = await _body(receive)
            refusal = self._names_others_files(body)
            receive = _again(body or b"", receive)
        if refusal is not None:
            await _refuse(send, *refusal)
            return
        await self.application(scope, receive, _with_headers(send))

    def _names_others_files(self, body: bytes | None) -> tuple[int, str] | None:
        """Why an event is refused: a status and a sentence; None for one that names no file but uploads.

        Gradio copies what an event names into its own folder, also from the network.
        """
        if body is None:
            return 413, "That is too long."
        try:
            values = json.loads(body or b"null")
        except (ValueError, RecursionError):
            return 400, "That is no JSON."
        if all(self.folder.owns(path) for path in _paths(values)):
            return None
        return 403, "Only files that were uploaded here can be shown."

    def _too_large(self, scope: Scope) -> tuple[int, str] | None:
        """Why an upload is refused: a status and a sentence; None if there is room for it."""
        length = dict(scope["headers"]).get(b"content-length", b"").decode("latin-1")
        if not length.isdecimal():
            return 411, "An upload says how long it is."
        if int(length) > self.limits.file + ENVELOPE:
            return 413, f"A file has {self.limits.file // 10**6} MB at most."
        if not self.folder.has_room(int(length)):
            return 507, "There is no room for more files at the moment. Try again in a minute."
        return None


async def _body(receive: Receive) -> bytes | None:
    """All that a request sends; None if it is longer than an event can be."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > LONGEST:
            return None
        if message["type"] != "http.request" or not message.get("more_body"):
            return body


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read already once more, and then what else comes."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> MutableMapping[str, Any]:
        return left.pop() if left else await receive()

    return receiving


def _paths(values: Any) -> Iterator[Any]:
    """Everything in JSON that names a file."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("path") is not None:
                yield value["path"]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def is_open(path: str) -> bool:
    """Whether the page needs this path."""
    part = _part(path)
    if part.startswith("file="):
        return "://" not in unquote(path) and not part.startswith(("file=http:", "file=https:"))
    return part in OPEN or f"{part}/" in FILES


def _part(path: str) -> str:
    """The first part of a path, behind Gradio's own prefix."""
    return path.lstrip("/").removeprefix("gradio_api/").removeprefix("gradio_api").partition("/")[0]


def _with_headers(send: Send) -> Send:
    """The same, where every answer has our headers."""

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return sending


async def _refuse(send: Send, status: int, words: str) -> None:
    """Answer with a status and a sentence."""
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words.encode()})
