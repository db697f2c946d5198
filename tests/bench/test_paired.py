"""A whole run by a clock that counts FLOPs: what it measures must then be what arithmetic says, to the digit."""

import pytest
import torch

import foveate as fv
from foveate.bench.paired import AGAIN, FULL, GRAPH, KEEP_ALL, PairedRun, race
from foveate.bench.results import noisy_parts, result_sheets, rows_of
from foveate.bench.stopwatch import PARTS
from foveate.bench.timing import interval_words
from foveate.bench.workload import Workload
from foveate.registry import from_dict
from tests.bench.counting import Flops
from tests.memory import AFTER, BEFORE, llava

MEASURED = [part for part in PARTS if part != "launches"]


def paired_run(methods, *, layers=5, side=168, attention="eager", batch=1, new_tokens=3, pairs=2, shorter=0, **asked):
    model, inputs = llava(side=side, width=64, layers=layers)
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    inputs = {name: torch.cat([value] * batch) for name, value in inputs.items()}
    inputs["attention_mask"][:1, :shorter] = 0
    workload = Workload(inputs, batch, BEFORE + AFTER, ((side // 14) ** 2,))
    started, flops = [], Flops()
    measured_pairs = PairedRun(model, workload, new_tokens, clock=lambda: flops.total)
    measured_pairs.prepare(methods, **asked, starting=started.append)
    with flops:
        assert list(measured_pairs.run(pairs)) == list(range(1, pairs + 1))
    return measured_pairs, started


def by_name(made):
    return {row["name"]: row for row in rows_of(made)}


METHODS = {
    "v2drop": fv.V2Drop(layers=(2, 4), keep=(0.5, 0.5)),
    "visiondrop": fv.VisionDrop(
        dominant=80, contextual=10, layer_list=(2, 4), image_token_list=((40, 6), (20, 3)), reference=144
    ),
    "mustdrop": fv.MustDrop(pruning_layers=(1, 3), retention=0.55),
}


@pytest.fixture(scope="module")
def measured():
    run, started = paired_run(METHODS)
    return run, started, by_name(run)


def test_beside_every_method_there_are_its_controls(measured):
    run, started, _ = measured
    of_each = ("", ": random", ": bare")
    names = [FULL, KEEP_ALL, *(f"{name}{what}" for name in METHODS for what in of_each), AGAIN]
    assert list(run.candidates) == names
    assert started == [name for name in names if not name.endswith(": bare") and name != AGAIN]
    assert [list(seconds) for seconds in run.rounds] == [names] * 2
    for name in METHODS:
        one, control, alone = (run.candidates[f"{name}{what}"] for what in of_each)
        assert one.control == control.name
        assert one.bare == control.bare == alone.name
        assert one.held.tokens == control.held.tokens == alone.held.tokens
        assert one.held.kv_bytes == control.held.kv_bytes
        assert alone.rows == tuple(BEFORE + AFTER + count for count in one.held.tokens)


def test_times_that_are_flops_have_the_ratios_of_flops(measured):
    _, _, rows = measured
    for name in ("v2drop", "v2drop: random", "visiondrop: random", "mustdrop: random"):
        row = rows[name]
        for part in ("prefill", "ttft", "whole"):
            exact = 1e-4 if part == "whole" else 1e-9  # later steps see the tokens of earlier ones
            assert row[f"{part}_ratio"] == pytest.approx(row[f"{part}_flops"], rel=exact), (name, part)
            assert row[f"{part}_ratio_low"] == row[f"{part}_ratio_high"] == row[f"{part}_ratio"]
        assert row["efficiency"] == pytest.approx(1, rel=1e-9)
        assert row["tower_ratio"] == 1
    for name in (KEEP_ALL, AGAIN):
        assert {rows[name][f"{part}_ratio"] for part in MEASURED} == {1.0}


def test_a_machine_is_noisy_in_the_parts_whose_interval_of_the_untouched_model_over_itself_lacks_one(measured):
    _, _, rows = measured
    again = rows[AGAIN]
    assert noisy_parts(list(rows.values())) == []
    assert noisy_parts([again | {"tpot_ratio_low": 1.01}]) == ["tpot"]
    assert noisy_parts([again | {"ttft_ratio_high": 0.99, "ttft_ratio_low": 0.9}]) == ["ttft"]


def test_a_method_is_as_much_slower_than_random_as_it_computes_more(measured):
    run, _, rows = measured
    assert rows["v2drop"]["prefill_over_random"] == rows["v2drop"]["ttft_over_random"] == 1.0
    row = rows["visiondrop"]
    priced = run.workload.cost(run.model, from_dict(row["setting"]))
    plain = run.workload.cost(run.model, None, tokens=priced.tokens)
    ahead = priced.prefill_flops / plain.prefill_flops - 1
    assert 1 < row["prefill_over_random"] < 1.05 + 1.5 * ahead
    assert row["prefill_flops"] < row["prefill_ratio"]


def test_bare_layers_are_timed_to_the_first_token_and_take_what_the_arithmetic_says(measured):
    run, _, rows = measured
    of_a_call = {"peak_bytes", "kv_bytes", "kv_bytes_counted", "tpot", "whole", "whole_flops"}
    for name in METHODS:
        row, cost = rows[f"{name}: bare"], run.workload.cost(run.model, tokens=run.candidates[name].held.tokens)
        assert row["prefill"] == cost.prefill_flops
        assert row["efficiency"] == pytest.approx(1, rel=1e-9)
        assert row["ttft_flops"] == pytest.approx(row["ttft_ratio"], rel=1e-9)
        assert rows[f"{name}: random"]["prefill_over_bare"] == 1.0
        assert not set(row) & of_a_call
        assert row["setting"] is row["control"] is row["bare"] is None
    own = rows["visiondrop"]
    assert own["prefill_over_bare"] == own["prefill_over_random"] > 1
    assert {"tower_over_bare", "ttft_over_bare"} < set(own)
    assert "whole_over_bare" not in own


def test_there_are_no_bare_layers_where_nothing_leaves_or_they_are_not_wanted_or_cannot_be():
    whole = {"whole": fv.Uniform(layers=(2,), keep=(1.0,))}
    run, _ = paired_run(whole, new_tokens=1, pairs=0)
    assert run.candidates["whole"].bare is None
    assert not any(one.rows for one in run.candidates.values())
    run, _ = paired_run({"v2drop": METHODS["v2drop"]}, new_tokens=1, pairs=0, bare=False)
    assert (run.candidates["v2drop"].bare, run.obstacle) == (None, "")
    run, _ = paired_run({"v2drop": METHODS["v2drop"]}, new_tokens=1, pairs=0, batch=2, shorter=1)
    assert run.obstacle == "the prompts of the batch differ in length"
    assert list(run.candidates) == [FULL, KEEP_ALL, "v2drop", "v2drop: random", AGAIN]


def test_the_cache_holds_what_was_counted_and_the_peak_falls(measured):
    _, _, rows = measured
    for row in rows.values():
        assert row.get("kv_bytes") == row.get("kv_bytes_counted")
    for name in METHODS:
        assert rows[name]["kv_bytes"] < rows[FULL]["kv_bytes"]
        assert rows[name]["peak_bytes"] < rows[FULL]["peak_bytes"]


def test_a_cache_that_holds_something_else_is_told(measured):
    rows = measured[2] | {"v2drop": measured[2]["v2drop"] | {"kv_bytes": 7}}
    assert any("v2drop: the cache holds 7 bytes" in note for note in result_sheets(list(rows.values()))[-1].notes)


def test_few_rounds_have_a_range_and_no_95_percent_interval(measured):
    words = "".join(result_sheets(list(measured[2].values()))[-1].notes)
    assert "2 paired rounds. " in words
    assert "range (a 95 % interval takes 6 rounds or more)" in words
    assert "95 % bootstrap interval" in interval_words(6)


def test_what_does_not_run_is_left_out_with_its_reason(monkeypatch):
    monkeypatch.setattr(fv.V2Drop, "score", out_of_memory)
    run, _ = paired_run({"v2drop": METHODS["v2drop"]}, new_tokens=1)
    assert run.candidates["v2drop"].failed == "out of memory"
    assert [row["name"] for row in rows_of(run)] == [FULL, KEEP_ALL, AGAIN]


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError


def test_a_budget_that_the_prompt_cannot_meet_is_a_reason_too():
    run, _ = paired_run({"visiondrop": fv.VisionDrop(tokens=0.5)}, new_tokens=1, pairs=0)
    assert "its floor is" in run.candidates["visiondrop"].failed


def test_rounds_that_are_finished_stay_when_memory_runs_out(monkeypatch):
    measured_pairs, _ = paired_run({"v2drop": METHODS["v2drop"]}, new_tokens=1, pairs=0)
    rounds = measured_pairs.run(5)
    assert [next(rounds), next(rounds)] == [1, 2]
    monkeypatch.setattr("foveate.engine.runner.cut_before", out_of_memory)
    with pytest.raises(fv.InputError, match="smaller batch"):
        next(rounds)
    assert len(measured_pairs.rounds) == 2


def test_a_race_is_a_run_of_whole_calls_beside_the_untouched_model_and_itself():
    model, inputs = llava(side=168, width=64, layers=5)
    ends = []
    rows = race(model, inputs, METHODS, new_tokens=2, pairs=3, after=lambda: ends.append(1))
    assert list(rows) == [*METHODS, AGAIN]
    assert {ratio.rounds for ratio in rows.values()} == {3}
    assert len(ends) == 4


@pytest.fixture
def graphed(graphs_on_cpu):
    """Runs the methods, and all as graphs; by the wall's clock, as counting FLOPs is watching."""

    def call(methods, pairs=2):
        model, inputs = llava(side=168, width=64, layers=5)
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
        measured_pairs = PairedRun(model, Workload(inputs, 1, BEFORE + AFTER, (144,)), new_tokens=1)
        measured_pairs.prepare(methods, bare=False, cuda_graphs=True)
        list(measured_pairs.run(pairs))
        return measured_pairs, by_name(measured_pairs)

    return call


def test_graphs_are_timed_beside_what_they_replay(graphed):
    run, rows = graphed({"v2drop": METHODS["v2drop"]})
    names = [GRAPH.format(name) for name in (FULL, "v2drop")]
    assert list(run.candidates) == [FULL, KEEP_ALL, "v2drop", "v2drop: random", *names, AGAIN]
    for name, plain in zip(names, (FULL, "v2drop"), strict=True):
        row = rows[name]
        assert (row["setting"], row["layer_tokens"]) == (rows[plain]["setting"], rows[plain]["layer_tokens"])
        assert row["tower_graph"] == "replayed"
        assert row["context"] > 0
        assert {"prefill_ratio", "prefill_over_graph", "ttft_over_graph"} <= set(row)
    assert rows[names[0]]["prefill_over_graph"] == 1.0
    assert "prefill_over_graph" not in rows["v2drop"]
    prefill, call, sizes = result_sheets(list(rows.values()))
    assert all("÷ graph" in [column.head for column in table.columns] for table in (prefill, call))
    assert any("÷ graph" in note for note in sizes.notes)


def test_what_is_not_replayed_is_left_out_with_its_reason(graphed):
    many = {str(keep): fv.V2Drop(layers=(2,), keep=(keep / 10,)) for keep in range(1, 9)}
    run, rows = graphed(many, pairs=0)
    failed = {name: run.candidates[GRAPH.format(name)].failed for name in (FULL, *many)}
    (first,) = [name for name, why in failed.items() if why]  # evicted by the ninth, and not recorded at once again
    assert "8 graphs" in failed[first]
    assert GRAPH.format(first) not in rows
    assert {first, *many} <= set(rows)
