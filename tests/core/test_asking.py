import pytest
import torch

from foveate.core.asking import answers


def asks(*numbers, ends):
    """Yields these numbers one by one, and answers them and how it ends."""
    got = []
    for number in numbers:
        got.append((yield torch.tensor(number)))
    return [*got, ends]


def test_each_is_sent_its_own_numbers_and_plain_values_stay():
    found = answers([asks(3, 5, ends="a"), "b", asks(ends="c"), None, asks(4, ends="d")])
    assert found == [[3, 5, "a"], "b", ["c"], None, [4, "d"]]
    assert all(type(number) is int for number in (*found[0][:2], found[4][0]))
    assert answers([]) == []


@pytest.mark.parametrize("images", [1, 2, 7])
def test_the_numbers_of_all_are_read_together(images, monkeypatch):
    reads, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(tensor.shape) or tolist(tensor))
    assert answers(asks(at, 2 * at, ends=None) for at in range(images)) == [[at, 2 * at, None] for at in range(images)]
    assert reads == [(images,), (images,)]


def test_an_error_in_one_is_raised():
    def fails():
        yield torch.tensor(1)
        raise ValueError("not this picture")

    with pytest.raises(ValueError, match="not this picture"):
        answers([asks(1, ends=None), fails()])
