"""Why there is no gain: each cause on a tiny model that has it, by clocks that count, and by the processor's."""

import time

import pytest
import torch

import foveate as fv
from foveate.bench.gains import early_methods, no_gains, notes_of
from foveate.bench.ladder import fewer_over_before, ladder_methods, ladder_rows
from foveate.bench.paired import FULL, GRAPH, Candidate, PairedRun
from foveate.bench.results import rows_of
from foveate.bench.workload import Workload
from tests.bench.counting import Flops, Memory
from tests.memory import AFTER, BEFORE, llava

THIRD = fv.V2Drop(layers=(1, 3), keep=(0.4, 0.1))


def computing():
    """A machine on which only matrix products take time."""
    flops = Flops()
    return flops, lambda: flops.total


def launching():
    """A machine on which every operator takes as long, whatever its size."""
    memory = Memory()
    return memory, lambda: memory.operators


def prepared(side=168, width=64, layers=5, tower=16, new_tokens=2, clock=time.process_time, **methods):
    model, inputs = llava(side=side, width=width, layers=layers, tower=tower)
    model.set_attn_implementation("eager")
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    run = PairedRun(model, Workload(inputs, 1, BEFORE + AFTER, ((side // 14) ** 2,)), new_tokens, clock)
    run.prepare(methods or {"third": THIRD})
    return run


def causes_of(run, pairs=2):
    list(run.run(pairs))
    return no_gains(run, rows_of(run), {name: FULL for name in run.candidates if name in ("third", "weak", "resize")})


def counted(machine, **sizes):
    mode, clock = machine()
    run = prepared(clock=clock, **sizes)
    with mode:
        return causes_of(run)


def test_where_the_decoder_computes_there_is_a_gain_and_nothing_is_said():
    assert counted(computing) == {}
    assert counted(computing, new_tokens=1) == {}


def test_where_only_operators_take_time_the_host_is_the_cause():
    told = counted(launching)["third"]
    assert told.cause == "host"
    assert "a single token takes" in told.why


def test_without_a_later_token_nothing_shows_what_launching_takes_and_nothing_is_said():
    assert counted(launching, new_tokens=1) == {}


def test_where_the_tower_takes_most_of_the_time_it_is_named_with_its_share_and_what_helps():
    causes = counted(computing, tower=256, width=32, third=THIRD, resize=fv.Resize(retention=1 / 3))
    assert list(causes) == ["third"]  # a smaller picture is faster in the tower
    told = causes["third"]
    assert told.cause == "tower"
    assert "the vision tower takes 9" in told.why
    assert "drop before or in the tower: " in told.why
    assert "resize" in told.why


def test_where_text_is_longer_than_the_picture_its_share_is_told():
    told = counted(computing, side=28)["third"]
    assert told.cause == "text"
    assert f"vision tokens are 7% of the prompt (4 of {BEFORE + AFTER + 4})" in told.why


def test_a_budget_that_leaves_nearly_everything_is_told():
    told = counted(computing, weak=fv.V2Drop(layers=(2,), keep=(0.96,)), third=THIRD)
    assert list(told) == ["weak"]
    assert told["weak"].cause == "budget"


def test_a_method_that_computes_as_much_as_it_saves_is_the_cause_itself(monkeypatch):
    score = fv.V2Drop.score

    def costly(self, view, **given):
        torch.ones(800, 800) @ torch.ones(800, 800)
        return score(self, view, **given)

    monkeypatch.setattr(fv.V2Drop, "score", costly)
    assert counted(computing)["third"].cause == "method"


def test_the_processor_s_clock_shows_the_same():
    """A model so small that launching takes the time, and one that computes."""
    assert causes_of(prepared(side=84, width=32, layers=8), 5)["third"].cause == "host"
    assert causes_of(prepared(side=336, width=256, layers=6), 5) == {}


def timed(run, **parts):
    """The run with a round in which the untouched model and the method took these seconds."""
    run.rounds = [{name: {part: pair[name != FULL] for part, pair in parts.items()} for name in (FULL, "third")}]
    return no_gains(run, rows_of(run), {"third": FULL})


def test_on_a_gpu_the_host_is_the_cause_if_its_launches_take_as_long_as_the_prefill():
    run = prepared()
    run.candidates = {name: run.candidates[name] for name in (FULL, "third")}
    run.candidates["third"].bare = None
    slow = {"prefill": (10.0, 9.8), "ttft": (11.0, 10.8), "tower": (0.5, 0.5), "whole": (20.0, 20.0)}
    told = timed(run, launches=(9.7, 9.7), **slow)["third"]
    assert told.cause == "host"
    assert "the host takes 9700.0 of the prefill's 10000.0 ms to launch it" in told.why
    assert timed(run, launches=(4.0, 4.0), **slow) == {}  # the host was waiting, and what else it was is not known
    assert timed(run, launches=(9.7, 9.7), **slow | {"ttft": (11.0, 9.8)}) == {}  # a gain


def test_a_sentence_is_written_once_for_all_methods_that_it_holds_for():
    causes = counted(computing, side=28, third=THIRD, resize=fv.Resize(retention=1 / 2))
    assert list(causes) == ["third", "resize"]
    (text,) = notes_of(causes)
    assert text.startswith("third, resize: little or no gain: vision tokens are 7%")


def test_methods_that_shorten_the_tower_are_those_with_a_stage_before_or_in_it():
    model, _ = llava(side=84)
    names = early_methods(model)
    assert {"pixelprune", "resize", "thintower"} <= set(names)
    assert not {"v2drop", "visionzip", "divprune", "random"} & set(names)


@pytest.mark.parametrize(("machine", "cause"), [(computing, None), (launching, "host")])
def test_of_a_ladder_the_step_that_drops_is_explained_by_the_one_before(machine, cause):
    mode, clock = machine()
    methods = {name: method.with_budget(retention=1 / 3) for name, method in ladder_methods("v2drop").items()}
    run = prepared(clock=clock)
    run.candidates = {}
    run.prepare(methods, controls=False, bare=False, dtype=torch.bfloat16)
    with mode:
        list(run.run(2))
    rows = ladder_rows(run, rows_of(run), list(methods))
    bases = fewer_over_before(rows)
    assert bases == {"v2drop": "untouched in bfloat16"}
    assert {name: told.cause for name, told in no_gains(run, rows_of(run), bases).items()} == (
        {"v2drop": cause} if cause else {}
    )


def test_a_graph_is_compared_with_the_untouched_model_as_a_graph():
    run = prepared()
    names = GRAPH.format(FULL), GRAPH.format("third")
    for name, plain in zip(names, (FULL, "third"), strict=True):
        held = run.candidates[plain].held
        run.candidates[name] = Candidate(name, run.candidates[plain].method, held=held, graphs=True)
    seconds = {"prefill": 10.0, "ttft": 11.0, "tower": 0.5, "whole": 20.0}
    fast = {"prefill": 4.0, "ttft": 5.0, "tower": 0.5, "whole": 14.0}
    run.candidates = {name: run.candidates[name] for name in (FULL, "third", *names)}
    for candidate in run.candidates.values():
        candidate.bare = candidate.control = None
    host = {"launches": 9.9}
    run.rounds = [
        {FULL: seconds | host, "third": seconds | host, names[0]: seconds | {"launches": 0.1}, names[1]: fast}
    ]
    causes = no_gains(run, rows_of(run), {"third": FULL, names[1]: names[0]})
    assert {name: told.cause for name, told in causes.items()} == {"third": "host"}
