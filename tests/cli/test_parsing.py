"""Flags that cannot be meant, and streams that take nothing, end in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = "import sys; from foveate.cli import main; sys.exit(main(sys.argv[1:]))"
NEEDS_FULL = pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")


def shell(redirection, *arguments):
    """Run `foveate` under a shell that redirects its streams: its exit code, stdout and stderr."""
    line = f'"$0" -c "$1" {" ".join(arguments)} {redirection}'
    done = subprocess.run(["bash", "-c", line, sys.executable, PROGRAM], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generate", "--retenton", "0.5"], ["Unrecognized options: --retenton", "--retention SHARE"]),
        (["bench", "--bach", "3", "--modle", "x"], ["--batch", "--model"]),
        (["generate", "--frames", "3.5"], ["--frames"]),
        (["generate", "--budget", "x"], ["--budget"]),
        (["generate", "--budget", "33%"], ["--budget: 33% is not a number above 0; a share is --retention"]),
        (["generate", "--retention", "133%"], ["133% is not a share in (0, 1], such as 0.33, 33% or 1/3"]),
        (["compare", "--pairs", "1"], ["--pairs", "1 is not from 2 to 1,000,000"]),
        (["generate", "--pairs", "9" * 30], ["--pairs", "is not from 2"]),
        (["bench", "--seed", "-1"], ["--seed: -1 is not from 0"]),
        (["bench", "--text-tokens", "100000000"], ["--text-tokens", "is not from 1 to 1,000,000"]),
        (["eval", "--draws", "0"], ["--draws: 0 is not from 1"]),
        (["tune", "--workers", "0"], ["--workers: 0 is not from 1"]),
        (["demo", "--port", "65536"], ["--port: 65536 is not from 0 to 65,535."]),
        (["generate", "--max-new-tokens", "0"], ["--max-new-tokens", "0 is not from 1 to 1,000,000"]),
        (["generate", "--set"], ["Missing value for argument '--set'"]),
        (["bench", "--dtype", "int3"], ["invalid choice 'int3' for argument '--dtype'"]),
        (["comparre"], ["foveate: No command 'comparre'. Did you mean compare? For all, run: foveate --help."]),
    ],
)
def test_a_wrong_flag_is_named_with_what_would_have_been_right(run, arguments, says):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    said = " ".join(err.replace("│", " ").split())
    assert [words for words in says if words not in said] == []


def test_a_name_with_the_commands_of_a_terminal_is_shown_and_not_obeyed(run):
    code, _, err = run("generate", "\x1b[31m\x07.png", "--prompt", "x")
    assert (code, err) == (
        1,
        "foveate: \\x1b[31m\\x07.png cannot be read: No such file or directory. Check the path.\n",
    )


@pytest.mark.parametrize("arguments", [["--version"], ["methods"]])
def test_a_closed_stdout_is_one_line(arguments):
    said = "foveate: stdout is closed. Send it to a file, or to /dev/null.\n"
    assert shell(">&-", *arguments) == (1, "", said)


def test_a_closed_stderr_changes_nothing():
    assert shell("2>&-", "--version")[0] == 0
    assert shell("2>&-", "generate", "--bogus") == (2, "", "")
    assert shell(">&- 2>&-", "methods") == (1, "", "")


@NEEDS_FULL
@pytest.mark.parametrize("arguments", [["--version"], ["eval", "--help"], ["methods"], ["models", "--json"]])
def test_help_on_a_full_disk_is_one_line(arguments):
    code, _, err = shell(">/dev/full", *arguments)
    assert code == 1
    assert err.startswith("foveate: stdout could not be written: ")
    assert err.count("\n") == 1


def test_a_reader_that_goes_away_is_no_error():
    for arguments in (["methods"], ["eval", "--help"]):
        assert shell("> >(exec true)", *arguments)[1:] == ("", "")
    many = ["models", "--json"]  # more than a pipe holds
    assert shell("| head -n 1 >/dev/null; exit ${PIPESTATUS[0]}", *many)[::2] == (0, "")
