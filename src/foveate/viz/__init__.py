"""Pictures of what was kept or will be, and tables of text. Knows nothing of the engine."""

from foveate.plain.table import SECTION, Column, Number, Table
from foveate.viz.canvas import stack
from foveate.viz.comparison import draw_comparison
from foveate.viz.frames import Frame, draw_frames
from foveate.viz.plan import draw_plan
from foveate.viz.stills import draw_stages

__all__ = [
    "SECTION",
    "Column",
    "Frame",
    "Number",
    "Table",
    "draw_comparison",
    "draw_frames",
    "draw_plan",
    "draw_stages",
    "stack",
]
