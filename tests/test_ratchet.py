"""The ratchet turns one way."""

import json

import pytest

from tests import ratchet

CODE = '''"""Text."""


class Cut:
    keep: float = 0.5  # a comment

    def run(self):
        raise ValueError(f"{self}")
'''


@pytest.fixture
def tree(tmp_path):
    """A small product, and a record of its figures."""
    file = tmp_path / "src" / "methods" / "cut.py"
    file.parent.mkdir(parents=True)
    file.write_text(CODE)
    record = tmp_path / "ratchet.json"
    record.write_text(json.dumps({**ratchet.figures(tmp_path), "raised because": []}))
    return file, record


def turn(tree, *arguments):
    file, record = tree
    code = ratchet.main(arguments, file.parents[2], record)
    return code, json.loads(record.read_text())


def test_what_counts(tree):
    product = turn(tree)[1]["product"]
    assert (product["files"], product["code lines"], product["raise statements"]) == (1, 4, 1)
    assert product["settings and flags"] == 1
    assert product["tokens"] == 3 + 5 + 6 + 4  # of the class, its field, its function and the raise without its text


def test_packing_does_not_help_and_comments_cost_nothing(tree):
    before = turn(tree)[1]
    tree[0].write_text(CODE.replace("# a comment", "# two\n    # comments").replace("\n        raise", " raise"))
    code, after = turn(tree)
    assert code == 0
    assert after["product"]["tokens"] == before["product"]["tokens"]


def test_less_is_written_down_and_more_is_refused(tree, capsys):
    tree[0].write_text("x = 1\n")
    code, less = turn(tree)
    assert (code, less["product"]["tokens"]) == (0, 3)
    tree[0].write_text("x = 1 + 1\n")
    assert turn(tree) == (1, less)
    assert "product: tokens rose" in capsys.readouterr().out


def test_more_with_a_reason_is_written_down(tree):
    tree[0].write_text(CODE + "x = 1\n")
    code, after = turn(tree, "--raise", "a reader asked")
    assert (code, after["raised because"][0]["reason"]) == (0, "a reader asked")
    assert turn(tree)[0] == 0
