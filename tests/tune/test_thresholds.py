"""MustDrop's thresholds, whose cost is what samples spend when they are run."""

import pytest
import torch

import foveate as fv
from foveate.contract.space import Point
from foveate.naming import parse
from foveate.tuning.parts import grouped, split
from foveate.tuning.prices import Measured, solved
from tests.models import DEPTH, batch, tiny
from tests.tune.presets import preset_of

LLAVA = tiny("llava")
SAMPLES = [batch("llava", [word], seed) for seed in range(6) for word in ("titt", "titit")]
SEARCHED = [sample for about in grouped(LLAVA, SAMPLES) for sample in about.samples]
START = fv.MustDrop(pruning_layers=(1, 3), merge_windows=False, global_thr=0.01, individual_thr=0.02, key_rate=0.04)
OPEN = fv.MustDrop(pruning_layers=(1, 3), merge_windows=False, key_rate=0.04)


def spent(method, samples):
    """Vision tokens that a layer processes, on the engine's own trace: their mean, and that of their shares."""
    tokens, shares = [], []
    for inputs in samples:
        with fv.drop(LLAVA, method) as trace, torch.no_grad():
            LLAVA(**inputs)
        tokens += trace.tokens
        shares += trace.retention
    return sum(tokens) / len(tokens), sum(shares) / len(shares)


@pytest.mark.parametrize("share", [0.5, 0.95])
def test_the_threshold_is_the_lowest_that_the_budget_pays_for(share):
    prices = Measured(LLAVA, SEARCHED, "retention")
    space = START.space(DEPTH)
    found = solved(space, Point((), (1.0,), space.usual), prices, share)
    assert prices.of(found) == pytest.approx(spent(found, SAMPLES)[1])
    assert share - 0.03 < prices.of(found) <= share  # twelve samples of 25 tokens move in steps
    assert prices.tokens(found) == pytest.approx(spent(found, SAMPLES)[0])
    assert found.individual_thr == pytest.approx(2 * found.global_thr)
    assert (found.key_rate, found.pruning_layers) == (0.04, (1, 3))


def test_a_budget_below_the_key_tokens_is_refused():
    with pytest.raises(fv.BudgetError, match="key tokens stay"):
        fv.tune(LLAVA, SAMPLES, method=START, retention=0.2, max_new_tokens=3)


def test_thresholds_are_tuned_at_every_ratio_and_reported_on_other_pictures(tmp_path):
    tuned = fv.tune(LLAVA, SAMPLES, method=OPEN, retention=0.6, max_new_tokens=3, state=tmp_path / "state")
    assert (tuned.tried, tuned.chosen) == (2, "published")
    assert tuned.cost <= 0.6
    parts = split(grouped(LLAVA, SAMPLES), 0)
    reported = [sample.inputs for about in parts.report for sample in about.samples]
    by_name = {row.name: row for row in tuned.rows}
    assert by_name["tuned"].tokens == pytest.approx(spent(tuned.method, reported)[0], abs=1e-4)
    assert by_name["random, tuned schedule"].tokens == pytest.approx(by_name["tuned"].tokens, abs=1)
    tuned.save(path := tmp_path / "mine.json")
    assert parse(str(path)) == tuned.method


def test_thresholds_that_are_given_keep_their_ratio():
    tuned = fv.tune(LLAVA, SAMPLES, method=START, tokens=20, max_new_tokens=3)
    assert tuned.tried == 1
    assert tuned.method.individual_thr == pytest.approx(2 * tuned.method.global_thr)
    assert tuned.cost <= 20


@pytest.mark.parametrize(
    ("samples", "method", "message"),
    [
        ([], START, "no samples"),
        (SAMPLES[:2], START, "three pictures or more"),
        (SAMPLES, fv.MustDrop(filter=False), "filter=True"),
        (SAMPLES, fv.MustDrop(global_thr=0.0), "global_thr above 0"),
        (SAMPLES, fv.DivPrune(keep=0.5) + START, "cost is not known before|no schedule and no setting"),
        ([batch("llava", ["tt"])], START, "no vision token"),
    ],
)
def test_what_cannot_be_tuned_is_refused(samples, method, message):
    with pytest.raises(fv.SettingError, match=message):
        fv.tune(LLAVA, samples, method=method, retention=0.5)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "another"}', '{"format": "foveate tuning 4"}',
             '{"format": "foveate tuning 4", "method": {"method": "mustdrop"}, "rows": 1}'],
)  # fmt: skip
def test_a_file_that_is_no_preset_is_refused(tmp_path, text):
    (path := tmp_path / "preset.json").write_text(text)
    with pytest.raises(fv.InputError, match=r"not valid JSON|not hold a JSON object|no preset|is damaged"):
        fv.Tuned.load(path)
    with pytest.raises(fv.InputError, match="cannot be read"):
        fv.Tuned.load(tmp_path / "nothing.json")


def test_a_key_of_a_preset_that_is_not_read_is_refused():
    values = preset_of(parse("v2drop:layers=1,2,3;keep=0.5,0.3,0")).to_dict()
    assert fv.Tuned.from_dict(values).to_dict() == values
    with pytest.raises(fv.InputError, match="Did you mean notes"):
        fv.Tuned.from_dict(values | {"note": []})
    row = values["rows"][0]
    for other in (row | {"agrement": None}, row | {"agreement": row["agreement"] | {"agrement": 1}}):
        with pytest.raises(fv.InputError, match="has the key agrement, which is not read"):
            fv.Tuned.from_dict(values | {"rows": [other]})
