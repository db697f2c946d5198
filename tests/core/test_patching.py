"""The patcher: what it changes is there while it is open and gone after, whenever an interrupt comes."""

import gc
import sys
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from torch import nn

from foveate.core import patching
from foveate.core.patching import Patcher


class Doubler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = "theirs"

    def forward(self, number: int) -> int:
        return 2 * number


def one_more(original: Callable[[int], int], number: int) -> int:
    return original(number) + 1


def ten_more(module: nn.Module, args: tuple[int, ...], output: int) -> int:
    return output + 10


def add_five(module: nn.Module, args: tuple[int, ...], kwargs: dict[str, Any]) -> Any:
    return (args[0] + 5,), kwargs


def patched(patches: Patcher, module: nn.Module) -> None:
    patches.wrap(module, "forward", one_more)
    patches.put(module, "config", "ours")
    patches.hook(module, "before", add_five, with_kwargs=True)
    patches.hook(module, "after", ten_more, prepend=True)


def test_everything_changed_is_taken_back():
    module = Doubler()
    before = state_of(module)
    with Patcher() as patches:
        patched(patches, module)
        assert (module(1), module.config) == (2 * 6 + 1 + 10, "ours")
    assert state_of(module) == before
    assert module(1) == 2


def test_an_attribute_of_the_objects_own_comes_back_as_it_was():
    module = Doubler()
    module.forward = own = lambda number: number  # type: ignore[method-assign]
    with Patcher() as patches:
        patches.wrap(module, "forward", one_more)
        assert module(1) == 2
    assert module.forward is own


def test_a_wrapper_that_somebody_else_has_wrapped_lets_calls_through():
    module = Doubler()
    with Patcher() as patches:
        patches.wrap(module, "forward", one_more)
        ours = module.forward
        module.forward = lambda number: ours(number)  # type: ignore[method-assign]
    assert module(1) == 2


def test_a_wrapper_that_was_moved_to_another_name_is_taken_from_there():
    module = Doubler()
    with Patcher() as patches:
        patches.wrap(module, "forward", one_more)
        module._old_forward = module.forward
    assert module._old_forward(1) == 2
    assert module(1) == 2


def state_of(module: nn.Module) -> dict[str, Any]:
    return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(module).items()}


class InterruptAt:
    """Raises KeyboardInterrupt at the n-th line that runs in the patcher or in torch's registration of hooks."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __enter__(self) -> "InterruptAt":
        sys.settrace(self.enter)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        watched = frame.f_code.co_filename == patching.__file__ or frame.f_code.co_name.startswith("register_forward")
        return self.at_line if watched else None

    def at_line(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.left -= event == "line"
        if self.left == 0:
            raise KeyboardInterrupt
        return self.at_line


def test_an_interrupt_at_any_line_leaves_nothing_behind():
    interrupted = 0
    for line in range(1, 1000):
        module = Doubler()
        before = state_of(module)
        watch = InterruptAt(line)
        patches = Patcher()
        try:
            with watch, patches:
                patched(patches, module)
        except KeyboardInterrupt:
            interrupted += 1
        patches.restore()
        assert state_of(module) == before, line
        if watch.left > 0:
            break
    assert interrupted > 50
    with pytest.raises(AttributeError):
        Patcher().wrap(Doubler(), "no_such_method", one_more)


def test_what_a_wrapper_holds_is_let_go_at_once():
    """A run through a tower holds queries and keys: no garbage collection should have to come for them."""

    class Reader:
        def around(self, original: Callable[[int], int], number: int) -> int:
            return original(number)

    reader, module = Reader(), Doubler()
    held = weakref.ref(reader)
    gc.disable()
    try:
        with Patcher() as patches:
            patches.wrap(module, "forward", reader.around)
            assert module(1) == 2
        del reader, patches
        assert held() is None
    finally:
        gc.enable()
