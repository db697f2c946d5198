"""Guides and the site: what they leave out, and sentences that are read twice."""

import re
from functools import cache
from pathlib import Path

import pytest

from foveate.cli.generate import Generate
from tests.found import line, lines

ROOT = Path(__file__).parents[2]
GUIDES = "docs/guides/*.md"
FACTS = {
    "5.6 picks.suppress is in no guide": (GUIDES, r"\bsuppress\b"),
    "5.6 pick_by_crop is in no guide": (GUIDES, r"\bpick_by_crop\b"),
    "5.6 Counted is in no guide": (GUIDES, r"\bCounted\b"),
    "5.6 docs/pictures.py is in no guide": (GUIDES, r"\bdocs/pictures\.py\b"),
    "5.6 SMALLEST is in no guide": (GUIDES, r"\bSMALLEST\b"),
    "5.7 how a signal is added is in no guide": (GUIDES, r"\bcore/signals\.py\b"),
    "5.17 “batch” in the search misses the guide": ("docs/guides/batch.md", r"\A# .*[Bb]atch"),
    "5.18 no light and dark switch": ("mkdocs.yml", r"\btoggle:"),
}
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


@pytest.mark.parametrize("fact", lines(FACTS, raises=AssertionError))
def test_the_documents_say(fact):
    files, pattern = fact
    assert re.search(pattern, text_of(files)) is not None


@line("5.12", "V2Drop is the default where our own table has it 23rd of 34, at 64 tokens")
def test_the_default_method_is_in_the_upper_half_of_our_own_table():
    ranks = {name: int(rank) for rank, name in re.findall(r"(?m)^\| (\d+) \| `([^`]+)` \|", text_of(GUIDES))}
    assert 2 * ranks[Generate().method] <= len(ranks)


@line("5.16", "one API page of 111,000 pixels")
def test_the_reference_has_pages_that_can_be_read():
    assert text_of("docs/api.md").count("\n::: ") < 10


@pytest.mark.parametrize("sentence", SENTENCES)
def test_a_sentence_is_read_once(sentence):
    assert sentence not in text_of("src/**/*") + text_of("docs/**/*")
