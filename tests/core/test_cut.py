"""What becomes of the tokens that arrive: by hand, and one after the other."""

import pytest
import torch
from hypothesis import given, strategies as st

from foveate.core.cut import Cut
from foveate.errors import ShapeError


def ints(*values):
    return torch.tensor(values, dtype=torch.int64)


def test_a_mask_by_hand():
    cut = Cut.keep(torch.tensor([False, True, True, False, True]))
    assert isinstance(cut.count, torch.Tensor)
    assert int(cut.count) == 3
    assert cut.source.tolist() == [1, 2, 4, -1, -1]
    assert cut.parent.tolist() == [-1, 0, 1, -1, 2]
    assert (cut.arriving, cut.rows, cut.stays_whole) == (5, None, False)
    assert repr(cut) == "Cut.keep(5 to ?)"


def test_a_mask_of_which_the_host_knows_the_count():
    note = torch.arange(5)
    cut = Cut.keep(torch.tensor([False, True, True, False, True]), {"note": note}).first(3)
    assert (cut.count, cut.source.tolist(), cut.parent.tolist()) == (3, [1, 2, 4], [-1, 0, 1, -1, 2])
    assert cut.notes["note"].tolist() == [1, 2, 4]


def test_indices_by_hand_in_an_order_of_their_own():
    cut = Cut.take(ints(3, 0), 4)
    assert (cut.count, cut.source.tolist()) == (2, [3, 0])
    assert cut.parent.tolist() == [1, -1, -1, 0]
    assert cut.stays is None
    assert repr(cut) == "Cut.take(4 to 2)"


def test_a_merge_by_hand():
    """Four tokens arrive, the first is dropped, the last joins the third, and a CLS comes in front."""
    rows = torch.tensor([[9.0], [1.0], [2.5]])
    cut = Cut.merge(ints(-1, 1, 2), rows, ints(-1, 1, 2, 2))
    assert (cut.count, cut.arriving) == (3, 4)
    assert cut.source.tolist() == [-1, 1, 2]
    assert cut.parent.tolist() == [-1, 1, 2, 2]
    assert torch.equal(cut.rows, rows)
    assert repr(cut) == "Cut.merge(4 to 3)"


def test_a_cut_is_never_changed():
    cut = Cut.take(ints(3, 0), 4, {"size": ints(1, 2)})
    for name in ("notes", "arriving", "count", "_source"):
        with pytest.raises(AttributeError):
            setattr(cut, name, None)
    assert (cut.parent.tolist(), cut.notes["size"].tolist()) == ([1, -1, -1, 0], [1, 2])
    more = cut.with_owner("a")
    assert {name: note.tolist() for name, note in more.notes.items()} == {"a size": [1, 2]}
    assert [*more.with_notes({"b": ints(5, 6)}).notes] == ["b"]
    assert [*cut.notes] == ["size"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cut.keep(torch.ones(3)), r"\(tokens,\) bool tensor; got \(3,\) torch.float32"),
        (lambda: Cut.keep(torch.ones(1, 3, dtype=torch.bool)), r"got \(1, 3\)"),
        (lambda: Cut.take(torch.ones(3), 4), r"int64 tensor of at most 4 indices; got \(3,\) torch.float32"),
        (lambda: Cut.take(ints(0, 1, 2), 2), "at most 2 indices"),
        (lambda: Cut.merge(ints(0), torch.ones(2, 1), ints(0, 0)), "2 rows"),
        (lambda: Cut.merge(ints(0), torch.ones(1, 1), torch.zeros(2)), "source and parent as int64"),
        (lambda: Cut.join(ints(1, 2), ints(-1, 0, 1, 1)).with_rows(torch.zeros(3, 1)), "3 rows"),
    ],
)
def test_what_is_no_cut_is_refused(make, message):
    with pytest.raises(ShapeError, match=message):
        make()


# -- one after the other ---------------------------------------------------------------------------------------


def applied(cut, rows):
    """The rows a cut leaves of those that arrived, in a loop over rows."""
    if cut.rows is not None:
        return cut.rows.tolist()
    return [rows[token] for token in cut.source.tolist()]


def traced(first, second):
    """The source of every row and the parent of every token after both cuts, in loops."""
    source = [-1 if at < 0 else first.source.tolist()[at] for at in second.source.tolist()]
    parent = [-1 if at < 0 else second.parent.tolist()[at] for at in first.parent.tolist()]
    return source, parent


@st.composite
def cuts(draw, arriving):
    """Any cut of so many tokens whose count the host knows."""
    kind = draw(st.sampled_from(["keep", "take", "merge", "stay"]))
    note = torch.tensor([draw(st.integers(0, 99)) for _ in range(arriving)], dtype=torch.int64)
    if kind == "stay":
        return Cut.stay(arriving, {"note": note} if draw(st.booleans()) else {})
    if kind == "keep":
        stays = torch.tensor([draw(st.booleans()) for _ in range(arriving)], dtype=torch.bool)
        return Cut.keep(stays, {"note": note}).first(int(stays.sum()))
    tokens = draw(st.permutations(range(arriving)))
    source = torch.tensor(tokens[: draw(st.integers(0, arriving))], dtype=torch.int64)
    if kind == "take":
        return Cut.take(source, arriving, {"note": note[source]})
    parent = [draw(st.integers(-1, len(source) - 1)) for _ in range(arriving)]
    for row, token in enumerate(source.tolist()):
        parent[token] = row
    rows = torch.tensor([[float(draw(st.integers(0, 99)))] for _ in source]).view(-1, 1)
    return Cut.merge(source, rows, torch.tensor(parent, dtype=torch.int64), {"note": note[source]})


@given(data=st.data(), arriving=st.integers(0, 8))
def test_two_cuts_in_one_are_one_after_the_other(data, arriving):
    first = data.draw(cuts(arriving))
    second = data.draw(cuts(first.count))
    both = first.then(second)
    source, parent = traced(first, second)
    assert (both.arriving, both.count) == (arriving, second.count)
    assert both.source.tolist() == source
    assert both.parent.tolist() == parent
    rows = [[float(100 + token)] for token in range(arriving)]
    assert applied(both, rows) == applied(second, applied(first, rows))


@given(data=st.data(), arriving=st.integers(0, 8))
def test_notes_go_with_their_rows_and_the_later_ones_win(data, arriving):
    first = data.draw(cuts(arriving))
    second = data.draw(cuts(first.count))
    both = first.then(second)
    wanted = {}
    if "note" in first.notes:
        wanted = first.notes["note"][second.source]
    if "note" in second.notes:
        wanted = second.notes["note"]
    assert ("note" in both.notes) == ("note" in first.notes or "note" in second.notes)
    if "note" in both.notes:
        assert both.notes["note"].tolist() == wanted.tolist()


# -- shapes do not depend on values ----------------------------------------------------------------------------


def test_a_row_without_a_token_has_notes_of_zeros():
    first = Cut.take(ints(2, 0), 3, {"key": ints(5, 7)})
    both = first.then(Cut.merge(ints(-1, 1), torch.zeros(2, 1), ints(0, 1)))
    assert both.notes["key"].tolist() == [0, 7]


def test_a_merge_whose_rows_are_worked_out_later():
    joined = Cut.join(ints(1, 2), ints(-1, 0, 1, 1), {"sizes": ints(1, 2)})
    assert (joined.arriving, joined.count, joined.rows, joined.stays_whole) == (4, 2, None, False)
    rows = torch.tensor([[1.0], [2.5]])
    cut = joined.to(torch.device("cpu")).with_rows(rows)
    assert (cut.source.tolist(), cut.parent.tolist()) == ([1, 2], [-1, 0, 1, 1])
    assert cut.rows is rows
    assert cut.notes["sizes"].tolist() == [1, 2]
