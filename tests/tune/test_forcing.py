import math

import pytest
import torch

from foveate.ask.first import First
from foveate.tuning.forcing import WORST, Target, _fidelity

LOGS = torch.log_softmax(torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]]), dim=-1)
TARGET = Target((0, 1), tuple(map(First.of, LOGS)))


def test_the_full_models_own_distribution_has_no_divergence():
    found = _fidelity(TARGET, LOGS)
    assert (found.agrees, found.divergence) == (True, pytest.approx(0, abs=1e-5))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_model_that_overflows_is_as_bad_as_can_be(value):
    found = _fidelity(TARGET, torch.full_like(LOGS, value))
    assert found.divergence == WORST
