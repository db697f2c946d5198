"""Models with towers of timm, which needs torchvision: every proof of tests/derived."""

import importlib.util

import pytest

from tests.derived import test_derived as proofs
from tests.tiny_derived import CASES, TIMM

PROOFS = {
    "check": proofs.test_check_proves_it,
    "pictures": proofs.test_pictures_are_cut_as_hidden_columns,
    "films": proofs.test_films_are_cut_as_hidden_columns,
    "projector": proofs.test_behind_the_projector_it_is_as_hidden_columns,
    "read": proofs.test_what_steps_do_not_read_is_as_hidden_columns,
    "batch": proofs.test_samples_of_a_batch_are_each_alone,
    "tower": proofs.test_what_is_read_of_the_tower_is_served_or_refused,
}


def test_timm_is_here():
    assert importlib.util.find_spec("timm"), "There is no timm: run make setup."


@pytest.mark.parametrize("proof", PROOFS)
@pytest.mark.parametrize("name", [name for name in TIMM if proofs.places(name)])
def test_a_tower_of_timm_changes_nothing(name, proof):
    if proof == "films" and CASES[name]().video is None:
        return
    PROOFS[proof](name)
