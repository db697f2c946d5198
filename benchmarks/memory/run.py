"""Peak memory and scoring time of every method at 576, 4,096 and 16,384 vision tokens: writes record and page.

    python benchmarks/memory/run.py                             # an hour of one core; goes on where it stopped
    python benchmarks/memory/run.py --method scope --again      # one method once more

A cell, a method at a number of tokens, is a process of its own with limits of processor time and memory: one that
exceeds them is recorded as that. Peaks are counted tensor by tensor, so that a run anywhere gives the same. Times are
of the processor, from pixels to the first token, beside random dropping with as many tokens in every layer.
"""

import argparse
import json
import math
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.progress import MofNCompleteColumn, Progress

import foveate as fv
from foveate.bench.peaks import hold
from foveate.bench.shapes import NamedShape
from foveate.bench.stopwatch import time_parts
from foveate.bench.workload import Workload, synthetic
from foveate.contract.method import Method
from foveate.methods.random import same_schedule
from foveate.plain.flags import PromptRequest
from foveate.plain.table import between
from foveate.runs.versions import commit, versions

HERE = Path(__file__).resolve().parent
RECORD, PAGE, GUIDE = HERE / "methods.json", HERE / "README.md", HERE.parents[1] / "docs/guides/bench.md"
TOKENS = (576, 4096, 16_384)
UNTOUCHED, FILM = "untouched", "untouched, video"
FILMS = ("dtd", "dycoke", "evs", "fastvid", "flashvid", "holitom", "pixelprune", "vidcom2")
INSIDE = (
    "clse", "dart", "fastv", "ivcprune", "mustdrop", "priortr", "pyramiddrop", "random", "sparsevlm", "sparsevlm_plus",
    "uniform", "v2drop",
)  # fmt: skip
ENTER, SHARE, A_FRAME = 192, 0.6, 64
SECONDS, GIB = 120, 8
PAIRS = {1: 9, 20: 3, SECONDS: 1}  # of processor seconds that a prompt takes at most
TOWER, DECODER = {"width": 64, "layers": 3}, {"width": 128, "layers": 6}
CONDITIONS = "random weights, float32, SDPA, batch 1, 40 tokens of text; one of two cores, other jobs beside"


# -- a cell, in a process of its own ------------------------------------------------------------------------------


def shape_of(name: str, tokens: int) -> NamedShape:
    """A LLaVA that is shown one picture of so many tokens, or a Qwen2-VL with a film of 64 tokens for two frames."""
    width, tower = DECODER["width"], TOWER["width"]
    text = {
        "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": DECODER["layers"],
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1024, "max_position_embeddings": 32_768,
    }  # fmt: skip
    if name in (*FILMS, FILM):
        vision = {"depth": TOWER["layers"], "embed_dim": tower, "hidden_size": width, "num_heads": 2, "mlp_ratio": 4}
        text |= {"bos_token_id": 1, "eos_token_id": 2}
        text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}}
        config = {"model_type": "qwen2_vl", "text_config": text, "vision_config": vision}
        ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        config |= {kind: 1001 + place for place, kind in enumerate(ids)}
        frame = {"tokens": A_FRAME, "grid": [1, 16, 16], "frames": 2 * tokens // A_FRAME}
        return NamedShape("film", "", config, frame=frame)
    side = 14 * round(tokens**0.5)
    vision = {
        "model_type": "clip_vision_model", "hidden_size": tower, "intermediate_size": 4 * tower, "image_size": side,
        "num_hidden_layers": TOWER["layers"], "num_attention_heads": 2, "projection_dim": tower, "patch_size": 14,
    }  # fmt: skip
    config = {"model_type": "llava", "vision_config": vision, "text_config": {"model_type": "llama", **text}}
    config |= {"image_token_index": 1001, "image_seq_length": tokens}
    return NamedShape("picture", "", config, image={"tokens": tokens, "pixels": [3, side, side]})


def setting(name: str) -> Method | None:
    """The method as it is measured."""
    if name in (UNTOUCHED, FILM):
        return None
    kind = fv.methods()[name]
    if not kind().open:
        return kind()
    if name == "ivcprune":  # its usual layer is 16
        return kind(layer=DECODER["layers"] // 2, retention=SHARE)
    if name in FILMS:
        return kind(retention=1 / 3)
    return kind(retention=SHARE) if name in INSIDE else kind(tokens=ENTER)


def cell(name: str, tokens: int) -> dict[str, Any]:
    """What a method takes of a prompt with so many vision tokens."""
    shape = shape_of(name, tokens)
    model = shape.build(torch.device("cpu"), torch.float32)
    workload = synthetic(shape, PromptRequest(), torch.device("cpu"))
    if name == "pixelprune":
        blank = workload.inputs["pixel_values_videos"]
        blank[: len(blank) // 2] = 0  # else no pixels are alike
    method = setting(name)
    signal.signal(signal.SIGPROF, _too_long)
    try:
        return _measured(model, workload, method)
    except TimeoutError:
        return {"failed": f"over {SECONDS} s"}
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        return {"failed": f"over {GIB} GiB"}


def _measured(model: Any, workload: Workload, method: Method | None) -> dict[str, Any]:
    start = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    if method is None:
        return {"peak": hold(model, workload, None).peak}
    with fv.drop(model, method) as trace:
        held = hold(model, workload, trace)
    took = time.process_time() - start
    control = same_schedule(method, held.tokens, workload.vision_tokens)
    seconds: dict[str, list[float]] = {"seconds": [], "random": []}
    for _ in range(next((pairs for most, pairs in PAIRS.items() if took < most), 1)):
        for kind, one in (("seconds", method), ("random", control)):
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            with fv.drop(model, one):
                seconds[kind].append(round(time_parts(model, workload.inputs, 1, time.process_time)["ttft"], 4))
    signal.setitimer(signal.ITIMER_PROF, 0)
    return {"peak": held.peak, "tokens": round(sum(held.tokens) / len(held.tokens), 1), **seconds}


def _too_long(*_: Any) -> None:
    raise TimeoutError


# -- all of them --------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """The rows of the table."""
    return [UNTOUCHED, FILM, *sorted(fv.methods())]


def run(record: dict[str, Any], methods: list[str], again: bool) -> None:
    """Measure what is missing, small prompts first, and write after each cell."""
    cells = [(name, tokens) for tokens in TOKENS for name in methods]
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn()) as progress:
        task = progress.add_task("", total=len(cells))
        for name, tokens in cells:
            progress.update(task, description=f"{name}, {tokens:,} tokens")
            row = record["rows"].setdefault(name, {})
            if again or str(tokens) not in row:
                command = [sys.executable, __file__, "--cell", name, str(tokens)]
                row[str(tokens)] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
                write(record)
            progress.advance(task)


def write(record: dict[str, Any]) -> None:
    """The record, its page, and the guide's part."""
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(record), encoding="utf-8")
    GUIDE.write_text(filled(GUIDE.read_text(encoding="utf-8"), record), encoding="utf-8")


# -- the page -----------------------------------------------------------------------------------------------------


def memory_of(record: dict[str, Any], name: str, tokens: int) -> str:
    """`12.3 (0.85)`: MiB, and the share of what the untouched model takes."""
    row = record["rows"].get(name, {}).get(str(tokens), {"failed": "–"})
    if "failed" in row:
        return str(row["failed"])
    whole = record["rows"][FILM if name in (*FILMS, FILM) else UNTOUCHED][str(tokens)]["peak"]
    return f"{row['peak'] / 2**20:.1f} ({row['peak'] / whole:.2f})"


def time_of(record: dict[str, Any], name: str, tokens: int) -> str:
    """`120 (1.05)`: milliseconds beyond random, and the ratio to it; medians over the pairs."""
    row = record["rows"].get(name, {}).get(str(tokens), {"failed": "–"})
    if "seconds" not in row:
        return str(row.get("failed", ""))
    pairs = list(zip(row["seconds"], row["random"], strict=True))
    return f"{round(1000 * median(a - b for a, b in pairs)):,} ({median(a / b for a, b in pairs):.2f})"


def growth(record: dict[str, Any], name: str) -> str:
    """The power of the number of tokens with which the peak grows, between the two largest that are measured."""
    sizes = record["rows"].get(name, {})
    peaks = [(tokens, sizes[str(tokens)]["peak"]) for tokens in TOKENS if "peak" in sizes.get(str(tokens), {})]
    if len(peaks) < 2:
        return ""
    (few, low), (many, high) = peaks[-2:]
    return f"{math.log(high / low, many / few):.2f}"


def table(record: dict[str, Any]) -> list[str]:
    """Every method: memory and time."""
    heads = ["method", *(f"MiB at {tokens:,}" for tokens in TOKENS)]
    heads += ["power", *(f"ms at {tokens:,}" for tokens in TOKENS)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in (name for name in names() if name in record["rows"]):
        cells = [*(memory_of(record, name, tokens) for tokens in TOKENS), growth(record, name)]
        cells += [time_of(record, name, tokens) for tokens in TOKENS]
        lines.append(f"| {' | '.join([name, *cells])} |")
    return lines


NOTES = f"""\
MiB: peak of live tensors, without weights and inputs. Brackets: share of the untouched model's peak.

power: how the peak grows with the number of tokens, between the two largest sizes. 1 is linear, 2 quadratic.

ms: processor time to the first token, minus that of random dropping with as many tokens in every layer. Brackets: the
ratio of the two. Medians of 9 interleaved pairs; of 3 if a prompt takes over 1 s, of 1 if over 20 s.
Values near 0, or ratios near that of `random` against itself, are noise.

A prompt is limited to {SECONDS} s and {GIB} GiB."""


def page(record: dict[str, Any]) -> str:
    """The README of a record."""
    releases = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        "# Memory and scoring by method",
        "",
        "Memory and time of methods on small random models, at 576, 4,096 and 16,384 vision tokens.",
        "",
        f"- **Models**: a LLaVA with one image. The tower has {TOWER['layers']} layers of width {TOWER['width']}, the "
        f"decoder {DECODER['layers']} of width {DECODER['width']}. For {', '.join(FILMS)}: a Qwen2-VL of the same size "
        f"with a video of as many tokens, {A_FRAME} per two frames.",
        f"- **Conditions**: {record['conditions']}; {releases}.",
        f"- **Budgets**: methods before the decoder keep {ENTER} tokens, or a third of a video. Methods that cut "
        f"inside the decoder ({', '.join(INSIDE)}) keep {SHARE:.0%} on average. Methods without a budget run with "
        "their own settings. The first half of PixelPrune's video is blank.",
        "",
        "```bash",
        "python benchmarks/memory/run.py",
        "```",
        "",
        "The table is in [the guide](../../docs/guides/bench.md#memory-and-scoring-by-method).",
    ]
    return "\n".join([*lines, ""])


def filled(text: str, record: dict[str, Any]) -> str:
    """The guide with its part of the record."""
    missing = ", ".join(name for name in names() if name not in record["rows"])
    notes = f"{NOTES} Not measured yet: {missing or 'none'}."
    return between(text, "memory", "\n".join([*table(record), "", notes, ""]))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", default=names(), choices=names(), metavar="NAME")
    parser.add_argument("--again", action="store_true", help="measure also what the record has")
    parser.add_argument("--cell", nargs=2, metavar=("NAME", "TOKENS"), help="print one cell")
    options = parser.parse_args()
    if options.cell:
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_DATA, (GIB << 30, GIB << 30))
        print(json.dumps(cell(options.cell[0], int(options.cell[1]))))
        return
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {"rows": {}}
    record |= {"versions": versions(), "commit": commit(), "conditions": CONDITIONS}
    run(record, options.method, options.again)
    write(record)


if __name__ == "__main__":
    main()
