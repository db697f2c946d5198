"""Idefics3: as SmolVLM, but that the function which merges pictures into text tells nobody where."""

from typing import ClassVar

from foveate.families.smolvlm import SmolVLM

__all__ = ["FAMILY", "Idefics3"]


class Idefics3(SmolVLM):
    """Where things are inside `Idefics3ForConditionalGeneration`."""

    model_type: ClassVar[str] = "idefics3"
    videos: ClassVar[bool] = False


FAMILY = Idefics3
