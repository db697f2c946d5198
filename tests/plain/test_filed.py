"""Records in files come back as they were, and a file that says more, less or something else is refused."""

from dataclasses import dataclass

import pytest

from foveate.errors import InputError
from foveate.plain.filed import read, save, values_of


@dataclass(frozen=True)
class Part:
    share: float


@dataclass(frozen=True)
class Record:
    name: str
    parts: tuple[Part, ...]


RECORD = Record("a", (Part(0.5), Part(0.25)))


def test_a_record_comes_back_as_it_was():
    values = {"format": "1", **values_of(RECORD)}
    assert values["parts"] == [{"share": 0.5}, {"share": 0.25}]
    assert read(Record, values, "This file") == RECORD


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": "a", "parts": [], "more": 1}, "key more"),
        ({"name": "a", "parts": [{"share": 0.5, "more": 1}]}, "key more"),
        ({"name": "a"}, "damaged: parts"),
        ({"name": "a", "parts": [{"share": "much"}]}, r"damaged: parts\.0\.share"),
    ],
)
def test_other_values_are_refused(values, says):
    with pytest.raises(InputError, match=f"This file.*{says}"):
        read(Record, values, "This file")


def test_a_file_is_overwritten_only_where_that_is_asked_for(tmp_path):
    path = tmp_path / "record.json"
    save(path, values_of(RECORD))
    with pytest.raises(InputError, match="exists already"):
        save(path, {})
    save(path, {"b": 1}, force=True)
    assert path.read_text() == '{\n  "b": 1\n}\n'
