"""The command `foveate`: parse, call, print. One file a subcommand."""

import contextlib
import sys
from collections.abc import Sequence

from foveate._version import __version__

__all__ = ["main"]

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `foveate` with these arguments (default: the program's own); the exit code.

    Raises:
        SystemExit: With 2 from the parser for flags it does not know, with 0 after `--help`.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words == ["--version"]:
        print(f"foveate {__version__}")
        return 0
    try:
        from foveate.cli.commands import run  # only now, so that Ctrl-C while this loads ends as quietly as later

        return run(words)
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            print("foveate: interrupted.", file=sys.stderr)
        return INTERRUPTED
