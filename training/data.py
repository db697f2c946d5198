"""Batches of scenes as tensors, and the questions that are drawn about them."""

from collections.abc import Mapping
from dataclasses import fields

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from foveate.embedded.questions import TaskQuestion, all_questions, evenly, relation_questions
from foveate.embedded.scenes import Scene
from labels import Labels, labels

__all__ = ["ask", "dense_targets", "pictures", "relations"]


def pictures(scenes: list[Scene]) -> Tensor:
    """(B, side, side, 3) uint8."""
    return torch.from_numpy(np.stack([s.image for s in scenes]))


def dense_targets(scenes: list[Scene]) -> dict[str, Tensor]:
    """Each field of `Labels`, stacked over the scenes."""
    each = [labels(s) for s in scenes]
    return {f.name: torch.from_numpy(np.stack([getattr(one, f.name) for one in each])) for f in fields(Labels)}


def ask(scene: Scene, rng: Generator, count: int, weights: Mapping[str, float]) -> list[TaskQuestion]:
    """Draw up to `count` different questions, tasks by weight, answers of a task evenly."""
    left = all_questions(scene, rng)
    drawn: list[TaskQuestion] = []
    while left and len(drawn) < count:
        tasks = list(left)
        weight = np.array([weights.get(task, 0.0) for task in tasks])
        if weight.sum() <= 0:
            break
        share = weight / weight.sum()
        task = tasks[rng.choice(len(tasks), p=share)]
        question = evenly(left[task], rng)
        drawn.append(question)
        left[task].remove(question)
        if not left[task]:
            del left[task]
    return drawn


def relations(scene: Scene) -> int:
    """How many relations can be asked for."""
    return len(list(relation_questions(scene)))
