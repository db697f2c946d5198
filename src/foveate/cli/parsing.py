"""From words to a command: tyro parses them, and the boxes in which it draws its errors become one line."""

import contextlib
import io
import re
from typing import Any

import tyro

from foveate._upstream import shown
from foveate.cli.screen import written
from foveate.cli.usage import UsageError

__all__ = ["parse"]

STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
EDGES = "╭╮╰╯│ "
RULE = re.compile(r"[─-]{3,}")
NO_NUMBER = re.compile(r"Error parsing (\S+):.*?(?:(?:from \[|base 10: |to float: )(['\"].*['\"])|$)")


def parse(kind: Any, prog: str, **options: Any) -> Any:
    """A command, or one of several, with the flags that these words give; other arguments as for `tyro.cli`.

    Raises:
        UsageError: If the words cannot be meant.
        SystemExit: With 0 behind the help.
    """
    drawn = io.StringIO()
    try:
        with written(), contextlib.redirect_stderr(drawn):
            return tyro.cli(kind, prog=prog, config=STYLE, **options)
    except SystemExit as end:
        if end.code:
            raise UsageError(f"{_line_of(drawn.getvalue())} Help: {prog} --help.") from end
        with written():  # the help may still be in the buffer
            pass
        raise


def _line_of(drawn: str) -> str:
    """What a box of tyro's says: its first paragraph, and the flags that it holds for similar."""
    sections = _sections(drawn)
    if not sections:
        return "This command line cannot be meant."
    said, _, _ = sections[0].partition("\n\n")
    said = " ".join(said.split())
    if no_number := NO_NUMBER.search(said):
        flag, value = no_number.groups()
        kind = "number" if "FLOAT" in said or "to float" in said else "whole number"
        got = f"; got {shown(value, 80)}" if value else ""
        return f"{flag} must be a {kind}{got}."
    said = shown(said, 400)
    similar: list[str] = []
    for section in sections[1:]:
        if section.startswith(("Perhaps", "Arguments similar")):
            similar += re.findall(r"^ *(--[\w-]+)", section, re.MULTILINE)
        elif section.startswith("Available"):
            said = f"{said}. {' '.join(section.split())}"
    if similar:  # which tyro names in any order
        said = f"{said}. Similar: {', '.join(sorted(similar))}"
    return said if said.endswith(".") else f"{said}."


def _sections(drawn: str) -> list[str]:
    """The texts between the rules of a box, without its edges and its title."""
    sections = [""]
    for line in drawn.splitlines():
        if line.startswith(("╭", "╰")):
            continue
        text = line.strip(EDGES)
        if RULE.fullmatch(text):
            sections.append("")
        else:
            sections[-1] += text + "\n"
    texts = [section.strip() for section in sections if section.strip()]
    if "╭" not in drawn and len(texts) > 1:  # without a box, as in ASCII, the title has lines of its own
        del texts[0]
    return texts
