"""Help is quick and complete: nothing slow is imported for it, every command shows examples."""

import subprocess
import sys

import pytest

from foveate import __version__
from foveate.cli.commands import COMMANDS


def test_the_version_is_printed_and_nothing_slow_is_loaded_for_it():
    slow = {"torch", "numpy", "rich", "tyro"}
    report = f"import sys; from foveate import cli; cli.main(['--version']); print({slow} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    assert done.stdout == f"foveate {__version__}\nset()\n"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_overview_lists_every_command_with_one_line(run, words):
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    for name, kind in COMMANDS.items():
        assert f"\n  {name} " in out
        assert kind.__doc__.split()[0] in out
    assert "Exit codes: 0 done, 1 failed, 2 wrong usage" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_examples(run, name):
    code, out, _ = run(name, "--help")
    assert code == 0
    assert "Examples:" in out
    assert f"  foveate {name}" in out
    assert "--json" in out
