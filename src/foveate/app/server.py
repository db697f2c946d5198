"""Open the page's port before anything slow is imported, then serve the page until Ctrl-C."""

import importlib.util
import os
import socket
import tempfile
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from foveate.errors import UnsupportedError
from foveate.plain.upstream import install_line, trim

if TYPE_CHECKING:
    from foveate.ask.second_look import SecondLook
    from foveate.ask.vlm import VLM

EVERYWHERE = ("0.0.0.0", "::")


def check_gradio() -> None:
    """Check that Gradio is installed.

    Raises:
        UnsupportedError: If it is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UnsupportedError(f"The page needs Gradio: {install_line('app')}.")


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes any free one.

    Raises:
        UnsupportedError: If the port is in use or not permitted, or this machine has no such address.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, ValueError) as error:  # a malformed address raises ValueError
        why = str(getattr(error, "strerror", None) or error).partition(" (")[0]
        raise UnsupportedError(
            f"The page cannot listen on port {port} of '{trim(host, 80)}': {why}. Choose another --port (0 takes any "
            "free one) or another --host (127.0.0.1 is for this machine only, 0.0.0.0 for all that can reach it)."
        ) from error


def url_of(listening: socket.socket) -> str:
    """The page's address for a browser on this machine."""
    host, port = listening.getsockname()[:2]
    if host in EVERYWHERE:
        host = "127.0.0.1"
    if ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}"


def hosts_of(host: str) -> list[str]:
    """Host names under which a browser may open the page: all if it listens on every address.

    Otherwise another site could point its own name to this address and read the page (DNS rebinding).
    """
    if host in EVERYWHERE:
        return ["*"]
    return [host, f"[{host}]", "localhost", "127.0.0.1"]


def serve(
    vlm: "VLM",
    listening: socket.socket,
    host: str,
    *,
    max_new_tokens: int = 64,
    looks: "Mapping[str, SecondLook] | None" = None,
    ready: Callable[[str], object] = lambda url: None,
) -> None:
    """Serve the page until Ctrl-C. Gradio must not have been imported yet.

    Args:
        vlm: The model that answers.
        listening: A socket from `listen`.
        host: The host name or address that the socket is bound to.
        max_new_tokens: The longest answer.
        looks: Second looks to offer among the methods, by name.
        ready: Called with the page's address as soon as it can be opened.

    Raises:
        KeyboardInterrupt: At Ctrl-C, after everything is closed.
    """
    with tempfile.TemporaryDirectory(prefix="foveate-page-", ignore_cleanup_errors=True) as folder:
        # Gradio reads these variables when it is imported: the folder for uploads, and whether to report its use.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        import uvicorn

        from foveate.app.page import application
        from foveate.app.replies import UNDER_WAY

        config = uvicorn.Config(
            application(vlm, hosts_of(host), max_new_tokens, looks),
            log_level="critical",
            timeout_graceful_shutdown=1,  # seconds until open connections are cut at the end
            server_header=False,
        )
        ready(url_of(listening))  # connections wait in the socket until the server takes them
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            for stream in list(UNDER_WAY):
                stream.close()
