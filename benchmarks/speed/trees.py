"""Time this tree against an older commit of it: prefills and steps on the embedded model, in interleaved processes.

    OMP_NUM_THREADS=1 python benchmarks/speed/trees.py                  # half an hour of one core; writes trees.json
    OMP_NUM_THREADS=1 python benchmarks/speed/trees.py --base 0bd3db64  # default: the commit in tests/round7-base.txt

Each tree has a process of its own, and this one has two, as a control. A round calls all of them once, in random order.
Times are processor time. The peak of memory is that of a prefill with 16,000 rows of text and one picture, on a narrow
random model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import thread_time
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
BASE, NOW, AGAIN = "base", "now", "now again"
CELLS = [
    (method, batch, what) for method in ("v2drop", "fastv") for batch in (1, 8) for what in ("a prefill", "a step")
]
STEPS = 16
"""Steps of decoding that are timed together."""
TEXT = 16_000
"""Rows of text of the prompt whose peak of memory is measured."""


def serve() -> None:
    """Time what standard input asks for, a line a call, until it ends."""
    import foveate as fv
    from foveate._transformers import cache_in, with_cache

    torch.set_num_threads(1)
    model, processor = fv.embedded.load(dtype=torch.float32)
    from PIL import Image

    picture = Image.open(fv.embedded.picture())
    prompts = {}
    for batch in (1, 8):
        text = ["USER: <image>\nWhat does the text say? ASSISTANT:"] * batch
        prompts[batch] = processor(images=[picture] * batch, text=text, return_tensors="pt")
    for line in sys.stdin:
        method, batch, what = json.loads(line)
        if what == "a peak":
            print(json.dumps(peak_of(method)), flush=True)
            continue
        inputs, start = prompts[batch], thread_time()
        with fv.drop(model, method, retention=1 / 3), torch.no_grad():
            output = model(**inputs, use_cache=True, logits_to_keep=1)
            seconds = thread_time() - start
            if what == "a step":
                token, cache, start = output.logits[:, -1:].argmax(-1), cache_in(output), thread_time()
                for _ in range(STEPS):
                    output = model(input_ids=token, **with_cache(cache), use_cache=True)
                seconds = (thread_time() - start) / STEPS
        print(json.dumps(seconds), flush=True)


def peak_of(method: str) -> int:
    """Return the most bytes that live at once in a prefill of a long text and one picture."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    import foveate as fv
    from foveate.bench.peaks import Memory

    width = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    tower = CLIPVisionConfig(num_hidden_layers=2, image_size=336, patch_size=14, **width)
    text = LlamaConfig(num_hidden_layers=6, num_key_value_heads=4, vocab_size=512, **width)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=tower, text_config=text, image_token_index=3, image_seq_length=576)
    ).eval()
    ids = torch.randint(10, 500, (1, TEXT + 576))
    ids[:, 10:586] = 3
    inputs = {"input_ids": ids, "pixel_values": torch.zeros(1, 3, 336, 336)}
    layers = {"layers": (1, 3), "keep": (0.5, 0.3)} if method == "v2drop" else {"layers": (2,), "keep": (0.3,)}
    kind = fv.V2Drop if method == "v2drop" else fv.FastV
    with fv.drop(model, kind(**layers)), torch.no_grad(), Memory() as memory:
        model(**inputs, use_cache=True, logits_to_keep=1)
    return memory.peak


class Tree:
    """A process that runs a tree.

    Args:
        folder: The checkout.
    """

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join([str(folder / "src"), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, __file__, "--serve"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )

    def time(self, cell: tuple[str, int, str]) -> float:
        """Return the seconds of a call."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(cell) + "\n")
        self.process.stdin.flush()
        return float(json.loads(self.process.stdout.readline()))


def measure(base: Path, count: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each cell, the time of this tree as a share of the base's; and the peaks of memory by method."""
    from foveate.bench.timing import ratio, rounds

    trees = {BASE: Tree(base), NOW: Tree(ROOT), AGAIN: Tree(ROOT)}
    rows = []
    try:
        for cell in CELLS:
            calls: dict[str, Callable[[], float]] = {name: partial(tree.time, cell) for name, tree in trees.items()}
            seconds: dict[str, list[float]] = {name: [] for name in calls}
            for results in rounds(calls, count):
                for name, value in results.items():
                    seconds[name].append(value)
            pairs = {"now / base": (NOW, BASE), "now / now again": (NOW, AGAIN)}
            row = {name: ratio(seconds[one], seconds[other]).to_dict() for name, (one, other) in pairs.items()}
            rows.append({"cell": cell, "seconds": seconds, **row})
            print(line_of(rows[-1]), flush=True)
        peaks = {
            method: {name: trees[name].time((method, 1, "a peak")) for name in (BASE, NOW)}
            for method in ("v2drop", "fastv")
        }
        for method, peak in peaks.items():
            print(f"{method}, peak with {TEXT:,} rows of text: {peak[NOW] / peak[BASE]:.4f}", flush=True)
    finally:
        for tree in trees.values():
            tree.process.kill()
    return rows, peaks


def line_of(row: dict[str, Any]) -> str:
    """A row in words."""
    method, batch, what = row["cell"]
    shares = [
        f"{name} {row[name]['median']:.3f} [{row[name]['low']:.3f}, {row[name]['high']:.3f}]"
        for name in ("now / base", "now / now again")
    ]
    return f"{method}, batch {batch}, {what}: {', '.join(shares)}"


def main() -> None:
    """Check the base out, measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=(ROOT / "tests/round7-base.txt").read_text().split()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return
    from foveate.runs.versions import commit, versions

    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        subprocess.run([*git, "add", "--quiet", "--detach", str(base), options.base], check=True)
        try:
            rows, peaks = measure(base, options.rounds)
        finally:
            subprocess.run([*git, "remove", "--force", str(base)], check=True)
    record = {"base": options.base, "commit": commit(), "versions": versions(), "rows": rows, "peaks": peaks}
    options.out.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
