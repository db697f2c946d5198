"""`foveate bench` on a tiny checkpoint and on shapes: tables, records, refusals, interruption."""

import json
import statistics
import warnings

import pytest

from foveate.ask import loading
from foveate.bench.paired import AGAIN, FULL, KEEP_ALL, PairedRun

QUICK = ("--pairs", "2", "--new-tokens", "2", "--device", "cpu")


def test_a_run_prints_tables_and_writes_a_record(run, shallow_llava, tmp_path):
    out = tmp_path / "bench.json"
    code, shown, _ = run(
        "bench", "--model", shallow_llava, "--method", "v2drop", "--method", "visiondrop", "--budget", "16",
        "--text-tokens", "48", "--batch", "2", "--out", out, *QUICK,
    )  # fmt: skip
    assert code == 0
    for word in ("v2drop 16", "v2drop 16: random", "visiondrop 16: random", KEEP_ALL, AGAIN, "paired rounds"):
        assert word in shown
    record = json.loads(out.read_text())
    assert record["model"]["weights"] == "the checkpoint's"
    assert (record["batch"], record["text_tokens"], record["vision_tokens"], record["new_tokens"]) == (2, 48, [36], 2)
    assert record["rounds"] == record["rounds_asked"] == 2
    assert record["versions"]["torch"]
    assert record["command"].startswith("foveate")  # the arguments are those of the process
    rows = {row["name"]: row for row in record["rows"]}
    of_each = [f"{name} 16{what}" for name in ("v2drop", "visiondrop") for what in ("", ": random", ": bare")]
    assert list(rows) == [FULL, KEEP_ALL, *of_each, AGAIN]
    assert record["no_bare"] == ""
    for row in rows.values():
        assert row.get("kv_bytes") == row.get("kv_bytes_counted")
        assert len(row["prefill_times"]) == row["rounds"] == 2
    assert rows["v2drop 16"]["setting"]["method"] == "v2drop"
    assert rows["v2drop 16"]["prefill_over_random"] > 0
    assert rows["v2drop 16: random"]["prefill_over_bare"] > 0
    assert rows["visiondrop 16"]["bare"] == "visiondrop 16: bare"


def test_shapes_are_listed(run):
    code, shown, _ = run("bench", "--shapes")
    assert code == 0
    for name in ("llava-1.5-7b", "llava-onevision-7b", "qwen3-vl-8b", "cpu-medium"):
        assert name in shown
    words = " ".join(shown.split())
    assert "196 a frame" in words
    assert "1296 a picture, 576 two frames" in words


def test_what_was_finished_is_kept_when_interrupted(run, shallow_llava, tmp_path, monkeypatch):
    original = PairedRun.run

    def interrupted(self, *arguments):
        for finished in original(self, *arguments):
            yield finished
            if finished == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(PairedRun, "run", interrupted)
    out = tmp_path / "part.json"
    code, shown, told = run(
        "bench", "--model", shallow_llava, "--method", "v2drop", "--out", out, "--pairs", "9", "--new-tokens", "1"
    )
    assert code == 130
    assert "Interrupted after 3 of 9 rounds." in shown
    assert told.splitlines()[-1] == "foveate: interrupted."
    record = json.loads(out.read_text())
    assert (record["rounds"], record["rounds_asked"]) == (3, 9)
    assert all(len(row["prefill_times"]) == row["rounds"] == 3 for row in record["rows"])


def test_a_machine_that_differs_from_itself_is_warned_of(run, shallow_llava, monkeypatch):
    def drifting(self, pairs, *_):
        for number in range(pairs):
            parts = {"ttft": 1.0, "whole": 2.0}
            self.rounds.append({name: {"prefill": 1.0 + place, **parts} for place, name in enumerate(self.candidates)})
            yield number + 1

    monkeypatch.setattr(PairedRun, "run", drifting)
    code, _, told = run("bench", "--model", shallow_llava, "--method", "v2drop", *QUICK)
    assert code == 0
    assert "warning: the machine is noisy: the full model differs from itself (prefill)." in told


@pytest.fixture
def computes(monkeypatch):
    """Says whether the CPU computes bfloat16, which any CPU can run."""
    return lambda says: monkeypatch.setattr("foveate.core.cpu.computes_bfloat16", lambda: says)


def test_a_ladder_has_a_row_for_each_step_on_top_of_the_last(run, shallow_llava, tmp_path, computes):
    computes(False)
    out = tmp_path / "ladder.json"
    code, shown, _ = run("bench", "--model", shallow_llava, "--ladder", "--retention", "0.5", "--out", out, *QUICK)
    assert code == 0
    assert "over step before" in shown
    rows = json.loads(out.read_text())["rows"]
    assert [row["step"] for row in rows] == ["untouched", "untouched again", "+ fewer tokens", "+ thinner tower"]
    assert [row["name"] for row in rows] == [FULL, AGAIN, "vidcom2 18", "thintower+vidcom2 18"]
    fewer, thinner = rows[2:]
    assert fewer["ttft_over_before"] == fewer["ttft_ratio"]  # the step before is the untouched model
    of_rounds = [a / b for a, b in zip(thinner["ttft_times"], fewer["ttft_times"], strict=True)]
    assert thinner["ttft_over_before"] == statistics.median(of_rounds)
    assert "Weights" not in shown
    assert "Use one for each free core (OMP_NUM_THREADS)." in shown


def test_on_a_cpu_that_computes_it_a_ladder_has_bfloat16_below_what_drops(run, shallow_llava, tmp_path, computes):
    computes(True)
    out = tmp_path / "ladder.json"
    code, shown, _ = run("bench", "--model", shallow_llava, "--ladder", "--out", out, *QUICK)
    assert code == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["step"], row["dtype"]) for row in rows] == [
        ("untouched", "float32"), ("untouched again", "float32"), ("+ bfloat16", "bfloat16"),
        ("+ fewer tokens", "bfloat16"), ("+ thinner tower", "bfloat16"),
    ]  # fmt: skip
    full, _, half, fewer, _ = rows
    assert half["ttft_over_before"] == half["ttft_ratio"]
    assert (half["tokens"], half["kv_bytes"]) == (full["tokens"], full["kv_bytes"] / 2)
    assert half["kv_bytes_counted"] == half["kv_bytes"]
    of_rounds = [a / b for a, b in zip(fewer["ttft_times"], half["ttft_times"], strict=True)]
    assert fewer["ttft_over_before"] == statistics.median(of_rounds)
    assert "Weights" in shown
    assert "may be faster" not in shown  # it is measured


def test_a_model_in_bfloat16_has_no_step_for_it(run, shallow_llava, tmp_path, computes):
    computes(True)
    out = tmp_path / "ladder.json"
    code, _, _ = run("bench", "--model", shallow_llava, "--ladder", "--dtype", "bfloat16", "--out", out, *QUICK)
    assert code == 0
    assert "+ bfloat16" not in [row["step"] for row in json.loads(out.read_text())["rows"]]


HINT = "This CPU computes in bfloat16, and the model is in float32"


@pytest.mark.parametrize(
    ("says", "dtype", "told"),
    [(True, "auto", 1), (True, "float32", 1), (True, "bfloat16", 0), (False, "auto", 0)],
)
def test_a_cpu_that_computes_bfloat16_is_noted_once(run, shallow_llava, computes, says, dtype, told):
    computes(says)
    loading._warn_of_float32.cache_clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        code, shown, err = run(
            "bench", "--model", shallow_llava, "--method", "v2drop", "--no-bare", "--dtype", dtype, *QUICK
        )
    assert code == 0
    assert (shown.count(HINT), HINT in err, [HINT in str(one.message) for one in warned]) == (told, False, [])


def test_why_there_is_no_gain_is_told_below_the_tables_and_in_json(run, shallow_llava):
    asked = ("bench", "--model", shallow_llava, "--method", "v2drop", "--clock", "cpu", *QUICK[:3], "4", *QUICK[4:])
    code, shown, _ = run(*asked)
    assert code == 0
    assert "v2drop 12: little or no gain: a single token takes" in " ".join(shown.split())
    code, shown, _ = run(*asked, "--json")
    told = json.loads(shown)["no_gain"]["v2drop 12"]
    assert told["cause"] == "host"
    assert "the host launches operators" in told["why"]
    code, shown, _ = run(*asked, "--json", "--ladder")
    assert code == 0
    assert set(json.loads(shown)["no_gain"]) == {"v2drop 12"}
