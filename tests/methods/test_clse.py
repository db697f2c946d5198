import math

import pytest
import torch

import foveate as fv
from foveate.core.grid import high_pass
from foveate.methods.clse import CLSE, evolution
from tests.models import batch, tiny

EXAMPLES = [CLSE(layers=(1, 3), keep=(0.6, 0.3)), CLSE(retention=0.5, kv=False)]
SMALLEST = CLSE(layers=(1, 3), keep=(0.3, 0.0))


def cells_of(rows, columns, frame=0):
    return torch.tensor([(frame, row, column) for row in range(rows) for column in range(columns)])


@pytest.mark.parametrize(("frequency", "factor"), [(0, 0.0), (1, 0.2934), (2, 0.7506), (3, 0.9561), (9, 1.0)])
def test_waves_are_damped_by_the_factors_of_the_spec(frequency, factor):
    """A plane wave on 24 x 24 keeps its form, and its size falls to 1 − exp(−f² / 2.88)."""
    across = torch.arange(24.0).expand(24, 24)
    for wave in (across, across.T):
        values = torch.cos(2 * math.pi * frequency * wave / 24).flatten()
        score = high_pass(torch.stack((values, 3 * values), dim=1), ((24, 24),))
        torch.testing.assert_close(score, 2 * factor * values.abs(), atol=2e-4, rtol=1e-3)


def test_grids_of_any_size_are_transformed_by_themselves():
    rng = torch.Generator().manual_seed(0)
    for grid in ((1, 1), (1, 7), (5, 2), (3, 3)):
        assert high_pass(torch.randn(math.prod(grid), 4, generator=rng), (grid,)).isfinite().all()
    # A view of 2 x 3 and a tile of 2 x 2, newlines behind its rows: each alone, one mean over both.
    hidden, before = torch.randn(2, 12, 1100, generator=rng)  # more channels than one block
    none = torch.full((1, 3), -1)
    tile = cells_of(2, 2, frame=1)
    cells = torch.cat((cells_of(2, 3), tile[:2], none, tile[2:], none))
    got = evolution(hidden, before, cells, ((2, 3), (2, 2)))
    assert got[[8, 11]].tolist() == [0.5, 0.5]
    view, where = slice(0, 6), [6, 7, 9, 10]
    u = [torch.cat((high_pass(h[view], ((2, 3),)), high_pass(h[where], ((2, 2),)))) for h in (before, hidden)]
    change = ((u[1] - u[0]).abs() / (u[0].mean() + u[0] + 1e-6)).clamp(max=1)
    wanted = torch.sigmoid((change - change.mean()) / (change.std() + 1e-6) / 0.1)
    torch.testing.assert_close(got[[*range(6), *where]], wanted)


def test_where_nothing_changes_attention_alone_decides():
    hidden = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    assert evolution(hidden, hidden, cells_of(3, 3), ((3, 3),)).tolist() == [0.5] * 9
    assert evolution(hidden[:1], hidden[1:2], cells_of(1, 1), ((1, 1),)).tolist() == [0.5]


def test_behind_a_method_that_drops_before_layer_1_it_is_refused():
    model = tiny("llava")
    with (
        pytest.raises(fv.UnsupportedError, match="whole"),
        fv.drop(model, fv.Uniform(layers=(0,), keep=(0.9,), scope="image") + CLSE()),
        torch.no_grad(),
    ):
        model(**batch("llava", ["tit"]))
