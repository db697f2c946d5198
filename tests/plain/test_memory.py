"""How much memory may still be taken, read from a machine's and a container's own files."""

import pytest

from foveate.errors import InputError
from foveate.plain import memory
from foveate.plain.memory import available, check_room

GIB = 2**30


def groups(folder, line, files):
    """A tree of control groups, and the file that says in which of them this process is."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{content}\n")
    (own := folder / "own").write_text(f"{line}\n")
    return memory._containers(folder, own)


def test_a_container_leaves_its_limit_less_what_is_used(tmp_path):
    files = {"memory.max": 3 * GIB, "memory.current": 2 * GIB, "memory.stat": f"anon 5\ninactive_file {GIB // 2}"}
    assert groups(tmp_path, "0::/", files) == 1.5 * GIB
    assert groups(tmp_path, "0::/docker/1a2b", files) == 1.5 * GIB  # which it may not see


def test_of_groups_inside_each_other_the_tightest_counts(tmp_path):
    files = {
        "user/job/memory.max": "max",
        "user/job/memory.current": GIB,
        "user/memory.max": 4 * GIB,
        "user/memory.current": 3 * GIB,
        "memory.max": 8 * GIB,
        "memory.current": 3 * GIB,
    }
    assert groups(tmp_path, "0::/user/job", files) == GIB


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("", {}),
        ("0::/", {}),
        ("no groups at all", {}),
        ("0::/../outside", {"memory.current": 1}),
        ("0::/", {"memory.max": "max", "memory.current": 5}),
    ],
)
def test_without_a_limit_there_is_none(tmp_path, line, files):
    assert groups(tmp_path, line, files) == float("inf")


def test_the_memory_of_this_machine_is_known():
    assert 2**20 < available() < 2**50


def test_what_does_not_fit_is_refused_with_both_sizes(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 100.0 * 2**20)
    check_room("Ten frames take", 100 * 2**20, "Take fewer.")
    with pytest.raises(InputError) as refused:
        check_room("Ten frames take", 2.5 * GIB, "Take fewer.")
    assert str(refused.value) == (
        "Ten frames take about 2.5 GiB of memory, and 0.1 GiB are available here. Take fewer."
    )
