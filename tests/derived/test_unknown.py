"""A model of a type that is on no list."""

import pytest

from foveate.families.derived import Derived, warn_of
from foveate.registry import family_for
from foveate.testing import check
from tests.derived.odd import DEPTH, odd_eyes


def test_a_type_that_nobody_knows_is_told_from_its_structure():
    odd = odd_eyes()
    warn_of.cache_clear()
    with pytest.warns(UserWarning, match=r"OddEyes \('odd_eyes'\) is not among the models.*`foveate check MODEL`"):
        family = family_for(odd.model)
    family_for(odd.model)  # a second warning would be an error
    assert isinstance(family, Derived)
    assert (family.core, family.text, len(family.layers)) == (odd.model.eyes, odd.model.eyes.speaker, DEPTH)
    assert family.merger is None
    assert family.recurrent == frozenset()
    assert family.renumbers
    checked = check(odd.model, odd.inputs)
    assert checked.passed, checked
    assert {row.verdict for row in checked.rows if "graph" not in row.name} == {"passed"}
    warn_of.cache_clear()
