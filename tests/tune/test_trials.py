import pytest
import torch

import foveate as fv
from foveate.runs.crew import Here
from foveate.tuning import trials as trials_module
from foveate.tuning.forcing import Fidelity, answered
from foveate.tuning.parts import grouped
from foveate.tuning.trials import FEWEST, Trials, open_trials
from tests.models import batch, tiny
from tests.tune.pictures import pictures_of

LLAVA = tiny("llava")
PICTURES = grouped(LLAVA, [batch("llava", ["tit"], seed) for seed in range(8)])


def method(keep):
    return fv.V2Drop(layers=(1,), keep=(keep,))


@pytest.fixture
def told():
    """Trials whose roots are told: by a setting's ratio, one for each picture; they note what was run."""
    roots, ran = {}, []
    keys = [about.key for about in PICTURES]

    def work(item, stopped):
        number, values, asked, _ = item
        if values is None:
            yield [(number, [[]])]
            return
        (keep,) = values["keep"]
        ran.extend([keep] * len(asked))
        yield [(number, [[Fidelity(roots[keep][keys.index(key)] ** 2, False)] for key in asked])]

    with Here(lambda place, count: work) as crew:
        yield Trials(LLAVA, crew), roots, ran


def test_a_setting_that_was_unlucky_with_the_first_pictures_goes_on(told):
    trials, roots, ran = told
    roots |= {0.1: [0, 0, 0.01, 0.9, 0.8, 0.9, 0.7, 0.9], 0.2: [0.3, 0.2, 0.3, 0.2, 0.3, 0.2, 0.3, 0.2]}
    assert trials.score(method(0.1), PICTURES) == (pytest.approx(0.52625), True)
    assert trials.score(method(0.2), PICTURES) == (pytest.approx(0.25), True)
    assert ran.count(0.2) == len(PICTURES)


def test_a_setting_that_is_behind_on_every_picture_stops_and_its_score_is_how_far(told):
    trials, roots, ran = told
    roots |= {0.1: [0.1, 0.5, 0.2, 0.3, 0.1, 0.4, 0.2, 0.3], 0.2: [0.7, 0.9, 0.8, 0.7, 0.8, 0.9, 0.7, 0.8]}
    best, _ = trials.score(method(0.1), PICTURES)
    assert trials.score(method(0.2), PICTURES) == (pytest.approx(best + 0.54), False)
    assert ran.count(0.2) == FEWEST


def test_pictures_run_in_one_batch_and_those_that_are_known_do_not(told):
    trials, roots, ran = told
    roots |= {0.1: [0.1 * place for place in range(8)]}
    first = trials.column(method(0.1), PICTURES[:3], lambda fidelity: fidelity.root)
    every = trials.column(method(0.1), PICTURES, lambda fidelity: fidelity.root)
    assert every.tolist() == pytest.approx(roots[0.1])
    assert first.tolist() == every[:3].tolist()
    assert len(ran) == trials.runs == 8


def test_answers_that_are_made_on_the_way_are_those_of_the_full_model():
    pictures, setting = pictures_of("llava", 6), method(1.0)
    with open_trials(LLAVA, pictures, 3) as trials:
        drift = trials.column(setting, pictures, lambda fidelity: fidelity.divergence)
        assert drift.max() < 1e-5
        for about in pictures:
            for target, alone in zip(trials.targets[about.key], answered(LLAVA, about, 3), strict=True):
                assert target.ids == alone.ids
                for first, other in zip(target.likeliest, alone.likeliest, strict=True):
                    torch.testing.assert_close(torch.tensor(first.logs), torch.tensor(other.logs), atol=2e-5, rtol=0)


def test_what_was_tried_is_found_again(tmp_path, monkeypatch):
    with open_trials(LLAVA, PICTURES, 3, state=tmp_path / "state", origin="a model") as trials:
        found = list(trials.outcomes(method(0.5), PICTURES))
    monkeypatch.setattr(trials_module, "outcomes", None)
    with open_trials(LLAVA, PICTURES, 3, state=tmp_path / "state", origin="a model") as again:
        assert list(again.outcomes(method(0.5), PICTURES)) == found
        assert again.runs == 0


def test_another_folder_is_refused_and_left_as_it_is(tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(fv.InputError, match="holds no run"), open_trials(LLAVA, PICTURES, 3, state=tmp_path):
        pass
    with (
        pytest.raises(fv.InputError, match="cannot be used"),
        open_trials(LLAVA, PICTURES, 3, state=tmp_path / "mine.json"),
    ):
        pass
    assert (tmp_path / "mine.json").read_text() == "{}"
