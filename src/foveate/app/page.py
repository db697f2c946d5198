"""The page itself, in Gradio: its frame and its two tabs."""

from html import escape
from pathlib import Path
from typing import Any

import fastapi
import gradio as gr

from foveate.app.ask_tab import AskTab
from foveate.app.heat_tab import HeatTab
from foveate.app.parts import Desk
from foveate.ask.vlm import VLM

__all__ = ["application", "blocks"]

STYLE = Path(__file__).parent / "page.css"
FONT, MONO = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")
"""The reader's own: Gradio's bold fonts lack most letters, and others would come from the network."""
SESSIONS = 100
"""Visitors whose last answers are remembered."""
HEAD = """<div class='fv-head'><h1>foveate</h1>
<p>Ask about a picture while vision tokens are dropped, and see what stays. The full model answers first.</p></div>"""


def application(page: gr.Blocks, desk: Desk) -> Any:
    """What a server serves, by the ASGI protocol."""
    page.state_session_capacity = SESSIONS
    page.has_launched = True  # else Gradio takes any file's name for an upload's
    return gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        page,
        "",
        footer_links=[],
        run_history=False,
        max_file_size=desk.limits.file,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        theme=gr.themes.Default(primary_hue="indigo", neutral_hue="slate", font=FONT, font_mono=MONO),
        css_paths=STYLE,
    )


def blocks(desk: Desk) -> gr.Blocks:
    """The two tabs."""
    with gr.Blocks(title="foveate", analytics_enabled=False) as page:
        gr.HTML(HEAD)
        with gr.Tab("Ask"):
            AskTab(desk)
        with gr.Tab("Where do methods look?"):
            HeatTab(desk)
        gr.HTML(_foot(desk.vlm))
    page.queue(max_size=desk.limits.waiting, api_open=False)
    return page


def _foot(vlm: VLM) -> str:
    facts = vlm.to_dict()
    kind = f"{facts['model_type']}, {vlm.depth} decoder layers, {facts['dtype']} on {facts['device']}"
    words = f"Model: {facts['name']} ({kind}). One picture illustrates; it measures nothing."
    return f"<p class='fv-foot'>{escape(words)}</p>"
