import functools
import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent
TIERS = {
    "pure": ("core", "contract", "methods", "golden"),
    "signals": ("signals",),
    "engine": ("invariants",),
    "programs": (
        "app", "benchmarks", "cli", "integrations", "test_compile.py", "test_crew.py", "test_docs.py", "test_fuzz.py",
        "test_job.py", "test_mutants.py", "test_notebooks.py", "test_on_ray.py", "test_search.py", "test_servers.py",
        "test_store.py", "test_testing.py", "test_with_torchvision.py",
    ),
}  # fmt: skip
"""Folders and files of each tier; methods and coverage are parts of tests/invariants, see `tier_of`. Programs are run
whole: command lines, pages in a browser, servers, notebooks, compilers, processes that are killed."""
ALL_TIERS = (*TIERS, "methods", "coverage", "rest")
HEAVY = (
    "test_on_ray.py", "test_job.py", "test_docs.py", "test_check.py", "test_page.py", "test_servers.py", "test_fuzz.py",
    "test_ends.py", "test_compile.py", "test_lmms_eval.py", "test_with_torchvision.py", "test_store.py",
    "test_derived.py",
)  # fmt: skip
"""Files of ten seconds or more, which begin first: a process that gets one last works alone at the end."""

# Tests run side by side on few cores; one thread each is faster than several that wait for one another.
torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

settings.register_profile(
    "foveate", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("foveate")


def pytest_addoption(parser):
    parser.addoption(
        "--done", metavar="FILE", help="leave out the tests that FILE lists, and add those that pass to it"
    )


def pytest_ignore_collect(collection_path, config):
    """Where one tier is asked for, do not even look into the folders of the others."""
    tier = config.option.markexpr
    if collection_path.suffix != ".py" or tier not in ALL_TIERS:
        return None
    if tier in ("methods", "coverage"):
        tier = "engine"  # parts of the same folder
    return True if tier_of_file(collection_path) != tier else None


def pytest_collection_modifyitems(config, items):
    """Mark each test with its tier; leave out what a run before has done."""
    for item in items:
        tier = tier_of(item)
        item.add_marker(getattr(pytest.mark, tier))
        item.user_properties.append(("tier", tier))
    items.sort(key=lambda item: item.path.name not in HEAVY)
    if (log := config.getoption("--done")) and Path(log).exists():
        done = set(Path(log).read_text().splitlines())
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
        items[:] = [item for item in items if item.nodeid not in done]


def pytest_collection_finish(session):
    """Let no collection of garbage look at what stays: 700,000 objects, half a second each time `bench` collects."""
    gc.collect()
    gc.freeze()


def tier_of(item):
    """Which tier a test belongs to."""
    if item.path.name == "test_coverage.py":
        return "coverage"
    name = item.callspec.params.get("name", "") if hasattr(item, "callspec") else ""
    tier = tier_of_file(item.path)
    if tier == "engine" and isinstance(name, str) and is_method(name):
        return "methods"
    return tier


def tier_of_file(path):
    """The tier that a file of tests, or its folder, is listed in."""
    folder = path.relative_to(ROOT).parts[0]
    return next((tier for tier, names in TIERS.items() if folder in names or path.name in names), "rest")


def is_method(name):
    """Whether an example, "v2drop-0", or a name, "v2drop", is a method's and not a probe's."""
    from foveate.registry import methods

    return name.rsplit("-", 1)[0] in methods()


def pytest_runtest_logreport(report):
    """Note what has passed (or was skipped); in a run with several processes, the first one notes it."""
    log = CONFIG.getoption("--done") if CONFIG is not None else None
    if log and report.when == "call" and not report.failed and not hasattr(CONFIG, "workerinput"):
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with Path(log).open("a", encoding="utf-8") as file:
            file.write(f"{report.nodeid}\n")


CONFIG = None


def pytest_configure(config):
    global CONFIG
    CONFIG = config


def pytest_terminal_summary(terminalreporter):
    """Say how long each tier worked, and count the pairs of method and family that are refused."""
    every = [one for some in terminalreporter.stats.values() for one in some if hasattr(one, "duration")]
    for tier in ALL_TIERS:
        if own := [one for one in every if ("tier", tier) in map(tuple, one.user_properties)]:
            count, seconds = len({one.nodeid for one in own}), sum(one.duration for one in own)
            terminalreporter.line(f"==> tier {tier}: {count:,} tests, {seconds:.0f} s of work")
    reports = terminalreporter.getreports("passed")
    told = [each for one in reports if one.when == "call" for each in one.user_properties]
    refused = [reason for name, reason in told if name == "refused"]
    if any("test_coverage.py" in one.nodeid for one in reports):
        terminalreporter.section(f"{len(refused)} pairs of method and family are refused, each with its reason")
        for reason in refused:
            terminalreporter.line(reason)


@pytest.fixture
def sizes(monkeypatch):
    """How many samples or images were looked at together, each time."""
    from foveate.core.cut import together

    seen = []

    def noting(look, tensors):
        seen.append(len(next(iter(tensors.values()))))
        return together(look, tensors)

    for module in ("cutting", "encode"):
        monkeypatch.setattr(f"foveate.engine.{module}.together", noting)
    return seen


@pytest.fixture(scope="module")
def others():
    """In the place of every family's tiny model the other one, for the tests of a file."""
    from tests import models

    with pytest.MonkeyPatch.context() as patch:
        for family, other in models.OTHERS.items():
            patch.setitem(models.TINY, family, other)
        for name in ("config_of", "tiny", "sample"):
            patch.setattr(models, name, functools.cache(getattr(models, name).__wrapped__))
        yield
