"""`foveate presets`: published settings, with their sources."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from foveate.cli.options import Flag

__all__ = ["Presets"]


@dataclass(frozen=True, kw_only=True)
class Presets:
    """List the presets: published and derived settings, each with its source.

    The retention is what the schedule spends on the model it was made for.

    Examples:
      foveate presets
      foveate presets llava-1.5-7b
      foveate presets --json
    """

    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = ""
    """list only names that contain this"""
    json: Flag = False
    """print JSON to stdout, and nothing else there"""

    def run(self) -> None:
        """Print the list."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table
        from rich.text import Text

        from foveate.cli.screen import busy, show, show_json
        from foveate.errors import UnknownNameError

        with busy("Looking for presets"):
            from foveate.core.budget import mean_tokens
            from foveate.registry import presets

            known = presets()
        found = [preset for name, preset in known.items() if self.text in name]
        if not found:
            raise UnknownNameError(f"No preset's name contains {self.text!r}. All of them: foveate presets.")
        rows = []
        for preset in found:
            tokens = preset.vision_tokens
            count = tokens or UNKNOWN_COUNT
            plan = preset.method.plan(preset.depth, (count,))
            mean = None if plan is None else mean_tokens(plan)
            rows.append(
                {
                    "name": preset.name,
                    "setting": preset.method.to_dict(),
                    "depth": preset.depth,
                    "vision_tokens": tokens,
                    "mean_tokens": mean if tokens else None,
                    "retention": None if mean is None else mean / count,
                    "source": preset.source,
                }
            )
        if self.json:
            return show_json({"presets": rows})
        table = Table("Preset", "Mean tokens", "Layers", "Source", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.columns[0].no_wrap = table.columns[1].no_wrap = True
        for row, preset in zip(rows, found, strict=True):
            mean_text = "" if row["mean_tokens"] is None else f"{row['mean_tokens']:.1f} of {row['vision_tokens']}, "
            share = "by picture" if row["retention"] is None else f"{row['retention']:.1%}"
            table.add_row(Text(preset.name), mean_text + share, str(preset.depth), Text(preset.source))
        return show(table)


UNKNOWN_COUNT = 1000  # where any count goes, the share is computed at this one
