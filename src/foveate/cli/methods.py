"""`foveate methods`: the ways to drop there are."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from foveate.cli.options import Flag

__all__ = ["Methods"]


@dataclass(frozen=True, kw_only=True)
class Methods:
    """List the methods: what each does, its settings and their defaults.

    Methods of installed packages are listed too.

    Examples:
      foveate methods
      foveate methods --json
    """

    json: Flag = False
    """print JSON to stdout, and nothing else there"""

    def run(self) -> None:
        """Print the list."""
        from rich.table import Table
        from rich.text import Text

        from foveate.cli.screen import busy, show, show_json

        with busy("Looking for methods"):
            from foveate.registry import methods

            found = dict(sorted(methods().items()))
        rows: list[dict[str, Any]] = []
        for name, kind in found.items():
            settings = {field.name: field.default for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
            rows.append({"name": name, "summary": summary(kind), "settings": settings, "presets": len(kind.presets)})
        if self.json:
            return show_json({"methods": rows})
        table = Table("Method", "What it does", "Settings and defaults", "Presets")
        for row in rows:
            settings_text = "\n".join(f"{key} = {value!r}" for key, value in row["settings"].items())
            table.add_row(row["name"], Text(row["summary"]), Text(settings_text), str(row["presets"]))
        return show(table)


def summary(documented: object) -> str:
    """The first paragraph of a docstring, on one line; empty where there is none."""
    text = (getattr(documented, "__doc__", None) or "").strip().split("\n\n")[0]
    return " ".join(text.split())
