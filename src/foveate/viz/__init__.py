"""Pictures of what was kept. Imports core, errors, NumPy, Pillow and matplotlib; nothing of the engine."""

from foveate.viz.stack import stack
from foveate.viz.stages import draw_stages

__all__ = ["draw_stages", "stack"]
