import torch
from hypothesis import given, strategies as st

from foveate.engine.forward import RowMap


def laid_out(rows, columns=10, origin=None):
    left = torch.zeros(len(rows), columns, dtype=torch.bool)
    for sample, row in enumerate(rows):
        left[sample, list(row)] = True
    return RowMap(left, [len(row) for row in rows], origin)


ROWS = st.lists(st.sets(st.integers(0, 9)).map(sorted), min_size=1, max_size=4).filter(lambda rows: any(rows))


@given(rows=ROWS)
def test_scatter_undoes_gather_and_touches_nothing_else(rows):
    layout = laid_out(rows)
    full = torch.randn(len(rows), 10, 3, generator=torch.Generator().manual_seed(0))
    gathered = layout.gather(full)
    assert gathered.shape[1] == max(map(len, rows))
    back = layout.scatter(full, gathered + 1)
    for sample, row in enumerate(rows):
        if row:
            assert torch.equal(gathered[sample, -len(row) :], full[sample, row])
            assert torch.equal(back[sample, row], full[sample, row] + 1)
        gone = sorted(set(range(10)) - set(row))
        assert torch.equal(back[sample, gone], full[sample, gone])


@given(rows=ROWS)
def test_pads_repeat_the_first_row_and_are_marked(rows):
    layout = laid_out(rows)
    longest = max(map(len, rows))
    if len({len(row) for row in rows}) == 1:
        assert layout.valid is None
        return
    for sample, row in enumerate(rows):
        pads = longest - len(row)
        assert layout.valid[sample].tolist() == [False] * pads + [True] * len(row)
        assert len(set(layout.columns[sample, :pads].tolist()) | set(row[:1])) <= 1
        assert (layout.unpruned(100)[sample, :pads] == -1).all()
        assert layout.unpruned(100)[sample, pads:].tolist() == [100 + column for column in row]


def test_one_pair_of_tables_serves_all_samples():
    layout = laid_out([[1, 3], [0, 2]])
    cos = torch.arange(5.0)[None, :, None]
    gathered, _ = layout.pick((cos, cos))
    assert gathered[:, :, 0].tolist() == [[1, 3], [0, 2]]


def test_rows_that_stand_for_others_have_their_positions():
    layout = laid_out([[0, 1, 2]], 3, torch.tensor([[0, 2, -1]]))
    cos = torch.arange(3.0)[None, :, None]
    assert layout.pick((cos, cos))[0][0, :, 0].tolist() == [0, 2, 0]


@given(rows=ROWS)
def test_a_columns_last_row_is_the_nearest_before_it(rows):
    layout = laid_out(rows)
    samples = torch.arange(len(rows)).repeat_interleave(10)
    columns = torch.arange(10).repeat(len(rows))
    for sample, column, last in zip(samples, columns, layout.last_rows(samples, columns), strict=True):
        if row := rows[sample]:
            assert last == max((one for one in row if one <= column), default=int(column))
