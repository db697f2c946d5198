"""`foveate methods`, `foveate models` and `foveate presets`. The plain lists need no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from foveate.cli.screen import busy, show, show_json
from foveate.plain import inventory
from foveate.plain.flags import EMBEDDED, Flag
from foveate.plain.spelling import Written, unknown

STAGES = {
    "pixels": "Before the tower",
    "tower": "In the tower",
    "projector": "After the tower",
    "layer": "Between layers",
    "kv": "In the KV cache",
    "read": "Not read while decoding",
}
PLACES = {"layer": "Layers", "projector": "Projector", "tower": "Tower"}
"""Headings for the stages at which a model without a family can drop tokens."""
ANY_COUNT = 1000  # vision tokens assumed for presets that fit any count, to turn their spending into a share
LOOKING = "Looking for methods and families"
BELOW = "Settings: foveate methods NAME. Best at 1/9 on the embedded model: vidcom2, mmtok, vscan, divprune."
Name = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Methods:
    """List the methods. With NAME, show a method's settings, their defaults and its presets.

    The list includes methods of installed packages.

    Examples:
      foveate methods
      foveate methods v2drop
      foveate methods ./mine.py
      foveate methods --json
    """

    name: Name = ""
    """show this method and its settings; also the path of a Python file with a method"""
    json: Flag = False
    """print only JSON to stdout"""

    def run(self) -> None:
        """Print the list, or one method."""
        names = inventory.methods()
        own_file = self.name if Written(self.name).is_code else ""
        if self.name and not own_file and self.name not in names:
            raise unknown("method", self.name, names, "foveate methods")
        if self.name or self.json:
            with busy(LOOKING):
                from foveate.cli.catalogue import method_rows

                rows = _rows_of(self.name, method_rows(own_file), "name")
                if self.json:
                    return show_json({"methods": rows})
                return show(*_method(rows[0]))
        table = _table("Method", "What it does")
        for name, summary in names.items():
            table.add_row(name, Text(summary))
        return show(table, Text(BELOW))


def _method(row: Mapping[str, Any]) -> list[RenderableType]:
    """Return what to print of one method: its summary, its settings and its presets."""
    table = _table("Setting", "Default", "Takes", "What it means")
    for name, default in row["settings"].items():
        value = row["usual"].get(name, default)
        table.add_row(name, Text(value_text(value)), Text(row["types"][name]), Text(row["meanings"][name]))
    shown: list[RenderableType] = [Text(f"{row['name']}: {row['summary']}"), table]
    if row["usual"]:
        shown.append(Text(f"Defaults of a 32-layer decoder; other depths have other {' and '.join(row['usual'])}."))
    if names := [name for name in inventory.presets() if name.startswith(f"{row['name']}/")]:
        shown.append(Text(f"Presets: {', '.join(names)}"))
    shown.append(Text(f'Use it: --method {row["name"]}, or with settings: --method "{row["name"]}:KEY=VALUE;…"'))
    return shown


def value_text(value: Any) -> str:
    """Return a setting's value as a user writes it: "3, 17, 22", "0.333", "true"; a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(map(value_text, value))
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


@dataclass(frozen=True, kw_only=True)
class Models:
    """List the supported model families. With NAME, show which methods work on a family.

    Any checkpoint of a listed model_type works: a hub id or a local folder after --model.

    Examples:
      foveate models
      foveate models qwen2_vl
      foveate models --json
    """

    name: Name = ""
    """show this model_type and the methods that work on it"""
    json: Flag = False
    """print only JSON to stdout"""

    def run(self) -> None:
        """Print the list, or one family."""
        from foveate import embedded

        names = [*inventory.families(), *inventory.proved_types()]
        if self.name and self.name not in names:
            raise unknown("model_type", self.name, names, "foveate models")
        with busy(LOOKING):
            from foveate.cli.catalogue import family_rows
            from foveate.families.proved import PROVED

            by_structure = [{"model_type": name, **proof._asdict()} for name, proof in PROVED.items()]
            rows, proved = (_rows_of(self.name, every, "model_type") for every in (family_rows(), by_structure))
            named = sorted({name.split("/")[1] for name in inventory.presets()})
        if self.json:
            own = {"name": EMBEDDED, "model_type": "llava", "folder": str(embedded.path())}
            return show_json({"embedded": own, "families": rows, "proved": proved, "presets_for": named})
        if self.name:
            if rows:
                return show(*_family(rows[0]))
            table = _table("Models", "model_type", *PLACES.values(), "transformers", "Refused")
            for row in proved:
                places = ["x" if place in row["places"] else "" for place in PLACES]
                table.add_row(Text(row["title"]), row["model_type"], *places, row["since"], Text(row["refused"]))
            return show(table)
        table = _table("Models", "model_type", "Drops tokens of")
        for row in sorted(rows, key=lambda row: row["title"].lower()):
            title = row["title"] or row["summary"].partition(":")[0].rstrip(".")
            table.add_row(_one_line(title), row["model_type"], ", ".join(f"{medium}s" for medium in row["methods"]))
        refusing: dict[str, list[str]] = {}
        for row in rows:
            for method in _refusals(row):
                refusing.setdefault(method, []).append(row["model_type"])
        refusals = [f"{method} is refused on: {', '.join(kinds)}" for method, kinds in refusing.items()]
        return show(
            table,
            Text(f"Supported by their structure, each one verified: {_titles(proved, served=True)}."),
            Text(f"Refused (reason: foveate models NAME): {_titles(proved, served=False)}."),
            *map(Text, refusals or ["Every method runs on every family."]),
            Text("Where each method drops tokens, or what is verified: foveate models NAME"),
            Text(f"--model {EMBEDDED} (the default) is a small LLaVA that ships with foveate and runs offline."),
            Text(f"Presets exist for: {', '.join(named)} (foveate presets)."),
        )


def _titles(rows: Sequence[Mapping[str, Any]], served: bool) -> str:
    """Return the names of the models that are supported, or of those that are refused."""
    return ", ".join(sorted(row["title"] for row in rows if bool(row["places"]) is served))


def _family(row: Mapping[str, Any]) -> list[RenderableType]:
    """Return what to print of one family: where each method drops tokens, and why others are refused."""
    table = _table("Method", *STAGES.values())
    for name in row["methods"]["image"]:
        cells = marks({modality: {name: answers[name]} for modality, answers in row["methods"].items()})
        table.add_row(name, *cells[:-1])
    refused = [Text(f"Refused: {reason}") for reason in _refusals(row).values()]
    legend = Text("i: image tokens are or may be dropped there; v: video tokens.")
    head = f"{row['title']} (model_type {row['model_type']}): {row['summary']}"
    return [Text(head), table, *refused, legend]


def _refusals(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the methods that a family refuses, each with the reason."""
    answers = [answer for of_modality in row["methods"].values() for answer in of_modality.items()]
    return {name: answer for name, answer in answers if isinstance(answer, str)}


def marks(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one cell per stage, with "i" for images and "v" for videos, then a cell of the refused methods."""
    stages = {
        modality: {stage for answer in answers.values() if isinstance(answer, list) for stage in answer}
        for modality, answers in methods.items()
    }
    cells = []
    for stage in STAGES:
        letters = [modality[0] for modality, reached in stages.items() if stage in reached]
        cells.append(" ".join(letters))
    return [*cells, ", ".join(_refusals({"methods": methods}))]


@dataclass(frozen=True, kw_only=True)
class Presets:
    """List the presets: published and derived settings, each with its source.

    The mean tokens are those of the model that the preset was made for.

    Examples:
      foveate presets
      foveate presets llava-1.5-7b
      foveate presets --json
    """

    text: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[TEXT]", help_behavior_hint="")] = ""
    """list only presets whose names contain this"""
    json: Flag = False
    """print only JSON to stdout"""

    def run(self) -> None:
        """Print the list."""
        presets = [_preset(name, line) for name, line in inventory.presets().items()]
        rows = [row for row in presets if self.text in row["name"]]
        if not rows:
            raise unknown("preset", self.text, [row["name"] for row in presets], "foveate presets")
        if self.json:
            with busy(LOOKING):
                from foveate.registry import preset

                for row in rows:  # with the default settings
                    row["setting"] = preset(row["name"]).to_dict()
            return show_json({"presets": rows})
        table = _table("Preset", "Mean tokens", "Source")
        for row in rows:
            if self.text:
                source = Text(row["source"])
            else:
                source = _one_line(row["source"])
            table.add_row(Text(row["name"]), _spending(row), source)
        return show(table)


def _preset(name: str, line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a preset's row: its settings, its source, and its mean tokens on the model that it was made for."""
    vision_tokens, spends = line.get("vision_tokens"), line.get("spends")
    return {
        "name": name,
        "setting": line["settings"],
        "depth": line["depth"],
        "vision_tokens": vision_tokens,
        "mean_tokens": spends if vision_tokens else None,
        "retention": spends and spends / (vision_tokens or ANY_COUNT),
        "source": line["source"],
    }


def _spending(row: Mapping[str, Any]) -> str:
    """Return a preset's mean tokens in words: "194 of 576, 33.6%", a share alone, or "depends on the image"."""
    if row["retention"] is None:
        return "depends on the image"
    share = f"{row['retention']:.1%}"
    if row["mean_tokens"] is None:
        return share
    return f"{row['mean_tokens']:.3g} of {row['vision_tokens']}, {share}"


# -- shared by all three --------------------------------------------------------------------------------------


def _rows_of(name: str, rows: list[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """Return the row with this name, or all rows if the name is empty."""
    return [row for row in rows if name in ("", row[key])]


def _table(*heads: str) -> Table:
    """Return an empty table with a line under its head. On a narrow screen, only the last column wraps."""
    table = Table(*heads, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in table.columns[:-1]:
        column.no_wrap = True
    return table


def _one_line(text: str) -> Text:
    """Return a text that is cut with an ellipsis at the end of the line."""
    return Text(text, no_wrap=True, overflow="ellipsis")
