"""Run tests without some of the engine's extensions, which cannot be imported then.

    python -m pytest -p tests.ablation --without numbering tests     # all tests that do not need it
    python -m pytest -p tests.ablation --without numbering --drawn 40 tests/invariants     # one in 40

A test needs an extension if a context that it opens does (`extensions.NEEDED`); of `tracing`, which every context has,
if it reads the trace. Such a test is skipped, and any other must pass.
"""

import sys
from contextlib import contextmanager

import pytest

from foveate.engine import extensions, trace

HOME = f"{extensions.__name__}."
NAMES = tuple(extensions.NEEDED)


class Blocked:
    """An import hook that refuses extensions."""

    def __init__(self, names):
        self.modules = {f"{HOME}{name}" for name in names}

    def find_spec(self, name, path=None, target=None):
        if name in self.modules:
            raise ImportError(f"{name} is blocked")


@contextmanager
def without(names):
    """Block extensions, and take them off the list."""
    hook, needed = Blocked(names), dict(extensions.NEEDED)
    modules = {name: sys.modules.pop(name) for name in hook.modules if name in sys.modules}
    for name in names:
        del extensions.NEEDED[name]
    sys.meta_path.insert(0, hook)
    try:
        yield
    finally:
        sys.meta_path.remove(hook)
        sys.modules.update(modules)
        extensions.NEEDED.update(needed)


# -- as a plug-in ----------------------------------------------------------------------------------------------------


def pytest_addoption(parser):
    parser.addoption("--without", choices=NAMES, help="the extension that cannot be imported")
    parser.addoption("--drawn", type=int, default=1, help="run one test in this many")


def needs(name):
    pytest.skip(f"needs {name}")


class Unwritten(list):
    """The records of a trace that nobody writes: a test that looks at one needs the extension."""

    def __getitem__(self, index):
        return needs("tracing")


def pytest_configure(config):
    """Block for the whole run."""
    name = config.getoption("--without")
    if name is None:
        return
    asked = extensions.NEEDED[name]
    context = without([name])
    context.__enter__()
    config.add_cleanup(lambda: context.__exit__(None, None, None))
    if name != "tracing":
        extensions.NEEDED[name] = lambda program: asked(program) and needs(name)
        return
    made = trace.Trace.__init__

    def init(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self.history = Unwritten()

    trace.Trace.__init__ = init
    config.add_cleanup(lambda: setattr(trace.Trace, "__init__", made))


def pytest_collection_modifyitems(config, items):
    """Leave out what is not drawn."""
    from tests.conftest import hashed

    drawn = config.getoption("--drawn")
    items[:] = [item for item in items if hashed(item) % drawn == 0]
