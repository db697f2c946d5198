"""With one extension blocked, every test that does not need it passes: a drawn sample; all with make test-ablation."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ablation import NAMES

ROOT = Path(__file__).parents[2]
DRAWN = 90


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_need_an_extension_passes_without_it(name):
    options = ["-q", "-p", "no:cacheprovider", "-p", "tests.ablation", "--without", name, "--drawn", str(DRAWN)]
    run = [sys.executable, "-m", "pytest", *options, "tests/invariants", "tests/engine"]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=600)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", done.stdout.splitlines()[-1])}
    assert done.returncode == 0, done.stdout[-3000:]
    assert counts["passed"] > 5
