"""The rows of lists say what the classes say."""

from typing import Any

import pytest

from foveate.cli.catalogue import method_rows
from foveate.contract.settings import Share
from foveate.methods.uniform import Uniform


@pytest.fixture(scope="module")
def methods():
    return {row["name"]: row for row in method_rows()}


class Odd(Uniform):
    """Has settings that JSON does not know."""

    name = "odd"
    needed: Share
    inner: Any = Uniform(layers=(2,), keep=(0.5,))


def test_every_setting_has_a_meaning(methods):
    for name, row in methods.items():
        assert all(row["meanings"].values()), name


def test_settings_say_in_words_what_they_take(methods):
    types = methods["v2drop"]["types"]
    assert types["layers"] == "whole numbers or None"
    assert types["metric"] == "l2, l1, cosine or relative"
    assert types["reverse"] == "true or false"
