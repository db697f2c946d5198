"""`foveate models`: the models that can be used."""

from dataclasses import dataclass

from foveate.cli.options import Flag

__all__ = ["Models"]


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
            from foveate.registry import families, presets

            found = dict(sorted(families().items()))
            kinds = [
                {"model_type": name, "summary": summary(sys.modules[kind.__module__])} for name, kind in found.items()
            ]
            own = {"name": EMBEDDED, "model_type": "llava", "folder": str(embedded.path())}
            named = sorted({name.split("/")[1] for name in presets()})
        if self.json:
            return show_json({"embedded": own, "families": kinds, "presets_for": named})
        table = Table("model_type", "What foveate knows about it")
        for kind in kinds:
            table.add_row(kind["model_type"], Text(kind["summary"]))
        return show(
            table,
            Text(f"--model {EMBEDDED} (the default) is a small LLaVA that ships with foveate and runs offline."),
            Text(f"Presets exist for: {', '.join(named)} (foveate presets)."),
        )
