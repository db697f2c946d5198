"""The page of `foveate demo` on a hosting space, which opens port 7860 to everyone."""

import os

import foveate as fv
from foveate.app.server import listen, serve

MODEL = os.environ.get("FOVEATE_MODEL", "embedded")
"""A hub id, set as a variable of the space; without one, the small model that ships with foveate."""
EVERYWHERE = "0.0.0.0"
PORT = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))


def main() -> None:
    """Serve until the space ends."""
    with listen(EVERYWHERE, PORT) as listening:
        serve(fv.load(MODEL), listening, EVERYWHERE, ready=lambda url: print(f"The page is at {url}.", flush=True))


if __name__ == "__main__":
    main()
