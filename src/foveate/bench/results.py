"""The results of a paired run: a flat row for each candidate, and tables of the rows."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal

from foveate.bench.paired import AGAIN, FULL, GRAPH, Candidate, PairedRun
from foveate.bench.stopwatch import PARTS
from foveate.bench.timing import Ratio, interval_words
from foveate.cost import Cost, RunCounts
from foveate.plain.table import Number, Table, number

ResultRow = Mapping[str, Any]
MIB = 2**20


# -- rows -----------------------------------------------------------------------------------------------------


def rows_of(run: PairedRun) -> list[dict[str, object]]:
    """Summarise the finished rounds: one row per candidate that ran, the untouched model's first.

    A row has only the columns for which it has a value. PART is each of `PARTS`; a method also has "context", the time
    to open and close its context, which no other part includes. Times are in seconds. A ratio is the median of the
    rounds' ratios; its interval is in …_low and …_high.

    | column | meaning |
    |---|---|
    | name | name of the candidate |
    | control, bare | names of the candidates with random dropping and with bare layers, at the same schedule |
    | setting | the method, as plain values |
    | dtype | dtype of the model's weights |
    | rounds, batch | number of finished rounds; samples per batch |
    | tokens, layer_tokens, retention | vision tokens per layer: the mean, those of each layer, and the share kept |
    | kv_bytes, kv_bytes_counted | bytes of the batch's KV cache after the prompt: measured, and predicted |
    | peak_bytes | peak of allocated bytes, without weights and inputs |
    | PART, PART_times | time: the median over rounds, and that of each round |
    | PART_ratio | time over the untouched model's in the same round |
    | PART_flops | FLOPs over the untouched model's. Missing if the vision tower is not counted |
    | PART_over_random, PART_over_bare | time over that of `control` and of `bare` |
    | PART_over_graph | with CUDA graphs: time over that of the untouched model with CUDA graphs |
    | tower_graph | with CUDA graphs: "replayed", or the reason why the vision tower was not |
    | efficiency | the prefill's measured speed-up over that of its FLOPs; 1 is the limit |
    """
    untouched = _cost(run, run.candidates[FULL])
    return [_row(run, candidate, untouched) for candidate in run.candidates.values() if candidate.held is not None]


def _row(run: PairedRun, candidate: Candidate, untouched: Cost) -> dict[str, object]:
    held, cost = candidate.held, _cost(run, candidate)
    assert held is not None  # else it has no row
    row: dict[str, Any] = {
        "name": candidate.name,
        "control": candidate.control,
        "bare": candidate.bare,
        "setting": None if candidate.method is None else candidate.method.to_dict(),
        "dtype": str(run.model_of(candidate).dtype).removeprefix("torch."),
        "rounds": len(run.rounds),
        "batch": run.workload.batch,
        "tokens": sum(held.tokens) / len(held.tokens),
        "layer_tokens": list(held.tokens),
        "retention": held.retention,
    }
    parts = ["prefill", "ttft"]
    if candidate.rows is None:  # bare layers have no whole call, and no KV cache to compare
        parts.append("whole")
        row |= {"kv_bytes": held.kv_bytes, "kv_bytes_counted": cost.kv_bytes * run.workload.batch}
        row["peak_bytes"] = held.peak
    if candidate.graphs:
        row["tower_graph"] = candidate.tower
    times = run.times(candidate.name)
    for part, seconds in times.items():
        row |= {part: median(seconds), f"{part}_times": seconds}
    for part in parts:
        flops, of_untouched = _flops(cost, part, run.new_tokens), _flops(untouched, part, run.new_tokens)
        if flops is not None and of_untouched is not None:
            row[f"{part}_flops"] = flops / of_untouched
    graph = GRAPH.format(FULL) if candidate.graphs else None
    bases = {"ratio": FULL, "over_random": candidate.control, "over_bare": candidate.bare, "over_graph": graph}
    for column, base in bases.items():
        for part, over in run.ratios(candidate.name, base).items():
            row |= ratio_columns(f"{part}_{column}", over)
    if "prefill" in times:
        ratio, flops = run.ratios(candidate.name, FULL)["prefill"], row["prefill_flops"]
        row |= ratio_columns(
            "efficiency", Ratio(flops / ratio.median, flops / ratio.high, flops / ratio.low, ratio.rounds)
        )
    return row


def ratio_columns(name: str, ratio: Ratio) -> dict[str, float]:
    """The three columns of a ratio: its median and the ends of its interval."""
    return {name: ratio.median, f"{name}_low": ratio.low, f"{name}_high": ratio.high}


def _cost(run: PairedRun, candidate: Candidate) -> Cost:
    ran = RunCounts() if candidate.held is None else candidate.held.ran
    # Only eager computes the masked half of the attention matrix.
    model = run.model_of(candidate)
    eager = model.config.get_text_config()._attn_implementation == "eager"
    attention: Literal["full", "causal"] = "full" if eager else "causal"
    return run.workload.cost(model, candidate.method, attention, **ran)


def _flops(cost: Cost, part: str, new_tokens: int) -> int | None:
    """FLOPs of a part. None if they are not counted."""
    if part == "prefill":
        return cost.prefill_flops
    if part == "ttft" or cost.total_flops is None:
        return cost.total_flops
    return cost.total_flops + (new_tokens - 1) * cost.decode_flops


def noisy_parts(rows: Sequence[ResultRow]) -> list[str]:
    """Parts in which the untouched model differs from itself: the interval of the ratio does not contain 1."""
    again = next(row for row in rows if row["name"] == AGAIN)
    return [
        part
        for part in PARTS
        if f"{part}_ratio" in again and not again[f"{part}_ratio_low"] <= 1 <= again[f"{part}_ratio_high"]
    ]


# -- tables ---------------------------------------------------------------------------------------------------


def result_sheets(rows: Sequence[ResultRow], title: str = "", notes: Sequence[str] = ()) -> list[Table]:
    """Tables of the prefill, of the whole call and of sizes. Speed-ups are over the untouched model, which has ms.

    Args:
        rows: Rows of a paired run.
        title: Title of the first table.
        notes: Notes below the last table, after those that explain the columns.
    """
    complete = [row for row in rows if "kv_bytes" in row]
    return [
        _table(rows, [_prefill_cells(row) for row in rows], title),
        _table(complete, [_call_cells(row) for row in complete]),
        _table(complete, [_size_cells(row) for row in complete], notes=[*_footnotes(rows), *notes]),
    ]


def _table(
    rows: Sequence[ResultRow], cells: Sequence[Mapping[str, str]], title: str = "", notes: Sequence[str] = ()
) -> Table:
    """A table of cells by column heading. Empty columns are left out."""
    lines = [(row["name"], *by_head.values()) for row, by_head in zip(rows, cells, strict=True)]
    return Table(title, ("", *cells[0]), lines, notes).without_empty()


def _prefill_cells(row: ResultRow) -> dict[str, str]:
    untouched = row["name"] == FULL
    return {
        "Tower ms": number(1000 * row["tower"], ".1f") if "tower" in row else "",
        "FLOPs": "" if untouched else Number(f"{1 / row['prefill_flops']:.2f}×", {"": 1 / row["prefill_flops"]}),
        "Prefill": speed(row, "prefill"),
        "Host ms": number(1000 * row["launches"], ".1f") if "launches" in row else "",
        "of limit": "" if untouched else number(row["efficiency"], ".1%"),
        "÷ random": _interval(row, "prefill_over_random"),
        "÷ bare": _interval(row, "prefill_over_bare"),
        "÷ graph": _interval(row, "prefill_over_graph"),
    }


def _call_cells(row: ResultRow) -> dict[str, str]:
    return {
        "First token": speed(row, "ttft"),
        "÷ random": _interval(row, "ttft_over_random"),
        "÷ graph": _interval(row, "ttft_over_graph"),
        "Token": speed(row, "tpot"),
        "Call": speed(row, "whole"),
        "Context ms": number(1000 * row["context"], ".2f") if "context" in row else "",
    }


def _size_cells(row: ResultRow) -> dict[str, str]:
    return {
        "Tokens": number(row["tokens"], ".1f"),
        "Retention": number(row["retention"], ".1%"),
        "Peak MiB": number(row["peak_bytes"] / MIB, ".1f"),
        "KV MiB": number(row["kv_bytes"] / MIB, ".1f"),
    }


def speed(row: ResultRow, part: str) -> str:
    """The speed-up of a part, or milliseconds for the untouched model. Empty if the row lacks the part."""
    if part not in row:
        return ""
    if row["name"] == FULL:
        return Number(f"{1000 * row[part]:.1f} ms", {"ms": 1000 * row[part]})
    return speed_up(row, f"{part}_ratio")


def speed_up(row: ResultRow, column: str) -> str:
    """A ratio of times as a speed-up, with its interval on a second line."""
    return _with_interval(*(1 / row[f"{column}{end}"] for end in ("", "_high", "_low")))


def _interval(row: ResultRow, column: str) -> str:
    """A median with its interval on a second line. Empty if the row lacks the column."""
    if column not in row:
        return ""
    return _with_interval(*(row[f"{column}{end}"] for end in ("", "_low", "_high")))


def _with_interval(middle: float, low: float, high: float) -> Number:
    return Number(f"{middle:.3f}\n[{low:.3f}–{high:.3f}]", {"": middle, "low": low, "high": high})


def _footnotes(rows: Sequence[ResultRow]) -> list[str]:
    """The notes below the tables, which explain their columns."""
    rounds = rows[0]["rounds"]
    lines = [
        f"{rounds} paired rounds. Speed-ups are over the untouched model in the same round: median and "
        f"{interval_words(rounds)}.",
        "of limit: the prefill's speed-up over that of its FLOPs. ÷ random: time over that of random dropping with the "
        "same tokens in every layer. ÷ bare: time over that of the model's own layers alone, on as many rows.",
        "Peak: without weights and inputs.",
    ]
    if any("tower_graph" in row for row in rows):
        lines.append(
            "÷ graph: time over that of the untouched model with CUDA graphs. Graphs are recorded before the rounds. "
            "Sizes are those of a run without graphs: the memory that a graph holds is not included."
        )
    for row in rows:
        if row.get("kv_bytes") != row.get("kv_bytes_counted"):
            counted = f"{row['kv_bytes_counted']:,}"
            lines.append(f"{row['name']}: the cache holds {row['kv_bytes']:,} bytes; fv.cost predicts {counted}.")
    return lines
