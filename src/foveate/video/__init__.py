"""Video files in, some of their frames out: `clip = foveate.video.read("clip.mp4", frames=32)`. Needs PyAV."""

from foveate.video.clip import Clip
from foveate.video.decoding import read, shape_of

__all__ = ["Clip", "read", "shape_of"]
