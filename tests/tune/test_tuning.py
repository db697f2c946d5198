import json

import pytest
import torch

import foveate as fv
from foveate.contract.space import Point, space_of
from foveate.naming import given, parse
from foveate.tuning import trials
from foveate.tuning.forcing import greedy, outcomes, targets
from foveate.tuning.parts import grouped, split
from foveate.tuning.prices import Prices, solved
from tests.models import DEPTH, tiny
from tests.tune.pictures import pictures_of, questions

LLAVA = tiny("llava")
SAMPLES = questions("llava", 12)
PICTURES = grouped(LLAVA, SAMPLES)
EVERY = [sample for about in PICTURES for sample in about.samples]
FEW = {"retention": 0.6, "search": 3, "max_new_tokens": 4}


def test_questions_about_one_picture_stay_together_and_the_parts_share_none():
    parts = split(PICTURES, seed=3)
    keys = [about.key for part in (parts.search, parts.choose, parts.report) for about in part]
    assert sorted(keys) == sorted(about.key for about in PICTURES)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("method", [fv.V2Drop(), fv.FastV(), fv.PyramidDrop(), fv.VisionDrop(), fv.DivPrune()])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
def test_no_setting_costs_more_than_the_budget_and_one_token_more_would(method, share):
    prices = Prices(LLAVA, EVERY, "retention")
    space = space_of(method, prices.depth)
    layers = (1, 3) if space.most_cuts else ()
    shape = (1.0, 0.5, 0.3)[: len(layers) + space.counts_entry]
    found = solved(space, Point(layers, shape, space.usual), prices, share)
    assert found is not None
    total = 0.0
    for sample in EVERY:  # counted on the engine's own trace, not by the plan
        with fv.drop(LLAVA, found) as trace, torch.inference_mode():
            LLAVA(**{**sample.inputs, "use_cache": False})
        total += trace.retention[0]
    assert total / len(EVERY) == pytest.approx(prices.of(found), abs=1e-6)
    assert total / len(EVERY) <= share + 1e-9
    assert total / len(EVERY) > share - 0.06  # of 12 to 25 tokens, one behind a cut is up to 4 %


@pytest.mark.parametrize("method", [fv.DART(layer=1), fv.PriorTR(layer=1)])
def test_methods_that_solve_their_own_schedule_spend_what_a_budget_pays_for_above_their_floor(method):
    prices = Prices(LLAVA, EVERY, "retention")
    space = space_of(method, prices.depth)
    start = Point((), (1.0,), space.usual)
    assert 0.6 < prices.of(solved(space, start, prices, 0.7)) <= 0.7
    assert solved(space, start, prices, 0.02) is None


def test_budgets_in_flops_and_cache_bytes_are_met_too():
    for kind in ("flops", "kv"):
        prices = Prices(LLAVA, EVERY, kind)
        found = solved(space_of(fv.V2Drop(), DEPTH), Point((1,), (1.0,), ()), prices, 0.8)
        assert 0.7 < prices.of(found) <= 0.8


@pytest.mark.parametrize("method", [fv.V2Drop(layers=(1, 2), keep=(0.4, 0.5)), fv.FastV(layers=(1,), keep=(0.3,))])
@pytest.mark.parametrize("family", ["llava", "llava_onevision", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_forced_answer_agrees_exactly_where_generation_gives_it(family, method):
    model = tiny(family)
    pictures = pictures_of(family)
    wanted = [targets(model, about, greedy(model, about.samples, 3)) for about in pictures]
    for about, answers, found in zip(pictures, wanted, outcomes(model, pictures, wanted, method), strict=True):
        for sample, target, outcome in zip(about.samples, answers, found, strict=True):
            columns = sample.inputs["input_ids"].shape[1]
            with fv.drop(model, method):
                out = model.generate(**sample.inputs, max_new_tokens=len(target.ids), do_sample=False)
            assert (tuple(out[0, columns:].tolist()) == target.ids) == outcome.agrees
            assert outcome.divergence >= 0


def test_a_method_that_drops_nothing_has_no_divergence():
    about = PICTURES[0]
    wanted = targets(LLAVA, about, greedy(LLAVA, about.samples, 3))
    (found,) = outcomes(LLAVA, [about], [wanted], fv.V2Drop(layers=(1,), keep=(1.0,)))
    assert all(outcome.divergence < 1e-5 and outcome.agrees for outcome in found)


def test_a_stopped_search_goes_on_to_the_same_outcome(tmp_path, monkeypatch):
    state = tmp_path / "state"
    whole = fv.tune(LLAVA, SAMPLES, method=fv.V2Drop(layers=(1, 2, 3)), **FEW)
    made = []

    def stops(model, pictures, wanted, method):
        if len(made) == 4:
            raise KeyboardInterrupt
        made.append(method)
        return outcomes(model, pictures, wanted, method)

    monkeypatch.setattr(trials, "outcomes", stops)
    with pytest.raises(KeyboardInterrupt):
        fv.tune(LLAVA, SAMPLES, method=fv.V2Drop(layers=(1, 2, 3)), state=state, **FEW)
    monkeypatch.undo()
    (part,) = state.glob("part-*")
    known = len(part.read_text().splitlines())
    with part.open("a") as file:
        file.write('{"method": "v2')  # the line at which it was killed
    assert known == 4 * len(split(PICTURES, seed=0).search)  # which are one batch
    again = fv.tune(LLAVA, SAMPLES, method=fv.V2Drop(layers=(1, 2, 3)), state=state, **FEW)
    assert again.method == whole.method
    assert [row.agreement for row in again.rows] == [row.agreement for row in whole.rows]
    assert again.runs < whole.runs
    for samples, other in ((SAMPLES[:8], {}), (SAMPLES, {"max_new_tokens": 5})):
        with pytest.raises(fv.InputError, match="begun with another model, other samples"):
            fv.tune(LLAVA, samples, method=fv.V2Drop(layers=(1, 2, 3)), state=state, **FEW | other)


def test_all_rows_cost_the_same_and_the_file_goes_where_a_name_does(tmp_path):
    tuned = fv.tune(LLAVA, SAMPLES, method="v2drop:layers=1,2,3", retention=0.6, task="squares", max_new_tokens=4)
    assert isinstance(tuned, fv.Tuned)
    assert tuned.chosen == "published"
    assert any("only 3 pictures are left to choose with, too few" in note for note in tuned.notes)
    names = [row.name for row in tuned.rows]
    assert names[-4:] == ["grid", "tuned", "random, tuned schedule", "uniform, tuned schedule"]
    by_name = {row.name: row for row in tuned.rows}
    assert by_name["random, tuned schedule"].tokens == pytest.approx(by_name["tuned"].tokens, abs=1e-3)
    assert tuned.cost <= 0.6
    tuned.save(tmp_path / "mine.json")
    assert parse(str(tmp_path / "mine.json")) == tuned.method
    again = fv.Tuned.load(tmp_path / "mine.json")
    assert json.dumps(again.to_dict()) == json.dumps(tuned.to_dict())
    with pytest.raises(fv.InputError, match="exists already"):
        tuned.save(tmp_path / "mine.json")


@pytest.mark.parametrize(
    ("method", "budget", "message"),
    [
        ("v2drop", {}, "Give one budget"),
        ("v2drop", {"tokens": 5, "kv": 0.5}, "Give one budget"),
        ("v2drop:layers=1,2,3", {"retention": 1}, "drops nothing"),
        ("v2drop:layers=1,2,3", {"tokens": 0}, "must be above 0"),
        ("mustdrop", {"kv": 0.5}, "not for flops= or kv="),
        ("v2drop", {"tokens": 5, "search": -1}, "search 0 or more"),
        ("v2drop", {"tokens": 5, "serach": 1}, "Tuning has no setting serach"),
        ("finalkv", {"retention": 0.5}, "no schedule"),
    ],
)
def test_what_cannot_be_searched_is_refused(method, budget, message):
    with pytest.raises((fv.SettingError, fv.UnknownNameError), match=message):
        fv.tune(LLAVA, SAMPLES, method=method, **budget)


def test_a_method_that_is_exact_only_with_a_budget_is_tuned():
    tuned = fv.tune(LLAVA, SAMPLES, method="prumerge", retention=0.5, max_new_tokens=4)
    assert tuned.cost <= 0.5


@pytest.mark.parametrize("given", [["a.png", "b.png"], "pictures", [("a.png", "What?", "more")]])
def test_what_is_no_pair_of_picture_and_question_is_refused(given):
    with pytest.raises(fv.SettingError, match="pair of a picture and a question"):
        fv.tune(fv.VLM(LLAVA, None), given, method="v2drop:layers=1,2,3", retention=0.6)


def test_a_given_setting_stays_also_where_it_is_the_usual_one(tmp_path):
    state = tmp_path / "state"
    text = "v2drop:metric=l2;layers=1,3;keep=0.5,0.5"
    fv.tune(LLAVA, SAMPLES, method=parse(text), given=given(text), state=state, **FEW)
    (part,) = state.glob("part-*")
    tried = [json.loads(json.loads(line)["method"]) for line in part.read_text().splitlines()]
    searched = [setting for setting in tried if setting["method"] == "v2drop"]
    assert {setting["metric"] for setting in searched} == {"l2"}
    assert {layer for setting in searched for layer in setting["layers"]} == {1, 3}
    assert len({setting["over"] for setting in searched}) == 2


def test_several_processes_need_a_model_that_they_can_load():
    with pytest.raises(fv.SettingError, match="needs a VLM"):
        fv.tune(LLAVA, SAMPLES, method="v2drop:layers=1,2,3", retention=0.6, workers=2)
    with pytest.raises(fv.SettingError, match="workers must be 1 or more"):
        fv.tune(LLAVA, SAMPLES, method="v2drop:layers=1,2,3", retention=0.6, workers=0)
