"""Time the authors' released code beside foveate, on the same work. Writes record.json and docs/compared.md's table.

    make setup-peers                                          # the authors' environment, in .venv-peers
    python benchmarks/peers/run.py FOLDER                     # with clones at the commits of peers.py; half an hour
    python benchmarks/peers/run.py FOLDER --only FastV        # one peer
    python benchmarks/peers/run.py --page                     # only write the table
    python benchmarks/peers/run.py FOLDER --only MustDrop DivPrune --keep-memory --out benchmarks/peers/kept.json

Each side has a process. A round asks both, in random order, for the untouched model twice and for the method. Times are
processor seconds of one thread. A run that was stopped goes on where it was: finished rounds are in rounds.jsonl of the
work folder.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peers import PEERS, Peer
from worker import HEADS, KEEP, LAYERS, MLP, QUESTION, SYSTEM, VISION, WIDTH

from foveate.bench.benched import chip
from foveate.bench.timing import interval_words, ratio, rounds
from foveate.cost import cost
from foveate.plain.table import between
from foveate.runs.versions import commit, versions

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECORD, PAGE = HERE / "record.json", ROOT / "docs/compared.md"
AUTHORS, FOVEATE = "authors", "foveate"
SIDES = (AUTHORS, FOVEATE)
UNTOUCHED, AGAIN, METHOD = "untouched", "untouched again", "method"
ARMS = (UNTOUCHED, AGAIN, METHOD)
PARTS = ("ttft", "decoder", "step")
SAME = 1e-4
"""Largest difference of two logits that counts as rounding. Logits are about 2; wrong ones differ by .01 or more."""

Round = Mapping[str, Mapping[str, Any]]
"""The answer of each side's arms, by `name_of`."""


def name_of(side: str, arm: str) -> str:
    """The name of a side's arm in a round."""
    return f"{side}, {arm}"


# -- the repositories -----------------------------------------------------------------------------------------


def problems(folder: Path, peers: Sequence[Peer]) -> list[str]:
    """What is wrong with the clones in a folder: one is missing, at another commit, or its Python files differ."""
    found = []
    for peer in dict.fromkeys(chain.from_iterable(peer.clones for peer in peers)):
        clone = folder / peer.folder
        fetch = f"git clone https://github.com/{peer.repository} {clone} && git -C {clone} checkout {peer.commit}"
        if not (clone / ".git").exists():
            found.append(f"{clone} is no clone of {peer.repository}: {fetch}")
        elif (head := git(clone, "rev-parse", "HEAD")) != peer.commit:
            found.append(f"{clone} is at {head}, not at {peer.commit}: git -C {clone} checkout {peer.commit}")
        elif changed := git(clone, "status", "--porcelain", "--", "*.py"):
            found.append(f"Python files in {clone} differ from its commit:\n{changed}")
    return found


def git(clone: Path, *words: str) -> str:
    """The output of a git command in a clone."""
    return subprocess.run(["git", "-C", str(clone), *words], capture_output=True, text=True, check=True).stdout.strip()


# -- the two processes ----------------------------------------------------------------------------------------


class Worker:
    """A side's process.

    Attributes:
        versions: The versions that it runs with.
    """

    def __init__(self, command: Sequence[str | Path], log: Path, **environment: str) -> None:
        one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        self._log = log
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | one | environment,
            )
        self.versions: dict[str, str] = self._line()

    def ask(self, arm: str, **request: Any) -> dict[str, Any]:
        """The answer to a request of `worker.py`, which may be an error."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"arm": arm, **request}) + "\n")
        self._process.stdin.flush()
        return self._line()

    def time(self, arm: str) -> dict[str, Any]:
        """The answer to a plain request.

        Raises:
            SystemExit: If it is an error.
        """
        answer = self.ask(arm)
        if "error" in answer:
            raise SystemExit(f"{answer['error']}; see {self._log}")
        return answer

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"A process ended; see {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def workers(name: str, options: argparse.Namespace) -> Iterator[dict[str, Worker]]:
    """Both sides' processes for a peer, which end with this context."""
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    model, log = options.work / "model", options.work / f"{name}.log"
    memory = KEEP if options.keep_memory else {}
    with ExitStack() as stack:
        theirs = Worker(
            [options.python, HERE / "theirs.py", name, model, options.repositories], log, PYTHONPATH="", **memory
        )
        stack.callback(theirs.close)
        ours = Worker([sys.executable, HERE / "ours.py", name, model], log, PYTHONPATH=path, **memory)
        stack.callback(ours.close)
        if theirs.versions["torch"] != ours.versions["torch"]:
            raise SystemExit(f"Both sides need the same torch: {theirs.versions['torch']}, {ours.versions['torch']}.")
        yield {AUTHORS: theirs, FOVEATE: ours}


# -- what is measured -----------------------------------------------------------------------------------------


def checks(peer: Peer, sides: Mapping[str, Worker]) -> dict[str, Any]:
    """For each side: a sample in a batch of two pictures beside itself alone, and cached decoding beside recomputing.

    Also how many calls of Python a step makes. Other values are the largest difference of two logits, or the error. A
    cache is not compared if the method reads the text: the tokens that are recomputed would change what it drops.
    """
    result: dict[str, Any] = {}
    for side, worker in sides.items():
        one = {"pictures": [1], "logits": True}
        two = {"pictures": [0, 1], "logits": True}
        result[side] = {}
        for part, tokens in (("prefill", 1), ("decoding", 4)):
            alone, batch = (worker.ask(METHOD, tokens=tokens, **request) for request in (one, two))
            result[side][f"batch, {part}"] = batch.get("error") or largest(
                alone["logits"][-1][0], batch["logits"][-1][1]
            )
        for arm in (UNTOUCHED, METHOD):
            result[side][f"calls of Python in a step, {arm}"] = worker.ask(arm, calls=True)["calls"]
        if not peer.reads_text:
            cached = worker.ask(METHOD, tokens=6, logits=True)
            afresh = worker.ask(METHOD, tokens=1, append=cached["tokens"][:5], logits=True)
            result[side]["cache"] = largest(cached["logits"][-1][0], afresh["logits"][-1][0])
    return result


def largest(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest difference between two rows of logits."""
    return max(abs(first - second) for first, second in zip(one, other, strict=True))


def measure(name: str, options: argparse.Namespace, progress: "Progress") -> None:
    """Run what is missing of a peer: its checks and its rounds."""
    done = progress.of(name)
    missing = options.rounds - len(done["rounds"])
    if missing <= 0 and done["checks"]:
        return
    with workers(name, options) as sides:
        if not done["checks"]:
            versions_of = {side: worker.versions for side, worker in sides.items()}
            progress.add({"peer": name, "checks": checks(PEERS[name], sides), "versions": versions_of})
        runs: dict[str, Callable[[], dict[str, Any]]] = {
            name_of(side, arm): partial(worker.time, METHOD if arm == METHOD else UNTOUCHED)
            for side, worker in sides.items()
            for arm in ARMS
        }
        for result in rounds(runs, max(0, missing), seed=len(done["rounds"])):
            progress.add({"peer": name, "round": result, "load": os.getloadavg()[0]})
            times = ", ".join(f"{run} {answer['ttft']:.2f} s" for run, answer in result.items())
            print(f"{name}: {times}", flush=True)


class Progress:
    """The finished parts of a run, a line each in a file.

    Raises:
        SystemExit: If the file is of another commit of foveate or other settings.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        head = json.dumps({"commit": commit(), "chip": chip(torch.device("cpu"))})
        if not path.exists():
            path.write_text(head + "\n", encoding="utf-8")
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        if first != head:
            raise SystemExit(f"{path} has rounds of {first}, not of {head}. Delete it, or give another --work.")
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def add(self, line: dict[str, Any]) -> None:
        """Keep a part."""
        self.lines.append(line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def of(self, name: str) -> dict[str, Any]:
        """A peer's rounds, with the load of the machine in each, its checks, and the versions of both sides."""
        mine = [line for line in self.lines if line["peer"] == name]
        timed = [line for line in mine if "round" in line]
        checked = next((line for line in mine if "checks" in line), {})
        return {
            "rounds": [line["round"] for line in timed],
            "load": [line["load"] for line in timed],
            "checks": checked.get("checks"),
            "versions": checked.get("versions"),
        }


# -- figures --------------------------------------------------------------------------------------------------


def record_of(progress: Progress, command: str) -> dict[str, Any]:
    """The record of all peers that ran."""
    return {
        "command": command,
        "commit": commit(),
        "versions": versions(),
        "machine": {"chip": chip(torch.device("cpu")), "threads": 1},
        "model": {
            "layers": LAYERS,
            "width": WIDTH,
            "heads": HEADS,
            "MLP": MLP,
            "weights": "random",
            "dtype": "float32",
        },
        "prompt": {"text tokens": SYSTEM + QUESTION, "vision tokens": VISION, "new tokens": 17},
        "peers": {name: row_of(peer, progress.of(name)) for name, peer in PEERS.items() if progress.of(name)["rounds"]},
    }


def row_of(peer: Peer, done: Mapping[str, Any]) -> dict[str, Any]:
    """A peer's figures, and the rounds from which they are."""
    measured: Sequence[Round] = done["rounds"]
    tokens = measured[0][name_of(FOVEATE, METHOD)]["layer_tokens"]
    limit = flops(None) / flops(tokens)
    kept = (*PARTS, "peak", "faults")
    return {
        "repository": peer.repository,
        "commit": peer.commit,
        "versions": done["versions"],
        "setting": {"method": peer.method, **peer.settings},
        "setting of the authors": peer.theirs,
        "layer_tokens": tokens,
        "limit": limit,
        "same": same(measured[0]),
        "checks": done["checks"],
        "load": done["load"],
        **figures(measured, limit),
        "rounds": [
            {run: {part: round(answer[part], 5) for part in kept} for run, answer in each.items()} for each in measured
        ],
    }


def flops(tokens: Sequence[int] | None) -> int:
    """FLOPs of the decoder's layers in the prefill, with so many vision tokens in each. None: all."""
    from transformers import AutoConfig

    text = {"hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config = AutoConfig.for_model("llava", text_config={"model_type": "llama", "num_key_value_heads": HEADS, **text})
    counts = {} if tokens is None else {"tokens": tuple(tokens)}
    return cost(config, text_tokens=SYSTEM + QUESTION, vision_tokens=VISION, attention="causal", **counts).prefill_flops


def same(each: Round) -> dict[str, Any]:
    """Whether both sides' methods gave the same tokens, and how much their largest logits differ."""
    theirs, ours = (each[name_of(side, METHOD)] for side in SIDES)
    difference = max(abs(one - other) for one, other in zip(theirs["largest"], ours["largest"], strict=True))
    return {"tokens": theirs["tokens"] == ours["tokens"], "largest logit differs by": difference}


def figures(measured: Sequence[Round], limit: float) -> dict[str, Any]:
    """Speed-ups over each side's untouched model, foveate's beside the authors', controls, seconds and memory."""
    result: dict[str, Any] = {}
    for part in PARTS:
        series = {run: [each[run][part] for each in measured] for run in measured[0]}
        arms = {arm: {side: series[name_of(side, arm)] for side in SIDES} for arm in ARMS}
        base = {side: halves(arms[UNTOUCHED][side], arms[AGAIN][side]) for side in SIDES}
        faster = {
            side: [whole / less for whole, less in zip(base[side], arms[METHOD][side], strict=True)] for side in SIDES
        }
        result[part] = {
            "speed-up": {side: ratio(base[side], arms[METHOD][side]).to_dict() for side in SIDES},
            "foveate's / authors' speed-up": ratio(faster[FOVEATE], faster[AUTHORS]).to_dict(),
            "untouched again / untouched": {
                side: ratio(arms[AGAIN][side], arms[UNTOUCHED][side]).to_dict() for side in SIDES
            },
            "foveate's / authors' time": {
                UNTOUCHED: ratio(base[FOVEATE], base[AUTHORS]).to_dict(),
                METHOD: ratio(arms[METHOD][FOVEATE], arms[METHOD][AUTHORS]).to_dict(),
            },
            "seconds": {run: round(median(times), 4) for run, times in series.items()},
        }
    result["share of the limit"] = {side: result["decoder"]["speed-up"][side]["median"] / limit for side in SIDES}
    result["page faults"] = {run: median(each[run]["faults"] for each in measured) for run in measured[0]}
    result["peak, MiB"] = {run: round(median(each[run]["peak"] for each in measured), 1) for run in measured[0]}
    return result


def halves(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """The means of two series."""
    return [(first + second) / 2 for first, second in zip(one, other, strict=True)]


# -- the page -------------------------------------------------------------------------------------------------


def filled(page: str, record: Mapping[str, Any]) -> str:
    """The page with the tables of a record."""
    return between(page, "peers", tables(record))


def tables(record: Mapping[str, Any]) -> str:
    """The tables: time and memory, then what a batch and a cache give."""
    peers = record["peers"]
    count = min(len(row["rounds"]) for row in peers.values())
    theirs = " and ".join(sorted({row["versions"][AUTHORS]["transformers"] for row in peers.values()}))
    lines = [
        f"{record['machine']['chip']}, one thread; torch {record['versions']['torch']}; transformers {theirs} "
        f"(authors), {record['versions']['transformers']} (foveate). Medians of {count} rounds, in brackets the "
        f"{interval_words(count)}.",
        "",
        "| | speed-up of the first token, authors | foveate | foveate ÷ authors | share of the FLOPs' limit, authors / "
        "foveate | speed-up of a step, foveate ÷ authors | peak MiB, authors / foveate |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in peers.items():
        first = row["ttft"]
        cells = [
            f"[{name}](https://github.com/{row['repository']}/tree/{row['commit']})",
            *(interval(first["speed-up"][side]) for side in SIDES),
            interval(first["foveate's / authors' speed-up"]),
            " / ".join(f"{row['share of the limit'][side]:.0%}" for side in SIDES),
            interval(row["step"]["foveate's / authors' speed-up"]),
            " / ".join(f"{row['peak, MiB'][name_of(side, METHOD)]:.0f}" for side in SIDES),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| untouched models | authors' against itself | foveate's against itself | foveate's time ÷ authors' |",
    ]
    lines += ["|---|---|---|---|"]
    for part, title in {"ttft": "first token", "decoder": "decoder's prefill", "step": "a step"}.items():
        controls = [spread(row[part]["untouched again / untouched"][side] for row in peers.values()) for side in SIDES]
        own = spread(row[part]["foveate's / authors' time"][UNTOUCHED] for row in peers.values())
        lines.append(f"| {' | '.join((title, *controls, own))} |")
    faults = [median(row["page faults"][name_of(side, UNTOUCHED)] for row in peers.values()) for side in SIDES]
    pages = " and ".join(f"{count / 1000:.0f}" for count in faults)
    lines += ["", f"The untouched decoders' prefills make {pages} thousand page faults, authors' and foveate's."]
    lines += [
        "",
        "| | a sample in a batch of two pictures, authors | foveate | cached = recomputed, authors | foveate |",
    ]
    lines += ["|---|---|---|---|---|"]
    for name, row in peers.items():
        batches = [batch_words(row["checks"][side]) for side in SIDES]
        caches = [cache_words(row["checks"][side]) for side in SIDES]
        lines.append(f"| {' | '.join((name, *batches, *caches))} |")
    return "\n".join(lines) + "\n"


def interval(values: Mapping[str, float]) -> str:
    """A ratio with its interval."""
    return f"{values['median']:.2f} [{values['low']:.2f}, {values['high']:.2f}]"


def spread(values: Iterator[Mapping[str, float]]) -> str:
    """The smallest and the largest median."""
    medians = [each["median"] for each in values]
    return f"{min(medians):.2f} to {max(medians):.2f}"


def batch_words(of_side: Mapping[str, Any]) -> str:
    """What happens to a sample in a batch."""
    prefill, decoding = of_side["batch, prefill"], of_side["batch, decoding"]
    if isinstance(prefill, str):
        return f"prefill fails: {prefill.partition(':')[0]}"
    if prefill > SAME:
        return f"**wrong**: logits move by {prefill:.2g}"
    if isinstance(decoding, str):
        return f"prefill right, **decoding fails**: {decoding.partition(':')[0]}"
    if decoding > SAME:
        return f"prefill right, **decoding wrong**: logits move by {decoding:.2g}"
    return f"as alone, to {max(prefill, decoding):.0e}"


def cache_words(of_side: Mapping[str, Any]) -> str:
    """Whether cached decoding gives the logits of a recomputation."""
    if "cache" not in of_side:
        return "not comparable: it reads the text"
    if of_side["cache"] > SAME:
        return f"**no**: logits differ by {of_side['cache']:.2g}"
    return "yes"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write the record and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repositories", type=Path, nargs="?", metavar="FOLDER", help="folder with the clones")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="default: 10")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=list(PEERS), metavar="NAME", help="default: all")
    parser.add_argument("--python", type=Path, default=ROOT / ".venv-peers/bin/python", help="the authors' environment")
    parser.add_argument("--work", type=Path, default=ROOT / "out/peers", help="folder for the model, logs and rounds")
    parser.add_argument("--keep-memory", action="store_true", help="let both sides keep memory that they freed")
    parser.add_argument("--out", type=Path, default=RECORD, metavar="FILE")
    parser.add_argument("--page", action="store_true", help="only write the table of docs/compared.md")
    options = parser.parse_args(arguments)
    if not options.page:
        if options.repositories is None:
            parser.error("give the folder with the clones")
        if wrong := problems(options.repositories, [PEERS[name] for name in options.only]):
            raise SystemExit("\n".join(wrong))
        if not options.python.exists():
            raise SystemExit(f"{options.python} is missing: run make setup-peers, or give --python.")
        options.work.mkdir(parents=True, exist_ok=True)
        progress = Progress(options.work / ("kept.jsonl" if options.keep_memory else "rounds.jsonl"))
        if not (options.work / "model/config.json").exists():
            from ours import make

            make(options.work / "model")
        for name in options.only:
            measure(name, options, progress)
        command = f"python benchmarks/peers/run.py FOLDER --rounds {options.rounds}"
        if options.keep_memory:
            command += " --keep-memory"
        text = json.dumps(record_of(progress, command), indent=1)
        options.out.write_text(text + "\n", encoding="utf-8")
    if options.out == RECORD:
        record = json.loads(RECORD.read_text(encoding="utf-8"))
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")


if __name__ == "__main__":
    main()
