"""The device that is none is one to the counter of waits; in a process of its own, which learns of it for good."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import torch
from tests.bench.counting import count
from tests.bench import far
far.register()

def each(work):
    found = count(work, (), far.Far()).to_dict()["waits"]
    return [place.split(": ")[1] for place, times in found.items() for _ in range(times)]

x = far.FarTensor(torch.tensor([3, 0, 5]))
assert str(x.device) == "far:0"
assert each(lambda: x + 1) == []
assert each(lambda: x[torch.tensor([0, 2])]) == []
assert each(lambda: x.sum().item()) == ["aten._local_scalar_dense"]
assert each(lambda: bool((x > 2).any())) == ["aten._local_scalar_dense"]
assert each(lambda: x.tolist()) == ["aten._to_copy"]
assert each(lambda: x.nonzero()) == ["aten.nonzero"]
assert each(lambda: x[x > 0]) == ["aten.index.Tensor"]
assert each(lambda: x.cpu()) == ["aten._to_copy"]
assert each(lambda: x.repeat_interleave(x)) == ["aten.repeat_interleave.Tensor"]
assert each(lambda: x.repeat_interleave(x, output_size=8)) == []
assert each(lambda: torch.arange(3, device=x.device) + x) == []
assert each(lambda: torch.tensor([1, 2], device=x.device)) == []
with torch.no_grad(), far.Far():
    assert ((x * 2).cpu() == torch.tensor([6, 0, 10])).all()
place = next(iter(count(lambda: x.tolist(), (), far.Far()).waits))
assert place[0] == "<string>", place
print("as on an accelerator")
"""


def test_what_the_host_waits_for_is_seen():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout == "as on an accelerator\n", done.stderr[-2000:]
