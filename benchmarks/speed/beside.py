"""Compare the time of a prefill and of a decode step with an older commit, with this tree twice as the control.

    python benchmarks/speed/beside.py a50230a

Three single-threaded processes take turns in random order, on a LLaVA of 32 layers and width 256 with random weights.
Prints ratios of processor time within a round: their median and the middle 80 %.
"""

import io
import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import quantiles
from typing import Any

from foveate._transformers import cache_in, with_cache

ROUNDS, STEPS = 15, 20
METHODS = ("untouched", "v2drop", "visiondrop", "mustdrop", "fastv")
ROOT = Path(__file__).resolve().parents[2]


def model_and_inputs() -> tuple[Any, dict[str, Any]]:
    """Build the model and its inputs, equal in each process."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    text = LlamaConfig(hidden_size=256, intermediate_size=512, num_hidden_layers=32, vocab_size=96, **heads)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, patch_size=14, image_size=336)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=95, image_seq_length=576)
    ids = torch.cat((torch.full((35,), 7), torch.full((576,), 95), torch.full((20,), 8)))[None]
    pictures = torch.randn(1, 3, 336, 336)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures}
    return LlavaForConditionalGeneration(config).eval(), inputs


def serve() -> None:
    """For each line of stdin (a method and a part), time it and print the seconds."""
    import torch

    import foveate as fv

    model, inputs = model_and_inputs()
    kinds = {"v2drop": fv.V2Drop, "visiondrop": fv.VisionDrop, "mustdrop": fv.MustDrop, "fastv": fv.FastV}
    for line in sys.stdin:
        name, part = line.split()
        context = fv.drop(model, kinds[name]()) if name in kinds else nullcontext()
        with torch.inference_mode(), context:
            began = time.process_time()
            output = model(**inputs, use_cache=True)
            if part == "decode":
                began = time.process_time()
                for step in range(STEPS):
                    length = inputs["input_ids"].shape[1] + step + 1
                    token, mask = output.logits[:, -1:].argmax(-1), torch.ones(1, length, dtype=torch.long)
                    output = model(input_ids=token, **with_cache(cache_in(output)), attention_mask=mask)
        print(time.process_time() - began, flush=True)


def started(source: Path) -> subprocess.Popen[str]:
    """Start a process that imports foveate from `source`."""
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, __file__, "--serve"], env=environment, **pipes)


def asked(process: subprocess.Popen[str], name: str, part: str) -> float:
    """Let a process time a part of a method. Returns the seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{name} {part}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main(commit: str) -> None:
    """Time all methods and print a line for each part and method."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
        sources = {"this": ROOT / "src", "again": ROOT / "src", "old": Path(folder) / "src"}
        running = {name: started(source) for name, source in sources.items()}
        for part in ("prefill", "decode"):
            for name in METHODS:
                rounds = []
                for _ in range(ROUNDS + 1):
                    order = random.sample([*running], 3)
                    rounds.append({one: asked(running[one], name, part) for one in order})
                for other in ("old", "again"):
                    ratios = quantiles([times["this"] / times[other] for times in rounds[1:]], n=10)
                    low, middle, high = ratios[0], ratios[4], ratios[8]
                    print(f"{part:8}{name:11}÷ {other:6}{middle:.3f} [{low:.3f}, {high:.3f}]", flush=True)
        for process in running.values():
            process.kill()


if __name__ == "__main__":
    serve() if sys.argv[1] == "--serve" else main(sys.argv[1])
