"""Damage: to bytes, and to values of JSON."""

import json
import reprlib
import struct
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

__all__ = ["EDGES", "FEW", "NUMBERS", "TEXTS", "VALUES", "altered", "damaged", "damaged_json", "json_of", "short"]

FEW = st.sampled_from((1, 1, 1, 2, 3, 8))
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HARMS = ("end", "flip", "flip", "field", "field", "cut", "repeat", "insert", "blank", "splice", "swap")
INSERTED = (b"\n", b"\0" * 64, b"\xff" * 16, b"[" * 3000, b"\xe2\x80\xa8")
SIZES = st.sampled_from((1, 4, 16, 64, 400, 2**20))


@st.composite
def damaged(draw: st.DrawFn, data: bytes, others: Sequence[bytes] = (b"",)) -> bytes:
    """These bytes with some damage; `others` are files to splice in."""
    for _ in range(draw(FEW)):
        at, size = draw(_place(data)), draw(SIZES)
        head, part, tail = data[:at], data[at : at + size], data[at + size :]
        match draw(st.sampled_from(HARMS)):
            case "end":
                data = data[: draw(st.integers(0, len(data)))]
            case "flip":
                changed = bytearray(data)
                for _ in range(draw(st.sampled_from((1, 1, 4, 32))) if data else 0):
                    changed[draw(_place(data))] ^= 1 << draw(st.integers(0, 7))
                data = bytes(changed)
            case "field":
                form = draw(st.sampled_from("BHIQ"))
                number = draw(st.sampled_from(EDGES) | st.integers(0, 2**64 - 1)) % 256 ** struct.calcsize(form)
                put = struct.pack(draw(st.sampled_from("<>")) + form, number)
                data = head + put + data[at + len(put) :]
            case "cut":
                data = head + tail
            case "repeat":
                data = head + (part * draw(st.sampled_from((2, 3, 51))))[: 2**20] + tail
            case "insert":
                data = head + draw(st.sampled_from(INSERTED) | st.binary(max_size=100)) + data[at:]
            case "blank":
                data = head + draw(st.sampled_from((b"\0", b"\xff"))) * len(part) + tail
            case "splice":
                other = draw(st.sampled_from(others))
                data = head + other[draw(_place(other)) :]
            case "swap":
                data = head + tail[:size] + part + tail[size:]
    return data


def _place(data: bytes) -> st.SearchStrategy[int]:
    """Somewhere in the bytes; as often among the first hundred, where headers are."""
    return st.integers(0, max(0, min(len(data), 100) - 1)) | st.integers(0, max(0, len(data) - 1))


# -- values ---------------------------------------------------------------------------------------------------

ODD_NUMBERS = (
    0, -1, 1, 2, 3, 3.7, 0.5, 1.5, -0.0, 1e-320, 1e308, 1e999, -1e999, float("nan"), 2**31, 2**63, -(2**63), 2**64,
    10**30, 10**400, 1e22, 0.1 + 0.2,
)  # fmt: skip
WORDS = (
    "", " ", "\t", "x", "None", "null", "nan", "inf", "-1", "3.7", "1e999", "0x10", "1_000", "٣", "²", "true",
    "é", "e\u0301", "\u2028", "\u202e", "\ufeff", "\x07", "\x1b[31m", "\udcff", "\ud800", "😀", "[red]", "[/]",
    "{}", "a\nb", "%s", "{0}", "$HOME", "~", "..", "/", "v2drop", "x" * 5000,
)  # fmt: skip
NUMBERS: st.SearchStrategy[Any] = st.sampled_from(ODD_NUMBERS) | st.floats() | st.integers(-5, 40)
"""Numbers that few settings take."""
TEXTS = st.sampled_from(WORDS) | st.tuples(st.sampled_from(WORDS), st.sampled_from(WORDS)).map("".join) | st.text()
"""Texts with something odd in them."""
SCALARS = NUMBERS | TEXTS | st.sampled_from((None, True, False))


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


VALUES: st.SearchStrategy[Any] = (
    SCALARS
    | st.recursive(
        SCALARS, lambda part: st.lists(part, max_size=4) | st.dictionaries(TEXTS, part, max_size=4), max_leaves=8
    )
    | st.lists(SCALARS, max_size=40)
    | st.sampled_from((1, 30, 3000)).map(_nested)
)
"""Values of JSON's types: lone ones, at times nested."""


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """A value of JSON in which a few things are replaced, left out, added or renamed."""
    for _ in range(draw(FEW)):
        value = _altered(draw, value)
    return value


def _altered(draw: st.DrawFn, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 9)) == 9:
        return draw(VALUES)
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    place: Any = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    how = draw(st.sampled_from(("left out", "deeper", "deeper", "deeper", "renamed", "added")))
    if how == "left out":
        del changed[place]
    elif how == "deeper":
        changed[place] = _altered(draw, changed[place])
    elif isinstance(changed, list):
        changed *= 2
    elif how == "renamed":
        changed[draw(TEXTS)] = changed.pop(place)
    else:
        changed[draw(TEXTS)] = draw(VALUES)
    return changed


def damaged_json(data: bytes) -> st.SearchStrategy[bytes]:
    """A file of JSON, damaged as bytes or with other values in it."""
    return altered(json.loads(data)).map(json_of) | damaged(data)


def json_of(value: Any) -> bytes:
    """A value as a file of JSON; what is no JSON is written as Python does."""
    try:
        return json.dumps(value).encode()
    except RecursionError:
        return b"[" * 5000 + b"]" * 5000


def short(value: Any) -> str:
    """A value's repr, cut where it is long or deep."""
    shortener = reprlib.Repr()
    shortener.maxlevel, shortener.maxstring, shortener.maxother = 4, 80, 80
    try:
        return shortener.repr(value)
    except ValueError:  # Python writes no integer of so many digits
        return "a value with a very long number"
