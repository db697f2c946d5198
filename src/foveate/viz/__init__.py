"""Pictures of what was kept. Imports errors, video, NumPy, Pillow, torch and matplotlib; nothing of the engine."""

from foveate.viz.frames import Frame, draw_frames
from foveate.viz.stack import stack
from foveate.viz.stages import draw_stages

__all__ = ["Frame", "draw_frames", "draw_stages", "stack"]
