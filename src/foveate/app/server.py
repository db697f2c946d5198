"""The page served, with a folder of its own for files, until Ctrl-C."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foveate.app.folder import Folder
from foveate.app.guard import Guard
from foveate.app.limits import LIMITS, Limits
from foveate.app.listening import check_gradio, url_of
from foveate.ask.vlm import VLM

__all__ = ["own_folder", "serve"]

GRACE = 1
"""Seconds that open connections have at the end."""


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for uploads and results, which goes at the end. Gradio must not be imported before.

    Gradio reads where its files go, and whether to report its use, from the environment.
    """
    with tempfile.TemporaryDirectory(prefix="foveate-page-", ignore_cleanup_errors=True) as folder:
        changed = {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_RUN_HISTORY": "False"}
        before = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def serve(
    vlm: VLM,
    listening: socket.socket,
    *,
    limits: Limits = LIMITS,
    max_new_tokens: int = 64,
    ready: Callable[[str], object] = lambda url: None,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        vlm: The model that is asked.
        listening: A socket of `bound`.
        limits: How much the page takes.
        max_new_tokens: The longest answer.
        ready: Called with the page's address as soon as it can be opened.

    Raises:
        UnsupportedError: If Gradio is missing.
        KeyboardInterrupt: At Ctrl-C, when everything is closed.
    """
    check_gradio()
    with own_folder() as path:
        import uvicorn

        from foveate.app.page import application, blocks
        from foveate.app.parts import Desk

        folder = Folder(path, limits.folder)
        desk = Desk(vlm, folder, limits, max_new_tokens)
        page = blocks(desk)
        guarded = Guard(application(page, desk), folder, limits)
        folder.spare()
        config = uvicorn.Config(
            guarded,
            log_level="error",
            lifespan="on",
            timeout_graceful_shutdown=GRACE,
            server_header=False,
            proxy_headers=True,
        )
        _server(uvicorn, config, lambda: ready(url_of(listening))).run(sockets=[listening])


def _server(uvicorn: Any, config: Any, ready: Callable[[], object]) -> Any:
    """A server that says when it is ready, and ends what it streams to browsers before it ends."""

    class Server(uvicorn.Server):  # type: ignore[misc]
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            if self.started:
                ready()

        async def shutdown(self, sockets: Any = None) -> None:
            for connection in list(self.server_state.connections):
                connection.transport.close()  # as when a tab is closed: an answer on its way ends
            await super().shutdown(sockets=sockets)

    return Server(config)
