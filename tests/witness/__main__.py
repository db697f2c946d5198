"""The command: run what is missing on both trees, compare, write the log; 1 if anything differs."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from tests.witness.changed import CHANGED
from tests.witness.compare import MENDED, compared
from tests.witness.examples import EMBEDDED, EXAMPLES, FIRST, ON, QUICK, stem
from tests.witness.trees import COMMITS, ROOT, Tree, new_tree, old_tree, prompts_of, run_worker, versions

COMMITTED = ROOT / "benchmarks" / "witness"
PARTIAL = ROOT / "out" / "witness"
AT_ONCE = 2  # families a process: each start costs some seconds


def options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.witness", description=__doc__)
    parser.add_argument("--old", action="append", choices=COMMITS, help="only this old tree; repeatable")
    parser.add_argument("--family", action="append", metavar="NAME", help="only this one; repeatable")
    parser.add_argument("--example", action="append", metavar="NAME", choices=list(EXAMPLES), help="the same")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)}; nothing counted")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at a time (default: 1)")
    parser.add_argument("--log", type=Path, metavar="FOLDER", help="default: benchmarks/witness if all is run")
    return parser.parse_args(arguments)


Plan = dict[str, list[str]]
"""The examples of each family, or the embedded model's."""


def planned(commit: str, families: Sequence[str], given: argparse.Namespace) -> Plan:
    """What is run beside an old tree: the oldest has few methods."""
    names = [name for name in given.example or EXAMPLES if name in FIRST or commit != COMMITS[0]]
    tiny = [family for family in families if family != EMBEDDED]
    plan = {family: [name for name in names if family in ON.get(name, tiny)] for family in families}
    return {family: examples for family, examples in plan.items() if examples}


def kinds(old: Tree, given: argparse.Namespace) -> Sequence[str]:
    """What is kept of each run: operators and waits only beside the oldest tree, whose files count them."""
    return ("pt", "counts") if old.name == COMMITS[0] and not given.quick else ("pt",)


def run_all(trees: Sequence[Tree], prompts: Path, plan: Plan, given: argparse.Namespace) -> None:
    """Run what has no result yet, some processes at a time, and say how far it is."""
    families, begun = list(plan), time.monotonic()
    parts = [families[start : start + AT_ONCE] for start in range(0, len(families), AT_ONCE)]

    def run(tree: Tree, part: Sequence[str]) -> None:
        folders = {"root": tree.root, "old": trees[0].root, "prompts": prompts, "results": tree.results}
        task: dict[str, Any] = {name: str(folder) for name, folder in folders.items()}
        task |= {"families": {family: plan[family] for family in part}, "counts": "counts" in kinds(trees[0], given)}
        run_worker(tree, task)
        print(f"{time.monotonic() - begun:6.0f} s  {tree.name}: {', '.join(part)}", file=sys.stderr, flush=True)

    def missing(tree: Tree, part: Sequence[str]) -> bool:
        stems = [f"{family}/{stem(name)}" for family in part for name in plan[family]]
        return any(not (tree.results / f"{one}.{kind}").exists() for one in stems for kind in kinds(trees[0], given))

    with ThreadPoolExecutor(given.jobs) as pool:
        tasks = [pool.submit(run, tree, part) for part in parts for tree in trees if missing(tree, part)]
        for task in tasks:
            task.result()


def verdicts(trees: Sequence[Tree], plan: Plan, given: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """A verdict and a line for each family, example and prompt."""
    for family in plan:
        for example in plan[family]:
            files = [f"{family}/{stem(example)}.{kind}" for kind in kinds(trees[0], given)]
            results, *counted = [[read(tree.results / file) for tree in trees] for file in files]
            for prompt, old in results[0].items():
                run, new = f"{family} {example} {prompt}", results[1][prompt]
                if trees[0].name != COMMITS[0]:
                    new.pop(MENDED, None)  # they were right before
                pair = tuple(one[prompt] for both in counted for one in both if prompt in one)
                verdict, words = judged(run, *compared(old, new, pair))
                yield verdict, f"{run}: {verdict}{words and '; ' + words}"


def judged(run: str, verdict: str, words: str) -> tuple[str, str]:
    """A verdict where it may be another one: a run that is listed may differ, but not crash."""
    reasons = [reason for pattern, reason in CHANGED.items() if fnmatch(run, pattern)]
    if verdict == "DIFFERS" and reasons and not words.startswith("crashed"):
        return "changed", f"{reasons[0]}; {words}"
    return verdict, words


def unchanged(found: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Listed patterns of which some run is among these verdicts and lines, and none differs."""
    for pattern in CHANGED:
        seen = {verdict for verdict, line in found if fnmatch(line.partition(":")[0], pattern)}
        if seen and "changed" not in seen:
            yield pattern


def read(path: Path) -> Any:
    return torch.load(path, weights_only=False)


def main(arguments: Sequence[str]) -> int:
    given = options(arguments)
    prompts = prompts_of(old_tree(COMMITS[-1]))
    known = [*sorted(path.stem for path in prompts.glob("*.pt")), EMBEDDED]
    families = given.family or (list(QUICK) if given.quick else known)
    if unknown := sorted(set(families) - set(known)):
        print(f"No family {', '.join(unknown)}. There are: {', '.join(known)}.", file=sys.stderr)
        return 2
    return max([witness(commit, prompts, families, given) for commit in given.old or COMMITS])


def witness(commit: str, prompts: Path, families: Sequence[str], given: argparse.Namespace) -> int:
    """Compare with one old tree, and write its log; 1 if anything differs that is not listed."""
    trees, plan = (old_tree(commit), new_tree()), planned(commit, families, given)
    run_all(trees, prompts, plan, given)
    found = list(verdicts(trees, plan, given))
    totals = Counter(verdict for verdict, _ in found)
    refused = sum("refused by both" in line for _, line in found)
    summary = [
        f"{trees[0].commit} (old) and {trees[1].commit} (new), {versions()}",
        f"{len(found)} runs: {totals['equal']} equal, {totals['fewer']} equal with fewer operators or waits, "
        f"{totals['more']} equal with up to 1 % more operators, {totals['changed']} differ as listed in changed.py, "
        f"{totals['DIFFERS']} differ; {refused} of them are refusals",
        *(f"listed, and equal everywhere: {pattern}" for pattern in unchanged(found)),
    ]
    folder = given.log or (PARTIAL if given.family or given.example or given.quick else COMMITTED)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"log-{commit}.txt"
    log.write_text("\n".join([*(line for _, line in found), "", *summary]) + "\n", encoding="utf-8")
    print("\n".join([*(line for verdict, line in found if verdict == "DIFFERS"), *summary, f"Log: {log}"]))
    return int(totals["DIFFERS"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
