"""What is known to be wrong, a strict xfail each: the change that mends one takes its mark away."""

import pytest


def line(number, words, raises=AssertionError):
    """The mark of a fault: its number in the list of what was found, in a few words, and how it shows."""
    return pytest.mark.xfail(strict=True, raises=raises, reason=f"found §{number}: {words}")
