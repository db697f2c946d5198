"""The command: run what is missing on both trees, compare, write the log; 1 if anything differs."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from tests.witness.compare import compared
from tests.witness.examples import EXAMPLES, QUICK
from tests.witness.trees import ROOT, Tree, new_tree, old_tree, prompts_of, run_worker, versions

COMMITTED = ROOT / "benchmarks" / "witness" / "log.txt"
PARTIAL = ROOT / "out" / "witness" / "log.txt"
AT_ONCE = 2  # families a process: each start costs some seconds


def options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.witness", description=__doc__)
    parser.add_argument("--family", action="append", metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--example", action="append", metavar="NAME", choices=list(EXAMPLES), help="the same")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)}; nothing counted")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at a time (default: 1)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="default: benchmarks/witness/log.txt if all is run")
    return parser.parse_args(arguments)


def run_all(trees: Sequence[Tree], prompts: Path, families: Sequence[str], given: argparse.Namespace) -> None:
    """Run what has no result yet, some processes at a time, and say how far it is."""
    examples, begun = given.example or list(EXAMPLES), time.monotonic()
    parts = [families[start : start + AT_ONCE] for start in range(0, len(families), AT_ONCE)]

    def run(tree: Tree, part: Sequence[str]) -> None:
        folders = {"root": tree.root, "old": trees[0].root, "prompts": prompts, "results": tree.results}
        task = {name: str(folder) for name, folder in folders.items()}
        run_worker(tree, {**task, "families": part, "examples": examples, "counts": not given.quick})
        print(f"{time.monotonic() - begun:6.0f} s  {tree.name}: {', '.join(part)}", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(given.jobs) as pool:
        tasks = [pool.submit(run, tree, part) for part in parts for tree in trees if missing(tree, part, given)]
        for task in tasks:
            task.result()


def missing(tree: Tree, families: Sequence[str], given: argparse.Namespace) -> bool:
    """Whether any result is not there yet."""
    kinds = ("pt",) if given.quick else ("pt", "counts")
    names = [f"{example}.{kind}" for example in given.example or EXAMPLES for kind in kinds]
    return any(not (tree.results / family / name).exists() for family in families for name in names)


def verdicts(trees: Sequence[Tree], families: Sequence[str], given: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """A verdict and a line for each family, example and prompt."""
    for family in families:
        for example in given.example or EXAMPLES:
            results = [read(tree.results / family / f"{example}.pt") for tree in trees]
            counts = [] if given.quick else [read(tree.results / family / f"{example}.counts") for tree in trees]
            for prompt, old in results[0].items():
                counted = tuple(one[prompt] for one in counts if prompt in one)
                verdict, words = compared(old, results[1][prompt], counted)
                yield verdict, f"{family} {example} {prompt}: {verdict}{words and '; ' + words}"


def read(path: Path) -> Any:
    return torch.load(path, weights_only=False)


def main(arguments: Sequence[str]) -> int:
    given = options(arguments)
    trees = old_tree(), new_tree()
    prompts = prompts_of(trees[0])
    known = sorted(path.stem for path in prompts.glob("*.pt"))
    families = given.family or (list(QUICK) if given.quick else known)
    if unknown := sorted(set(families) - set(known)):
        print(f"No family {', '.join(unknown)}. There are: {', '.join(known)}.", file=sys.stderr)
        return 2
    run_all(trees, prompts, families, given)
    found = list(verdicts(trees, families, given))
    totals = Counter(verdict for verdict, _ in found)
    refused = sum("refused by both" in line for _, line in found)
    summary = [
        f"{trees[0].commit} (old) and {trees[1].commit} (new), {versions()}",
        f"{len(found)} runs: {totals['equal']} equal, {totals['fewer']} equal with fewer operators or waits, "
        f"{totals['more']} equal with up to 1 % more operators, "
        f"{totals['DIFFERS']} differ; {refused} of them are refusals",
    ]
    log = given.log or (PARTIAL if given.family or given.example or given.quick else COMMITTED)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("\n".join([*(line for _, line in found), "", *summary]) + "\n", encoding="utf-8")
    print("\n".join([*(line for verdict, line in found if verdict == "DIFFERS"), *summary, f"Log: {log}"]))
    return int(totals["DIFFERS"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
