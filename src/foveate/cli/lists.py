"""`foveate methods`, `foveate models` and `foveate presets`: what there is, read from the index without torch."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from foveate import _index
from foveate._spelling import no_method
from foveate.cli.options import EMBEDDED, Flag
from foveate.cli.screen import busy, show, show_json
from foveate.errors import UnknownNameError

__all__ = ["STAGES", "Methods", "Models", "Presets", "marks"]

STAGES = {"tower": "In the tower", "projector": "Behind it", "layer": "Between layers", "kv": "In the KV cache"}
Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Methods:
    """List the methods: what each does; with a name, one method's settings, their defaults and its presets.

    Methods of installed packages are listed too.

    Examples:
      foveate methods
      foveate methods v2drop
      foveate methods --json
    """

    name: Name = ""
    """show only this method, with its settings"""
    json: Flag = False
    """print only JSON to stdout"""

    def run(self) -> None:
        """Print the list, or one method."""
        index = _there_is("methods", "presets")
        rows = index["methods"]
        if self.name:
            rows = [row for row in rows if row["name"] == self.name]
        if not rows:
            raise no_method(self.name, [row["name"] for row in index["methods"]])
        if self.json:
            return show_json({"methods": rows})
        if self.name:
            return show(*_method(rows[0], index["presets"]))
        table = _table("Method", "What it does")
        for row in rows:
            table.add_row(row["name"], Text(row["summary"]))
        return show(table, Text("Settings, defaults and presets of one: foveate methods NAME"))


def _method(row: Mapping[str, Any], presets: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """One method: what it does, its settings and its presets."""
    table = _table("Setting", "Default", "Takes")
    for name, default in row["settings"].items():
        table.add_row(name, Text(repr(default)), Text(row["types"][name]))
    shown: list[RenderableType] = [Text(f"{row['name']}: {row['summary']}"), table]
    if names := [preset["name"] for preset in presets if preset["setting"]["method"] == row["name"]]:
        shown.append(Text(f"Presets: {', '.join(names)}"))
    shown.append(Text(f'Use it: --method {row["name"]}, or with settings: --method "{row["name"]}:KEY=VALUE;…"'))
    return shown


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the model families that are supported, and the embedded model; with a name, what works on one family.

    Any checkpoint of a listed model_type works: a hub id or a local folder after --model.

    Examples:
      foveate models
      foveate models qwen2_vl
      foveate models --json
    """

    name: Name = ""
    """show only this model_type, with what works there"""
    json: Flag = False
    """print only JSON to stdout"""

    def run(self) -> None:
        """Print the list, or one family."""
        from foveate import embedded

        index = _there_is("families", "presets")
        rows = index["families"]
        if self.name:
            rows = [row for row in rows if row["model_type"] == self.name]
        if not rows:
            raise _no_family(self.name, [row["model_type"] for row in index["families"]])
        named = sorted({preset["name"].split("/")[1] for preset in index["presets"]})
        if self.json:
            own = {"name": EMBEDDED, "model_type": "llava", "folder": str(embedded.path())}
            return show_json({"embedded": own, "families": rows, "presets_for": named})
        if self.name:
            return show(*_family(rows[0]))
        table = _table("Models", "model_type", "Drops tokens of")
        for row in sorted(rows, key=lambda row: row["title"].lower()):
            title = row["title"] or row["summary"].partition(":")[0].rstrip(".")
            table.add_row(_one_line(title), row["model_type"], _media(row))
        return show(
            table,
            *_refusals(rows),
            Text("Where each method drops tokens: foveate models NAME"),
            Text(f"--model {EMBEDDED} (the default) is a small LLaVA that ships with foveate and runs offline."),
            Text(f"Presets exist for: {', '.join(named)} (foveate presets)."),
        )


def _family(row: Mapping[str, Any]) -> list[RenderableType]:
    """One family: what foveate knows of it, where each method drops tokens, and why others are refused."""
    table = _table("Method", *STAGES.values())
    for name in row["methods"]["image"]:
        cells = marks({modality: {name: answers[name]} for modality, answers in row["methods"].items()})
        table.add_row(name, *cells[:-1])
    refused = [Text(f"Refused: {reason}") for reason in _refused(row).values()]
    legend = Text("i: tokens of images are or may be dropped there; v: those of videos.")
    head = f"{row['title']} (model_type {row['model_type']}): {row['summary']}"
    return [Text(head), table, *refused, legend]


def _refusals(rows: Sequence[Mapping[str, Any]]) -> list[Text]:
    """Which methods do not run on which families."""
    lines = [Text(f"{row['model_type']} refuses: {', '.join(_refused(row))}") for row in rows if _refused(row)]
    return lines or [Text("Every method runs on every family.")]


def _media(row: Mapping[str, Any]) -> str:
    """What a family reads: "images" or "images, videos"."""
    return ", ".join(f"{modality}s" for modality in row["methods"])


def _refused(row: Mapping[str, Any]) -> dict[str, str]:
    """The methods that a family refuses, and why."""
    answers = [answer for of_modality in row["methods"].values() for answer in of_modality.items()]
    return {name: answer for name, answer in answers if isinstance(answer, str)}


def marks(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A cell a stage: "i" for images, "v" for videos; then the methods that are refused."""
    stages = {modality: _stages(answers) for modality, answers in methods.items()}
    cells = []
    for stage in STAGES:
        letters = [modality[0] for modality, reached in stages.items() if stage in reached]
        cells.append(" ".join(letters))
    return [*cells, ", ".join(_refused({"methods": methods}))]


def _stages(answers: Mapping[str, Any]) -> set[str]:
    """The stages at which methods drop tokens; a text among the answers is a refusal."""
    return {stage for answer in answers.values() if isinstance(answer, list) for stage in answer}


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
    """print only JSON to stdout"""

    def run(self) -> None:
        """Print the list."""
        rows = [row for row in _there_is("presets")["presets"] if self.text in row["name"]]
        if not rows:
            raise UnknownNameError(f"No preset's name contains {self.text!r}. All of them: foveate presets.")
        if self.json:
            return show_json({"presets": rows})
        table = _table("Preset", "Mean tokens", "Source")
        for row in rows:
            source = Text(row["source"]) if self.text else _one_line(row["source"])
            table.add_row(Text(row["name"]), _spent(row), source)
        return show(table)


def _spent(row: Mapping[str, Any]) -> str:
    """What a preset spends: "193.8 of 576, 33.6%", a share alone, or "by picture"."""
    if row["retention"] is None:
        return "by picture"
    share = f"{row['retention']:.1%}"
    if row["mean_tokens"] is None:
        return share
    return f"{row['mean_tokens']:.1f} of {row['vision_tokens']}, {share}"


# -- for all three --------------------------------------------------------------------------------------------


def _there_is(*parts: str) -> dict[str, Any]:
    """These parts of the index; where it does not hold, everything is imported, which takes some seconds."""
    index = _index.stored()
    if index is not None:
        return index
    with busy("Looking for methods and families"):
        return _index.contents(parts)


def _no_family(name: str, names: Sequence[str]) -> UnknownNameError:
    """The error for a model_type without a family; it names the nearest."""
    near = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
    similar = f" Similar names: {', '.join(near)}." if near else ""
    return UnknownNameError(f"No family for model_type {name!r}.{similar} For all, run: foveate models.")


def _table(*heads: str) -> Table:
    """A table with a line under its head; only the last column gives way where the screen is narrow."""
    table = Table(*heads, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns[:-1]:
        column.no_wrap = True
    return table


def _one_line(text: str) -> Text:
    """A text that ends in an ellipsis where the line does."""
    return Text(text, no_wrap=True, overflow="ellipsis")
