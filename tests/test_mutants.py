"""Places to break are drawn from the code as it is."""

import ast

import pytest

from tests.mutants import broken, draw, functions, marked


@pytest.fixture(scope="module")
def drawn():
    return draw(40, seed=1)


def test_every_room_has_a_place(drawn):
    assert {room for room, _, _ in drawn} == set(functions())


def test_a_seed_draws_the_same_again(drawn):
    assert draw(40, seed=1) == drawn
    assert draw(40, seed=2) != drawn


def test_places_are_drawn_from_the_folders_and_files_that_are_named():
    of = ["batch", "engine/extensions/replays", "registry.py"]
    keys = [key for _, key, _ in draw(20, seed=1, of=of)]
    assert {key.split(":")[0].rpartition(".")[0] for key in keys} == {"batch", "engine.extensions.replays", ""}


def test_a_break_changes_the_code(drawn):
    for _, key, place in drawn:
        path, source, said = broken(key, place)
        assert ast.dump(ast.parse(source)) != ast.dump(ast.parse(path.read_text(encoding="utf-8"))), (key, said)


def test_a_place_says_that_it_is_reached(drawn):
    files = marked([(key, place) for _, key, place in drawn], "reached({})")
    calls = [node for text in files.values() for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    numbers = [call.args[0].value for call in calls if ast.unparse(call.func) == "reached"]
    assert sorted(numbers) == list(range(len(drawn)))
