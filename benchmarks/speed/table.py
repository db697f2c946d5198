"""Write the speed tables of README.md, docs/results.md and benchmarks/speed/README.md from the records here.

python benchmarks/speed/table.py            # write the tables
python benchmarks/speed/table.py --check    # exit with code 1 if a table is out of date
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.bench.timing import interval_words
from foveate.plain.table import between

HERE = Path(__file__).resolve().parent
PAGES = {
    HERE / "README.md": (("*.json",), True),
    HERE.parents[1] / "docs/results.md": (("cpu-large.json",), False),
    HERE.parents[1] / "README.md": ((), False),
}
"""For each page, the records to show, and True for all rows and columns (else what a reader decides by)."""
WHOLE = "whole-*.json"
"""Records of `whole.py`: models of real sizes, from pixels to the last token."""
FIRST = "first-*.json"
"""Records of `first.py`: the time to the first token, with a thinned tower."""
PARTS = {"tower": "tower", "prefill": "prefill", "ttft": "first token", "tpot": "each token", "whole": "end to end"}
LADDERS = {"a CPU": "ladder-cpu.json", "a GPU": "ladder-gpu.json"}
"""Records of `foveate bench --ladder`."""
THIN = "thintower:pick=unlike+vidcom2"
LAUNCHES = "gpu-*.json"
"""Records of `gpu.py`: a GPU, with the context opened for the call and with a context that is already open."""
AGAIN, KEEP_ALL, FULL = "untouched again", "keep-all", "untouched"


def main(arguments: list[str]) -> int:
    """Write or check the tables and return the exit code."""
    stale = False
    for page, (files, whole_tables) in PAGES.items():
        text = new = page.read_text(encoding="utf-8")
        parts = {
            "speed": tables(records(HERE, files), whole_tables),
            "whole": whole(records(HERE, (WHOLE,))),
            "ends": ends(records(HERE, (WHOLE,))),
            "first": first(HERE),
            "shapes": shapes(HERE),
            "launches": launches(HERE, whole_tables),
            "ladder": ladder(HERE),
        }
        for mark, filling in parts.items():
            if f"<!-- {mark}: begin -->" in new:
                new = between(new, mark, filling)
        stale |= text != new
        if "--check" not in arguments:
            page.write_text(new, encoding="utf-8")
    if stale and "--check" in arguments:
        print("The speed tables are out of date: run python benchmarks/speed/table.py", file=sys.stderr)
        return 1
    return 0


def records(folder: Path, files: Sequence[str] = ("*.json",)) -> list[dict[str, Any]]:
    """The records of `foveate bench` in a folder, CPUs first."""
    paths = sorted({path for one in files for path in folder.glob(one)})
    if WHOLE not in files:
        paths = [path for path in paths if not path.match(WHOLE) and path.name not in LADDERS.values()]
    read = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    benched = [record for record in read if record.keys() >= {"rows", "model"}]
    return sorted(benched, key=lambda record: record["model"]["device"] != "cpu")


def tables(read: list[dict[str, Any]], whole: bool = True) -> str:
    """A table for each record, first those of CPUs and then those of GPUs."""
    lines: list[str] = []
    for title, cpu in (("On a CPU", True), ("On a GPU", False)):
        mine = [one for one in read if (one["model"]["device"] == "cpu") == cpu]
        lines += [f"**{title}**", ""] if mine and whole else []
        for record in mine:
            lines += [caption(record), "", *table(record, whole), ""]
    return "\n".join(lines) + ("\n" if lines else "")


def caption(record: dict[str, Any], part: str = "prefill") -> str:
    """A table's caption: model, machine and prompt, and the noise of one part."""
    model, again = record["model"], next(row for row in record["rows"] if row["name"] == AGAIN)
    threads = record["machine"]["threads"]
    cores = f", {threads} thread{'s' * (threads > 1)}" if model["device"] == "cpu" else ""
    return (
        f"`{model['name']}`, {'random' if model['weights'] == 'random' else 'its own'} weights, {model['dtype']}, "
        f"{model['attention']} ({record['machine']['chip']}{cores}; torch {record['versions']['torch']}): batch "
        f"{record['batch']}, {sum(record['vision_tokens'])} vision and {record['text_tokens']} text tokens, answers of "
        f"{record['new_tokens']}; {record['rounds']} paired rounds, in brackets their "
        f"{interval_words(record['rounds'])}. Untouched against itself: "
        f"{interval(again, f'{part}_ratio')} of the time of the {PARTS[part]}."
    )


def table(record: dict[str, Any], whole: bool = True) -> list[str]:
    """A table of speed-ups and sizes relative to the untouched model; without `whole`, of each method's times alone."""
    base = next(row for row in record["rows"] if row["name"] == FULL)
    compared = ["of limit", "÷ random"]
    compared += ["÷ bare"] if any("prefill_over_bare" in row for row in record["rows"]) else []
    heads = ["", "tokens", "FLOPs", "prefill", *(compared if whole else [])]
    heads += ["first token", "each token", "items/s", *(["peak memory", "KV"] if whole else [])]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---|" * (len(heads) - 1)]
    for row in record["rows"]:
        if row["name"] == FULL or not (whole or row["control"]):
            continue
        cells = [row["name"], f"{row['tokens']:.0f}", f"{1 / row['prefill_flops']:.2f}×", speed_up(row, "prefill")]
        if whole:
            ratios = [interval(row, "prefill_over_random"), interval(row, "prefill_over_bare")]
            cells += [f"{row['efficiency']:.0%}" if "efficiency" in row else "", *ratios][: len(compared)]
        cells += [speed_up(row, part) for part in ("ttft", "tpot", "whole")]
        if whole:
            for size in ("peak_bytes", "kv_bytes"):
                cells.append(f"{row[size] / base[size] - 1:+z.1%}" if size in row else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def whole(found: list[dict[str, Any]]) -> str:
    """A table for each record: the untouched model's seconds, and each method's speed-up and ratios to its controls."""
    lines: list[str] = []
    for record in found:
        base = next(row for row in record["rows"] if row["name"] == FULL)
        heads = ["", "tokens", *PARTS.values(), "tower's share"]
        seconds = [f"{base[part]:.3g} s" for part in PARTS]
        shared = f" Processor time; all layers share the weights of {record['layers_with_own_weights']}."
        noise = ", ".join(PARTS[part] for part in record["noisy"])
        shared += f" Untouched and untouched again differ in: {noise}." if noise else ""
        lines += [caption(record) + shared, "", f"| {' | '.join(heads)} |", "|---|" + "---|" * (len(heads) - 1)]
        lines.append(f"| untouched | {base['tokens']:.0f} | {' | '.join(seconds)} | {tower_of(base)} |")
        for row in (row for row in record["rows"] if row["control"]):
            faster = [speed_up(row, part) for part in PARTS]
            lines.append(f"| {row['name']} | {row['tokens']:.0f} | {' | '.join(faster)} | {tower_of(row)} |")
            for other in ("random", "bare"):
                ratios = [interval(row, f"{part}_over_{other}") for part in PARTS]
                lines.append(f"| ÷ {other} |  | {' | '.join(ratios)} |  |")
        lines.append("")
    return "\n".join(lines)


def ends(found: list[dict[str, Any]]) -> str:
    """One row for each record: how many times faster its method reaches the first and the last token."""
    lines = ["| shape | tower's share, untouched | first token | end to end |", "|---|---|---|---|"]
    for record in found:
        base = next(row for row in record["rows"] if row["name"] == FULL)
        row = next(row for row in record["rows"] if row["control"])
        cells = [f"`{record['model']['name']}`", tower_of(base), speed_up(row, "ttft"), speed_up(row, "whole")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def first(folder: Path) -> str:
    """A table for each shape of `first.py`: seconds to the first token and speed-ups of tower and decoder."""
    lines: list[str] = []
    for path in sorted(folder.glob(FIRST)):
        record = json.loads(path.read_text(encoding="utf-8"))
        base, again = record["first"][0], next(row for row in record["first"] if row["name"] == AGAIN)
        depth = "all layers"
        if record["depths"]:
            depth = f"{record['depths'][0]} blocks and {record['depths'][1]} layers"
        lines += [
            f"`{record['model']['name']}`, {depth}, random weights, {record['model']['dtype']} "
            f"({record['machine']['chip']}, {record['machine']['threads']} thread): {sum(record['vision_tokens'])} "
            f"vision and {record['text_tokens']} text tokens; {record['rounds']} paired rounds of processor time, in "
            f"brackets their {interval_words(record['rounds'])}. Untouched against itself: "
            f"{interval(again, 'ttft_ratio')} of the time to the first token, {base['ttft']:.3g} s.",
            "",
            "|  | share of the tokens | FLOPs | first token | tower | decoder | seconds: tower, decoder |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in record["first"]:
            if row is again:
                continue
            faster = [speed_up(row, part) for part in ("ttft", "tower", "prefill")]
            cells = [f"`{row['name']}`", f"{row['retention']:.0%}", f"{1 / row['ttft_flops']:.2f}×", *faster]
            if row is base:
                cells = [FULL, "100%", "", "", "", ""]
            lines.append(f"| {' | '.join(cells)} | {row['tower']:.3g}, {row['prefill']:.3g} |")
        lines.append("")
    return "\n".join(lines)


def shapes(folder: Path) -> str:
    """One row for each shape of `first.py` with a thinned tower: its share of the time, and speed-ups."""
    heads = {
        "divprune": "a third by DivPrune",
        THIN: "a third by VidCom2, tower thinned",
        "resize": "a smaller picture",
    }
    lines = ["| shape | tower's share, untouched | " + " | ".join(heads.values()) + " |", "|---|---|---|---|---|"]
    for path in sorted(folder.glob(FIRST)):
        record = json.loads(path.read_text(encoding="utf-8"))
        rows = {row["name"]: row for row in record["first"]}
        if THIN in rows:
            base = record["first"][0]
            cells = [f"`{record['model']['name']}`", f"{base['tower'] / base['ttft']:.0%}"]
            cells += [speed_up(rows[name], "ttft") for name in heads]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def launches(folder: Path, whole: bool = True) -> str:
    """A table for each GPU: milliseconds of the full model, and speed-ups with the context opened for the call.

    With `whole`, a second number is the speed-up in a context that is open already.
    """
    lines: list[str] = []
    for path in sorted(folder.glob(LAUNCHES)):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "cases" not in record:
            continue
        names = [name for name in next(iter(record["cases"].values()))["methods"] if not name.startswith("full")]
        versions, again, rows = record["versions"], [], []
        for case, of_case in record["cases"].items():
            full, *others = (of_case["methods"][name] for name in ("full", *names))
            again.append(of_case["methods"]["full again"]["in an open context, times faster"][0])
            faster = [[row[f"{how}, times faster"][0] for how in OPENED] for row in others]
            model, samples = case.split(":")
            cells = [f"{model}, {samples}", f"{full['ms']:.1f} ({of_case['tower ms']:.1f}; {full['host ms']:.1f})"]
            rows.append(
                cells + [f"{opened:.2f}; {inside:.2f}" if whole else f"{opened:.2f}" for opened, inside in faster]
            )
        rounds = min(of_case["rounds"] for of_case in record["cases"].values())
        lines += [
            f"{record['gpu']}, {record['dtype']}, {record['kernel']}, random weights, torch {versions['torch']}, "
            f"transformers {versions['transformers']}; {rounds} paired rounds. The untouched model against itself: "
            f"{min(again):.2f} to {max(again):.2f}.",
            "",
            f"| times faster | full, ms (tower; host) | {' | '.join(names)} |",
            "|---|---|" + "---|" * len(names),
            *(f"| {' | '.join(cells)} |" for cells in rows),
            "",
        ]
    return "\n".join(lines)


def ladder(folder: Path) -> str:
    """Speed-ups of the time to the first token after each step, one column for each device that was measured."""
    columns: dict[str, dict[str, str]] = {}
    captions = []
    for device, name in LADDERS.items():
        if not (folder / name).exists():
            continue
        record = json.loads((folder / name).read_text(encoding="utf-8"))
        captions.append(f"On {device}: {caption(record, 'ttft')}")
        columns[device] = {row["step"]: speed_up(row, "ttft") for row in record["rows"]}
        columns[device][FULL] = f"{record['rows'][0]['ttft']:.2f} s"
    words = {
        FULL: "the untouched model",
        "+ bfloat16": "+ bfloat16",
        "+ CUDA graphs": "+ CUDA graphs",
        "+ fewer tokens": "+ a third of the vision tokens",
        "+ thinner tower": "+ a thinner vision tower",
    }
    heads = [f"on {device}" for device in columns]
    lines = [f"| time to the first token | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for step, text in words.items():
        cells = [column.get(step, "") for column in columns.values()]
        if any(cells):
            lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *captions, ""])


OPENED = ("opened for the call", "in an open context")


def tower_of(row: dict[str, Any]) -> str:
    """The tower's share of the time from pixels to the last token."""
    return f"{row['tower'] / row['whole']:.0%}"


def interval(row: dict[str, Any], column: str) -> str:
    """A ratio with its interval. Empty if the row lacks it."""
    if column not in row:
        return ""
    return f"{row[column]:.3f} [{row[f'{column}_low']:.3f}, {row[f'{column}_high']:.3f}]"


def speed_up(row: dict[str, Any], part: str) -> str:
    """The speed-up of a part with its interval. Empty if the part was not timed."""
    if f"{part}_ratio" not in row:
        return ""
    middle, low, high = (1 / row[f"{part}_ratio{end}"] for end in ("", "_high", "_low"))
    return f"{middle:.2f}× [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
