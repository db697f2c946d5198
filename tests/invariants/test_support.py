"""What `foveate models` tells of a family is what happens; refused pairs are counted, not skipped."""

import pytest

from tests.invariants.settings import SUPPORT
from tests.models import FAMILIES
from tests.support import PAGE, find, page


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_told_of_a_family_is_what_happens(family, record_property):
    found = find(family)
    told = SUPPORT.get(family)
    assert found == told, f"{family} has changed: python -m tests.support writes what works on it"
    for modality, methods in found.items():
        for method, answer in methods.items():
            if isinstance(answer, str):
                assert len(answer) > 40  # a reason
                record_property("refused", f"{method} on {family} ({modality}): {answer}")


def test_the_page_about_models_says_the_same():
    assert PAGE.read_text() == page(SUPPORT), "python -m tests.support writes it"
