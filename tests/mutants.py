# ruff: noqa: E501
"""Break the code on purpose, one place at a time, and see a test fail each time.

    python -m tests.mutants                                       # all
    python -m tests.mutants cache                                 # those whose function's name contains "cache"
    python -m tests.mutants --show engine.cache:PrunedLayer.crop  # every way to break a function
    python -m tests.mutants --drawn 150 --seed 1 --log FILE       # places drawn over all rooms: how many are seen

A mutant names a function, a kind of break and its place (see `tests.breaking`), and the tests that must see it. One that
survives is a test that is missing. Run it after changing the engine; it is too slow for every push.

Drawn places need no list to follow code that moves: each room's share of places that its tests see is to be compared before
and after a rebuilding. Which tests reach a place is found by one run of the whole suite, and kept beside FILE; of these
the quickest are run, a minute of them at most. FILE keeps a JSON line a place; the same command goes on behind them.
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

from tests.breaking import KINDS, SOURCE, Gone, broken, marked, places_of

ROOT = Path(__file__).parent.parent
INVARIANTS = "tests/invariants"
HOUR = 3600
ENOUGH = 60.0
"""Seconds of tests for a drawn place, the first one apart."""

# (module:function, kind of break and place, tests that must see it)
MUTANTS = [
    ("core.attention:attention_rows", "edge 1", "tests/core tests/golden"),
    ("core.rank:keep_count", "minmax 2", "tests/core tests/methods"),
    ("core.grid:_axis", "more 2", "tests/core"),
    ("core.grid:frames_of", "left 2", "tests/core"),
    ("core.merge:dominant_and_contextual", "drop 13", "tests/core tests/golden"),
    ("core.merge:merge_windows", "more 4", "tests/core tests/golden"),
    ("core.merge:target_plus_mean", "right 1", "tests/core tests/golden"),
    ("core.rank:top", "opposite 2", "tests/core tests/methods"),
    ("core.cut:Cut.then", "inside 2", "tests/core"),
    ("core.cut:Cut.then", "inside 6", "tests/core"),
    ("engine.forward:RowMap.number_on", "drop 5", "tests/engine/test_positions.py"),
    ("engine.forward:RowMap.number_on", "receiver 6", "tests/engine/test_positions.py"),
    ("engine.attending:Reduction.add", "left 4", "tests/engine/test_attending.py"),
    ("contract.follow:_units_by_layer", "left 2", "tests/methods"),
    ("methods.mustdrop:MustDrop._highest", "none 1", "tests/methods/test_mustdrop.py"),
    ("methods.mustdrop:MustDrop._filter", "left 2", "tests/golden tests/methods"),
    ("contract.scheduled:Scheduled.left", "never 1", "tests/methods"),
    ("contract.stages:Stage._check", "never 4", "tests/contract/test_stages.py"),
    ("methods.v2drop:V2Drop._step", "right 1", "tests/methods/test_v2drop.py"),
    ("methods.visiondrop:VisionDrop._in_tower", "left 4", "tests/golden"),
    ("engine.cache:PrunedLayer._chosen", "left 5", "tests/engine"),
    ("engine.cache:PrunedLayer._chosen", "minmax 2", "tests/engine"),
    ("engine.cache:PrunedLayer._chosen", "right 4", "tests/engine"),
    ("engine.cache:PrunedLayer._evict", "drop 7", "tests/engine"),
    ("engine.cache:PrunedLayer._evict", "more 2", "tests/engine"),
    ("engine.cache:PrunedLayer.batch_select_indices", "drop 2", "tests/engine"),
    ("engine.cache:PrunedLayer.crop", "drop 7", "tests/engine"),
    ("engine.cache:PrunedLayer.get_mask_sizes", "left 4", "tests/engine"),
    ("engine.cache:PrunedLayer.reorder_cache", "drop 2", "tests/engine"),
    ("engine.cache:PrunedLayer.update", "left 6", "tests/engine"),
    ("engine.cache:PrunedLayer.update", "never 1", f"{INVARIANTS}/test_refusals.py"),
    ("engine.cache:PrunedLayer.update", "right 2", f"{INVARIANTS}/test_lengths.py tests/engine"),
    ("engine.prefill:_wanted", "left 2", "tests/methods/test_finalkv.py"),
    ("engine.prefill:_wanted", "left 4", "tests/methods/test_finalkv.py"),
    ("engine.buckets:Bucket._merged", "never 2", "tests/golden " + f"{INVARIANTS}/test_oracle.py"),
    ("engine.attending:RowsReader._text_behind", "drop 4", "tests/golden tests/signals"),
    ("engine.runner:LayerRunner._put_back", "always 1", f"{INVARIANTS}/test_edges.py"),
    ("engine.runner:LayerRunner._run_rows", "drop 8", f"{INVARIANTS}/test_backends.py"),
    ("engine.runner:LayerRunner._run_rows", "drop 9", "tests/golden " + f"{INVARIANTS}/test_oracle.py"),
    ("engine.runner:LayerRunner._run_rows", "flip 2", "tests/families/test_qwen3_5.py"),
    ("engine.runner:_device_of", "always 1", "tests/arrive/test_device_map.py"),
    ("engine.runner:_padding", "left 1", f"{INVARIANTS}/test_batch.py"),
    ("engine.runner:_padding", "none 1", "tests/families/test_qwen3_5.py"),
    ("engine.forward:RowMap.__init__", "always 2", f"{INVARIANTS}/test_oracle.py"),
    ("engine.forward:RowMap._shifted", "always 1", f"{INVARIANTS}/test_batch.py"),
    ("engine.forward:RowMap.renumbered", "never 1", f"{INVARIANTS}/test_batch.py"),
    ("core.tensors:_same", "left 1", "tests/core/test_tensors.py"),
    ("engine.arguments:_columns_of", "always 1", "tests/engine"),
    ("engine.arguments:Remap._dense", "left 1", "tests/engine"),
    ("engine.arguments:Remap._from_nothing", "edge 1", f"{INVARIANTS}/test_backends.py tests/engine"),
    ("engine.arguments:_in_order", "always 1", "tests/engine"),
    ("engine.arguments:_in_dense", "none 1", "tests/engine"),
    ("engine.cutting:_cut", "drop 16", f"{INVARIANTS}/test_oracle.py"),
    ("engine.cutting:_cut", "drop 17", f"{INVARIANTS}/test_oracle.py"),
    ("engine.prefill:_live", "inside 2", f"{INVARIANTS}/test_batch.py"),
    ("engine.prefill:_splits_image", "left 1", f"{INVARIANTS}/test_refusals.py"),
    ("engine.guards:refuse_lost_layers", "never 1", "tests/arrive/test_device_map.py"),
    ("core.patching:Patcher.wrap", "drop 2", "tests/core/test_patching.py"),
    ("core.tensors:take_along", "drop 4", "tests/core/test_tensors.py"),
    ("engine.encode:cuts_of", "drop 9", "tests/engine/test_encode.py"),
    ("engine.encode:cuts_of", "none 2", "tests/engine/test_encode.py"),
    ("engine.cutting:joined", "drop 8", "tests/engine/test_cutting.py"),
    ("engine.session:Session.detach", "drop 1", f"{INVARIANTS}/test_restore.py"),
    ("engine.prefill:begin", "left 4", f"{INVARIANTS}/test_refusals.py"),
    ("engine.session:Session.before_decoder", "never 1", "tests/arrive/test_continuous_batching.py"),
    ("engine.session:Session.around_features", "never 1", f"{INVARIANTS}/test_generation.py"),
    ("engine.samples:_read_sample", "left 3", f"{INVARIANTS}/test_batch.py"),
    ("engine.samples:_read_sample", "right 4", f"{INVARIANTS}/test_batch.py"),
    ("engine.samples:_read_sample", "right 10", "tests/engine/test_frames.py"),
    ("core.patching:Patcher.hook", "drop 1", f"{INVARIANTS}/test_restore.py"),
    ("core.patching:Patcher.restore", "left 1", "tests/core/test_patching.py"),
    ("core.patching:Patcher.restore", "drop 6", "tests/core/test_patching.py"),
    ("engine.media:MediaTokens.__deepcopy__", "none 1", f"{INVARIANTS}/test_restore.py"),
    ("engine.trace:PrefillRecord.kept_by_frame", "flip 2", "tests/engine/test_frames.py"),
    ("families.tower:_ReducedRun._read", "more 1", "tests/families/test_tower.py"),
    ("families.base:Family.queries_and_keys", "never 2", f"{INVARIANTS}/test_oracle.py"),
    ("families.qwen_vl:Qwen25VL.token_order", "receiver 1", "tests/families/test_qwen2_5_vl.py"),
    ("families.qwen_vl:Qwen35.query_projection", "more 4", f"{INVARIANTS}/test_oracle.py"),
    ("video.pixels:_upright", "flip 2", "tests/video"),
    ("video.pixels:pixels", "right 1", "tests/video"),
    ("video.decoding:_Decoder._go_to", "drop 3", "tests/video"),
    ("video.decoding:_Decoder._go_to", "drop 4", "tests/video"),
    ("video.decoding:_Decoder._missing", "left 1", "tests/video"),
    ("video.decoding:_Decoder.clip", "always 3", "tests/video"),
    ("video.survey:_look", "left 1", "tests/video"),
]  # fmt: skip


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


def run_drawn(count: int, seed: int, log: Path, jobs: int) -> int:
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
    return 0


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


def survives(path: Path, source: str, tests: list[str], limit: float = HOUR) -> bool:
    """Whether all tests pass with this source in the place of a file's."""
    with copied() as src:
        (src / path.relative_to(SOURCE.parent)).write_text(source, encoding="utf-8")
        try:
            return pytest_on(src, ["-x", *tests], limit) == 0
        except subprocess.TimeoutExpired:  # a break may make a loop endless
            return False


def show(key: str) -> None:
    """Print every way to break a function."""
    for kind in KINDS:
        for number in range(1, len(places_of(key, kind)) + 1):
            print(f"{kind} {number:<4}{broken(key, f'{kind} {number}')[2]}")


def main(arguments: list[str]) -> int:
    """Run the mutants asked for; 1 if one survived or could not be made."""
    if arguments[:1] == ["--drawn"]:
        parser = argparse.ArgumentParser(prog="python -m tests.mutants")
        parser.add_argument("--drawn", type=int, metavar="N")
        parser.add_argument("--seed", type=int, default=1)
        parser.add_argument("--log", type=Path, default=ROOT / "out" / "mutants.jsonl", metavar="FILE")
        parser.add_argument("--jobs", type=int, default=1, metavar="N", help="places at a time")
        options = parser.parse_args(arguments)
        return run_drawn(options.drawn, options.seed, options.log, options.jobs)
    if arguments[:1] == ["--show"]:
        show(arguments[1])
        return 0
    chosen = [mutant for mutant in MUTANTS if not arguments or arguments[0] in mutant[0]]
    bad = 0
    for key, place, tests in chosen:
        try:
            path, source, said = broken(key, place)
            word = "SURVIVED" if survives(path, source, tests.split()) else "killed"
        except Gone as error:
            word, said = "GONE", str(error)
        bad += word != "killed"
        print(f"{word:9}{key} {place}: {said}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} mutants killed")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
