"""Try the cases, and say at the end what failed: exit code 1 if anything did."""

import argparse
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from tests.fuzz.running import FORK, KINDS, Tally, hunted, strategies_of


def options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--kinds", default=",".join(KINDS), metavar="NAME,…", help="which kinds of input")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="share of the cases of each kind")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed makes other cases")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes")
    parser.add_argument("--case", default="", metavar="KIND-PART:BLOB", help="try this one again, with its traceback")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), metavar="FOLDER", help="where failures are kept")
    given = parser.parse_args(arguments)
    place, _, given.blob = given.case.partition(":")
    given.kinds = place.split("-")[:1] if place else given.kinds.split(",")
    given.part = int(place.partition("-")[2] or 0)
    if unknown := sorted(set(given.kinds) - set(KINDS)):
        parser.error(f"no kind {', '.join(unknown)}; there are: {', '.join(KINDS)}")
    return given


def shown(kind: str, parts: Sequence[Tally], traceback: bool) -> int:
    """Say in a line how a kind went, and in three how a shrunk case of each sort failed; how many sorts there are."""
    verdicts = sum((part.verdicts for part in parts), start=Counter())
    found = {one.outcome.sort: (part.number, one) for part in parts for one in part.found}
    print(
        f"{kind}: {verdicts.total():,} tried, {verdicts['taken']:,} taken, {verdicts['refused']:,} refused, "
        f"{len(found)} sorts of failure; {sum(part.seconds for part in parts):.1f} s, "
        f"at most {max(part.memory for part in parts) / 2**20:,.0f} MiB more"
    )
    for number, one in found.values():
        print(f"  {ascii(one.outcome.words)[1:-1]}\n    {ascii(one.told)[1:-1]}")
        print(f'    again: make fuzz FUZZ="--case {kind}-{number}:{one.blob}"')
        print(one.outcome.report.encode("ascii", "backslashreplace").decode() if traceback else "", end="", flush=True)
    return len(found)


def main(arguments: Sequence[str]) -> int:
    given, begun = options(arguments), time.monotonic()
    shutil.rmtree(given.out, ignore_errors=True)
    # What a copy of this process may not do over again, or cannot: import, and take up another's threads.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    parts = {kind: [given.part] if given.case else range(len(strategies_of(kind))) for kind in given.kinds}
    hunt = partial(hunted, scale=given.scale, seed=given.seed, blob=given.blob, out=given.out)
    with ProcessPoolExecutor(given.jobs, mp_context=FORK) as pool:
        futures = {kind: [pool.submit(hunt, kind, part) for part in parts[kind]] for kind in parts}
        sorts = sum(
            shown(kind, [future.result() for future in futures[kind]], traceback=bool(given.case)) for kind in futures
        )
    print(
        f"Seed {given.seed}, {time.monotonic() - begun:.0f} s" + f"; inputs and tracebacks: {given.out}" * bool(sorts)
    )
    return int(bool(sorts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
