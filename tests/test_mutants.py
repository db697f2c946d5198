"""The list of places to break on purpose follows the code."""

import pytest

from tests.mutants import MUTANTS, ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant[0]}: {mutant[2]}")
def test_a_place_to_break_is_there(mutant):
    file, old, new, tests = mutant
    assert old in (ROOT / "src" / "foveate" / file).read_text(encoding="utf-8")
    assert new != old
    assert all((ROOT / path).exists() for path in tests.split() if path.startswith("tests"))
