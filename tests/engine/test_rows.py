"""The table of rows: what a cut does to every column of it, by laws, and one merge by hand."""

import pytest
import torch
from hypothesis import given, strategies as st

import foveate as fv
from foveate.core.cut import Cut
from foveate.engine.media_tokens import MediaTokens
from foveate.engine.prompt_samples import read_samples
from foveate.engine.rows import Decision, Rows
from foveate.families.vision import PictureLayout
from tests.invariants.settings import EXAMPLES
from tests.models import batch, tiny

SPAN = 10


def ints(*values):
    return torch.tensor(values)


def entering(vision, text=None, span=SPAN):
    """The table of samples with one image each, whose tokens are in these columns; `text` are columns of text."""
    is_vision, live = torch.zeros(2, len(vision), span, dtype=torch.bool)
    for sample, columns in enumerate(vision):
        is_vision[sample, list(columns)] = live[sample, list(columns)] = True
        live[sample, list(text[sample] if text else ())] = True
    media = [MediaTokens(len(columns), PictureLayout) for columns in vision if len(columns)]
    return Rows.entering(read_samples([(is_vision, media)], live), span, torch.device("cpu"))


def places(rows):
    """The place of each row among those of its sample; of a pad 0."""
    longest = rows.read.shape[1]
    first = torch.tensor([[longest - length] for length in rows.lengths])
    return (torch.arange(longest) - first).clamp(min=0)


def kept(table, rows):
    """Keep these vision rows of each sample, by their indices."""
    counts = table.counts
    cuts = [Cut.take(torch.tensor(own, dtype=torch.int64), count) for own, count in zip(rows, counts, strict=True)]
    after, _ = table.keep({member: Decision(cut, (int(cut.count),)) for member, cut in enumerate(cuts)})
    return after


def merged(table, sources, parents, notes=None):
    """Merge the rows of each sample into rows that stand for these of them (−1: none)."""
    decisions = {}
    for member, (source, parent) in enumerate(zip(sources, parents, strict=True)):
        rows = torch.arange(len(source), dtype=torch.float32)[:, None]
        cut = Cut.merge(torch.tensor(source), rows, torch.tensor(parent), notes or {})
        decisions[member] = Decision(cut, (len(source),))
    return table.keep(decisions)


def laid_out(rows, span=SPAN):
    """As many vision tokens as columns in each sample, of which these are left."""
    return kept(entering([range(span)] * len(rows), span=span), rows).laid_out()


PARTS = st.lists(st.sets(st.integers(0, 9)).map(sorted), min_size=1, max_size=4).filter(lambda rows: any(rows))


@st.composite
def two_cuts(draw):
    """The indices that two cuts keep, one behind the other, of samples of ten tokens."""
    first = draw(PARTS)
    subsets = [sorted(draw(st.sets(st.sampled_from(range(len(row)))))) if row else [] for row in first]
    return (first, subsets) if any(subsets) else (first, [list(range(len(row))) for row in first])


def assert_equal(one, other):
    for name in ("home", "read", "source", "valid"):
        values, others = getattr(one, name), getattr(other, name)
        same = values is others if values is None or others is None else torch.equal(values, others)
        real = slice(None) if one.valid is None else one.valid
        assert same or (name == "home" and torch.equal(values[real], others[real])), name
    known = [(each.lengths, each.counts, each.sizes, each.disorder) for each in (one, other)]
    assert known[0] == known[1]


# -- laws -------------------------------------------------------------------------------------------------------------


@given(rows=PARTS)
def test_scatter_undoes_gather_and_touches_nothing_else(rows):
    table = laid_out(rows)
    full = torch.randn(len(rows), SPAN, 3, generator=torch.Generator().manual_seed(0))
    gathered = table.gather(full)
    assert gathered.shape[1] == max(map(len, rows))
    written = gathered + 1
    if table.valid is not None:
        written[~table.valid] = float("nan")  # what a pad became is never written
    back = table.scatter(full, written)
    for sample, row in enumerate(rows):
        if row:
            assert torch.equal(gathered[sample, -len(row) :], full[sample, row])
            assert torch.equal(back[sample, row], full[sample, row] + 1)
        gone = sorted(set(range(SPAN)) - set(row))
        assert torch.equal(back[sample, gone], full[sample, gone])


@given(rows=PARTS)
def test_pads_repeat_the_first_row_and_are_marked(rows):
    table = laid_out(rows)
    longest = max(map(len, rows))
    if len({len(row) for row in rows}) == 1:
        assert table.valid is None
        return
    for sample, row in enumerate(rows):
        pads = table.pads(sample)
        assert pads == longest - len(row)
        assert table.valid[sample].tolist() == [False] * pads + [True] * len(row)
        assert len(set(table.read[sample, :pads].tolist()) | set(row[:1])) <= 1
        assert (table.unpruned(100)[sample, :pads] == -1).all()
        assert table.unpruned(100)[sample, pads:].tolist() == [100 + column for column in row]
        assert len(set(table.home[sample].tolist())) == longest  # each pad has a column of its own


@given(cuts=two_cuts())
def test_to_keep_twice_is_to_keep_once_what_both_keep(cuts):
    first, second = cuts
    twice = kept(laid_out(first), second)
    once = laid_out([[row[place] for place in places] for row, places in zip(first, second, strict=True)])
    assert_equal(twice, once)
    for one, other in zip((*twice.columns, *twice.tokens), (*once.columns, *once.tokens), strict=True):
        assert torch.equal(one, other)


@given(cuts=two_cuts())
def test_a_copy_that_is_cut_is_the_copy_of_what_is_cut(cuts):
    first, second = cuts
    table = laid_out(first)
    table.put("mine", table.read * 2)
    table.put("places", places)
    copy = kept(table.map(torch.clone), second)
    assert_equal(copy, kept(table, second).map(torch.clone))
    assert torch.equal(copy.at("places"), kept(table, second).map(torch.clone).at("places"))
    real = torch.ones_like(copy.read, dtype=torch.bool) if copy.valid is None else copy.valid
    assert torch.equal(copy.at("mine")[real], copy.read[real] * 2)


@given(cuts=two_cuts(), merges=st.booleans())
def test_what_is_added_follows_its_row_through_cuts_and_merges(cuts, merges):
    table = entering([range(SPAN)] * len(cuts[0]))
    table.put("tokens", torch.arange(1, SPAN + 1).expand(len(cuts[0]), -1))
    for member in table.members:
        table.put_note(member, "tokens", torch.arange(1, SPAN + 1))
    for rows in cuts:
        if merges and all(rows):  # the other way round, the first of none
            source = [[-1, *row[::-1][1:]] for row in rows]
            parents = [[0] * count for count in table.counts]
            table, _ = merged(table, source, parents)
        else:
            table = kept(table, rows)
    table = table.laid_out()
    for member in table.members:
        expected = (table.tokens[member] + 1).tolist()
        assert table.at("tokens")[member, table.pads(member) :].tolist() == expected
        assert table.note(member, "tokens").tolist() == expected
        positions = table.source[member, table.pads(member) :].tolist()
        assert positions == table.positions(member).tolist()


@given(cuts=two_cuts(), merges=st.booleans())
def test_a_column_that_is_a_function_has_the_values_of_the_rows_that_it_was_put_on(cuts, merges):
    table = after = laid_out(cuts[0])
    table.put("places", places, stays=True)
    assert torch.equal(table.at("places"), places(table))
    if merges and all(cuts[1]):
        after, _ = merged(table, [row[::-1] for row in cuts[1]], [[0] * count for count in table.counts])
    else:
        after = kept(table, cuts[1])
    numbers = after.laid_out().at("places")
    for member in after.members:
        rank = {token: place for place, token in enumerate(table.tokens[member].tolist())}
        own = numbers[member, after.pads(member) :].tolist()
        assert own == [rank[token] for token in after.tokens[member].tolist()]


@given(cuts=two_cuts())
def test_rows_that_last_are_those_of_the_tokens_left_at_the_end(cuts):
    first = laid_out(cuts[0])
    last = kept(first, cuts[1])
    marks = first.that_last(last)
    for member, row in enumerate(cuts[0]):
        stays = {row[place] for place in cuts[1][member]}
        assert marks[member, first.pads(member) :].tolist() == [column in stays for column in row]
        assert not marks[member, : first.pads(member)].any()


@given(rows=PARTS)
def test_a_columns_last_row_is_the_nearest_before_it(rows):
    table = laid_out(rows)
    samples, columns = torch.arange(len(rows)).repeat_interleave(SPAN), torch.arange(SPAN).repeat(len(rows))
    for sample, column, last in zip(samples, columns, table.last_rows(samples, columns), strict=True):
        if row := rows[sample]:
            assert last == max((one for one in row if one <= column), default=int(column))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_column_that_somebody_adds_survives_every_cut_of_every_method(name, monkeypatch):
    tables = []

    def watched(table, decisions, keep=Rows.keep):
        if "mine" not in table.table:
            table.put("mine", table.laid_out().read + 1)
        after, merges = keep(table, decisions)
        tables.append(after.laid_out())
        return after, merges

    monkeypatch.setattr(Rows, "keep", watched)
    with fv.drop(tiny("llava"), EXAMPLES[name]), torch.no_grad():
        tiny("llava")(**batch("llava", ["titt", "tit"]))
    for table in tables:
        values, real = table.at("mine"), table.read >= 0 if table.valid is None else table.valid
        assert torch.equal(values[real], table.source[real] + 1)  # 0 for a row that stands for no token


# -- by hand ----------------------------------------------------------------------------------------------------------


def test_text_stays_and_padding_goes_with_the_first_cut():
    table = entering([[3, 4], [2, 3, 4]], text=[[2, 5], [0, 1, 5]], span=6)
    assert not table.dropped
    assert table.laid_out().read.tolist() == [[2, 2, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    after = kept(table, [[1], [0, 2]])
    assert after.read.tolist() == [[2, 2, 2, 4, 5], [0, 1, 2, 4, 5]]
    assert (after.lengths, after.counts) == ((3, 5), (1, 2))
    assert kept(after, [[0], [0, 1]]) is after


@pytest.mark.parametrize(("columns", "stored"), [((3, 4, 5), 3), ((3, 5, 6), 5)])
def test_a_merge_is_stored_where_its_image_or_its_run_begins(columns, stored):
    """Three tokens, the first dropped and the last joined to the second, in one run of columns and in two."""
    table = entering([columns], text=[[0, 4]] if stored == 5 else None)
    after, (merge,) = merged(table, [[1]], [[-1, 0, 0]], {"size": ints(2)})
    assert (merge.rows.tolist(), merge.came_from.tolist(), merge.stored.tolist()) == ([[0.0]], [columns[1]], [stored])
    assert (after.tokens[0].tolist(), after.columns[0].tolist()) == ([1], [stored])
    assert after.steps[0][0].went.tolist() == [-1, 0, 0]
    assert (after.sizes, after.note(0, "size").tolist()) == (((1,),), [2])
    assert after.source[0].tolist() == [columns[1] if column == stored else column for column in after.read[0].tolist()]


def test_one_pair_of_tables_serves_all_samples():
    table = laid_out([[1, 3], [0, 2]])
    cos = torch.arange(10.0)[None, :, None]
    gathered, _ = table.pick((cos, cos))
    assert gathered[:, :, 0].tolist() == [[1, 3], [0, 2]]


def test_rows_that_stand_for_others_have_their_positions():
    table, _ = merged(entering([range(3)], span=3), [[0, 2, -1]], [[0, 0, 1]])
    cos = torch.arange(3.0)[None, :, None]
    assert table.pick((cos, cos))[0][0, :, 0].tolist() == [0, 2, 0]


def test_a_packed_stream_has_rows_of_others_and_no_pads():
    """Two requests in columns 0 to 3 and 5 to 8 of a stream of ten."""
    samples = entering([[1, 2], [6, 7]], text=[[0, 3], [5, 8]]).samples
    table = kept(Rows.entering(samples, SPAN, torch.device("cpu"), packed=True), [[1], []])
    assert table.read.tolist() == [[0, 2, 3, 4, 5, 8, 9]]
    assert table.valid is None
