"""The web page of `foveate demo`. `server.py` serves it; `page.py` makes it with Gradio, the extra `app`."""
