"""Say whether a fresh record of `foveate eval` agrees with the committed one, cell by cell and task by task.

    python benchmarks/quality/agree.py FRESH [COMMITTED] [--json]

COMMITTED is benchmarks/quality/embedded.json where it is left out. Exit code 0: they agree; 1: they do not; 2: they
cannot be compared. What "agrees" means: docs/guides/quality.md.
"""

import argparse
import json
import sys
from pathlib import Path

from foveate.errors import FoveateError
from foveate.eval.agreement import agreement, read_record

COMMITTED = Path(__file__).resolve().parent / "embedded.json"


def main(arguments: list[str]) -> int:
    """Compare and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fresh", type=Path)
    parser.add_argument("committed", type=Path, nargs="?", default=COMMITTED)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    given = parser.parse_args(arguments)
    try:
        found = agreement(read_record(given.committed), read_record(given.fresh))
    except FoveateError as error:
        print(f"agree.py: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        print(*found.sheets(), sep="\n\n")
    return int(not found.agrees)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
