"""Damage: to bytes, and to values of JSON."""

import json
import reprlib
import struct
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

__all__ = ["WORDS", "altered", "damaged", "odd_number", "odd_text", "odd_value", "short", "text_of"]

FEW = (1, 1, 1, 2, 3, 8)
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


# -- bytes ----------------------------------------------------------------------------------------------------


def damaged(rng: Random, data: bytes, others: Sequence[bytes] = (b"",)) -> bytes:
    """These bytes with some damage; `others` are files to splice in."""
    for _ in range(rng.choice(FEW)):
        data = rng.choice(MUTATIONS)(rng, data, rng.choice(others))
    return data


def _place(rng: Random, data: bytes) -> int:
    """Somewhere in the bytes; as often among the first hundred, where headers are."""
    return rng.randrange(max(1, min(len(data), rng.choice((100, len(data))))))


def _part(rng: Random, data: bytes) -> tuple[int, int]:
    start = _place(rng, data)
    return start, start + rng.choice((1, 4, 16, 64, 400, len(data)))


def _flip(rng: Random, data: bytes, _: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 4, 32))):
        if changed:
            changed[_place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _field(rng: Random, data: bytes, _: bytes) -> bytes:
    """A number at the edge of its range, in either order of bytes."""
    form = rng.choice("BHHIIQ")
    most = 256 ** struct.calcsize(form) - 1
    put = struct.pack(rng.choice("<>") + form, rng.choice((*EDGES, rng.randrange(2**64))) & most)
    at = _place(rng, data)
    return data[:at] + put + data[at + len(put) :]


def _end(rng: Random, data: bytes, _: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _cut(rng: Random, data: bytes, _: bytes) -> bytes:
    start, stop = _part(rng, data)
    return data[:start] + data[stop:]


def _repeat(rng: Random, data: bytes, _: bytes) -> bytes:
    start, stop = _part(rng, data)
    part = data[start:stop] * rng.choice((1, 2, 50))
    return data[:stop] + part[: 2**20] + data[stop:]


def _insert(rng: Random, data: bytes, _: bytes) -> bytes:
    at = _place(rng, data)
    put = rng.choice(
        (rng.randbytes(rng.choice((1, 4, 100))), b"\0" * 64, b"\xff" * 16, b"[" * 3000, b"\n", b"\xe2\x80\xa8")
    )
    return data[:at] + put + data[at:]


def _blank(rng: Random, data: bytes, _: bytes) -> bytes:
    start, stop = _part(rng, data)
    stop = min(stop, len(data))
    return data[:start] + rng.choice((b"\0", b"\xff")) * (stop - start) + data[stop:]


def _splice(rng: Random, data: bytes, other: bytes) -> bytes:
    return data[: _place(rng, data)] + other[_place(rng, other) :]


def _swap(rng: Random, data: bytes, _: bytes) -> bytes:
    first, second = sorted((_place(rng, data), _place(rng, data)))
    size = min(16, second - first)
    middle = data[first + size : second]
    return data[:first] + data[second : second + size] + middle + data[first : first + size] + data[second + size :]


MUTATIONS: tuple[Callable[[Random, bytes, bytes], bytes], ...] = (
    _flip, _flip, _field, _field, _end, _cut, _repeat, _insert, _blank, _splice, _swap,
)  # fmt: skip


# -- values ---------------------------------------------------------------------------------------------------

NUMBERS = (
    0, -1, 1, 2, 3, 3.7, 0.5, 1.5, -0.0, 1e-320, 1e308, 1e999, -1e999, float("nan"), 2**31, 2**63, -(2**63), 2**64,
    10**30, 10**400, 1e22, 0.1 + 0.2,
)  # fmt: skip
WORDS = (
    "", " ", "\t", "x", "None", "null", "nan", "inf", "-1", "3.7", "1e999", "0x10", "1_000", "٣", "²", "true",
    "é", "e\u0301", "\u2028", "\u202e", "\ufeff", "\x07", "\x1b[31m", "\udcff", "\ud800", "😀", "[red]", "[/]",
    "{}", "a\nb", "%s", "{0}", "$HOME", "~", "..", "/", "v2drop", "x" * 5000,
)  # fmt: skip


def odd_number(rng: Random) -> Any:
    """A number that few settings take."""
    return rng.choice((*NUMBERS, rng.randrange(-5, 40), rng.random(), rng.gauss(0, 100)))


def odd_text(rng: Random) -> str:
    """A text with something odd in it."""
    return rng.choice(
        (*WORDS, rng.choice(WORDS) + rng.choice(WORDS), "".join(map(chr, rng.sample(range(1, 0xD7FF), 5))))
    )


def odd_value(rng: Random, depth: int = 3) -> Any:
    """A value of JSON's types: mostly a lone one, at times nested."""
    if depth and rng.random() < 0.35:
        size = rng.choice((0, 1, 2, 3, 4, 40))
        parts = [odd_value(rng, depth - 1) for _ in range(size)]
        if rng.random() < 0.3:
            return {odd_text(rng): part for part in parts}
        return parts
    if rng.random() < 0.01:
        return _nested(rng.choice((30, 400, 3000)))
    return rng.choice((odd_number(rng), odd_number(rng), odd_text(rng), True, False, None, {}, []))


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def altered(rng: Random, value: Any) -> Any:
    """A value of JSON in which a few things are replaced, left out, added or renamed."""
    for _ in range(rng.choice(FEW)):
        value = _altered(rng, value)
    return value


def _altered(rng: Random, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
        return odd_value(rng)
    changed: Any = dict(value) if isinstance(value, dict) else list(value)
    place: Any = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    how = rng.random()
    if how < 0.15:
        del changed[place]
    elif how < 0.3 and isinstance(changed, dict):
        changed[odd_text(rng)] = changed.pop(place)
    elif how < 0.4 and isinstance(changed, list):
        changed *= 2
    elif how < 0.5 and isinstance(changed, dict):
        changed[odd_text(rng)] = odd_value(rng)
    else:
        changed[place] = _altered(rng, changed[place])
    return changed


def text_of(value: Any) -> bytes:
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
