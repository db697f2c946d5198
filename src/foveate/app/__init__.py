"""The web page: `foveate demo`. Only `page.py` and `server.py` need Gradio (the extra `app`)."""

__all__: list[str] = []
