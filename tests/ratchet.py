"""The ratchet: how much code there is, and that it only gets less.

    python -m tests.ratchet                      # compare with tests/ratchet.json; figures that fell are written there
    python -m tests.ratchet --raise "who asked"  # write figures that rose, too, with the reason

Tokens are names, numbers and operators, without docstrings and comments, so packing a line does not help. Settings and
flags are the fields of classes in the rooms of methods and of the command line. Code lines are told and not held.
"""

import argparse
import ast
import io
import json
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["FIGURES", "figures", "main"]

ROOT = Path(__file__).parent.parent
FIGURES = Path(__file__).with_suffix(".json")
PARTS = {"product": ("src", "plugins", "examples", "benchmarks", "training"), "tests": ("tests", "plugins")}
WITH_SETTINGS = {"methods", "contract", "cli"}
COUNTED = (tokenize.NAME, tokenize.NUMBER, tokenize.OP)
# From Python 3.12 on, what stands inside an f-string has tokens of its own.
STRING_STARTS = getattr(tokenize, "FSTRING_START", -1)
STRING_ENDS = getattr(tokenize, "FSTRING_END", -1)


def docstring_lines(nodes: Sequence[ast.AST]) -> set[int]:
    """The lines, from 1 on, that docstrings and texts behind attributes take."""
    texts = [node for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    return {line for node in texts for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}


def code_tokens(text: str, skipped: set[int]) -> Iterator[tokenize.TokenInfo]:
    """The tokens that count."""
    inside = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        inside += (token.type == STRING_STARTS) - (token.type == STRING_ENDS)
        if not inside and token.type in COUNTED and token.start[0] not in skipped:
            yield token


def measured(path: Path, with_settings: bool) -> Counter[str]:
    """The figures of one file."""
    text = path.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(text)))
    tokens = list(code_tokens(text, docstring_lines(nodes)))
    fields = [isinstance(line, ast.AnnAssign) for node in nodes if isinstance(node, ast.ClassDef) for line in node.body]
    found = Counter({"files": 1, "tokens": len(tokens), "code lines": len({token.start[0] for token in tokens})})
    found["raise statements"] = sum(isinstance(node, ast.Raise) for node in nodes)
    found["settings and flags"] = sum(fields) if with_settings else 0
    return found


def figures(root: Path = ROOT) -> dict[str, dict[str, int]]:
    """The figures of the product and of the tests."""
    found = {}
    for part, folders in PARTS.items():
        paths = [path for folder in folders for path in (root / folder).rglob("*.py")]
        paths = [path for path in paths if ("tests" in path.relative_to(root).parts) is (part == "tests")]
        rooms = [WITH_SETTINGS & set(path.relative_to(root).parts) for path in paths]
        each = [measured(path, part == "product" and bool(room)) for path, room in zip(paths, rooms, strict=True)]
        found[part] = dict(sum(each, Counter()))
    return found


def main(arguments: Sequence[str], root: Path = ROOT, record: Path = FIGURES) -> int:
    """Compare and tighten; 1 if a figure rose without a reason."""
    parser = argparse.ArgumentParser(prog="python -m tests.ratchet", description=__doc__.splitlines()[0])
    parser.add_argument("--raise", dest="reason", metavar="WHO ASKED", help="record figures that rose, with the reason")
    reason = parser.parse_args(arguments).reason
    before, now = json.loads(record.read_text(encoding="utf-8")), figures(root)
    pairs = {
        f"{part}: {name}": (before[part].get(name, 0), now[part].get(name, 0)) for part in now for name in now[part]
    }
    changes = [f"{name} {old:,} -> {new:,}" for name, (old, new) in pairs.items() if old != new]
    rose = [name for name, (old, new) in pairs.items() if new > old and "code lines" not in name]
    print("\n".join(changes) or "the ratchet holds: no figure changed")
    if rose and reason is None:
        print(f'{", ".join(rose)} rose. Take code away, or run: python -m tests.ratchet --raise "who asked for it"')
        return 1
    reasons = before["raised because"] + [{"reason": reason, "figures": changes}] * bool(rose)
    record.write_text(json.dumps({**now, "raised because": reasons}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
