"""What a stage may read: values that are equal where they ask for the same, and refuse options they have not."""

import pytest

from foveate.core.signals import (
    Attention,
    Cells,
    Cls,
    Columns,
    Features,
    Hidden,
    KeyNorms,
    Keys,
    Normed,
    Pivots,
    Products,
    Resource,
    Rotary,
    Text,
    TowerAttention,
    TowerKeys,
    ValueLikeness,
)
from foveate.errors import SettingError


@pytest.mark.parametrize(
    ("signal", "options", "word"),
    [
        (Attention, {"rows": "text"}, "'raters' or 'vision'; got 'text'"),
        (Attention, {"without_distance": 1}, "boolean; got 1"),
        (Attention, {"heads": "busiest", "over": "share"}, "over='share'"),
        (Attention, {"busiest": 14}, "needs heads='busiest'"),
        (Attention, {"heads": "busiest", "busiest": 0}, "busiest"),
        (TowerAttention, {"layer": 2}, "0 or 1"),
        (TowerAttention, {"block": -1}, "block"),
        (TowerAttention, {"block": 2, "layer": 1}, "either layer or block"),
        (TowerKeys, {"of": 24}, "needs a block"),
        (Pivots, {"count": 0}, "count .* got 0"),
        (Hidden, {"back": None}, "integer"),
        (Products, {"leave_out": (1,)}, "leave_out"),
        (Products, {"leave_out": (1, -1)}, "leave_out"),
        (ValueLikeness, {"skip": -1}, "skip"),
        (ValueLikeness, {"seeds": 0.0}, "seeds"),
        (Attention, {"rows": "vision", "sample": 0}, "sample"),
        (Attention, {"rows": "after", "sample": 2}, "only rows='vision'"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_the_right_ones(signal, options, word):
    with pytest.raises(SettingError, match=word):
        signal(**options)


def test_who_reads_text():
    clip = Resource("clip", of="text")
    textual = [Attention(rows=rows) for rows in ("last", "after", "null", "raters")]
    assert all(
        signal.reads_text
        for signal in (*textual, Pivots(), Columns(pivots=4), Products(), Text(), ValueLikeness(), clip)
    )
    tower = (TowerAttention(), TowerKeys(), Cls(), Features(), Resource("clip"))
    silent = (Attention(rows="vision"), Hidden(), Keys(), KeyNorms(), Normed(), Columns(), Cells(), Rotary(), *tower)
    assert not any(signal.reads_text for signal in silent)
