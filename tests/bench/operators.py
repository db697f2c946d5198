"""How many operators a prefill runs, views included, on the embedded models: a picture, eight in a batch, and a film.

operators.json is what this counted with 93823709, the commit before stages saw one sample each. It stays as it is. With
that commit checked out in OLD it was made by

    PYTHONPATH=OLD/src python -m tests.bench.operators >tests/bench/operators.json
"""

import json

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import foveate as fv
from foveate.embedded import films, scenes
from foveate.embedded.film_model import for_films
from tests.bench.counts import versions

PROMPT = "USER: <image>\nWhat colour is the circle? ASSISTANT:"
METHODS = {name: fv.methods()[name](retention=0.25) for name in ("v2drop", "fastv", "pyramiddrop", "divprune", "scope")}


class Operators(TorchDispatchMode):
    """Counts operators."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def of(model, inputs, method):
    """Operators of a method's second prefill."""
    with torch.no_grad():
        for _ in range(2):
            with fv.drop(model, method), Operators() as operators:
                model(**inputs)
    return operators.count


def counts():
    """By case and method."""
    model, processor = fv.embedded.load()
    pictures = [scenes.sketch("demo", number).image for number in range(8)]
    one, eight = (
        processor(text=[PROMPT] * count, images=pictures[:count], return_tensors="pt", padding=True) for count in (1, 8)
    )
    cases = {"one": (model, one), "eight": (model, eight)}
    film_model, film_processor = for_films(*fv.embedded.load())
    frames = [scene.image for scene in films.film("demo", 0, frames=8).frames]
    text = PROMPT.replace("<image>", "<video>")
    cases["film"] = film_model, film_processor(text=text, videos=[frames], return_tensors="pt")
    return {
        case: {name: of(*what, method) for name, method in METHODS.items() if case != "film" or name != "pyramiddrop"}
        for case, what in cases.items()
    }


if __name__ == "__main__":
    print(json.dumps({"versions": versions(), "counts": counts()}, indent=1))
