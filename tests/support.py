"""What works on which family: found by running every method on every tiny model, and kept where the package reads it.

python -m tests.support        # after a change; tests/invariants/test_support.py says when
"""

import json
from typing import Any

import torch

import foveate as fv
from foveate.registry import SUPPORT
from tests.models import FAMILIES, TINY, batch, tiny

__all__ = ["find"]

WORDS = {"image": "titit", "video": "tvtit"}


def find(family: str) -> dict[str, dict[str, Any]]:
    """For each modality of a family and each method: the stages at which tokens left, or why it is refused.

    Raises:
        AssertionError: If a method runs and nothing leaves, or is refused in some of its examples only.
    """
    from tests.invariants.settings import EXAMPLES

    found: dict[str, dict[str, Any]] = {}
    for modality, word in WORDS.items():
        if modality == "video" and TINY[family].videos is None:
            continue
        for example, method in EXAMPLES.items():
            name, answer = example.rsplit("-", 1)[0], _try(family, word, method)
            before = found.setdefault(modality, {}).setdefault(name, answer)
            assert isinstance(before, list) == isinstance(answer, list), f"{family}: {example} {answer}, not {before}"
            if isinstance(answer, list):
                found[modality][name] = sorted({*before, *answer})
    return found


def _try(family: str, word: str, method: Any) -> Any:
    try:
        with fv.drop(tiny(family), method) as trace, torch.no_grad():
            tiny(family)(**batch(family, [word]))
    except fv.UnsupportedError as error:
        return str(error)
    left = [stage.where for stage in trace.stages if stage.after != stage.before]
    assert left, f"{method} drops nothing on {family}"
    return left


if __name__ == "__main__":
    SUPPORT.write_text(json.dumps({family: find(family) for family in FAMILIES}, indent=1) + "\n")
