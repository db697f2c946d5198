"""Methods beside random dropping, by a clock that counts FLOPs: what differs is then the scoring, to the digit."""

import pytest

import foveate as fv
from foveate.bench.overhead import CONTROL, Overheads, overhead_sheet, prepare
from foveate.bench.run import FULL, Session
from foveate.bench.workload import Workload
from foveate.methods.dycoke import DyCoke
from tests.bench.counting import counter
from tests.bench.test_run import METHODS
from tests.memory import AFTER, BEFORE, llava

TOKENS = 144


def study(methods, batch=1, pairs=3):
    """What is left out, and what the rounds show."""
    model, inputs = llava(side=168, width=64, layers=8)
    model.set_attn_implementation("eager")
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    workload = Workload(inputs, 1, BEFORE + AFTER, (TOKENS,)).repeated(batch)
    flops = counter()
    session = Session(model, workload, 1, clock=flops.get_total_flops)
    left_out = prepare(session, methods)
    with flops:
        assert list(session.run(pairs)) == list(range(1, pairs + 1))
    return session, left_out, Overheads.of(session)


@pytest.fixture(scope="module")
def shown():
    others = {"uniform": fv.Uniform(layers=(2, 4), keep=(0.5, 0.5)), "vidcom2": fv.VidCom2(tokens=40)}
    idle = {"dycoke": DyCoke(k=1.0), "deep": fv.V2Drop(layers=(2,), keep=(1.0,))}
    return study({**METHODS, **others, **idle})


def test_what_drops_nothing_is_left_out_with_why_and_so_are_controls_that_nobody_needs(shown):
    session, left_out, result = shown
    assert left_out == dict.fromkeys(("dycoke", "deep"), "drops nothing of this prompt.")
    assert [row.name for row in result.rows] == [*METHODS, "uniform", "vidcom2", CONTROL]
    controls = {row.candidate.control for row in result.rows}
    # uniform has v2drop's schedule, so they share a control
    assert set(session.candidates) == {FULL, *controls, *(row.name for row in result.rows)}
    assert result.row("uniform").candidate.control == result.row("v2drop").candidate.control == "v2drop: random"


def test_a_control_is_what_it_is_beside_itself_and_methods_are_slower_by_what_they_score(shown):
    session, _, result = shown
    assert result.row(CONTROL).against["ttft"].median == 1
    assert not result.noisy
    for name in ("uniform", "v2drop", "vidcom2"):  # no product of matrices in their scoring: the counter sees none
        assert result.row(name).against["ttft"].median == pytest.approx(1)
    row = result.row("visiondrop")
    record = {one["name"]: one for one in result.to_dict()["rows"]}["visiondrop"]
    own, random = (session.times[name][0]["ttft"] for name in ("visiondrop", row.candidate.control))
    share = (own - random) / own
    assert record["time_share"] == {key: pytest.approx(share) for key in ("median", "low", "high")} | {"rounds": 3}
    assert 0 < record["scoring_share"] < 2 * share
    assert record["scoring_flops"] == row.cost.scoring_flops > 0


def test_every_method_has_as_many_tokens_in_each_layer_as_its_control(shown):
    session, _, result = shown
    for row in result.rows:
        assert row.held.tokens == session.candidates[row.candidate.control].held.tokens


def test_scoring_that_the_picture_decides_is_not_told():
    threshold = {"mustdrop": fv.MustDrop(pruning_layers=(1, 3), global_thr=0.01, individual_thr=1.0)}
    _, left_out, result = study(threshold, pairs=2)
    assert left_out == {}
    (record, _) = result.to_dict()["rows"]
    assert (record["scoring_flops"], record["scoring_share"]) == (None, None)
    cells = overhead_sheet([result]).rows[1]
    assert (cells[0], *cells[2:4]) == ("mustdrop", "", "")


def test_one_table_has_a_pair_of_columns_for_each_batch_size(shown):
    _, _, single = shown
    _, _, double = study({"v2drop": METHODS["v2drop"]}, batch=2, pairs=2)
    sheet = overhead_sheet([single, double], "a title")
    heads = [column.head for column in sheet.columns]
    assert heads[4:] == ["Batch 1:\n÷ random", "\nof time", "Batch 2:\n÷ random", "\nof time"]
    rows = {row[0]: row for row in sheet.rows}
    assert next(iter(rows)) == CONTROL
    assert rows["v2drop"][4] == rows["v2drop"][6] == "1.000\n[1.000–1.000]"
    assert rows["visiondrop"][6:] == ("did not run", "")
    assert "2 and 3 rounds" in sheet.notes[0]


def test_what_cannot_meet_its_budget_at_this_prompt_is_left_out():
    short = {"evs": fv.EVS(tokens=3), "visiondrop": fv.VisionDrop(tokens=0.5), "v2drop": METHODS["v2drop"]}
    _, left_out, result = study(short, pairs=2)
    assert "its floor is" in left_out["visiondrop"]
    assert left_out["evs"] == "drops nothing of this prompt."
    assert [row.name for row in result.rows] == ["v2drop", CONTROL]
