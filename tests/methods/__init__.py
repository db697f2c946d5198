"""What tests of methods share: a method's only stage, what stays there, and rows in some directions."""

import math

import torch

from foveate.contract import Shape


def stage_of(method, **shape):
    """The only stage of a method, on a model of 32 layers whose tower has a CLS."""
    (stage,) = method.stages(Shape(**{"depth": 32, "cls": True, **shape}))
    return stage


def stays(stage, view):
    """The tokens of a view that stay, or that rows stand for."""
    cut = stage.cut(view)
    return list(range(len(view))) if cut is None else cut.source[: int(cut.count)].tolist()


def at(*degrees):
    """Rows of length one that point in these directions: the cosine of two is that of the angle between them."""
    angles = map(math.radians, degrees)
    return torch.tensor([[math.cos(angle), math.sin(angle)] for angle in angles])
