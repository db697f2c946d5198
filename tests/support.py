"""What works on which family: found by running every method on every tiny model, and kept where the package reads it.

python -m tests.support        # after a change; tests/invariants/test_support.py says when
"""

import json
from pathlib import Path
from typing import Any

import torch

import foveate as fv
from foveate.cli.models import STAGES, marks
from foveate.families._unserved import UNSERVED
from foveate.registry import SUPPORT
from tests.models import FAMILIES, TINY, batch, tiny, with_video

__all__ = ["PAGE", "find", "page"]

PAGE = Path(__file__).parents[1] / "docs" / "models.md"


def find(family: str) -> dict[str, dict[str, Any]]:
    """For each modality of a family and each method: the stages at which tokens left, or why it is refused.

    Raises:
        AssertionError: If a method runs and nothing leaves, or is refused in some of its examples only.
    """
    from tests.invariants.settings import EXAMPLES

    found: dict[str, dict[str, Any]] = {}
    for modality, word in {"image": "titit", "video": with_video(family)}.items():
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


def page(support: dict[str, dict[str, dict[str, Any]]]) -> str:
    """The documentation's page about models."""
    heads = ["family", *STAGES.values()]
    lines = [
        "# Models",
        "",
        "Where tokens can leave, for images (i) and videos (v): found by running every method on a tiny random",
        "model of every family, in the tests that also prove each of them against an independent recompute.",
        "`foveate models` prints the same. A model of another type is refused with what to do:",
        "the [generic adapter](families/generic.md), which serves a decoder of the usual kind without knowing its",
        "pictures, or [a new family](guides/new-family.md).",
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
    ]
    refused = []
    for family, told in support.items():
        cells = marks(told)[:-1]
        lines.append(f"| [`{family}`](families/{family}.md) | {' | '.join(cells)} |")
        refused += [
            f"- {method} on `{family}` ({modality}): {answer}"
            for modality, methods in told.items()
            for method, answer in methods.items()
            if isinstance(answer, str)
        ]
    unserved = ["", "No family can serve these:", "", "| `model_type` | why |", "|---|---|"]
    unserved += [f"| `{name}` | {reason} |" for name, reason in UNSERVED.items()]
    return "\n".join([*lines, *(["", "Refused:", "", *refused] if refused else []), *unserved, ""])


if __name__ == "__main__":
    found = {family: find(family) for family in FAMILIES}
    SUPPORT.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(found))
