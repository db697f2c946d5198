"""Tables of `foveate bench` for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from foveate.bench.predict import Forecast
from foveate.bench.run import EAGER, FULL
from foveate.bench.shapes import Shape
from foveate.bench.summary import Row, Summary
from foveate.bench.timing import Ratio

__all__ = ["footnotes", "forecast_table", "profile_tables", "shape_table", "tables"]

MIB = 2**20


def tables(summary: Summary, title: str) -> list[Table]:
    """A row a candidate: speed-ups over the untouched model, whose own row has milliseconds; and sizes."""
    whole = [row for row in summary.rows if not row.is_bare]
    prefill = _table({row.name: _prefill(row) for row in summary.rows}, title)
    calls = _table({row.name: _call(row, summary) for row in whole})
    return [prefill, calls, _table({row.name: _sizes(row) for row in whole})]


def _table(rows: Mapping[str, Mapping[str, str]], title: str = "") -> Table:
    """Of cells by the names of their rows and columns; columns without any are left out."""
    cells = list(rows.values())
    heads = [name for name in cells[0] if any(row[name] for row in cells)]
    shown = Table(*(Column(name, no_wrap=True) for name in ("", *heads)), box=SIMPLE_HEAD)
    shown.title = Text(title) if title else None
    for name, row in rows.items():
        shown.add_row(Text(name), *(row[head] for head in heads))
    return shown


def _prefill(row: Row) -> dict[str, str]:
    base, efficiency = row.name == FULL, row.efficiency
    return {
        "FLOPs": "" if base else f"{1 / row.flops['prefill']:.2f}×",
        "Prefill": _speed(row, "prefill"),
        "of limit": "" if base or efficiency is None else f"{efficiency.median:.1%}",
        "÷ random": _interval(row.against["prefill"]) if row.against else "",
        "÷ bare": _interval(row.over_bare["prefill"]) if row.over_bare else "",
    }


def _call(row: Row, summary: Summary) -> dict[str, str]:
    return {
        "First token": _speed(row, "ttft"),
        "Token": _speed(row, "tpot"),
        "Call": _speed(row, "whole"),
        "Items/s": f"{summary.items_per_second(row):.3g}",
        "Tower ms": f"{1000 * row.seconds['tower']:.1f}" if "tower" in row.seconds else "",
    }


def _sizes(row: Row) -> dict[str, str]:
    held = row.candidate.held
    assert held is not None
    return {
        "Tokens": f"{sum(held.tokens) / len(held.tokens):.1f}",
        "Retention": f"{held.retention:.1%}",
        "Peak MiB": f"{held.peak / MIB:.1f}",
        "vs predicted": "" if row.peak_counted is None else f"{held.peak / row.peak_counted - 1:+.1%}",
        "KV MiB": f"{held.kv_bytes / MIB:.1f}",
    }


def _speed(row: Row, part: str) -> str:
    """The speed-up of a part; of the untouched model, its milliseconds."""
    if part not in row.ratios:
        return ""
    return f"{1000 * row.seconds[part]:.1f} ms" if row.name == FULL else _interval(row.ratios[part].inverse())


def _interval(ratio: Ratio) -> str:
    """A median, and its interval below."""
    return f"{ratio.median:.3f}\n[{ratio.low:.3f}–{ratio.high:.3f}]"


def footnotes(summary: Summary, infeasible: Mapping[str, str], obstacle: str, interrupted: bool) -> list[str]:
    """What a reader must know; `obstacle` is why there are no bare layers, if anything is."""
    lines = [
        f"{summary.rounds} paired rounds{', then interrupted' if interrupted else ''}. Speed-ups over the untouched "
        "model of the same round: median, 95 % bootstrap interval; of limit: the prefill's over that of FLOPs alone.",
        "÷ random: prefill time over that of random at the same schedule"
        + (
            "; ÷ bare: over that of the layers alone on as many rows"
            if any(row.is_bare for row in summary.rows)
            else ""
        )
        + ". Peak: without weights and inputs"
        + (", and how much more that is than predicted" if any(row.peak_counted for row in summary.rows) else "")
        + ". Tower and projector take "
        + ", ".join(
            f"{row.seconds['tower'] / row.seconds['ttft']:.0%} ({row.name})"
            for row in summary.rows
            if "tower" in row.seconds and (row.name == FULL or row.candidate.control)
        )
        + " of the time to the first token.",
    ]
    for row in summary.rows:
        held = row.candidate.held
        if held and row.kv_counted is not None and held.kv_bytes != row.kv_counted:
            lines.append(f"{row.name}: the cache holds {held.kv_bytes:,} bytes, counted {row.kv_counted:,}.")
    if any(row.name == EAGER for row in summary.rows):
        lines.append(f"{EAGER}: random at the first method's schedule with attention matrices in every layer.")
    lines += [f"No rows of bare layers: {obstacle}."] if obstacle else []
    lines += [f"{name}: infeasible: {why}" for name, why in infeasible.items()]
    lines += [f"{name}: did not run: {why}" for name, why in summary.failed.items()]
    return lines


def forecast_table(forecasts: Mapping[str, Forecast], costs: Mapping[str, Any], title: str) -> Table:
    """What arithmetic promises, a row a method."""
    names = ("", "Tokens", "Prefill TFLOP", "Prefill", "with weights read", "First token", "KV MiB", "KV")
    shown = Table(*(Column(name, no_wrap=True) for name in names), title=Text(title), box=SIMPLE_HEAD)
    for name, cost in costs.items():
        found = forecasts.get(name)
        tokens = sum(cost["tokens"]) / len(cost["tokens"])
        ratios = ("", "", "", "") if found is None else (found.prefill, found.bound, found.first, found.kv)
        prefill, bound, first, kv = (one if isinstance(one, str) else f"{one:.2f}×" for one in ratios)
        flops, held = f"{cost['prefill_flops'] / 1e12:.3g}", f"{cost['kv_bytes'] / MIB:.1f}"
        shown.add_row(Text(name), f"{tokens:.1f}", flops, prefill, bound, first, held, kv)
    return shown


ACROSS = 4
"""Candidates whose profiles stand side by side: that many fit 100 columns beside the names of parts."""


def profile_tables(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[Table]:
    """Milliseconds from the pixels to the first token, a column a candidate and some of them a table: of each part, and
    of operators."""
    shown, names = [], list(found)
    for kind, title in (("parts", "Where the time goes, ms"), ("operators", "Operators that take most, ms")):
        for at in range(0, len(names), ACROSS):
            some = [found[name][kind] for name in names[at : at + ACROSS]]
            heads = (Column(Text(name), no_wrap=True, justify="right") for name in names[at : at + ACROSS])
            table = Table(Column("", no_wrap=True), *heads, title=title, box=SIMPLE_HEAD)
            for name in dict.fromkeys(name for one in some for name in one):
                cells = (one.get(name) for one in some)
                table.add_row(name, *("" if spent is None else f"{1000 * spent:.2f}" for spent in cells))
            shown.append(table)
    return shown


def shape_table(known: Sequence[Shape]) -> Table:
    """Every shape and what it has the sizes of."""
    shown = Table("Shape", "Sizes of", "Vision tokens", box=SIMPLE_HEAD)
    for one in known:
        tokens = [f"{one.image['tokens']} a picture"] if one.image else []
        if one.frame:
            tokens.append(f"{one.frame['tokens']} {'two frames' if 'grid' in one.frame else 'a frame'}")
        shown.add_row(one.name, one.of + (" (arithmetic alone)" if one.arithmetic else ""), ", ".join(tokens))
    return shown
