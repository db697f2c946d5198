"""Tables of a run for people: speed-ups, the whole call, sizes; forecasts and profiles."""

from collections.abc import Mapping, Sequence
from typing import Any

from foveate._sheet import Column, Sheet
from foveate.bench.predict import Forecast
from foveate.bench.rows import Row
from foveate.bench.timing import Ratio, interval_words

__all__ = ["footnotes", "forecast_sheet", "profile_sheets", "run_sheets"]

MIB = 2**20
ACROSS = 4
"""Candidates whose profiles stand side by side: that many fit 100 columns beside the names of parts."""


# -- of a run -------------------------------------------------------------------------------------------------


def run_sheets(rows: Sequence[Row], title: str = "", notes: Sequence[str] = ()) -> list[Sheet]:
    """A row a candidate: speed-ups over the untouched model, whose own row has milliseconds; and sizes."""
    complete = [row for row in rows if not row.is_bare]
    return [
        _sheet(rows, [_prefill(row) for row in rows], title),
        _sheet(complete, [_call(row) for row in complete]),
        _sheet(complete, [_sizes(row) for row in complete], notes=notes),
    ]


def _sheet(
    rows: Sequence[Row], cells: Sequence[Mapping[str, str]], title: str = "", notes: Sequence[str] = ()
) -> Sheet:
    """Cells by the heads of their columns; a column without any is left out."""
    heads = [head for head in cells[0] if any(row[head] for row in cells)]
    lines = []
    for row, by_head in zip(rows, cells, strict=True):
        lines.append((row.name, *(by_head[head] for head in heads)))
    return Sheet(title, ("", *heads), lines, notes)


def _prefill(row: Row) -> dict[str, str]:
    cells = {"FLOPs": "", "Prefill": _speed(row, "prefill"), "of limit": "", "÷ random": "", "÷ bare": ""}
    if not row.is_untouched:
        cells["FLOPs"] = f"{1 / row.flops['prefill']:.2f}×"
        if row.efficiency is not None:
            cells["of limit"] = f"{row.efficiency.median:.1%}"
    if row.against:
        cells["÷ random"] = _interval(row.against["prefill"])
    if row.over_bare:
        cells["÷ bare"] = _interval(row.over_bare["prefill"])
    return cells


def _call(row: Row) -> dict[str, str]:
    seconds = row.seconds
    return {
        "First token": _speed(row, "ttft"),
        "Token": _speed(row, "tpot"),
        "Call": _speed(row, "whole"),
        "Items/s": f"{row.items_per_second:.3g}",
        "Tower ms": f"{1000 * seconds['tower']:.1f}" if "tower" in seconds else "",
    }


def _sizes(row: Row) -> dict[str, str]:
    held = row.held
    peak, beside = "", ""
    if held.peak is not None:
        peak = f"{held.peak / MIB:.1f}"
        if row.peak_counted is not None:
            beside = f"{held.peak / row.peak_counted - 1:+.1%}"
    return {
        "Tokens": f"{row.tokens:.1f}",
        "Retention": f"{held.retention:.1%}",
        "Peak MiB": peak,
        "vs predicted": beside,
        "KV MiB": f"{held.kv_bytes / MIB:.1f}",
    }


def _speed(row: Row, part: str) -> str:
    """The speed-up of a part; of the untouched model, its milliseconds."""
    if part not in row.ratios:
        return ""
    if row.is_untouched:
        return f"{1000 * row.seconds[part]:.1f} ms"
    return _interval(row.ratios[part].inverse())


def _interval(ratio: Ratio) -> str:
    """A median, and its interval below."""
    return f"{ratio.median:.3f}\n[{ratio.low:.3f}–{ratio.high:.3f}]"


def footnotes(rows: Sequence[Row], rounds: int, asked: int) -> list[str]:
    """What a reader of the tables must know.

    Args:
        rows: Of the tables.
        rounds: How many are finished.
        asked: How many were asked for.
    """
    lines = [
        f"{rounds} paired rounds{', then interrupted' if rounds < asked else ''}. Speed-up over the untouched model of "
        f"the same round: the median of the rounds and their {interval_words(rounds)}.",
        "of limit: the prefill's speed-up over that of its FLOPs. ÷ random: prefill time over that of random dropping "
        "with the same tokens in every layer.",
        "Peak: without weights and inputs.",
    ]
    if any(row.is_bare for row in rows):
        lines[1] += " ÷ bare: over that of the model's own layers alone, on as many rows."
    if any(row.peak_counted for row in rows):
        lines[2] += " vs predicted: how much more that is than fv.cost predicts."
    lines.append(_tower(rows))
    for row in rows:
        if row.kv_counted is not None and row.held.kv_bytes != row.kv_counted:
            lines.append(f"{row.name}: the cache holds {row.held.kv_bytes:,} bytes; predicted were {row.kv_counted:,}.")
        if row.is_eager:
            lines.append(f"{row.name}: random at the first method's schedule, with attention matrices in every layer.")
    return [line for line in lines if line]


def _tower(rows: Sequence[Row]) -> str:
    """How much of the time to the first token is spent before the decoder; none where that was not timed."""
    shares = []
    for row in rows:
        if "tower" in row.times and (row.is_untouched or row.candidate.control):
            shares.append(f"{row.seconds['tower'] / row.seconds['ttft']:.0%} ({row.name})")
    if not shares:
        return ""
    return f"Of the time to the first token, tower and projector take {', '.join(shares)}."


# -- of forecasts and profiles --------------------------------------------------------------------------------


def forecast_sheet(
    forecasts: Mapping[str, Forecast], costs: Mapping[str, Any], title: str, notes: Sequence[str] = ()
) -> Sheet:
    """What arithmetic promises, a row a method.

    Args:
        forecasts: By method.
        costs: By method, and of the untouched model; see `Cost.to_dict`.
        title: Of the table.
        notes: Below it.
    """
    heads = ("", "Tokens", "Prefill TFLOP", "Prefill", "with weights read", "First token", "KV MiB", "KV")
    rows: list[tuple[str, ...]] = []
    for name, cost in costs.items():
        tokens = f"{sum(cost['tokens']) / len(cost['tokens']):.1f}"
        flops, kv = f"{cost['prefill_flops'] / 1e12:.3g}", f"{cost['kv_bytes'] / MIB:.1f}"
        if name not in forecasts:
            rows.append((name, tokens, flops, "", "", "", kv))
            continue
        promise = forecasts[name]
        speed_ups = [f"{ratio:.2f}×" for ratio in (promise.prefill, promise.bound, promise.first)]
        rows.append((name, tokens, flops, *speed_ups, kv, f"{promise.kv:.2f}×"))
    return Sheet(title, heads, rows, notes)


def profile_sheets(profiles: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[Sheet]:
    """Milliseconds from the pixels to the first token, a column a candidate and some of them a table: of each part, and
    of operators."""
    sheets = []
    names = list(profiles)
    for kind, title in (("parts", "Where the time goes, ms"), ("operators", "Operators that take most, ms")):
        for start in range(0, len(names), ACROSS):
            beside = {name: profiles[name][kind] for name in names[start : start + ACROSS]}
            sheets.append(_profile_sheet(beside, title))
    return sheets


def _profile_sheet(beside: Mapping[str, Mapping[str, float]], title: str) -> Sheet:
    heads: list[str | Column] = ["", *(Column(name, right=True) for name in beside)]
    parts: dict[str, None] = {}
    for seconds in beside.values():
        parts |= dict.fromkeys(seconds)
    return Sheet(title, heads, [(part, *_milliseconds(beside, part)) for part in parts])


def _milliseconds(beside: Mapping[str, Mapping[str, float]], part: str) -> list[str]:
    """Of each candidate, what a part takes; nothing where it has none."""
    return [f"{1000 * seconds[part]:.2f}" if part in seconds else "" for seconds in beside.values()]
