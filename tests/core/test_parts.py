import torch

from foveate.core.parts import pick_by_crop


def test_each_crop_picks_its_share():
    values = torch.tensor([3.0, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8])

    def largest(tokens, count):
        return values[tokens].sort(descending=True, stable=True).indices[:count]

    grids = ((2, 2), (2, 4))  # crops 0 1 2 3, 4 5 8 9 and 6 7 10 11
    assert pick_by_crop(grids, values, 6, largest).tolist() == [0, 2, 4, 5, 7, 11]
    assert pick_by_crop(grids, values, 5, largest).tolist() == [0, 2, 4, 5, 11]  # 2, 2 and 1
    assert pick_by_crop(grids, values, 1, largest).tolist() == [2]  # two crops get nothing
    assert pick_by_crop((), values, 3, largest).tolist() == [5, 7, 11]


def test_a_batch_of_images_is_each_alone_and_crops_of_one_size_run_together():
    rows = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    calls = []

    def picked(rows):
        def largest(tokens, count):
            calls.append(count)
            return rows[tokens].sort(descending=True, stable=True).indices[:count]

        return pick_by_crop(((4, 4), (4, 8)), rows, 13, largest)

    together = torch.func.vmap(picked)(rows)
    assert calls == [5, 4]  # one crop of 5, two of 4
    assert torch.equal(together, torch.stack([picked(one) for one in rows]))
