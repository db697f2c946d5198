"""The list of places to break on purpose follows the code."""

import ast

import pytest

from tests.breaking import Gone, broken
from tests.mutants import MUTANTS, ROOT


@pytest.mark.parametrize(("key", "place", "tests"), MUTANTS, ids=lambda value: value if ":" in value else "")
def test_a_mutant_changes_a_function_that_is_there(key, place, tests):
    path, source, _ = broken(key, place)
    assert ast.dump(ast.parse(source)) != ast.dump(ast.parse(path.read_text(encoding="utf-8")))
    assert [file for file in tests.split() if not (ROOT / file).exists()] == []


def test_no_mutant_is_there_twice():
    assert len({mutant[:2] for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize(
    ("key", "place", "message"),
    [
        ("engine.nowhere:run", "drop 1", "there is no foveate/engine/nowhere.py"),
        ("core.rank:PrunedLayer.top", "drop 1", r"there is no PrunedLayer\.top"),
        ("core.rank:top", "drop 99", "it has 2 places for 'drop'"),
    ],
)
def test_a_function_or_place_that_is_gone_is_named(key, place, message):
    with pytest.raises(Gone, match=message):
        broken(key, place)
