import pytest

from foveate.tune.samples import grouped
from foveate.tune.timing import Timings
from tests.models import batch, tiny


def test_a_plan_takes_the_mean_of_what_its_layers_take():
    timings = Timings((1, 100, 500), (0.2, 0.4, 1.0))
    assert timings.share((500, 500), 500) == pytest.approx(1.0)
    assert timings.share((500, 100), 500) == pytest.approx(0.7)
    assert timings.share((300,), 500) == pytest.approx(0.7)  # between two counts
    assert timings.share((600, 600), 1000) == pytest.approx(0.7)  # a larger image, in proportion


def test_times_are_measured_from_one_token_to_all():
    model = tiny("llava")
    (about,) = grouped(model, [batch("llava", ["tit"])])
    timings = Timings.on(model, about.samples[0])
    assert timings.counts == (1, 2, 3, 6, 12, 19, 25)
    assert timings.shares[-1] == 1.0
    assert all(share > 0 for share in timings.shares)
