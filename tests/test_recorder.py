import numpy as np
import pytest
import torch

from foveate.errors import UnsupportedError
from tests.recorder import Recorder, Sides

THERE = torch.arange(6.0)
DEVICE = THERE.device
READS = {
    "item": lambda: THERE.sum().item(),
    "bool": lambda: bool((THERE > 2).any()),
    "tolist": lambda: THERE.tolist(),
    "numpy": lambda: THERE.numpy(),
    "cpu": lambda: THERE.cpu(),
    "nonzero": lambda: THERE.nonzero(),
    "a mask as index": lambda: THERE[THERE > 2],
    "a mask to write at": lambda: THERE.clone().index_put_((THERE > 2,), THERE[:3]),
    "a number as index": lambda: THERE[THERE.argmax()],
    "unknown repeats": lambda: THERE.repeat_interleave(THERE.long()),
}
COPIES = {
    "values": lambda: torch.tensor([1.0, 2.0], device=DEVICE),
    "values beside a tensor": lambda: THERE.new_tensor([1.0]),
    "a constant that is pinned": lambda: torch.arange(3).to(DEVICE, non_blocking=True),
    "a list as index": lambda: THERE[[0, 1]],
    "a number at places": lambda: THERE.clone().__setitem__(THERE.long(), 0.0),
}
MIXES = {
    "sum": lambda: THERE + torch.arange(6),
    "of numpy": lambda: THERE + torch.from_numpy(np.arange(6)),
    "another's type": lambda: torch.arange(3).type_as(THERE),
    "index": lambda: THERE[torch.tensor([0, 1])],
    "write": lambda: THERE.clone().copy_(torch.arange(6)),
    "write a number": lambda: THERE.clone().__setitem__(0, torch.tensor(2.0)),
}
PLANTED = [
    *(("read", name, call) for name, call in READS.items()),
    *(("copy", name, call) for name, call in COPIES.items()),
    *(("mix", name, call) for name, call in MIXES.items()),
    ("draw", "random numbers", lambda: torch.rand(3, device=DEVICE)),
]
FREE = {
    "what the host keeps": lambda: (torch.arange(3) + torch.tensor(1)).nonzero().tolist(),
    "what is made where another of the host is": lambda: torch.zeros(2, device=torch.arange(2).device).tolist(),
    "a fill": lambda: torch.full((2,), 3.0, device=DEVICE),
    "a number of the host": lambda: THERE * torch.tensor(2.0),
    "a number where a mask says": lambda: THERE.clone().masked_fill_(THERE > 2, 0.0),
    "known repeats": lambda: THERE.repeat_interleave(THERE.long(), output_size=15),
    "another type": lambda: THERE.to(torch.int32),
    "nothing": lambda: torch.tensor([], device=DEVICE),
}


def crossings(call, inference=False):
    tape = Recorder(strict=False)
    with torch.inference_mode(inference):
        tape.record(lambda: (call(), ())[1])
    return tape.crossings


@pytest.mark.parametrize(("kind", "name", "call"), PLANTED, ids=lambda part: part if isinstance(part, str) else "")
def test_what_crosses_is_refused_and_listed_with_its_place(kind, name, call):
    with pytest.raises(UnsupportedError, match=kind):
        Recorder().record(lambda: [call()])
    (crossing,) = crossings(call)
    assert crossing.startswith(kind)
    assert "test_recorder.py" in crossing
    assert crossings(call, inference=True) == [crossing]


@pytest.mark.parametrize("name", FREE)
def test_what_stays_on_its_side_crosses_nothing(name):
    assert crossings(FREE[name]) == crossings(FREE[name], inference=True) == []


def test_what_was_sent_once_is_sent_again_the_second_time():
    ours = torch.arange(3)

    def twice():
        ours.to(DEVICE), ours.to(DEVICE)

    with Sides():
        ours = torch.arange(3)
        assert len(crossings(twice)) == 2
        sent = ours.to(DEVICE)
        assert crossings(lambda: sent + THERE[:3]) == []


def test_what_was_on_the_host_before_the_call_is_known_where_sides_are_followed():
    before = torch.arange(6)
    with Sides():
        followed, numbers = torch.arange(6), torch.from_numpy(np.arange(6))
        assert crossings(lambda: THERE + before) == []
        assert len(crossings(lambda: [THERE + followed, THERE + numbers])) == 2
    assert torch.from_numpy.__module__ == "torch"


def work(x, written):
    """Views, writes into views and into what was there, kernels that write into a tensor, and a fill."""
    rows = x.view(2, 3)
    rows[0].mul_(2)
    total = torch.zeros(3, 2, device=x.device)
    total.T[1] = rows[1]
    total = torch.cat((total.flatten(), x.new_full((2,), 7.0)))
    torch.add(x[:2], 1, out=total[-2:])
    written.scatter_(0, x.argsort()[:1], 5.0)
    return total, rows[:, 1], torch.sort(x, descending=True).values


def replayed(inference=False):
    x, written = torch.tensor([3.0, 1, 2, 6, 5, 4]), torch.zeros(6)
    tape = Recorder()
    with torch.inference_mode(inference):
        outputs = tape.record(lambda: work(x, written))
    return tape, x, written, outputs


@pytest.mark.parametrize("inference", [False, True])
def test_a_replay_is_a_run_on_the_numbers_that_are_there_now(inference):
    tape, x, written, outputs = replayed(inference)
    for numbers in ([9.0, 8, 7, 1, 2, 3], [0.0, 1, -2, 3, -4, 5]):
        x.copy_(torch.tensor(numbers))
        before, fresh = written.clone(), torch.tensor(numbers)
        tape.replay()
        wanted = work(fresh, before)
        assert torch.equal(x, fresh)
        assert torch.equal(written, before)
        assert all(torch.equal(*pair) for pair in zip(outputs, wanted, strict=True))


def test_what_is_no_output_is_overwritten_by_a_replay():
    kept = []

    def call():
        kept.extend([THERE * 2, THERE.long() + 1, THERE > 7, THERE.to(torch.uint8) + 1])
        return [kept[0] + 1]

    tape = Recorder()
    (output,) = tape.record(call)
    assert torch.equal(kept[0], THERE * 2)
    tape.replay()
    assert torch.equal(output, THERE * 2 + 1)
    assert kept[0].isnan().all()
    assert (kept[1] == -1).all()
    assert kept[2].all()
    assert (kept[3] == 255).all()
    assert torch.equal(THERE, torch.arange(6.0))


def test_what_the_host_keeps_is_no_part_of_a_replay():
    kept = []
    tape = Recorder()
    tape.record(lambda: (kept.append(torch.arange(3)), [THERE + 1])[1])
    kept[0].add_(1)
    tape.replay()
    assert kept[0].tolist() == [1, 2, 3]


def test_what_was_only_listed_is_not_replayed():
    tape = Recorder(strict=False)
    tape.record(lambda: [torch.tensor([1.0], device=DEVICE)])
    with pytest.raises(UnsupportedError, match="copy"):
        tape.replay()


def test_who_asks_while_it_records_is_told_of_a_capture():
    told, ask = [], torch.cuda.is_current_stream_capturing
    Recorder().record(lambda: (told.append(torch.cuda.is_current_stream_capturing()), ())[1])
    assert told == [True]
    assert torch.cuda.is_current_stream_capturing is ask
