"""The command `foveate`: parse, call, print. One file a subcommand."""

from foveate.cli.main import main

__all__ = ["main"]
