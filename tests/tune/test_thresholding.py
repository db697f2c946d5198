import numpy as np
import pytest

from foveate.tune.thresholding import _kept, _Seen, _threshold


def seen_of(scores, share):
    return [_Seen(np.sort(row)[::-1], round(share * len(row))) for row in scores]


@pytest.mark.parametrize("power", [1.0, 30.0])  # as distances, and as attention far off: down to 1e-60
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_mean_over_pictures_is_that_of_the_schedule(power, share):
    chance = np.random.default_rng(0)
    scores = (chance.random((20, 100)) * chance.uniform(0.5, 1.5, (20, 1)) / 1.5) ** power
    seen = seen_of(scores, share)
    threshold = _threshold(seen, 0.3)
    counts = [_kept(one, threshold, 0.3) for one in seen]
    assert np.mean(counts) == pytest.approx(100 * share, rel=0.01)
    assert len(set(counts)) > 1
    assert threshold not in scores


def test_scores_that_are_all_alike_keep_what_the_bounds_allow():
    seen = seen_of(np.ones((3, 10)), 0.5)
    assert [_kept(one, _threshold(seen, 0.2), 0.2) for one in seen] in ([4] * 3, [6] * 3)
