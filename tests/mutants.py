"""Break the code on purpose in drawn places, one at a time, and see in which rooms a test fails.

    python -m tests.mutants                                     # 150 places over all rooms; an hour on two cores
    python -m tests.mutants --drawn 40 --seed 2 --log FILE      # others

No list has to follow code that moves: each room's share of places that its tests see is to be compared before and
after a rebuilding. Which tests reach a place is found by one run of the whole suite, and kept beside FILE; of these the
quickest are run, a minute of them at most. FILE keeps a JSON line a place; the same command goes on behind them.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.breaking import KINDS, SOURCE, broken, marked, places_of

ROOT = Path(__file__).parent.parent
ENOUGH = 60.0
"""Seconds of tests for a place, the first one apart."""


def functions() -> dict[str, dict[str, int]]:
    """The functions and methods of each room, as `module:name`, with how many lines each has."""
    rooms: dict[str, dict[str, int]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE)
        room = rooms.setdefault(place.parts[0] if len(place.parts) > 1 else "root", {})
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = {f"{node.name}.": node for node in tree.body if isinstance(node, ast.ClassDef)}
        for prefix, owner in {"": tree, **classes}.items():
            for node in owner.body:
                if isinstance(node, ast.FunctionDef):
                    room[f"{'.'.join(place.with_suffix('').parts)}:{prefix}{node.name}"] = node.end_lineno - node.lineno
    return rooms


def draw(count: int, seed: int) -> list[tuple[str, str, str]]:
    """Places over all rooms: (room, module:function, kind and number).

    A room's share grows with the root of its size, so that small ones have some; a function's with its lines.
    """
    rooms, generator = functions(), random.Random(seed)
    roots = {room: sum(sizes.values()) ** 0.5 for room, sizes in rooms.items()}
    drawn = []
    for room, sizes in rooms.items():
        wanted = max(1, round(count * roots[room] / sum(roots.values())))
        chosen: dict[tuple[str, str], None] = {}
        while len(chosen) < wanted:
            (key,) = generator.choices(list(sizes), list(sizes.values()))
            places = [f"{kind} {number + 1}" for kind in KINDS for number in range(len(places_of(key, kind)))]
            if places:
                chosen[key, generator.choice(places)] = None
        drawn += [(room, key, place) for key, place in chosen]
    generator.shuffle(drawn)  # a run that is ended early has tried some of every room
    return drawn


REACHED = """
import os

seen = set()


def reached(number):
    test = os.environ.get("PYTEST_CURRENT_TEST")
    if test and (number, test) not in seen:
        seen.add((number, test))
        with open({log!r}, "a") as file:
            file.write(f"{{number}}\\t{{test}}\\n")
"""
"""Stands in a copy of the source as `foveate/_reached.py`. Processes that a test starts inherit the test's name."""


def reach(drawn: list[tuple[str, str, str]], log: Path, jobs: int) -> list[list[str]]:
    """For each place the tests that reach it, from one run of the whole suite; tests that fail in it are left out.

    Tests of one function with other parameters stand behind the first of every function, quick ones first.
    """
    with copied() as src:
        raw, times = src.parent / "reached", src.parent / "times"
        (src / "foveate" / "_reached.py").write_text(REACHED.format(log=str(raw)), encoding="utf-8")
        call = "__import__('foveate._reached')._reached.reached({})"
        for path, source in marked([one[1:] for one in drawn], call).items():
            (src / path.relative_to(SOURCE.parent)).write_text(source, encoding="utf-8")
        pytest_on(src, f"-n {jobs} --dist loadfile -p tests.timed tests".split(), None, TIMES=str(times))
        seconds: dict[str, float] = {}
        for line in times.read_text(encoding="utf-8").splitlines():
            name, outcome, took = line.rsplit("\t", 2)
            seconds[name] = seconds.get(name, 0.0) + (float(took) if outcome == "passed" else float("inf"))
        lines = [line.split("\t", 1) for line in raw.read_text(encoding="utf-8").splitlines()]
    by_file: dict[str, list[str]] = {}
    for name in seconds:
        by_file.setdefault(name.split("::")[0], []).append(name)
    direct: list[set[str]] = [set() for _ in drawn]
    nearby: list[set[str]] = [set() for _ in drawn]
    for number, said in lines:
        name, phase = said.rsplit(" ", 1)
        direct[int(number)].add(name)
        if phase == "(setup)":  # what a fixture of the whole file does is written down for its first test alone
            nearby[int(number)].update(by_file.get(name.split("::")[0], []))
    answer = [_chosen(near, seconds) + _chosen(far - near, seconds) for near, far in zip(direct, nearby, strict=True)]
    log.write_text(json.dumps(answer), encoding="utf-8")
    return answer


def _chosen(tests: set[str], seconds: dict[str, float]) -> list[str]:
    """A minute of these tests: the quickest of each function, then each function's second, and so on."""
    rounds: Counter[str] = Counter()
    order = []
    for name in sorted((name for name in tests if seconds.get(name, float("inf")) < float("inf")), key=seconds.get):
        order.append((rounds[name.split("[")[0]], seconds[name], name))
        rounds[name.split("[")[0]] += 1
    spent, chosen = 0.0, []
    for _, took, name in sorted(order):
        if chosen and spent + took > ENOUGH:
            break
        spent, chosen = spent + took, [*chosen, name]
    return chosen


def run_drawn(count: int, seed: int, log: Path, jobs: int) -> None:
    """Break the drawn places that the log does not know, and say how many of each room were seen."""
    log.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    done = {(row["function"], row["place"]) for row in known}
    drawn, tests = draw(count, seed), log.with_suffix(".tests.json")
    reaching = json.loads(tests.read_text(encoding="utf-8")) if tests.exists() else reach(drawn, tests, jobs)

    def tried(one: tuple[tuple[str, str, str], list[str]]) -> dict[str, Any]:
        (room, key, place), tests = one
        path, source, said = broken(key, place)
        killed = bool(tests) and not survives(path, source, tests, 10 * ENOUGH)
        row = {"room": room, "function": key, "place": place, "change": said}
        return {**row, "tests": len(tests), "killed": killed}

    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(tried, [one for one in zip(drawn, reaching, strict=True) if one[0][1:] not in done]):
            known.append(row)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"{'killed' if row['killed'] else 'SURVIVED':9}{row['function']} {row['place']}: {row['change']}",
                flush=True,
            )
    all_, seen = (Counter(row["room"] for row in known if row["killed"] or every) for every in (True, False))
    print("\n".join(f"{room:12}{seen[room]:3} of {all_[room]:3}" for room in sorted(all_)))
    print(f"{sum(seen.values())} of {len(known)} drawn places were seen (seed {seed})")


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of `src`, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        src = Path(folder) / "src"
        shutil.copytree(SOURCE.parent, src, ignore=shutil.ignore_patterns("__pycache__"))
        yield src


def pytest_on(src: Path, arguments: list[str], limit: float | None, **environment: str) -> int:
    """Run tests with another source, at most `limit` seconds, and give pytest's exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(src), str(ROOT)]), **environment}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=limit).returncode


def survives(path: Path, source: str, tests: list[str], limit: float) -> bool:
    """Whether all tests pass with this source in the place of a file's."""
    with copied() as src:
        (src / path.relative_to(SOURCE.parent)).write_text(source, encoding="utf-8")
        try:
            return pytest_on(src, ["-x", *tests], limit) == 0
        except subprocess.TimeoutExpired:  # a break may make a loop endless
            return False


def main() -> None:
    """Draw, break and count."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--drawn", type=int, default=150, metavar="N", help="how many places")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, default=ROOT / "out" / "mutants.jsonl", metavar="FILE")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="places at a time")
    options = parser.parse_args()
    run_drawn(options.drawn, options.seed, options.log, options.jobs)


if __name__ == "__main__":
    main()
