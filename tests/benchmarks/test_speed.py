"""The speed tables: made from the records, and what they say of one worked by hand."""

import json
import re
from dataclasses import replace
from pathlib import Path

import torch
from benchmarks.speed import table, whole

from foveate.ask.generation import generate
from foveate.bench.shapes import shape
from foveate.bench.workload import PromptRequest, synthetic
from foveate.registry import family_for
from tests.forked import said_by

ROOT = Path(__file__).parents[2]


def row(name, prefill, **known):
    return {
        "name": name, "control": None, "tokens": 75.0, "prefill_flops": 0.25, "peak_bytes": 100, "kv_bytes": 50,
        **interval("prefill_ratio", prefill), **interval("ttft_ratio", prefill), **interval("whole_ratio", prefill),
        **known,
    }  # fmt: skip


def interval(column, middle):
    return {column: middle, f"{column}_low": 0.8 * middle, f"{column}_high": 1.25 * middle}


RECORD = {
    "model": {"name": "cpu-small", "weights": "random", "device": "cpu", "dtype": "float32", "attention": "sdpa"},
    "machine": {"chip": "x86_64", "threads": 2}, "versions": {"torch": "2.13.0"}, "batch": 1, "new_tokens": 1,
    "vision_tokens": [576, 576], "text_tokens": 40, "rounds": 10,
    "rows": [
        row("untouched", 1.0, peak_bytes=200, kv_bytes=100),
        row("keep-all", 1.0),
        row("v2drop 192", 0.5, control="v2drop 192: random", efficiency=0.5,
            prefill_over_random=1.01, prefill_over_random_low=1.0, prefill_over_random_high=1.02),
        row("v2drop 192: random", 0.5),
        row("untouched again", 1.0),
    ],
}  # fmt: skip


def test_the_tables_are_what_the_records_give():
    script = str(ROOT / "benchmarks/speed/table.py")
    said_by(f"import runpy; runpy.run_path({script!r}, run_name='__main__')", "--check")


def test_a_row_has_speed_ups_with_their_intervals_beside_the_limit():
    lines = table.tables([RECORD], "method").splitlines()
    assert lines[0] == "**On a CPU**"
    assert "`cpu-small`, random weights, float32, sdpa (x86_64, 2 threads; torch 2.13.0)" in lines[2]
    assert "1152 vision and 40 text tokens" in lines[2]
    assert "10 paired rounds, in brackets their 95 % bootstrap interval" in lines[2]
    assert "Untouched against itself: 1.000 [0.800, 1.250]" in lines[2]
    assert lines[6:] == [
        "| v2drop 192 | 75 | 4.00× | 2.00× [1.60, 2.50] | 50% | 1.010 [1.000, 1.020] | 2.00× [1.60, 2.50] |  | "
        "2.00× [1.60, 2.50] |",
        "",
    ]


def test_the_whole_way_has_seconds_and_then_ratios_and_the_towers_share():
    base, *_, method = (dict(one) for one in RECORD["rows"][:3])
    seconds = {"tower": 1.0, "prefill": 2.0, "ttft": 3.5, "tpot": 0.5, "whole": 5.0}
    rows = [base | seconds, method | seconds | {"whole": 2.0}, RECORD["rows"][-1]]
    lines = table.whole(
        [{**RECORD, "rounds": 4, "rows": rows, "layers_with_own_weights": 8, "noisy": ["whole"]}]
    ).splitlines()
    assert "4 paired rounds, in brackets their range" in lines[0]
    assert lines[0].endswith("the weights of 8. Untouched and untouched again differ in: end to end.")
    assert lines[4:] == [
        "| untouched | 75 | 1 s | 2 s | 3.5 s | 0.5 s | 5 s | 20% |",
        "| v2drop 192 | 75 |  | 2.00× [1.60, 2.50] | 2.00× [1.60, 2.50] |  | 2.00× [1.60, 2.50] | 50% |",
        "| ÷ random |  |  | 1.010 [1.000, 1.020] |  |  |  |  |",
        "| ÷ bare |  |  |  |  |  |  |  |",
    ]


def test_layers_that_share_weights_are_those_of_the_whole_model():
    of, cpu = shape("cpu-qwen"), torch.device("cpu")
    of = replace(of, image={"tokens": 64, "grid": [1, 16, 16]})
    shared = whole.Shared(of.name, of.of, of.config, of.image, of.frame).build(cpu, torch.float32)
    plain = of.build(cpu, torch.float32)
    plain.load_state_dict(shared.state_dict())
    layers = family_for(shared).text.layers
    assert len(layers) == len(family_for(plain).text.layers) > whole.OWN
    assert layers[whole.OWN].mlp.up_proj.weight is layers[0].mlp.up_proj.weight
    inputs = synthetic(of, PromptRequest(), cpu, torch.float32).inputs
    said, same = (generate(model, inputs, 4).sequences for model in (shared, plain))
    assert torch.equal(said, same)


def test_an_accelerator_stands_apart_and_other_records_are_left_out(tmp_path):
    other = {**RECORD, "model": {**RECORD["model"], "device": "cuda:0"}}
    for name, record in (("a.json", other), ("b.json", RECORD), ("other.json", {"vision_tokens": []})):
        (tmp_path / name).write_text(json.dumps(record))
    found = table.records(tmp_path)
    assert [one["model"]["device"] for one in found] == ["cpu", "cuda:0"]
    said = table.tables(found, "method")
    assert said.index("**On a CPU**") < said.index("**On a GPU**")
    assert table.tables([]) == ""


def test_the_files_that_the_page_lists_are_there():
    folder = ROOT / "benchmarks/speed"
    listed = [line.split("|")[1] for line in (folder / "README.md").read_text().splitlines() if line.startswith("| `")]
    names = [name for cell in listed for name in re.findall(r"`([\w*.-]+)`", cell)]
    assert len(names) > 4
    for name in names:
        pattern = f"*{name}" if name.startswith(".") else name
        assert list(folder.glob(pattern)), name
