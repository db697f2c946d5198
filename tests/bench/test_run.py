"""A whole run by a clock that counts FLOPs: what it measures must then be what arithmetic says, to the digit."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
from foveate.ask.generation import generate
from foveate.bench.figure import draw
from foveate.bench.run import AGAIN, EAGER, FULL, KEEP_ALL, Session
from foveate.bench.summary import summarise
from foveate.bench.timing import interval_words
from foveate.bench.workload import Workload
from tests.bench.counting import counter
from tests.memory import AFTER, BEFORE, llava


def session(methods, *, layers=5, side=168, attention="eager", batch=1, new_tokens=3, pairs=2, shorter=0, **asked):
    model, inputs = llava(side=side, width=64, layers=layers)
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    inputs = {name: torch.cat([value] * batch) for name, value in inputs.items()}
    inputs["attention_mask"][:1, :shorter] = 0
    workload = Workload(inputs, batch, BEFORE + AFTER, ((side // 14) ** 2,))
    started, flops = [], counter()
    made = Session(model, workload, new_tokens, clock=flops.get_total_flops)
    made.prepare(methods, **asked, starting=started.append)
    with flops:
        assert list(made.run(pairs)) == list(range(1, pairs + 1))
    return made, started


METHODS = {
    "v2drop": fv.V2Drop(layers=(2, 4), keep=(0.5, 0.5)),
    "visiondrop": fv.VisionDrop(
        dominant=80, contextual=10, layer_list=(2, 4), image_token_list=((40, 6), (20, 3)), reference=144
    ),
    "mustdrop": fv.MustDrop(pruning_layers=(1, 3), retention=0.55),
}


@pytest.fixture(scope="module")
def measured():
    made, started = session(METHODS)
    return made, started, summarise(made)


def test_beside_every_method_there_are_its_controls(measured):
    made, started, _ = measured
    of_each = ("", ": random", ": bare")
    names = [FULL, KEEP_ALL, *(f"{name}{what}" for name in METHODS for what in of_each), AGAIN]
    assert list(made.candidates) == names
    assert started == [name for name in names if not name.endswith(": bare") and name != AGAIN]
    assert list(made.times) == names
    assert all(len(times) == 2 for times in made.times.values())
    for name in METHODS:
        one, control, alone = (made.candidates[f"{name}{what}"] for what in of_each)
        assert one.control == control.name
        assert one.bare == control.bare == alone.name
        assert one.held.tokens == control.held.tokens == alone.held.tokens
        assert one.held.kv_bytes == control.held.kv_bytes
        assert alone.rows == tuple(BEFORE + AFTER + count for count in one.held.tokens)


def test_times_that_are_flops_have_the_ratios_of_flops(measured):
    _, _, summary = measured
    for name in ("v2drop", "v2drop: random", "visiondrop: random", "mustdrop: random"):
        row = summary.row(name)
        for part in ("prefill", "ttft", "whole"):
            found = row.ratios[part]
            exact = 1e-4 if part == "whole" else 1e-9  # later steps see the tokens of earlier ones
            assert found.median == pytest.approx(row.flops[part], rel=exact), (name, part)
            assert found.low == found.high == found.median
        assert row.efficiency.median == pytest.approx(1, rel=1e-9)
        assert row.ratios["tower"].median == 1
    for name in (KEEP_ALL, AGAIN):
        assert {found.median for found in summary.row(name).ratios.values()} == {1.0}
    assert summary.noisy == []


def test_a_method_is_as_much_slower_than_random_as_it_computes_more(measured):
    _, _, summary = measured
    assert summary.row("v2drop").against["prefill"].median == 1.0
    row = summary.row("visiondrop")
    assert 1 < row.against["prefill"].median < 1 + 1.5 * row.scoring + 0.05
    assert row.flops["prefill"] < row.ratios["prefill"].median


def test_bare_layers_are_timed_to_the_first_token_and_take_what_the_arithmetic_says(measured):
    made, _, summary = measured
    for name in METHODS:
        row, cost = (
            summary.row(f"{name}: bare"),
            made.workload.cost(made.model, tokens=made.candidates[name].held.tokens),
        )
        assert row.seconds["prefill"] == cost.prefill_flops
        assert row.efficiency.median == pytest.approx(1, rel=1e-9)
        assert set(row.ratios) == {"tower", "prefill", "ttft"}
        assert set(row.flops) == {"prefill", "ttft"}
        assert row.flops["ttft"] == pytest.approx(row.ratios["ttft"].median, rel=1e-9)
        assert summary.row(f"{name}: random").over_bare["prefill"].median == 1.0
        record = row.to_dict()
        assert [record[key] for key in ("peak_bytes", "peak_bytes_counted", "kv_bytes", "kv_bytes_counted")] == [
            None
        ] * 4
        assert record["setting"] is record["control"] is record["bare"] is None
    own = summary.row("visiondrop")
    assert own.over_bare["prefill"].median == own.against["prefill"].median > 1
    assert set(own.over_bare) == {"tower", "prefill", "ttft"}
    assert own.to_dict()["over_bare"]["prefill"] == own.over_bare["prefill"].to_dict()


def test_there_are_no_bare_layers_where_nothing_leaves_or_they_are_not_wanted_or_cannot_be():
    whole = {"whole": fv.Uniform(layers=(2,), keep=(1.0,))}
    made, _ = session(whole, new_tokens=1, pairs=0)
    assert made.candidates["whole"].bare is None
    assert not any(one.rows for one in made.candidates.values())
    made, _ = session({"v2drop": METHODS["v2drop"]}, new_tokens=1, pairs=0, bare=False)
    assert (made.candidates["v2drop"].bare, made.obstacle) == (None, "")
    made, _ = session({"v2drop": METHODS["v2drop"]}, new_tokens=1, pairs=0, batch=2, shorter=1)
    assert made.obstacle == "the prompts of the batch differ in length"
    assert list(made.candidates) == [FULL, KEEP_ALL, "v2drop", "v2drop: random", AGAIN]


def test_the_cache_holds_what_was_counted_and_the_peak_falls(measured):
    _, _, summary = measured
    whole = summary.row(FULL)
    for row in summary.rows:
        assert row.is_bare or row.candidate.held.kv_bytes == row.kv_counted
        assert row.peak_counted is None  # attention matrices are not counted
    for name in METHODS:
        held = summary.row(name).candidate.held
        assert held.kv_bytes < whole.candidate.held.kv_bytes
        assert held.peak < whole.candidate.held.peak


def test_a_summary_shows_its_tables_in_a_notebook_and_itself_in_a_line(measured):
    _, _, summary = measured
    assert repr(summary).startswith("Summary(2 rounds of untouched, keep-all, v2drop, ")
    html = summary._repr_html_()
    assert html.count("<table") == html.count("</table>") == 3
    assert "visiondrop: random" in html
    assert "÷ bare" in html


def test_few_rounds_have_a_range_and_no_95_percent_interval(measured):
    _, _, summary = measured
    words = "".join(summary.sheets("title")[-1].notes)
    assert "2 paired rounds. " in words
    assert "range (a 95 % interval takes 6 rounds or more)" in words
    assert "95 % bootstrap interval" in interval_words(6)


def test_the_record_has_every_single_time(measured):
    made, _, summary = measured
    row = summary.row("v2drop").to_dict()
    assert row["times"]["prefill"] == [seconds["prefill"] for seconds in made.times["v2drop"]]
    assert set(row["times"]) == {"tower", "prefill", "ttft", "tpot", "whole"}
    assert row["over_random"]["prefill"]["rounds"] == 2
    assert summary.row(FULL).to_dict()["setting"] is None


def test_items_a_second_count_the_batch_and_controls_are_shared():
    made, _ = session({"a": METHODS["v2drop"], "b": fv.V2Drop(layers=(2, 4), keep=(0.5, 0.5), metric="l1")}, batch=2)
    summary = summarise(made)
    assert made.candidates["b"].control == "a: random"
    assert made.candidates["b"].bare == "a: bare"
    assert (
        summary.row("a: bare").seconds["prefill"]
        == 2 * made.workload.cost(made.model, tokens=made.candidates["a"].held.tokens).prefill_flops
    )
    row = summary.row("a")
    assert row.items_per_second == 2 / row.seconds["whole"]
    assert row.candidate.held.kv_bytes == row.kv_counted


def test_the_row_of_eager_attention_leaves_the_kernel_as_it_was():
    made, started = session({"v2drop": METHODS["v2drop"]}, attention="sdpa", new_tokens=1, eager=True)
    assert started[-1] == EAGER
    text = made.model.model.language_model
    assert text.config._attn_implementation == "sdpa"
    summary, random = summarise(made), made.candidates["v2drop: random"]
    for name in (FULL, KEEP_ALL, "v2drop", "v2drop: random", AGAIN):
        row = summary.row(name)
        assert row.candidate.held.peak == pytest.approx(row.peak_counted, rel=0.02)
    row = summary.row(EAGER)
    assert row.peak_counted is row.candidate.bare is None
    assert row.candidate.kernel == "eager"
    assert row.candidate.method == random.method
    assert row.candidate.held.peak > random.held.peak
    assert row.efficiency is None
    assert "tpot" not in row.ratios


def test_what_does_not_run_is_left_out_with_its_reason(monkeypatch):
    monkeypatch.setattr(fv.V2Drop, "select", out_of_memory)
    made, _ = session({"v2drop": METHODS["v2drop"]}, new_tokens=1)
    summary = summarise(made)
    assert summary.failed == {"v2drop": "out of memory"}
    assert [row.name for row in summary.rows] == [FULL, KEEP_ALL, AGAIN]


def out_of_memory(*_):
    raise torch.OutOfMemoryError


def test_an_answer_has_the_length_that_was_asked_for():
    model, inputs = llava(side=112)
    prompt = inputs["input_ids"].shape[1]
    model.generation_config.eos_token_id = generate(model, inputs, 1).sequences[0, -1].item()
    assert generate(model, inputs, 5).sequences.shape[1] == prompt + 1
    assert generate(model, inputs, 5, exactly=True).sequences.shape[1] == prompt + 5


def test_a_figure_is_drawn_with_a_mark_a_row(measured):
    picture = draw(measured[2], "by FLOPs")
    assert picture.mode == "RGB"
    assert picture.size[0] > 1500
    assert len(picture.getcolors(1 << 16)) > 50


def test_the_clock_of_flops_counts_what_torch_counts():
    with counter() as found, FlopCounterMode(display=False) as torchs:
        torch.ones(3, 5) @ torch.ones(5, 2)
    assert found.get_total_flops() == torchs.get_total_flops() == 60
