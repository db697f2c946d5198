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


def cosine(a, b):
    """The cosine of two lists of numbers; 0 where one has no direction."""
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / (max(math.hypot(*a), 1e-12) * max(math.hypot(*b), 1e-12))


def covering(targets, count, weights=None):
    """The tokens that cover rows of targets best, in plain Python: the largest gain first, of equals the lower."""
    covered, picked = [0.0] * len(targets), []
    for _ in range(count):
        gains = {}
        for token in set(range(len(targets[0]))) - set(picked):
            gain = sum(max(0.0, row[token] - have) for row, have in zip(targets, covered, strict=True))
            gains[token] = gain if weights is None else gain * weights[token]
        picked.append(max(gains, key=lambda token: (gains[token], -token)))
        covered = [max(row[picked[-1]], have) for row, have in zip(targets, covered, strict=True)]
    return sorted(picked)
