"""`foveate models`: the models that can be used."""

from dataclasses import dataclass
from typing import Any

from foveate.cli.options import Flag

__all__ = ["Models", "marks"]

STAGES = {"tower": "In the tower", "projector": "Behind it", "layer": "Between layers", "kv": "In the KV cache"}


def marks(methods: dict[str, dict[str, Any]]) -> list[str]:
    """A cell a stage: "i" for images, "v" for videos; then the methods that are refused."""
    works = {modality: [each for each in told.values() if isinstance(each, list)] for modality, told in methods.items()}
    cells = [
        " ".join(modality[0] for modality, seen in works.items() if any(stage in one for one in seen))
        for stage in STAGES
    ]
    refused = dict.fromkeys(name for told in methods.values() for name, each in told.items() if isinstance(each, str))
    return [*cells, ", ".join(refused)]


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the model families that are supported, and the embedded model.

    Any checkpoint of a listed model_type works: a hub id or a local folder after --model.

    Examples:
      foveate models
      foveate models --json
    """

    json: Flag = False
    """print JSON to stdout, and nothing else there"""

    def run(self) -> None:
        """Print the list."""
        import sys

        from rich.table import Table
        from rich.text import Text

        from foveate.cli.methods import summary
        from foveate.cli.options import EMBEDDED
        from foveate.cli.screen import busy, show, show_json

        with busy("Looking for families"):
            from foveate import embedded
            from foveate.registry import families, presets, support

            known = support()
            kinds: list[dict[str, Any]] = [
                {"model_type": name, "summary": summary(sys.modules[kind.__module__]), "methods": known[name]}
                for name, kind in sorted(families().items())
            ]
            own = {"name": EMBEDDED, "model_type": "llava", "folder": str(embedded.path())}
            named = sorted({name.split("/")[1] for name in presets()})
        if self.json:
            return show_json({"embedded": own, "families": kinds, "presets_for": named})
        table = Table("model_type", "What foveate knows about it", *STAGES.values(), "Refused")
        for kind in kinds:
            table.add_row(kind["model_type"], Text(kind["summary"]), *marks(kind["methods"]))
        return show(
            table,
            Text(f"--model {EMBEDDED} (the default) is a small LLaVA that ships with foveate and runs offline."),
            Text(
                "Tokens can leave at a stage for images (i) and videos (v), as the tests have found with every method. "
                "Why a method is refused: --json."
            ),
            Text(f"Presets exist for: {', '.join(named)} (foveate presets)."),
        )
