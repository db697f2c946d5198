"""Break the code on purpose in drawn places, one at a time, and see in which rooms a test fails.

    python -m tests.mutants                                     # 150 places over all rooms; an hour on two cores
    python -m tests.mutants --drawn 40 --seed 2 --log FILE      # others
    python -m tests.mutants --of batch app/page.py --tests tests/batch tests/app    # places of these

No list has to follow code that moves: each room's share of places that its tests see is to be compared before and
after a rebuilding. Which tests reach a place is found by one run of the whole suite, and kept beside FILE; of these the
quickest are run, a minute of them at most. FILE keeps a JSON line a place; the same command goes on behind them.

A break is a kind and which of the places it can be made at, counted from 1 in the order of the text: "edge 2" takes the
second comparison of a function's that has an edge, `<` or `<=` and their like, and moves it.
"""

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ENOUGH = 60.0
"""Seconds of tests for a place, the first one apart."""
SOURCE = ROOT / "src" / "foveate"
FLIPPED = {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Eq: ast.NotEq, ast.Is: ast.IsNot, ast.In: ast.NotIn}
FLIPPED |= {new: old for old, new in FLIPPED.items()}
MOVED = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.LtE: ast.Lt, ast.GtE: ast.Gt}
SWAPPED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
SWAPPED |= {ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.And: ast.Or, ast.Or: ast.And}
OTHER = {"min": "max", "max": "min", "amin": "amax", "amax": "amin"}
DROPPED = (ast.Expr, ast.Assign, ast.AugAssign, ast.Raise, ast.Delete)
NOT_RUN = {"annotation", "returns", "decorator_list", "type_params"}

Change = Callable[[Any], ast.AST | None]
"""What a node becomes; None if it is none of that kind."""


def _flip(node, to=FLIPPED):
    if not isinstance(node, ast.Compare) or type(node.ops[0]) not in to:
        return None
    node.ops[0] = to[type(node.ops[0])]()
    return node


def _edge(node):
    return _flip(node, MOVED)


def _swap(node):
    if not isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) or type(node.op) not in SWAPPED:
        return None
    node.op = SWAPPED[type(node.op)]()
    return node


def _left(node):
    if isinstance(node, ast.BoolOp):
        return node.values[0]
    return node.left if isinstance(node, ast.BinOp) else None


def _right(node):
    if isinstance(node, ast.BoolOp):
        return node.values[-1]
    return node.right if isinstance(node, ast.BinOp) else None


def _more(node):
    if not isinstance(node, ast.Constant) or type(node.value) is not int:
        return None
    return ast.Constant(node.value + 1)


def _opposite(node):
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert)):
        return node.operand
    return ast.Constant(not node.value) if isinstance(node, ast.Constant) and isinstance(node.value, bool) else None


def _minmax(node):
    if isinstance(node, ast.Name) and node.id in OTHER:
        return ast.Name(OTHER[node.id], ast.Load())
    if not isinstance(node, ast.Attribute) or node.attr not in OTHER:
        return None
    node.attr = OTHER[node.attr]
    return node


def _inside(node):
    """A call's first argument; what a method is called on, where it is called without one."""
    if not isinstance(node, ast.Call) or (node.args and isinstance(node.args[0], ast.Starred)):
        return None
    if node.args:
        return node.args[0]
    return node.func.value if isinstance(node.func, ast.Attribute) else None


def _receiver(node):
    """What a method is called on, in the place of the call."""
    return node.func.value if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None


def _condition(node, value):
    if isinstance(node, (ast.If, ast.IfExp, ast.While)):
        node.test = ast.Constant(value)
        return node
    if not isinstance(node, ast.comprehension) or not node.ifs:
        return None
    node.ifs = [ast.Constant(value)]
    return node


def _drop(node):
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return ast.Pass() if isinstance(node, DROPPED) and not text else None


def _none(node):
    gives = isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None"
    return ast.Return(ast.Constant(None)) if gives else None


def _unnamed(node):
    """A call without its last named argument."""
    return None if not isinstance(node, ast.Call) or not node.keywords else (node.keywords.pop(), node)[1]


KINDS: dict[str, Change] = {
    "flip": _flip, "edge": _edge, "swap": _swap, "left": _left, "right": _right, "more": _more, "opposite": _opposite,
    "minmax": _minmax, "inside": _inside, "receiver": _receiver, "drop": _drop, "none": _none, "unnamed": _unnamed,
    "never": lambda node: _condition(node, False), "always": lambda node: _condition(node, True),
}  # fmt: skip
"""What a break does to the code."""


def function(tree: ast.AST, name: str) -> ast.AST:
    """The function or class of this qualified name."""
    for part in name.split("."):
        kinds = (ast.FunctionDef, ast.ClassDef)
        inside = (node for node in ast.walk(tree) if isinstance(node, kinds) and node is not tree)
        tree = next(node for node in inside if node.name == part and not _is_overload(node))
    return tree


def _is_overload(node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether it is a type's word on a function that follows, and never runs."""
    return any(isinstance(one, ast.Name) and one.id == "overload" for one in node.decorator_list)


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """A function's nodes that run, in the order of the text."""
    for name, value in ast.iter_fields(tree):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in NOT_RUN:
                yield child
                yield from nodes(child)


def places(tree: ast.AST, kind: str) -> list[ast.AST]:
    """Where a function can be broken so."""
    return [node for node in nodes(tree) if KINDS[kind](_copied(node)) is not None]


def _copied(node: ast.AST) -> ast.AST:
    """A copy with lists of its own, which is all that a break writes to; of a whole function it would take long."""
    copied = copy.copy(node)
    for name, value in ast.iter_fields(node):
        if isinstance(value, list):
            setattr(copied, name, list(value))
    return copied


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


def _parsed(key: str) -> tuple[Path, ast.Module, ast.AST]:
    """The file that `module:function` is in, its tree, and the function in it."""
    path, name = _file_of(key), key.split(":")[1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return path, tree, function(tree, name)


def _file_of(key: str) -> Path:
    return SOURCE / (key.split(":")[0].replace(".", "/") + ".py")


@cache
def _read(path: Path) -> ast.Module:
    """A file's tree, to be looked at and not to be changed."""
    return ast.parse(path.read_text(encoding="utf-8"))


def places_of(key: str, kind: str) -> list[ast.AST]:
    """Where `module:function` can be broken so."""
    return places(function(_read(_file_of(key)), key.split(":")[1]), kind)


def broken(key: str, place: str) -> tuple[Path, str, str]:
    """The file that `module:function` is in, its broken source, and what has become what.

    Args:
        key: The function.
        place: Kind of break and which place, such as "edge 2".
    """
    path, tree, inside = _parsed(key)
    kind, number = place.split()
    old = places(inside, kind)[int(number) - 1]
    new = KINDS[kind](_copied(old))
    said = f"{_said(old)} -> {_said(new)}"
    _Replace(old, new).visit(tree)
    return path, ast.unparse(ast.fix_missing_locations(tree)), said


def marked(places_by_number: list[tuple[str, str]], call: str) -> dict[Path, str]:
    """Files whose drawn places say that they are reached: before each place's statement stands `call.format(number)`.

    Args:
        places_by_number: `module:function`, kind of break and which place.
        call: One statement with "{}" in it.
    """
    files: dict[Path, ast.Module] = {}
    wanted = []
    for number, (key, place) in enumerate(places_by_number):
        path = _file_of(key)
        tree = files.setdefault(path, ast.parse(path.read_text(encoding="utf-8")))
        inside = function(tree, key.split(":")[1])
        kind, which = place.split()
        wanted.append((inside, places(inside, kind)[int(which) - 1], ast.parse(call.format(number)).body[0]))
    for inside, node, statement in wanted:
        before, block = _statement_of(inside, node)
        block.insert(block.index(before), statement)
    return {path: ast.unparse(ast.fix_missing_locations(tree)) for path, tree in files.items()}


def _statement_of(inside: ast.AST, node: ast.AST) -> tuple[ast.stmt, list[ast.stmt]]:
    """The innermost statement of a function that holds a node, and the block that it stands in.

    What stands in the signature runs when the file is read: then it is the first statement behind the docstring.
    """
    innermost = inside.body[1 if ast.get_docstring(inside) is not None and len(inside.body) > 1 else 0], inside.body
    for outer in ast.walk(inside):
        for block in (value for _, value in ast.iter_fields(outer) if isinstance(value, list)):
            for one in block:
                if isinstance(one, ast.stmt) and any(part is node for part in ast.walk(one)):
                    innermost = one, block  # ast.walk goes inwards, so the last one found is the innermost
    return innermost


def _said(node: ast.AST) -> str:
    """A node's first line."""
    return ast.unparse(node).strip().splitlines()[0][:80]


# -- places that are drawn ----------------------------------------------------------------------------------------


def functions(of: Sequence[str] = ()) -> dict[str, dict[str, int]]:
    """The functions and methods of each room, as `module:name`, with how many lines each has.

    Args:
        of: The only folders and files of the source that count, as they stand in it; all if empty.
    """
    rooms: dict[str, dict[str, int]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        place = path.relative_to(SOURCE)
        if of and not any(place.is_relative_to(one) for one in of):
            continue
        room = rooms.setdefault(place.parts[0] if len(place.parts) > 1 else "root", {})
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = {f"{node.name}.": node for node in tree.body if isinstance(node, ast.ClassDef)}
        for prefix, owner in {"": tree, **classes}.items():
            for node in owner.body:
                if isinstance(node, ast.FunctionDef):
                    room[f"{'.'.join(place.with_suffix('').parts)}:{prefix}{node.name}"] = node.end_lineno - node.lineno
    return rooms


def draw(count: int, seed: int, of: Sequence[str] = ()) -> list[tuple[str, str, str]]:
    """Places over all rooms: (room, module:function, kind and number).

    A room's share grows with the root of its size, so that small ones have some; a function's with its lines.
    """
    rooms, generator = functions(of), random.Random(seed)
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


def reach(drawn: list[tuple[str, str, str]], log: Path, jobs: int, suite: list[str]) -> list[list[str]]:
    """For each place the tests that reach it, from one run of the suite; tests that fail in it are left out.

    Tests of one function with other parameters stand behind the first of every function, quick ones first.
    """
    with copied() as src:
        raw, times = src.parent / "reached", src.parent / "times"
        (src / "foveate" / "_reached.py").write_text(REACHED.format(log=str(raw)), encoding="utf-8")
        call = "__import__('foveate._reached')._reached.reached({})"
        for path, source in marked([one[1:] for one in drawn], call).items():
            (src / path.relative_to(SOURCE.parent)).write_text(source, encoding="utf-8")
        pytest_on(src, [*f"-n {jobs} --dist loadfile -p tests.timed".split(), *suite], None, TIMES=str(times))
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


def run_drawn(drawn: list[tuple[str, str, str]], log: Path, jobs: int, suite: list[str]) -> None:
    """Break the drawn places that the log does not know, and say how many of each room were seen."""
    log.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    done = {(row["function"], row["place"]) for row in known}
    tests = log.with_suffix(".tests.json")
    reaching = json.loads(tests.read_text(encoding="utf-8")) if tests.exists() else reach(drawn, tests, jobs, suite)

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
    print(f"{sum(seen.values())} of {len(known)} drawn places were seen")


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
    parser.add_argument(
        "--of", nargs="+", default=[], metavar="PATH", help="draw from these folders and files of the source"
    )
    parser.add_argument("--tests", nargs="+", default=["tests"], metavar="PATH", help="the tests that may notice")
    options = parser.parse_args()
    run_drawn(draw(options.drawn, options.seed, options.of), options.log, options.jobs, options.tests)


if __name__ == "__main__":
    main()
