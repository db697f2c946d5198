"""The note of the rows in hand: what it says after a crash, and that it stops no run."""

import faulthandler
import os

import pytest

from foveate.batch.in_hand import InHand

CHUNKS = [[3, 4, 6], [8]]


def name_of(chunk):
    return f"{chunk[0]} {chunk[-1]}"


@pytest.fixture
def handler(monkeypatch):
    """What is done with Python's handler of crashes, in the place of it: pytest has its own."""
    done = []
    monkeypatch.setattr(faulthandler, "is_enabled", lambda: False)
    monkeypatch.setattr(faulthandler, "enable", lambda file, all_threads: done.append(file))
    monkeypatch.setattr(faulthandler, "disable", lambda: done.append("disabled"))
    return done


def test_the_rows_in_hand_and_a_crash_are_read_back(tmp_path, handler):
    crashes = InHand(tmp_path).following(CHUNKS, name_of)
    for chunk, rows in zip(CHUNKS, ["3 6", "8 8"], strict=True):
        assert next(crashes) is chunk
        assert InHand(tmp_path).crashed is None  # killed
        handler[0].write(b"Fatal Python error: Segmentation fault\n")
        assert InHand(tmp_path).crashed == rows
    assert next(crashes, None) is None
    assert handler[1:] == ["disabled"]
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_gives_the_handler_back(tmp_path, handler):
    crashes = InHand(tmp_path).following(CHUNKS, name_of)
    next(crashes)
    crashes.close()
    assert handler[1:] == ["disabled"]
    assert handler[0].closed
    assert InHand(tmp_path).crashed is None


def test_where_nothing_can_be_noted_chunks_come_all_the_same(tmp_path, handler, monkeypatch):
    assert list(InHand(tmp_path / "nowhere").following(CHUNKS, name_of)) == CHUNKS
    assert handler == []
    with monkeypatch.context() as patch:
        patch.setattr(faulthandler, "is_enabled", lambda: True)
        assert list(InHand(tmp_path).following(CHUNKS, name_of)) == CHUNKS
    assert handler == []
    crashes = InHand(tmp_path)
    os.symlink("/dev/full", tmp_path / ".in-hand")
    assert list(crashes.following(CHUNKS, name_of)) == CHUNKS
    assert handler[1:] == ["disabled"]
