"""Attaching and detaching survive an interrupt at any point: whatever line it comes at, the model is as it was."""

import contextlib
import sys

import pytest

import foveate as fv
from foveate.core import patching
from foveate.engine import session
from tests.invariants.settings import EVERYTHING
from tests.invariants.test_restore import state
from tests.models import tiny

WATCHED = {patching.__file__, session.__file__, contextlib.__file__}
METHOD = fv.MustDrop(pruning_layers=(2,)) + fv.FinalKV()  # reads text and numbers anew: everything is put on
FAR = 100_000


class Interrupt:
    """Raises KeyboardInterrupt at the n-th point that Python comes to while a method goes on or off."""

    def __init__(self, point, opcodes):
        self.left = point
        self._event = "opcode" if opcodes else "line"

    def __enter__(self):
        sys.settrace(self.enter)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def enter(self, frame, event, argument):
        code = frame.f_code
        if code.co_filename not in WATCHED and not code.co_name.startswith("register_forward"):
            return None
        frame.f_trace_opcodes = self._event == "opcode"
        return self.come_to

    def come_to(self, frame, event, argument):
        self.left -= event == self._event
        if self.left == 0:
            self.left = -1
            raise KeyboardInterrupt
        return self.come_to


def with_context(model, interrupt):
    """Inside and out again."""
    with interrupt, fv.drop(model, METHOD):
        pass


def with_apply(model, interrupt):
    """On and off, by hand; interrupted, off once more if it is still on."""
    try:
        with interrupt:
            fv.apply(model, METHOD)
            fv.remove(model)
    except KeyboardInterrupt:
        with contextlib.suppress(fv.SessionError):
            fv.remove(model)
        raise


WAYS = [(with_context, 0), (with_apply, 29), *[(with_apply, 0), (with_context, 7)] * EVERYTHING]


@pytest.mark.parametrize(("way", "step"), WAYS)
def test_an_interrupt_at_any_point_leaves_the_model_as_it_was(way, step):
    """At every line, or at every so many of the opcodes, which are ten times as many."""
    opcodes = step > 0
    model = tiny("llava")
    before = state(model)
    counter = Interrupt(FAR, opcodes)
    way(model, counter)
    points = FAR - counter.left
    assert points > 300
    for point in range(1, points + 1, step or 1):
        with contextlib.suppress(KeyboardInterrupt):
            way(model, Interrupt(point, opcodes))
        assert state(model) == before, f"interrupted at point {point} of {points}"
