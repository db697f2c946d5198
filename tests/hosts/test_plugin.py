"""What plug-ins share: versions that passed a check, columns of images, fields at some columns, words of a trace."""

import numpy as np
import pytest
import torch

from foveate.errors import ShapeError, UnsupportedError
from foveate.hosts import Checks, HostTrace, Kept, at_columns, images_of

ENGINE = Checks("engine", ("0.32", "1.2.3"))


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none yet"))


@pytest.mark.parametrize("version", ["0.32.0", "0.32", "1.2.3", "1.2.3.post1"])
def test_a_tried_version_needs_no_check(version):
    ENGINE.refuse([version, "model"], "check")


@pytest.mark.parametrize("version", ["0.33.0", "0.320", "1.2.30", "1.2"])
def test_another_version_needs_one_under_the_same_conditions(version):
    with pytest.raises(UnsupportedError, match="engine check MODEL"):
        ENGINE.refuse([version, "model"], "engine check MODEL")
    ENGINE.note([version, "other"])
    ENGINE.note([version, "model"])
    ENGINE.refuse([version, "model"], "check")
    with pytest.raises(UnsupportedError):
        ENGINE.refuse([version, "third"], "check")


def test_a_damaged_record_counts_as_none_and_is_written_anew():
    ENGINE.path.parent.mkdir(parents=True)
    ENGINE.path.write_text("null")
    ENGINE.note(["9", "model"])
    ENGINE.refuse(["9", "model"], "check")


def test_images_are_runs_of_columns_or_as_long_as_is_said():
    marks = torch.tensor([[0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    assert [image.tolist() for image in images_of(marks)] == [[[0, 1], [0, 2]], [[0, 4], [0, 5]], [[1, 0], [1, 1]]]
    assert [len(image) for image in images_of(marks, [4, 2])] == [4, 2]
    with pytest.raises(ShapeError, match="6"):
        images_of(marks, [4, 3])


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_a_field_is_cut_along_the_axis_of_its_columns(kind):
    positions = kind(np.arange(12).reshape(3, 1, 4))
    assert at_columns(positions, kind(np.array([0, 3])), -1)[1, 0].tolist() == [4, 7]
    assert at_columns(positions, None) is positions
    assert at_columns(None, kind(np.array([0]))) is None


def test_a_trace_says_how_many_tokens_entered():
    trace = HostTrace()
    trace.add([Kept(torch.zeros(2, 4), torch.tensor([0, 3]), torch.tensor([0, -1, -1, 1]))] * 2)
    assert str(trace).startswith("4 of 8 vision tokens of 2 images")
    assert [source.tolist() for source in trace.sources] == [[0, 3], [0, 3]]
