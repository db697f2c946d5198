"""The speed tables: made from the records, and what they say of one worked by hand."""

import json
import re
import runpy
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmarks.speed import table, whole

import foveate as fv
from foveate.ask.generation import generate
from foveate.bench.benched import Benched
from foveate.bench.shapes import NamedShape, shape
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
    names = [name for cell in listed for name in re.findall(r"`([\w*.-]+\.\w+)`", cell)]
    assert len(names) > 4
    for name in names:
        pattern = f"*{name}" if name.startswith(".") else name
        assert list(folder.glob(pattern)), name


FIRST = {
    **RECORD, "rounds": 3, "depths": [8, 9], "machine": {"chip": "x86_64", "threads": 1},
    "first": [
        {"name": "untouched", "retention": 1.0, "ttft_flops": 1.0, "tower": 2.0, "prefill": 3.0, "ttft": 5.0},
        {"name": "thin", "retention": 0.333, "ttft_flops": 0.4, "tower": 1.0, "prefill": 1.5, "ttft": 2.5,
         **interval("ttft_ratio", 0.5), **interval("tower_ratio", 0.25), **interval("prefill_ratio", 1.0)},
        {"name": "untouched again", **interval("ttft_ratio", 1.0)},
    ],
}  # fmt: skip


def test_the_first_token_has_tower_and_decoder_apart(tmp_path):
    (tmp_path / "first-small.json").write_text(json.dumps(FIRST), encoding="utf-8")
    lines = table.first(tmp_path).splitlines()
    assert "8 blocks and 9 layers" in lines[0]
    assert "3 paired rounds of processor time, in brackets their range" in lines[0]
    assert "Untouched against itself: 1.000 [0.800, 1.250] of the time to the first token, 5 s" in lines[0]
    assert lines[4:] == [
        "| untouched | 100% |  |  |  |  | 2, 3 |",
        "| `thin` | 33% | 2.50× | 2.00× [1.60, 2.50] | 4.00× [3.20, 5.00] | 1.00× [0.80, 1.25] | 1, 1.5 |",
    ]


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(ROOT / "benchmarks/speed"))
    try:
        return SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks/speed/first.py")))
    finally:
        sys.path.pop(0)


@pytest.mark.parametrize("name", ["qwen2.5-vl-3b", "internvl3-8b"])
def test_resize_costs_what_the_thinned_tower_costs(script, name):
    """Of the shape as it is timed, with fewer blocks and layers; blocks that see whole pictures are among them."""
    of = shape(name)
    config = script.shallower(of.config, script.DEPTHS[name])
    small = NamedShape(of.name, of.of, config, script.PICTURES.get(name, of.image))
    made = small.make_config()
    assert len(getattr(made.vision_config, "fullatt_block_indexes", [7])) in (1, 2)
    benched = Benched(name, small, made, synthetic(small, PromptRequest(images=script.IMAGES[name])))
    assert benched.workload.vision_tokens == {"qwen2.5-vl-3b": 999, "internvl3-8b": 7 * 256}[name]
    methods = script.methods_of(benched)
    thin, resized = (benched.workload.cost(made, methods[row]).total_flops for row in (script.THIN, "resize"))
    assert abs(resized / thin - 1) < 0.03


def test_rounds_of_a_first_token_are_ratios_to_the_untouched_model(script):
    small = shape("cpu-tiny")
    benched = Benched("cpu-tiny", small, small.make_config(), synthetic(small))
    methods = {"untouched": None, "divprune": fv.DivPrune(retention=1 / 3)}
    second = {"tower": 1.0, "prefill": 2.0, "ttft": 3.0}
    rounds = [{"untouched": second, "divprune": {part: time / by for part, time in second.items()}} for by in (2, 4, 4)]
    _, row = script.rows_of(benched, methods, rounds)
    assert (row["ttft"], row["ttft_ratio"], row["ttft_ratio_low"], row["ttft_ratio_high"]) == (0.75, 0.25, 0.25, 0.5)
    assert row["retention"] == pytest.approx(1 / 3)
    assert row["tower_flops"] == 1 > row["ttft_flops"] > row["prefill_flops"]
