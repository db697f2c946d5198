"""A place to listen at, before anything slow is loaded: Gradio is there, the port is free."""

import errno
import importlib.util
import socket

from foveate._upstream import install_line, shown
from foveate.errors import UnsupportedError

__all__ = ["MISSING", "bound", "check_gradio", "url_of"]

MISSING = f"The page needs Gradio: {install_line('app')}."


def check_gradio() -> None:
    """Refuse to go on without Gradio.

    Raises:
        UnsupportedError: If it is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UnsupportedError(MISSING)


def bound(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 is any free one.

    Raises:
        UnsupportedError: If the port is taken or not ours to take, or there is no such address here.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except PermissionError as error:
        raise UnsupportedError(f"Port {port} is reserved. Take one from 1024 on: --port 7860.") from error
    except (OSError, ValueError) as error:  # an address that can be none raises ValueError
        if getattr(error, "errno", None) != errno.EADDRINUSE:
            raise UnsupportedError(
                f"This machine has no address '{shown(host, 80)}'. Take 127.0.0.1 for this machine alone, or 0.0.0.0 "
                "for all that can reach it: --host."
            ) from error
        raise UnsupportedError(
            f"Port {port} of {host} is in use. End what uses it, or take another one: --port {min(port + 1, 65535)}, "
            "or --port 0 for any free one."
        ) from error


def url_of(listening: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    if ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}"
