"""Guides and the site: what they leave out, and sentences that are read twice."""

import re
from functools import cache
from pathlib import Path

import pytest

from foveate.cli.generate import Generate
from foveate.contract.naming import RETENTION

ROOT = Path(__file__).parents[2]
GUIDES = "docs/guides/*.md"
FACTS = (
    (GUIDES, r"\bsuppress\b"),
    (GUIDES, r"\bpick_by_crop\b"),
    (GUIDES, r"\bCounted\b"),
    (GUIDES, r"\bdocs/pictures\.py\b"),
    (GUIDES, r"\bcore/signals\.py\b"),
    ("docs/guides/batch.md", r"\A# .*[Bb]atch"),
    ("mkdocs.yml", r"\btoggle:"),
)
SENTENCES = (
    "what a row is called, each by another name",
    "pictures to choose with prove nothing",
    "as wide as two cores have patience for",
    "Lots are drawn for each image by itself",
    "it tells of the latest prefill, whose ever that was",
)


@cache
def text_of(pattern):
    """What the files that a pattern names hold."""
    return "\n".join(path.read_text() for path in ROOT.glob(pattern) if path.suffix in (".md", ".yml", ".py", ".json"))


@pytest.mark.parametrize(("files", "pattern"), FACTS)
def test_the_documents_say(files, pattern):
    assert re.search(pattern, text_of(files)) is not None


def test_the_default_method_is_in_the_upper_half_of_our_own_table_at_the_budget_that_commands_give():
    rows = re.findall(r"(?m)^\| (\S+) \| ([\d.]+) ± [\d.]+ \|", text_of("docs/results.md"))
    better = [name for name, accuracy in rows if float(accuracy) > float(dict(rows)[Generate().method])]
    assert RETENTION == 192 / 576
    assert 2 * len(better) < len(rows) > 20


def test_the_reference_has_pages_that_can_be_read():
    assert text_of("docs/api.md").count("\n::: ") < 10


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_is_read_once(sentence):
    assert sentence not in text_of("src/**/*") + text_of("docs/**/*")
