import pytest
import torch

from foveate.core.gather import take_along

SHAPES = [
    ((2, 5, 3), (2, 4, 1), 1),
    ((1, 5, 3), (2, 4, 1), 1),
    ((3, 2, 5, 3), (1, 2, 4, 1), -2),
    ((2, 3, 5), (2, 1, 4), 2),
]


@pytest.mark.parametrize(("shape", "places", "dim"), SHAPES, ids=str)
def test_rows_are_those_of_torch(shape, places, dim):
    rng = torch.Generator().manual_seed(0)
    tensor, wanted = torch.randn(shape, generator=rng), torch.randint(5, places, generator=rng)
    assert torch.equal(take_along(tensor, wanted, dim), torch.take_along_dim(tensor, wanted, dim=dim))
