"""A plugin of pytest's that writes down how long each test took: `pytest -p tests.timed` with TIMES=FILE."""

import os


def pytest_runtest_logreport(report):
    """Add a line a phase; of a run with several processes, the first one has them all."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        with open(os.environ["TIMES"], "a", encoding="utf-8") as file:
            file.write(f"{report.nodeid}\t{report.outcome}\t{report.duration:.3f}\n")
