"""Run tests without some of the engine's extensions, which cannot be imported then.

    python -m pytest -p tests.ablation --without renumbering tests     # all tests that do not need it
    python -m pytest -p tests.ablation --without renumbering --drawn 40 tests/invariants     # one in 40

A test needs an extension if a context that it opens does (`extensions.NEEDED`); of `tracing`, which every context has,
if it reads the trace. Such a test is skipped, and any other must pass.
"""

import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from foveate.engine import extensions, trace

HOME = f"{extensions.__name__}."
NAMES = tuple(extensions.NEEDED)
TESTS = str(Path(__file__).parent)
ENGINE = str(Path(extensions.__file__).parents[1])


class Blocked:
    """An import hook that refuses extensions. Tests that import one by its name are skipped."""

    def __init__(self, names, skips):
        self.modules, self.skips = {f"{HOME}{name}" for name in names}, skips

    def find_spec(self, name, path=None, target=None):
        if name not in self.modules:
            return
        frame = sys._getframe(1)
        while frame.f_code.co_filename.startswith("<frozen importlib"):
            frame = frame.f_back
        if frame.f_code.co_filename.startswith(TESTS) and self.skips:
            pytest.skip(f"needs {name}", allow_module_level=True)
        raise ImportError(f"{name} is blocked")


@contextmanager
def without(names, skips=False):
    """Block extensions, and take them off the list."""
    hook, needed = Blocked(names, skips), dict(extensions.NEEDED)
    homes = tuple(hook.modules)
    gone = [name for name in sys.modules if name in homes or name.startswith(tuple(f"{home}." for home in homes))]
    modules = {name: sys.modules.pop(name) for name in gone}
    for name in names:
        extensions.NEEDED.pop(name, None)
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


def read(trace, name):
    """Look up an attribute of a trace that nobody writes: a test that does needs the extension."""
    caller = sys._getframe(1).f_code.co_filename
    if name.startswith("_") or name in ("add", "most", "graphs") or caller.startswith(ENGINE):
        return object.__getattribute__(trace, name)
    return needs("tracing")


def pytest_configure(config):
    """Block for the whole run."""
    name = config.getoption("--without")
    if name is None:
        return
    asked = extensions.NEEDED[name]
    context = without([name], skips=True)
    context.__enter__()
    config.add_cleanup(lambda: context.__exit__(None, None, None))
    if name != "tracing":
        extensions.NEEDED[name] = lambda context: asked(context) and needs(name)
        return
    trace.Trace.__getattribute__ = read
    config.add_cleanup(lambda: delattr(trace.Trace, "__getattribute__"))


def pytest_collection_modifyitems(config, items):
    """Leave out what is not drawn."""
    from tests.conftest import hashed

    drawn = config.getoption("--drawn")
    items[:] = [item for item in items if hashed(item) % drawn == 0 and "test_ablation" not in item.nodeid]
