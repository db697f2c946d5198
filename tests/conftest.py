import functools
import gc
import os
import re
import weakref
import zlib
from collections import Counter, defaultdict
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent
TIERS = {
    "doors": (
        "app", "batch", "benchmarks", "cli", "eval", "integrations", "rough_use", "runs", "setups", "tuning",
        "test_chat.py", "test_check.py", "test_docs.py", "test_mutants.py", "test_notebooks.py", "test_on_cuda.py",
        "test_servers.py", "test_testing.py", "test_walk.py", "test_with_torchvision.py",
    ),
    "model": (),
    "unit": ("core", "contract", "methods", "golden", "plain"),
}  # fmt: skip
"""Folders and files of each tier, in the order in which they run: the longest files first, so that no process works
alone at the end. What stands in no list needs a tiny model."""

SHARE = 32
"""Of a test's cases that show nothing new, `make test` runs one in this many."""

# Tests run side by side on few cores; one thread each is faster than several that wait for one another.
torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

settings.register_profile(
    "foveate", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("foveate")


def tier_of(path):
    """The tier of a file of tests."""
    names = {path.relative_to(ROOT).parts[0], path.name}
    return next((tier for tier, listed in TIERS.items() if names & {*listed}), "model")


def hashed(item):
    """A number that is drawn once for a test and is the same in every process."""
    return zlib.crc32(item.nodeid.encode())


def further_cases(items, before):
    """The cases of one file's tests that `make test` leaves out.

    In a drawn order, it keeps a test's first case, each case that shows a value of a parameter (a method, a family) for
    the first time in its folder, every second one that does so in its file, and of the others one in `SHARE`. `before`
    has the values that earlier files of the folder have shown, and gets this file's.
    """
    shown, further = set(), []
    for item in sorted(items, key=hashed):
        test, _, case = item.name.partition("[")
        values = {test, *case.rstrip("]").split("-")}  # such as 1-llava-sdpa: an example, a family and a kernel
        new = values - shown
        every = SHARE if not new else 2 if test in shown and new <= before else 1
        if hashed(item) % every:
            further.append(item)
        shown |= values
    before |= shown
    return further


def pytest_collection_modifyitems(items):
    """Mark each test with its tier, the first test of each door, and the cases that `make test` leaves out."""
    files, opened = {}, set()
    for item in items:
        item.add_marker(tier := tier_of(item.path))
        files.setdefault(item.path, []).append(item)
        if tier == "doors" and item.path not in opened and item.get_closest_marker("further") is None:
            opened.add(item.path)
            item.add_marker("first")
    folders = defaultdict(set)
    for path, of_file in files.items():
        for item in further_cases(of_file, folders[path.parent]):
            item.add_marker("further")
    items.sort(key=lambda item: list(TIERS).index(tier_of(item.path)))


MISSING = re.compile("see make setup|could not import")


def told(report):
    """The same report; in the gate, what is skipped because a part of the set-up is missing has failed."""
    expected = hasattr(report, "wasxfail")  # expected failures count as skipped, and their longrepr is a traceback
    gated = "FOVEATE_GATE" in os.environ and report.skipped and not expected
    if gated and MISSING.search(reason := report.longrepr[2]):
        report.outcome, report.longrepr = "failed", reason
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    return told((yield))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    return told((yield))


def pytest_collection_finish():
    """Let no collection of garbage look at what stays: 700,000 objects, half a second each time `bench` collects."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter):
    """Say what ran of each tier, and how long it worked."""
    reports = [report for group in terminalreporter.stats.values() for report in group if hasattr(report, "duration")]
    for tier in TIERS:
        ran = [report for report in reports if tier in report.keywords]
        count, seconds = len({report.nodeid for report in ran}), sum(report.duration for report in ran)
        terminalreporter.line(f"==> {tier}: {count:,} tests, {seconds:.0f} s of work")
    work = Counter()
    for report in reports:
        work[report.nodeid.partition("::")[0]] += report.duration
    for file, seconds in work.most_common(10):
        terminalreporter.line(f"==> {seconds:4.0f} s  {file}")


@pytest.fixture
def graphs_on_cpu(monkeypatch):
    """A CPU has graphs too: tapes that run their kernels again, and nothing of Python between them; none yet."""
    from foveate.core import tapes
    from foveate.engine.extensions.replays import recordings
    from tests.recorder import Recorder

    monkeypatch.setitem(tapes.TAPES, "cpu", lambda device, pool: Recorder())
    monkeypatch.setattr(recordings, "_tapes", weakref.WeakKeyDictionary())


@pytest.fixture(scope="module")
def other_models():
    """In the place of every family's tiny model the other one, for the tests of a file."""
    from tests import models

    with pytest.MonkeyPatch.context() as patch:
        for family, other in models.OTHERS.items():
            patch.setitem(models.TINY, family, other)
        for name in ("config_of", "tiny", "sample"):
            patch.setattr(models, name, functools.cache(getattr(models, name).__wrapped__))
        yield
