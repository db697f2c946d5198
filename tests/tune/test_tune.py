import json

import pytest
import torch

import foveate as fv
from tests.models import batch, tiny

SAMPLES = [batch("llava", [word], seed) for seed in range(4) for word in ("titt", "titit")]
START = fv.MustDrop(pruning_layers=(1, 3), merge_windows=False, global_thr=0.01, individual_thr=0.02, key_rate=0.04)


def retention_of(method):
    found = []
    for inputs in SAMPLES:
        with fv.drop(tiny("llava"), method) as trace, torch.no_grad():
            tiny("llava")(**inputs)
        found += trace.retention
    return sum(found) / len(found)


@pytest.mark.parametrize("target", [0.5, 0.7, 0.95])
def test_the_setting_found_meets_the_budget_on_the_samples(target):
    record = fv.tune(tiny("llava"), SAMPLES, method=START, retention=target, task="squares")
    assert record.retention == pytest.approx(target, rel=0.03)  # eight samples of 25 tokens move in steps
    assert record.retention == pytest.approx(retention_of(record.method))
    assert record.method.individual_thr == pytest.approx(2 * record.method.global_thr)
    assert (record.method.key_rate, record.method.pruning_layers) == (0.04, (1, 3))
    assert (record.samples, record.task, record.target) == (8, "squares", target)
    assert record.spread > 0
    assert record.vision_tokens == pytest.approx(37.5)
    assert (record.method.global_thr, record.retention) in record.steps
    assert all(abs(mean - target) >= abs(record.retention - target) for _, mean in record.steps)

    assert record.to_dict()["met"]


def test_the_nearest_of_what_one_sample_allows_is_said_not_to_meet_the_budget(tmp_path):
    said = "No setting keeps 50.00% of these samples' tokens, within 1% of it. The nearest setting keeps 49.33%."
    with pytest.warns(UserWarning, match=said):
        record = fv.tune(tiny("llava"), SAMPLES[:1], method=START, retention=0.5)
    assert all(abs(mean - 0.5) > 0.005 for _, mean in record.steps)
    assert not record.met
    record.save(path := tmp_path / "one.json")
    assert json.loads(path.read_text())["met"] is False
    assert fv.Record.load(path) == record


def test_more_is_dropped_the_higher_the_threshold():
    steps = sorted(fv.tune(tiny("llava"), SAMPLES, method=START, retention=0.6).steps)
    retentions = [mean for _, mean in steps]
    assert retentions == sorted(retentions, reverse=True)
    assert retentions[0] == 1.0


def test_a_record_survives_its_file_and_is_not_overwritten(tmp_path):
    record = fv.tune(tiny("llava"), SAMPLES, method=START, tokens=26)
    assert repr(record) == "Record(mustdrop on llava: retention 69.0% for 68.4% asked, 8 samples)"
    record.save(path := tmp_path / "squares.json")
    assert fv.Record.load(path) == record
    assert json.loads(path.read_text())["versions"]["torch"] == torch.__version__
    with pytest.raises(fv.InputError, match="exists already"):
        record.save(path)
    record.save(path, force=True)


def test_the_samples_are_known_by_their_hash():
    first, same, other = (
        fv.tune(tiny("llava"), samples, method=START, retention=1.0).inputs
        for samples in (SAMPLES[:2], SAMPLES[:2], SAMPLES[2:4])
    )
    assert first == same != other


def test_budgets_the_samples_do_not_allow_are_refused():
    with pytest.raises(fv.BudgetError, match="key tokens alone average"):
        fv.tune(tiny("llava"), SAMPLES, method=START, retention=0.2)
    merging = fv.MustDrop(pruning_layers=(1, 3), merge_window=2, merge_threshold=-1)
    with pytest.raises(fv.BudgetError, match=r"average only .* after merging in the tower"):
        fv.tune(tiny("llava"), SAMPLES, method=merging, retention=0.9)


@pytest.mark.parametrize(
    ("samples", "method", "message"),
    [
        ([], START, "no samples"),
        (SAMPLES[:2], fv.V2Drop(layers=(1, 2, 3)), "three pictures or more"),
        (SAMPLES, fv.MustDrop(filter=False), "filter=True"),
        ([batch("llava", ["tt"])], START, "has a vision token"),
    ],
)
def test_what_cannot_be_tuned_is_refused(samples, method, message):
    with pytest.raises(fv.SettingError, match=message):
        fv.tune(tiny("llava"), samples, method=method, retention=0.5)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "another"}', '{"format": "foveate tuning 1"}']
    + [
        f'{{"format": "foveate tuning 1", "method": {{"method": "mustdrop"}}, "steps": {steps}}}' for steps in (1, "[]")
    ],
)
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    (path := tmp_path / "record.json").write_text(text)
    with pytest.raises(fv.InputError, match=r"not valid JSON|not hold a JSON object|not a record|is damaged"):
        fv.Record.load(path)
    with pytest.raises(fv.InputError, match="cannot be read"):
        fv.Record.load(tmp_path / "nothing.json")
