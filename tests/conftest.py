import os

import torch
from hypothesis import HealthCheck, settings

# Tests run side by side on few cores; one thread each is faster than several that wait for one another.
torch.set_num_threads(1)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

settings.register_profile(
    "foveate", deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("foveate")


def pytest_terminal_summary(terminalreporter):
    """Count the pairs of method and family that are refused."""
    reports = terminalreporter.getreports("passed")
    told = [each for one in reports if one.when == "call" for each in one.user_properties]
    refused = [reason for name, reason in told if name == "refused"]
    if any("test_support.py" in one.nodeid for one in reports):
        terminalreporter.section(f"{len(refused)} pairs of method and family are refused, each with its reason")
        for reason in refused:
            terminalreporter.line(reason)
