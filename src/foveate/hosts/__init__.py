"""foveate in an engine with its own decoder: rows of images in, those that enter the decoder out.

`foveate.drop_rows` is one call. A plug-in that serves many prompts makes a `Reducer` once and calls it for each
(docs/guides/own-engine.md). vLLM's and mlx-vlm's plug-ins stand on these names alone where both do the same.
"""

from foveate.families.vision import PictureLayout
from foveate.hosts.plugin import Checks, HostTrace, at_columns, images_of
from foveate.hosts.reducer import Host, Kept, Reducer

__all__ = ["Checks", "Host", "HostTrace", "Kept", "PictureLayout", "Reducer", "at_columns", "images_of"]
