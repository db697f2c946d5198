"""Where the page listens, found out before anything slow is loaded; and the page served there until Ctrl-C."""

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
    """Refuse to go on without Gradio.

    Raises:
        UnsupportedError: If it is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UnsupportedError(f"The page needs Gradio: {install_line('app')}.")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one.

    Raises:
        UnsupportedError: If the port is taken or not ours to take, or there is no such address here.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, ValueError) as error:  # an address that can be none raises ValueError
        why = str(getattr(error, "strerror", None) or error).partition(" (")[0]
        raise UnsupportedError(
            f"The page cannot listen at port {port} of '{trim(host, 80)}': {why}. Take another --port (0 is any free "
            "one), or another --host (127.0.0.1 is this machine alone, 0.0.0.0 all that can reach it)."
        ) from error


def url_of(listening: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = listening.getsockname()[:2]
    if host in EVERYWHERE:
        host = "127.0.0.1"
    if ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}"


def hosts_of(host: str) -> list[str]:
    """Names by which a browser may ask for the page: all of them where it is open to everyone.

    Else another site could give its own name this address, and read the page in a visitor's browser (DNS rebinding).
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
    """Serve the page until Ctrl-C. Gradio must not be imported before.

    Args:
        vlm: The model that is asked.
        listening: A socket of `bound`.
        host: What it is bound to.
        max_new_tokens: The longest answer.
        looks: Second looks that are offered among the methods, by their names.
        ready: Called with the page's address as soon as it can be opened.

    Raises:
        UnsupportedError: If Gradio is missing.
        KeyboardInterrupt: At Ctrl-C, when everything is closed.
    """
    check_gradio()
    with tempfile.TemporaryDirectory(prefix="foveate-page-", ignore_cleanup_errors=True) as folder:
        # Gradio reads from the environment where uploads go, when it is imported, and whether to report its use.
        os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False"}
        import uvicorn

        from foveate.app.page import application
        from foveate.app.replies import UNDER_WAY

        config = uvicorn.Config(
            application(vlm, hosts_of(host), max_new_tokens, looks),
            log_level="critical",
            timeout_graceful_shutdown=1,  # second that open connections have at the end
            server_header=False,
        )
        ready(url_of(listening))  # connections wait in the socket until the server takes them
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            for stream in list(UNDER_WAY):
                stream.close()
