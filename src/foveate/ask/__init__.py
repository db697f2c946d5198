"""Load a model, ask it about images and videos, and get answers. No other room loads, prompts or generates."""

from foveate.ask.answer import Answer
from foveate.ask.generation import Generation
from foveate.ask.loading import load
from foveate.ask.prefix import Prefix
from foveate.ask.second_look import SecondLook
from foveate.ask.stream import Stream
from foveate.ask.vlm import VLM, Question

__all__ = ["VLM", "Answer", "Generation", "Prefix", "Question", "SecondLook", "Stream", "load"]
