"""Make each family's tiny model and prompts; run by its path in the old tree, with that tree's `tests` and `foveate`.

python make.py FOLDER PROMPTS-AS-JSON
"""

import json
import sys
from pathlib import Path

import torch

from tests.models import FAMILIES, TINY, batch, made_of


def make(family, prompts):
    """What the model is made of, its prompts by name, and whether its positions have several axes."""
    known, made = TINY[family], {}
    for name, words in prompts.items():
        if name == "film" and not known.videos:
            continue
        if name == "film" and known.apart:
            words = [word.replace("i", "v") for word in words]
        made[name] = batch(family, words)
    model = made_of(family, known.config())
    parts = {"kind": known.kind, "config": model.config, "weights": model.state_dict()}
    return {**parts, "generation": model.generation_config, "prompts": made, "mrope": known.mrope}


def main(folder, prompts):
    folder.mkdir(parents=True, exist_ok=True)
    for family in FAMILIES:
        torch.save(make(family, prompts), folder / f"{family}.pt")
    (folder / "done").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
