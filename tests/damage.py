"""Damage for hypothesis to draw: to bytes, and to values of JSON."""

from hypothesis import strategies as st

WORDS = ("", " ", "x", "None", "nan", "1e999", "-1", "٣", "\udcff", "\x1b[31m", "[red]", "a\nb", "..", "x" * 5000)
ODD_NUMBERS = (0, -1, 3.7, -0.0, 1e-320, 1e308, float("inf"), float("nan"), 2**31, 2**64, 10**400)
NUMBERS = st.sampled_from(ODD_NUMBERS) | st.floats() | st.integers(-5, 40)
TEXTS = st.sampled_from(WORDS) | st.text(max_size=20)
SCALARS = NUMBERS | TEXTS | st.sampled_from((None, True, False))
VALUES = SCALARS | st.lists(SCALARS, max_size=4) | st.dictionaries(TEXTS, SCALARS, max_size=3)


@st.composite
def damaged(draw, data):
    """These bytes with some of them changed, cut out, doubled or put in; often among the first hundred, the headers."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(data), 100)) | st.integers(0, len(data)))
        end = at + draw(st.sampled_from((1, 4, 64, 2**20)))
        part = draw(st.sampled_from((b"", b"\0" * 4, b"\xff" * 8, data[at:end] * 2)) | st.binary(max_size=8))
        data = data[:at] + part + data[draw(st.sampled_from((at, end))) :]
    return data


@st.composite
def altered(draw, value):
    """A value of JSON in which one thing, however deep, is replaced, left out or added."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 9)) == 9:
        return draw(VALUES)
    changed = value.copy()
    place = draw(st.sampled_from(list(value) if isinstance(value, dict) else range(len(value))))
    how = draw(st.sampled_from(("deeper", "deeper", "left out", "added")))
    if how == "left out":
        del changed[place]
    elif how == "added" and isinstance(value, dict):
        changed[draw(TEXTS)] = draw(VALUES)
    else:
        changed[place] = draw(altered(value[place]))
    return changed
