"""Flags that cannot be meant, and streams that take nothing, end in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from foveate.cli.options import BudgetOptions
from foveate.cli.setup import parse_methods
from foveate.errors import SettingError

PROGRAM = "import sys; from foveate.cli import main; sys.exit(main(sys.argv[1:]))"
NEEDS_FULL = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")


def shell(redirection, *arguments):
    """Run `foveate` under a shell that redirects its streams: its exit code, stdout and stderr."""
    line = f'"$0" -c "$1" {" ".join(arguments)} {redirection}'
    done = subprocess.run(["bash", "-c", line, sys.executable, PROGRAM], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_a_name_with_the_commands_of_a_terminal_is_shown_and_not_obeyed(run):
    code, _, err = run("generate", "\x1b[31m\x07.png", "--prompt", "x")
    assert (code, err) == (
        1,
        "foveate: \\x1b[31m\\x07.png cannot be read: No such file or directory. Check the path and its permissions.\n",
    )


@pytest.mark.parametrize("arguments", [["--version"], ["methods"]])
def test_a_closed_stdout_is_one_line(arguments):
    said = "foveate: stdout is closed. Redirect it to a file, or to /dev/null.\n"
    assert shell(">&-", *arguments) == (1, "", said)


def test_a_closed_stderr_changes_nothing():
    assert shell("2>&-", "--version")[0] == 0
    assert shell("2>&-", "generate", "--bogus") == (2, "", "")
    assert shell(">&- 2>&-", "methods") == (1, "", "")


@NEEDS_FULL
@pytest.mark.parametrize("arguments", [["--version"], ["eval", "--help"], ["methods"]])
def test_help_on_a_full_disk_is_one_line(arguments):
    code, _, err = shell(">/dev/full", *arguments)
    assert code == 1
    assert err.startswith("foveate: stdout could not be written: ")
    assert err.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error():
    assert shell("> >(exec true)", "methods")[1:] == ("", "")
    many = ["models", "--json"]  # more than a pipe holds
    assert shell("| head -n 1 >/dev/null; exit ${PIPESTATUS[0]}", *many)[::2] == (0, "")


# -- from flags to a method's setting ---------------------------------------------------------------------------------


def test_the_seed_reaches_methods_that_draw_and_no_others():
    methods = parse_methods(["random", "uniform"], BudgetOptions(seed=7))
    assert methods["random"].seed == 7
    assert methods["uniform"] == parse_methods(["uniform"], BudgetOptions())["uniform"]


def test_with_several_methods_each_takes_the_settings_that_it_has():
    methods = parse_methods(["v2drop", "random"], BudgetOptions(settings=("metric=l1", "layers=2,9,20")))
    assert (methods["v2drop"].metric, methods["v2drop"].layers, methods["random"].layers) == ("l1", *[(2, 9, 20)] * 2)
    with pytest.raises(SettingError, match="setting"):
        parse_methods(["v2drop", "random"], BudgetOptions(settings=("colour=red",)))
