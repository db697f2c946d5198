"""A batch is read in every form in which engines hand one over, or refused in one line."""

import numpy as np
import pytest
import torch

import foveate as fv
from foveate.batch.columns import columns_of

COLUMNS = {"image": ["a.png", "b.png"], "id": [1, 2]}
ROWS = [{"image": "a.png", "id": 1}, {"image": "b.png", "id": 2}]


class Polars:
    """The part of polars' frames that is read, and what they lack beside pandas' frames: `items`."""

    def get_columns(self):
        return [*COLUMNS]

    def to_dict(self, *, as_series=True):
        assert not as_series
        return COLUMNS


class Exporting:
    """Any other library's table that speaks Arrow."""

    def __arrow_c_stream__(self, requested_schema=None):
        return pytest.importorskip("pyarrow").table(COLUMNS).__arrow_c_stream__(requested_schema)


def tables():
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    table = pyarrow.table(COLUMNS)
    frame = pandas.DataFrame(COLUMNS, index=[7, 7])
    arrays = {name: np.array(values, dtype=object) for name, values in COLUMNS.items()}
    chunks = {name: pyarrow.array(values) for name, values in COLUMNS.items()}
    return [ROWS, arrays, chunks, table, table.to_batches()[0], frame, dict(frame.items()), Polars(), Exporting()]


def test_every_form_of_a_batch_has_the_same_columns():
    assert [columns_of(table) for table in tables()] == [COLUMNS] * 9
    assert columns_of([ROWS[0], {"id": 2}]) == {"image": ["a.png", None], "id": [1, 2]}
    assert columns_of([]) == columns_of({}) == {}


def test_two_columns_of_one_name_are_refused():
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    names = ["image", "id", "image"]
    arrays = [pyarrow.array([name]) for name in names]
    for twice in (pandas.DataFrame([names], columns=names), pyarrow.Table.from_arrays(arrays, names)):
        with pytest.raises(fv.InputError, match="two columns 'image'"):
            columns_of(twice)


PICTURE = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    "value", ["a.png", b"a", {"path": "a.png"}, None, 5, {"a.png"}, PICTURE, PICTURE[0], np.array("a.png")]
)
def test_one_row_in_the_place_of_a_batch_is_refused(value):
    with pytest.raises(fv.SettingError, match="a value for each row"):
        columns_of({"image": value})


@pytest.mark.parametrize("batch", ["a.png", ["a.png"], None, PICTURE, iter(ROWS)])
def test_what_is_no_batch_is_refused(batch):
    with pytest.raises(fv.SettingError, match="A batch must be"):
        columns_of(batch)


def test_one_picture_in_the_place_of_a_column_is_refused():
    for value in (torch.zeros(3, 8, 8), pytest.importorskip("pandas").DataFrame({"a": [1]})):
        with pytest.raises(fv.SettingError, match="'image'"):
            columns_of({"image": value})


def test_columns_that_python_cannot_hold_or_of_other_lengths_are_refused_by_name():
    pyarrow = pytest.importorskip("pyarrow")
    far = pyarrow.array([253_402_300_800], pyarrow.timestamp("s"))
    with pytest.raises(fv.InputError, match="'taken'"):
        columns_of(pyarrow.table({"image": ["a.png"], "taken": far}))
    with pytest.raises(fv.SettingError, match="length"):
        columns_of({"image": ["a"], "question": ["b", "c"]})
