"""Measure what methods cost and save on real checkpoints, and write it as one page. Takes about a day on a GPU.

    python benchmarks/real/run.py --plan                # show what would run and for about how long; run nothing
    python benchmarks/real/run.py --out real            # run it; the command resumes where it stopped
    python benchmarks/real/run.py --quick --out real    # half an hour, one model: a record to share
    python benchmarks/real/page.py real                 # write the page again: real/page.md

The work is split into cells. A cell is one command and writes one file or folder: a model's answers to all benchmarks
under one setting (lmms-eval with `--model foveate`), their table (`foveate eval --logs`), the times of a model
(`foveate bench`), or vLLM servers with a method and without, which share the GPU (`benchmarks/serving/run.py`, in
vLLM's environment). If a cell fails, its reason is printed and the others continue; the page lists what is missing, and
the next run tries again. Besides the methods, the full model (twice), random, resize and average pooling run at the
same budget.

`--model` also takes the name of a shape (`foveate bench --shapes`): random weights of a model's sizes, for speed only.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import page
import records
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from foveate import embedded
from foveate.bench.shapes import shapes
from foveate.plain import memory
from foveate.plain.spelling import fractions
from foveate.plain.table import Column, Table
from foveate.runs.versions import commit, versions

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("llava-hf/llava-1.5-7b-hf", "Qwen/Qwen3-VL-8B-Instruct", "llava-hf/llava-onevision-qwen2-7b-ov-hf")
METHODS = ("v2drop", "visiondrop", "mustdrop", "fastv", "divprune", "visionzip", "scope", "vidcom2")
SERVED = ("divprune", "visionzip", "scope")
"""Methods that vLLM runs before the decoder."""
DOCUMENTS = {"gqa": 12_578, "pope_full": 9_000, "mme": 2_374, "textvqa_val": 5_000, "scienceqa_img": 2_017}
DOCUMENTS |= {"docvqa_val": 5_349, "ocrbench": 1_000, "refcoco_bbox_rec": 8_811}
"""The default benchmarks by their names in lmms-eval, and the approximate number of questions of each."""
UNKNOWN = 5_000
SECONDS = 0.4
"""Assumed seconds per answer, until a cell of its kind has run."""
SERVERS = "requests a second through vLLM"
READS = ("quality", "sure")
"""Cells that read the answers of other cells and run again each time."""
QUICK = {"model": MODELS[:1], "method": ("v2drop", "divprune", "vidcom2"), "limit": 100}
QUICK |= {"task": ("pope_full", "gqa", "textvqa_val")}
"""Options of --quick, which takes half an hour and runs no server."""


@dataclass(frozen=True)
class Cell:
    """One command of the run.

    Attributes:
        model: A checkpoint or shape.
        kind: "check", "answers", "quality", "sure", "speed", "batch" or "serving".
        what: The setting of an answers cell, or the method of a serving cell.
        command: The command. The path of its file or folder is appended.
        answers: Approximate number of answers, for the estimate of time.
    """

    model: str
    kind: str
    what: str
    command: tuple[str, ...]
    answers: int

    @property
    def name(self) -> str:
        """The name of its file without the ending."""
        what = re.sub(r"[^\w.=+]+", "-", self.what)
        return "-".join(filter(None, (self.kind, self.model.replace("/", "--"), what)))

    @property
    def file(self) -> str:
        """The name of its file or folder."""
        return self.name if self.kind == "answers" else f"{self.name}.json"


def cells_of(options: argparse.Namespace) -> Iterator[Cell]:
    """Yield all cells, model by model, quick ones first. Cells that read answers list those that exist by then."""
    foveate = (str(Path(sys.executable).with_name("foveate")),)
    budgets = [word for share in options.retention for word in ("--retention", str(share))]
    timed = [word for name in (*options.method, *page.CONTROLS) for word in ("--method", name)]
    lowest = str(min(options.retention))
    times = 100 * (2 + (len(options.method) + len(page.CONTROLS)) * len(options.retention))
    documents = sum(min(DOCUMENTS.get(task, UNKNOWN), options.limit or UNKNOWN**2) for task in options.task)
    include = ("--include", str(options.include)) if options.include else ()
    for model in options.model:
        size = ("--model", model, "--new-tokens", "32", *options.bench)
        speed = (*foveate, "bench", *size, *timed, *budgets, "--force")
        yield Cell(model, "speed", "", (*speed, "--out"), times)
        yield Cell(model, "batch", "", (*speed, "--batch", str(page.BATCH), "--out"), times)
        if model in shapes():
            continue
        yield Cell(model, "check", "", (*foveate, "check", model, "--force", "--out"), 100)
        of = () if model in embedded.NAMES else ("--model", model)
        for served in options.served if options.vllm.exists() else ():
            asked = ("--settings" if served == page.STOCK_AGAIN else "--methods", served, *of, *options.serving)
            command = (str(options.vllm), str(ROOT / "benchmarks/serving/run.py"), *asked, "--retention", lowest)
            yield Cell(model, "serving", served, (*command, "--out"), 700)
        if not options.task:
            continue
        kept = options.out / "kept" / model.replace("/", "--")
        answers = []
        for setting in settings_of(options):
            values = f"pretrained={model},log={kept}{setting and ','}{setting}"
            command = (sys.executable, "-m", "lmms_eval", "--model", "foveate", "--model_args", values, *options.lmms)
            what = setting or "full"
            cell = Cell(model, "answers", what, (*command, "--log_samples", "--output_path"), documents)
            answers.append(options.out / cell.file)
            yield cell
        logs = [str(path) for path in answers if path.exists()]
        yield Cell(model, "quality", "", (*foveate, "eval", "--logs", *logs, *include, "--force", "--out"), 0)
        sure = (sys.executable, str(Path(__file__).with_name("sure.py")), str(kept))
        yield Cell(model, "sure", "", (*sure, "--out"), 0)


def settings_of(options: argparse.Namespace) -> Iterator[str]:
    """Yield the part of lmms-eval's `--model_args` for each setting. The first is the full model's, which is empty."""
    yield ""
    yield f"method={page.FULL_AGAIN}"
    for share in options.retention:
        for name in (*page.CONTROLS, *options.method):
            seeds = [f",seed={seed}" for seed in range(options.draws)] if name == "random" else [""]
            yield from (f"method={name},retention={share}{seed}" for seed in seeds)


def too_large(model: str) -> str | None:
    """The reason why a model does not fit into the free memory. None if it fits, or if its size is unknown."""
    place = embedded.path() if model in embedded.NAMES else model
    try:
        config = shapes()[model].make_config() if model in shapes() else AutoConfig.from_pretrained(place)
    except (OSError, ValueError):
        return None
    with torch.device("meta"):
        weights = sum(tensor.numel() for tensor in AutoModelForImageTextToText.from_config(config).parameters())
    on_gpu = torch.cuda.is_available()
    free = torch.cuda.mem_get_info()[0] if on_gpu else memory.available()
    need = weights * (2 if on_gpu else 4) + min(2 * page.GIB, 2 * weights)  # activations and keys
    sizes = f"about {need / page.GIB:.1f} GiB, but only {free / page.GIB:.1f} GiB are free here"
    return f"{model} needs {sizes}. Name a smaller --model." if need > free else None


# -- a run --------------------------------------------------------------------------------------------------------


def run(cell: Cell, out: Path) -> str | None:
    """Run a cell. Returns the reason of a failure in one line, or None. On an interrupt, kills the cell's processes."""
    result, part, log = (out / name for name in (cell.file, f"part-{cell.file}", f"{cell.name}.log"))
    shutil.rmtree(part, ignore_errors=True)  # lmms-eval appends to an existing folder
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as said:
        process = subprocess.Popen([*cell.command, str(part)], stdout=said, stderr=subprocess.STDOUT, process_group=0)
        try:
            process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    # lmms-eval exits with 0 even after an error.
    if process.returncode or not (part.is_file() or any(part.rglob("*_results.json"))):
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return next((line for line in reversed(lines) if line.strip(" ╰─╯│")), f"exit code {process.returncode}")
    if cell.answers:
        with (out / "times.jsonl").open("a", encoding="utf-8") as times:
            took = {"cell": cell.name, "seconds": round(time.monotonic() - began, 1), "answers": cell.answers}
            times.write(json.dumps(took) + "\n")
    log.unlink()
    part.rename(result)
    return None


def seconds_each(out: Path, kind: str) -> float:
    """Seconds per answer in cells of this kind: measured if some have run here, else assumed."""
    times = out / "times.jsonl"
    ran = [json.loads(line) for line in times.read_text(encoding="utf-8").splitlines()] if times.exists() else []
    alike = [cell for cell in ran if cell["cell"].startswith(kind)]
    return sum(cell["seconds"] for cell in alike) / sum(cell["answers"] for cell in alike) if alike else SECONDS


def plan(cells: Sequence[Cell], out: Path) -> Table:
    """A table of the cells and their approximate hours. Finished cells take none."""
    rows, left = [], 0.0
    for cell in cells:
        hours = cell.answers * seconds_each(out, cell.kind) / 3600
        done = (out / cell.file).exists() and cell.kind not in READS
        left += 0 if done else hours
        rows.append((cell.model, cell.kind, cell.what, f"{cell.answers:,}", "done" if done else f"{hours:.2f}"))
    heads = ("Model", "Cell", "Benchmark", Column("Answers", right=True), Column("Hours", right=True))
    note = f"About {left:.1f} hours are left, assuming {SECONDS} s per answer if no cell of a kind has run yet."
    unknown = f"A benchmark that is not a default is assumed to have {UNKNOWN:,} questions, or --limit."
    return Table("", heads, rows, [note, unknown])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the unfinished cells and write the page. Returns 1 if a cell failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("real"), help="folder for results and page (default: real)")
    parser.add_argument("--plan", action="store_true", help="show what would run and for about how long, then exit")
    parser.add_argument("--model", nargs="+", default=MODELS, help="checkpoints, folders or shapes")
    parser.add_argument("--method", nargs="+", default=METHODS)
    parser.add_argument("--task", nargs="*", default=[*DOCUMENTS], help="benchmarks, by their names in lmms-eval")
    parser.add_argument("--retention", nargs="+", default=[2 / 9], type=lambda text: float(fractions(text)))
    parser.add_argument("--draws", type=int, default=3, help="runs of random on benchmarks (default: 3)")
    parser.add_argument("--limit", type=int, help="run only the first documents of each benchmark")
    parser.add_argument("--include", type=Path, help="folder with your own tasks, in lmms-eval's format")
    parser.add_argument("--bench", type=str.split, default=[], metavar="FLAGS", help="more flags for foveate bench")
    parser.add_argument("--serving", type=str.split, default=["--clients", "1", "8", "32"], metavar="FLAGS")
    parser.add_argument(
        "--vllm", type=Path, default=ROOT / ".venv-vllm/bin/python", help="the Python of vLLM's environment"
    )
    parser.add_argument("--quick", action="store_true", help="a short run of half an hour, with a record to share")
    options = parser.parse_args(arguments)
    if options.quick:
        changed = {name for name in QUICK if getattr(options, name) != parser.get_default(name)}
        vars(options).update({name: value for name, value in QUICK.items() if name not in changed})
        options.vllm = Path("no vLLM")
    lmms = {"--tasks": ",".join(options.task), "--limit": options.limit, "--include_path": options.include}
    lmms |= {"--batch_size": 8}
    options.lmms = [str(word) for pair in lmms.items() if pair[1] is not None for word in pair]
    options.served = [page.STOCK_AGAIN, *(name for name in options.method if name in SERVED)]
    missing = (
        {}
        if options.vllm.exists() or options.quick
        else {SERVERS: f"there is no {options.vllm}; make setup-vllm installs it"}
    )
    cells = list(cells_of(options))
    print(plan(cells, options.out).to_text(width=120))
    if options.plan:
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(options, name) for name in ("method", "retention", "lmms", "draws", "bench", "serving")}
    settings = json.loads(json.dumps(settings))
    begun = options.out / "settings.json"
    if begun.exists() and json.loads(begun.read_text(encoding="utf-8")) != settings:
        parser.error(f"{options.out} was started with other settings ({begun}): use the same, or another --out.")
    begun.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    refused = {model: why for model in options.model if (why := too_large(model))}
    for number, cell in enumerate(cells_of(options), 1):
        if (options.out / cell.file).exists() and cell.kind not in READS:
            continue
        print(f"{number} of {len(cells)}: {cell.name}", file=sys.stderr, flush=True)
        why = refused.get(cell.model) or run(cell, options.out)
        if why:
            missing[cell.name] = why
            print(f"  failed: {why}", file=sys.stderr, flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    about = {"commit": commit(), "versions": versions(), "device": device, "model": list(options.model)}
    record = json.dumps({**about, **settings, "limit": options.limit, "missing": missing}, indent=1)
    (options.out / "record.json").write_text(record + "\n", encoding="utf-8")
    print(f"The page: {page.write(options.out)}", file=sys.stderr)
    if options.quick:
        return max(records.main([str(options.out)]), int(bool(missing)))
    return int(bool(missing.keys() - {SERVERS}))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("Stopped. Run the same command to resume.", file=sys.stderr)
        sys.exit(130)
