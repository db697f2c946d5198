"""Measure what dropping costs on the host. Writes benchmarks/speed/host.json.

    python benchmarks/speed/host.py                          # minutes
    python benchmarks/speed/host.py --profile v2drop         # the twenty most expensive lines instead
    python benchmarks/speed/host.py --rounds 5 --only v2drop random --print

Models have real depth but tiny width, and one picture of few tokens. Arithmetic is then negligible, and the time is
that of Python and kernel launches, the bottleneck for single questions on a fast GPU. Opening and closing a context,
the prefill and a decode step are timed separately, in rounds with the untouched model, twice as the control. Operators,
transfers and host syncs are counted on a fake device.
"""

import argparse
import cProfile
import json
import os
import pstats
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import thread_time
from typing import Any

import torch
import transformers
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.bench.timing import ratio, rounds
from foveate.engine.session import drop_or_not
from foveate.runs.versions import commit, versions

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ROUNDS, LINES, PICTURE = 60, 20, 95
PARTS = ("opening and closing", "prefill", "decode")
Times = dict[str, float]

HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 128, **HEADS}


def llava() -> tuple[Any, dict[str, Any]]:
    """A LLaVA of 24 blocks and 32 layers, and a prompt with a picture of 64 tokens."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 24, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, patch_size=14, image_size=112)
    text = LlamaConfig(num_hidden_layers=32, **TEXT)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=PICTURE, image_seq_length=64)
    return LlavaForConditionalGeneration(config).eval(), {**_prompt(64), "pixel_values": torch.randn(1, 3, 112, 112)}


def qwen2_5_vl() -> tuple[Any, dict[str, Any]]:
    """A Qwen2.5-VL of 32 blocks with windows and 28 layers, and a prompt with a picture of 64 tokens."""
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = {"num_hidden_layers": 28, "rope_parameters": rope, **TEXT}
    vision = {
        "hidden_size": 16, "intermediate_size": 16, "depth": 32, "num_heads": 2, "out_hidden_size": 16,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=PICTURE, video_token_id=96, vision_start_token_id=97
    )
    picture = {"pixel_values": torch.randn(256, 1176), "image_grid_thw": torch.tensor([[1, 16, 16]])}
    prompt = _prompt(64)
    kinds = (prompt["input_ids"] == PICTURE).int()
    return (
        transformers.Qwen2_5_VLForConditionalGeneration(config).eval(),
        {**prompt, **picture, "mm_token_type_ids": kinds},
    )


MODELS = {"llava": llava, "qwen2_5_vl": qwen2_5_vl}


def methods(depth: int) -> dict[str, Any]:
    """The methods to time. Most keep a third of the tokens."""
    return {
        "untouched": None,
        "untouched again": None,
        "random": fv.Random(retention=1 / 3),
        "v2drop": fv.V2Drop(retention=1 / 3),
        "fastv": fv.FastV(retention=1 / 3),
        "divprune": fv.methods()["divprune"](retention=1 / 3),
        "visiondrop": fv.VisionDrop(
            dominant=0, contextual=0, layer_list=(2, depth // 2), image_token_list=((250, 38), (125, 19))
        ),
        "mustdrop": fv.MustDrop(pruning_layers=(1, depth // 2), retention=0.5),
    }


def _prompt(tokens: int) -> dict[str, Any]:
    ids = torch.cat((torch.full((12,), 7), torch.full((tokens,), PICTURE), torch.full((20,), 8)))[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class Run:
    """A question to a model, timed in parts.

    Args:
        model: The model.
        inputs: Its prompt.
        method: The method that drops. None for the untouched model.
    """

    def __init__(self, model: Any, inputs: dict[str, Any], method: Any) -> None:
        self._model, self._inputs, self._method = model, inputs, method

    @torch.inference_mode()
    def __call__(self) -> Times:
        """Ask once. Returns the thread's processor seconds of each of `PARTS`."""
        began = thread_time()
        context = drop_or_not(self._model, self._method)
        context.__enter__()
        opened = thread_time()
        step = self.prefill()
        filled = thread_time()
        self.decode(step)
        decoded = thread_time()
        context.__exit__(None, None, None)
        closed = thread_time()
        times = (opened - began + closed - decoded, filled - opened, decoded - filled)
        return dict(zip(PARTS, times, strict=True))

    def prefill(self) -> dict[str, Any]:
        """Run the prompt and return the arguments of the next step."""
        output = self._model(**self._inputs, use_cache=True, logits_to_keep=1)
        mask = self._inputs["attention_mask"]
        step = {"input_ids": mask[:, :1], "attention_mask": torch.cat((mask, mask[:, :1]), dim=1)}
        place = mask.sum(dim=1, keepdim=True)
        step["position_ids"] = place if self._model.config.model_type == "llava" else place.expand(3, -1, -1)
        return step | with_cache(cache_in(output))

    def decode(self, step: dict[str, Any]) -> None:
        """Run a decode step."""
        self._model(**step, use_cache=True, logits_to_keep=1)


def measured(name: str, count: int, only: list[str]) -> dict[str, Any]:
    """Times of a model with each method, and their ratios to the untouched model in the same round."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    ways = {way: method for way, method in methods(_depth(model)).items() if not only or way in ("untouched", *only)}
    runs = {way: Run(model, inputs, method) for way, method in ways.items()}
    found = list(rounds(runs, count))
    base = {part: [times["untouched"][part] for times in found] for part in PARTS}
    base["opening and closing"] = base["prefill"]  # an untouched model has nothing to open
    answers: dict[str, Any] = {}
    for way in ways:
        series = {part: [times[way][part] for times in found] for part in PARTS}
        answers[way] = {
            part: {"ms": round(1000 * median(times), 3), "÷ untouched": ratio(times, base[part]).to_dict()}
            for part, times in series.items()
        }
    return answers


def _depth(model: Any) -> int:
    depth: int = model.config.text_config.num_hidden_layers
    return depth


def counted(name: str, only: list[str]) -> dict[str, Any]:
    """Operators, transfers and host syncs of each part. Runs a new process: the fake device cannot be unregistered."""
    command = [sys.executable, __file__, "--count", name, "--only", *only]
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")))
    said = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": paths})
    found: dict[str, Any] = json.loads(said.stdout)
    return found


def count(name: str, only: list[str]) -> dict[str, Any]:
    """Count for `counted`, in the new process."""
    from tests.bench import counts, far

    far.register()
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    model = far.move(model)
    ways = {way: method for way, method in methods(_depth(model)).items() if not only or way in ("untouched", *only)}
    answers: dict[str, Any] = {}
    for way, method in ways.items():
        found = counts.counted(model, inputs, method)
        answers[way] = {
            part: {
                "operators": figures["operators"],
                "Python calls": figures["calls"],
                "transfers": sum(times for place, times in figures["waits"].items() if "_to_copy" in place),
                "waits": sum(figures["waits"].values()),
            }
            for part, figures in found.items()
        }
    return answers


def profile(name: str, way: str) -> None:
    """Print the most expensive functions of foveate in a question, by own and by cumulative time."""
    torch.manual_seed(0)
    model, inputs = MODELS[name]()
    run = Run(model, inputs, methods(_depth(model))[way])
    run()
    profiler = cProfile.Profile()
    for _ in range(20):
        profiler.runcall(run)
    stats = pstats.Stats(profiler)
    for order in ("tottime", "cumulative"):
        stats.sort_stats(order).print_stats("foveate", LINES)


def main() -> None:
    """Measure all models and write the record after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--models", nargs="+", default=[*MODELS], choices=[*MODELS])
    parser.add_argument("--only", nargs="*", default=[], help="time only these methods and the untouched model")
    parser.add_argument("--print", action="store_true", help="write no file, only to stdout")
    parser.add_argument("--profile", metavar="METHOD", help="print a profile of this method instead")
    parser.add_argument("--count", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.count:
        print(json.dumps(count(asked.count, asked.only)))
        return
    if asked.profile:
        for name in asked.models:
            profile(name, asked.profile)
        return
    record: dict[str, Any] = {
        "command": " ".join(("python benchmarks/speed/host.py", *sys.argv[1:])),
        "commit": commit(),
        "versions": versions(),
        "models": {},
    }
    for name in asked.models:
        record["models"][name] = {
            "times": measured(name, asked.rounds, asked.only),
            "counts": counted(name, asked.only),
        }
        text = json.dumps(record, indent=1) + "\n"
        if not asked.print:
            (HERE / "host.json").write_text(text, encoding="utf-8")
        for way, parts in record["models"][name]["times"].items():
            words = [f"{part} {found['÷ untouched']['median']:.3f}" for part, found in parts.items()]
            print(f"{name:11} {way:16} {'  '.join(words)}", flush=True)


if __name__ == "__main__":
    main()
