"""Try the cases, and say at the end what failed: exit code 1 if anything did."""

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from importlib import import_module
from pathlib import Path

import torch

from tests.fuzz.running import FORK, KINDS, NUMBER, Found, Tally, hunted


def options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--kinds", default=",".join(KINDS), metavar="NAME,…", help="which kinds of input")
    parser.add_argument("--scale", type=float, default=1.0, metavar="X", help="share of the cases of each kind")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed makes other cases")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes")
    parser.add_argument("--case", metavar="KIND:BLOB", help="try this one again, and show its traceback")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), metavar="FOLDER", help="where failures are kept")
    given = parser.parse_args(arguments)
    if given.case:
        given.kinds, _, given.case = given.case.partition(":")
    given.kinds = given.kinds.split(",")
    if unknown := sorted(set(given.kinds) - set(KINDS)):
        parser.error(f"no kind {', '.join(unknown)}; there are: {', '.join(KINDS)}")
    return given


def shown(kind: str, tallies: Iterable[Tally]) -> list[Found]:
    """Say in a line how a kind went, and in two how each way to fail did; one found of each."""
    parts = list(tallies)
    verdicts = sum((part.verdicts for part in parts), start=type(parts[0].verdicts)())
    found = {NUMBER.sub("N", one.outcome.words): one for part in reversed(parts) for one in part.found}
    print(
        f"{kind}: {verdicts.total():,} tried, {verdicts['taken']:,} taken, {verdicts['refused']:,} refused, "
        f"{len(found)} ways to fail; {sum(part.seconds for part in parts):.1f} s, "
        f"at most {max(part.memory for part in parts) / 2**20:,.0f} MiB more",
        flush=True,
    )
    for one in found.values():
        print(ascii(f"  {one.outcome.words}")[1:-1], ascii(f"    {one.told}")[1:-1], sep="\n")
        print(f'    again: make fuzz FUZZ="--case {kind}:{one.blob}"', flush=True)
    return list(found.values())


def main(arguments: Sequence[str]) -> int:
    given, begun = options(arguments), time.monotonic()
    shutil.rmtree(given.out, ignore_errors=True)
    # What a copy of this process may not do over again, or cannot: import, and take up another's threads.
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    torch.set_num_threads(1)
    for kind in given.kinds:
        import_module(f"tests.fuzz.{kind}").cases()
    if given.case:
        tally = hunted(given.kinds[0], 0, 1, 1.0, 0, given.case, given.out)
        print(*(one.outcome.report for one in tally.found), sep="\n")
        return int(bool(shown(given.kinds[0], [tally])))
    found = []
    with ProcessPoolExecutor(given.jobs, mp_context=FORK) as pool:
        futures: dict[str, list[Future[Tally]]] = {
            kind: [
                pool.submit(hunted, kind, part, given.jobs, given.scale, given.seed, "", given.out)
                for part in range(given.jobs)
            ]
            for kind in given.kinds
        }
        for kind, parts in futures.items():
            found += shown(kind, (part.result() for part in parts))
    if found:
        print(f"Inputs and tracebacks: {given.out}")
    print(f"Seed {given.seed}, {time.monotonic() - begun:.0f} s")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
