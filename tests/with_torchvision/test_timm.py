"""Models with towers of timm, which needs torchvision: every proof of tests/derived."""

import importlib.util

import pytest

from tests.derived import test_derived as proofs
from tests.tiny_derived import CASES, TIMM

PROOFS = {
    "check": proofs.test_check_proves_it,
    "pictures": proofs.test_pictures_are_cut_as_hidden_columns,
    "attention": proofs.test_what_is_read_of_attention_is_what_the_model_says_of_itself,
    "films": proofs.test_films_are_cut_as_hidden_columns,
    "films_projector": proofs.test_films_behind_the_projector_are_as_hidden_columns,
    "projector": proofs.test_behind_the_projector_it_is_as_hidden_columns,
    "merged": proofs.test_tokens_that_are_joined_behind_the_projector_are_their_mean,
    "keep_all": proofs.test_keeping_all_is_the_untouched_model_bit_for_bit,
    "read": proofs.test_what_steps_do_not_read_is_as_hidden_columns,
    "batch": proofs.test_samples_of_a_batch_are_each_alone,
    "tower": proofs.test_what_is_read_of_the_tower_is_served_or_refused,
}


def of_timm(proof):
    """The models that a proof is for."""
    names = [name for name in TIMM if proofs.places(name) and ("films" not in proof or CASES[name]().video)]
    return [name for name in names if proof != "read" or name not in proofs.BORROWING]


def test_timm_is_here():
    assert importlib.util.find_spec("timm"), "There is no timm: run make setup."


@pytest.mark.parametrize(
    ("proof", "name"),
    [
        pytest.param(proof, *one.values, marks=one.marks)
        for proof in PROOFS
        for one in proofs.marked(proof, of_timm(proof))
    ],
)
def test_a_model_with_a_tower_of_timm_is_proved(proof, name):
    PROOFS[proof](name)
