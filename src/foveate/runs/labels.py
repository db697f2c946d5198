"""The true answer beside a question: one text, or several of which any counts."""

import re
from collections.abc import Mapping, Sequence

from foveate.errors import InputError
from foveate.plain.upstream import brief

LABELS = ("label", "labels", "answer", "answers")
"""Columns with the true answer, or with several; the first that is there is taken."""


def labels_in(record: Mapping[str, object], names: Sequence[str] = LABELS) -> tuple[str, ...]:
    """The true answers of a sample; none where it has no label. An empty text is no label.

    Raises:
        InputError: If one is neither a text nor a number.
    """
    for name in names:
        value = record.get(name)
        several = value if isinstance(value, list) else [value]
        labels = [plain({name: label}, name) for label in several]
        if any(labels):
            return tuple(label for label in labels if label)
    return ()


def plain(record: Mapping[str, object], name: str) -> str:
    """The text or number that a record has under a name, as a text; an empty one where it has none.

    Raises:
        InputError: If it is anything else.
    """
    value = record.get(name)
    if value is None or value != value:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{name} is a text or a number; got {brief(value)}. Write it as a text.")
    if isinstance(value, float) and value.is_integer():  # of whole numbers with a gap, tables make floats
        value = int(value)
    return str(value).strip()


def as_said(answer: str) -> str:
    """An answer but for case, a full stop, space around it and the zeros behind a whole number's point."""
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", answer.strip().removesuffix(".").casefold())
