"""Drawings of kept and dropped vision tokens, and tables of text. Independent of the engine."""

from foveate.plain.table import SECTION, Column, Number, Table
from foveate.plain.upstream import extra

with extra("cli", "Drawing needs matplotlib"):
    import matplotlib  # noqa: F401

from foveate.viz.canvas import stack
from foveate.viz.comparison import draw_comparison
from foveate.viz.contact_sheet import Frame, draw_frames
from foveate.viz.stills import draw_stages

__all__ = [
    "SECTION",
    "Column",
    "Frame",
    "Number",
    "Table",
    "draw_comparison",
    "draw_frames",
    "draw_stages",
    "stack",
]
