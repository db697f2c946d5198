"""Records in files come back as they were, and a file that says more, less or something else is refused."""

from dataclasses import dataclass

import pytest

from foveate.errors import InputError
from foveate.plain import filed


@dataclass(frozen=True)
class Part:
    share: float


@dataclass(frozen=True)
class Record(filed.Record):
    FORMAT = "parts 1"
    KIND = "list of parts"
    SUMMARY = "title"

    name: str
    parts: tuple[Part, ...]

    @property
    def title(self):
        return f"{self.name}: {len(self.parts)} parts"


RECORD = Record("a", (Part(0.5), Part(0.25)))


def test_a_record_comes_back_as_it_was():
    values = RECORD.to_dict()
    assert values["parts"] == [{"share": 0.5}, {"share": 0.25}]
    assert (values["format"], values["title"]) == ("parts 1", "a: 2 parts")
    assert Record.from_dict(values) == RECORD


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
    with pytest.raises(InputError, match=f"This list of parts.*{says}"):
        Record.from_dict({"format": "parts 1", **values})


def test_another_format_is_refused():
    with pytest.raises(InputError, match="not a list of parts"):
        Record.from_dict(RECORD.to_dict() | {"format": "parts 2"})
