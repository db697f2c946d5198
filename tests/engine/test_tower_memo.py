"""A tower looks once at what it was shown before, and again where anything of the call differs."""

import torch
from transformers.modeling_outputs import BaseModelOutput

from foveate.engine.tower_memo import KEPT, TowerMemo


class Tower:
    """Counts the pictures of each look."""

    def __init__(self):
        self.looks = []

    def __call__(self, pixels, *sizes, **options):
        self.looks.append(len(pixels))
        return BaseModelOutput(last_hidden_state=2 * pixels.flatten(1), hidden_states=(pixels.flatten(1), None))


def pictures(*values):
    return torch.stack([torch.full((3, 4, 4), float(value)) for value in values])


def test_rows_that_are_alike_are_looked_at_once_and_come_back_in_their_places():
    tower, memo = Tower(), TowerMemo()
    shown = memo(tower, pictures(5, 1, 5, 5, 1))
    assert tower.looks == [2]
    assert shown.last_hidden_state[:, 0].tolist() == [10, 2, 10, 10, 2]
    assert shown.hidden_states[0][:, 0].tolist() == [5, 1, 5, 5, 1]
    assert shown.hidden_states[1] is None
    again = memo(tower, pictures(1, 5))
    assert tower.looks == [2]
    assert again.last_hidden_state[:, 0].tolist() == [2, 10]


def test_other_pictures_and_other_options_are_looked_at():
    tower, memo = Tower(), TowerMemo()
    memo(tower, pictures(1), output_hidden_states=True)
    memo(tower, pictures(2), output_hidden_states=True)
    memo(tower, pictures(1), output_hidden_states=False)
    memo(tower, pictures(1).double(), output_hidden_states=True)
    memo(tower, pictures(1), output_hidden_states=True, use_cache=False)  # which towers do not have
    assert tower.looks == [1, 1, 1, 1]


def test_a_tower_that_is_given_sizes_gives_again_what_it_gave_to_the_same_call():
    tower, memo = Tower(), TowerMemo()
    sizes = torch.tensor([[4, 4], [4, 2]])
    first = memo(tower, pictures(1, 1), image_sizes=sizes)
    assert memo(tower, pictures(1, 1), image_sizes=sizes.clone()) is first
    memo(tower, pictures(1, 1), image_sizes=sizes.flip(0))
    memo(tower, pictures(1, 2), image_sizes=sizes)
    assert tower.looks == [2, 2, 2]


def test_only_the_last_calls_are_kept():
    tower, memo = Tower(), TowerMemo()
    for value in range(KEPT + 1):
        memo(tower, pictures(value))
    assert len(memo.calls) == KEPT
    memo(tower, pictures(KEPT))
    assert len(tower.looks) == KEPT + 1
    memo(tower, pictures(0))
    assert len(tower.looks) == KEPT + 2


def test_rows_of_several_calls_come_together():
    tower, memo = Tower(), TowerMemo()
    memo(tower, pictures(1, 2))
    memo(tower, pictures(3, 4))
    shown = memo(tower, pictures(4, 1, 4))
    assert tower.looks == [2, 2]
    assert shown.last_hidden_state[:, 0].tolist() == [8, 2, 8]
    assert shown.hidden_states[0][:, 0].tolist() == [4, 1, 4]
    assert shown.hidden_states[1] is None
    memo(tower, pictures(4, 5))
    assert tower.looks == [2, 2, 2]


def test_rows_that_differ_in_one_number_are_not_alike():
    tower, memo = Tower(), TowerMemo()
    first = torch.zeros(1, 3, 64, 64)
    other = first.clone()
    other[0, 1, 1, 1] = 1
    memo(tower, first)
    assert memo(tower, other).last_hidden_state.sum() == 2
