"""What is known to be wrong with the page, as in tests/found; here, where it is served already."""

import json

import pytest

from foveate.app.answers import Reply
from foveate.app.cards import cards
from foveate.errors import BudgetError
from tests.app.test_page import browser, opened, pytestmark  # noqa: F401
from tests.found import line


@pytest.fixture(scope="module")
def boxes(served):
    """What the parts of the page say, by their labels."""
    parts = json.loads(served.get("/config")[2])["components"]
    return {part["props"].get("label"): part["props"] for part in parts}


@line("5.1", "Ask below the fold at 1400 x 900")
def test_ask_is_seen_without_scrolling(browser, served):  # noqa: F811
    for tab in opened(browser, served, viewport={"width": 1400, "height": 900}):
        button = tab.locator("#ask").bounding_box()
        assert button["y"] + button["height"] <= 900


@line("5.2", "times behind a look of somebody else stand beside whole ones")
def test_a_time_without_the_look_is_not_shown_as_one_with_it(vlm, subject):
    answer = vlm.ask(subject.medium, "What is this ?", max_new_tokens=2)
    assert "0.12 s to the first words" not in cards([Reply("v2drop", "", answer, 0.12, 0.34, reused=True)])


@line("5.3", "the slider's 5 % is below two of three default methods' floors", raises=BudgetError)
def test_every_default_method_meets_the_lowest_budget(vlm, boxes):
    for method in boxes["Methods"]["value"]:
        vlm.solve(method, 576, retention=boxes["Budget: % of vision tokens"]["minimum"] / 100)


@line("5.4", "a sixth method is ignored without a word")
def test_the_box_says_how_many_methods_it_takes(boxes):
    most = boxes["Methods"]["max_choices"]
    assert most is None or str(most) in boxes["Methods"]["info"].replace("five", "5")


@line("5.5", "28 names without a word each")
def test_every_method_in_the_box_has_a_word(boxes):
    assert [name for label, name in boxes["Methods"]["choices"] if label == name] == []
