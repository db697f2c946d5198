"""What a stage may read: values that are equal where they ask for the same, and refuse options they have not."""

import pytest

from foveate.core import signals
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
    ("make", "message"),
    [
        (
            lambda: Attention(rows="text"),
            r"Attention: rows must be one of 'last', 'after', 'but_last', 'null', 'raters', 'vision'; got 'text'",
        ),
        (lambda: Attention(layer="before"), "'ran', 'next'; got 'before'"),
        (lambda: Attention(heads="each"), "'mean', 'max', 'busiest'; got 'each'"),
        (lambda: Attention(heads="busiest", over="share"), "needs over='mean' or 'sum'.*got over='share'"),
        (lambda: Attention(heads="busiest", over="max"), "needs over='mean' or 'sum'.*got over='max'"),
        (lambda: Attention(heads="busiest", renormalise=True), "renormalise=False; got over='mean', renormalise=True"),
        (lambda: Attention(busiest=14), "needs heads='busiest'; got busiest=14, heads='mean'"),
        (lambda: Attention(heads="busiest", busiest=0), "1 or more, or None.*got busiest=0"),
        (lambda: Attention(heads="busiest", busiest=1.5), "a whole number.*got busiest=1.5"),
        (lambda: Attention(without_distance=1), "without_distance must be one of True, False; got 1"),
        (lambda: Attention(over="min"), "'mean', 'sum', 'max', 'share'; got 'min'"),
        (lambda: TowerAttention(by="text"), "'cls', 'patches'; got 'text'"),
        (lambda: TowerAttention(layer=2), "one of 0, 1; got 2"),
        (lambda: TowerKeys(layer=-1), "one of 0, 1; got -1"),
        (lambda: TowerKeys(heads="mean"), "'split', 'joined'; got 'mean'"),
        (lambda: TowerAttention(block=-1), "block must be a whole number, 0 or more, or None; got -1"),
        (lambda: TowerAttention(block=1.0), "block must be a whole number"),
        (lambda: TowerAttention(block=2, layer=1), "either layer or block; got layer=1 and block=2"),
        (lambda: TowerKeys(of=24), "of=24 needs a block below it; got block=None"),
        (lambda: TowerKeys(block=24, of=24), "of=24 needs a block below it; got block=24"),
        (lambda: Resource("clip", of="words"), "'features', 'text'; got 'words'"),
        (lambda: Pivots(count=0), "Pivots: count must be a whole number, 1 or more; got 0"),
    ],
)
def test_a_wrong_option_is_an_error_that_names_the_right_ones(make, message):
    with pytest.raises(SettingError, match=message):
        make()


def test_equal_signals_are_one():
    assert Attention(rows="after") == Attention(rows="after") != Attention(rows="after", over="max")
    assert len({Hidden(), Hidden(back=0), Hidden(back=1)}) == 2
    assert len({Keys(), TowerKeys(), TowerKeys(layer=1), TowerKeys(block=1), TowerKeys(heads="joined")}) == 5
    assert TowerKeys() != TowerAttention()


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


def test_every_signal_has_a_kind_that_a_view_calls_it_by():
    for name in set(signals.__all__) - {"Signal", "TowerSignal", "refuse_other_options"}:
        assert getattr(signals, name).kind.isidentifier()
