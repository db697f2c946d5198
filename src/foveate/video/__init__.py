"""Read frames of video files: `clip = foveate.video.read("clip.mp4", frames=32)`. Needs PyAV."""

from foveate.video.clips import Clip as Clip
from foveate.video.decoding import read as read, shape_of as shape_of
