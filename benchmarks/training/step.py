"""Measure a training step with all vision tokens and with few: time and memory. The tower is frozen.

    python benchmarks/training/step.py                        # half an hour on one core
    python benchmarks/training/step.py --model NAME_OR_FOLDER --device cuda --dtype bfloat16 --batch 4   # your own
    python benchmarks/training/step.py --table                # write the guide's table from the existing record

A step is a forward and its backward; the optimiser's part is the same for all. Steps with a budget and without are
interleaved, and the step with all tokens runs twice as a control. On a CPU the time is one thread's processor time, and
memory is what autograd keeps for the backward. On a GPU the time is wall time, and memory the peak above the weights.
Writes benchmarks/training/step.json.
"""

import argparse
import json
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fitting import IGNORED, SETTINGS, Setting
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import foveate as fv
from foveate import embedded
from foveate.bench.stopwatch import clock_of
from foveate.bench.timing import interval_words, ratio, rounds
from foveate.embedded.questions import one_per_task
from foveate.embedded.scenes import scene
from foveate.plain.table import between
from foveate.registry import family_for
from foveate.runs.versions import commit, versions

OUT = Path(__file__).with_suffix(".json")
GUIDE = Path(__file__).parents[2] / "docs/guides/training.md"
FIRST = 930_000_000
FULL, AGAIN = "full", "full again"
# V2Drop's usual layers are of a decoder of 32.
MEASURED = {
    "divprune 1/3": SETTINGS["divprune 1/3"],
    "divprune 1/9": SETTINGS["divprune 1/9"],
    "v2drop 1/3": Setting("v2drop", 1 / 3),
}


def batch_of(vlm: fv.VLM, count: int) -> dict[str, Tensor]:
    """A batch of drawn pictures with a question and its answer each, of which the answers are predicted."""
    examples = []
    for number in range(FIRST, FIRST + count):
        drawn = scene("train", number)
        question = one_per_task(drawn, "train", number)[0]
        examples.append((Image.fromarray(drawn.image), question.question, question.answer))
    asked = [vlm.prepare(image, question) for image, question, _ in examples]
    answers = [vlm.tokenizer(answer, add_special_tokens=False).input_ids for *_, answer in examples]
    pairs = zip(asked, answers, strict=True)
    rows = [torch.cat((prompt.inputs["input_ids"][0], torch.tensor(more))) for prompt, more in pairs]
    inputs = {name: torch.cat([prompt.inputs[name] for prompt in asked]) for name in asked[0].inputs if "pixel" in name}
    pad = vlm.tokenizer.pad_token_id or 0
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    columns = torch.arange(ids.shape[1])
    answer = columns >= lengths - torch.tensor([len(more) for more in answers])[:, None]
    inside = columns < lengths
    labels = ids.masked_fill(~(answer & inside), IGNORED)
    return {**inputs, "input_ids": ids, "attention_mask": inside.long(), "labels": labels}


def middling(batch: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """A random LLaVA of 60 million weights, and prompts of 576 vision tokens and 64 of text."""
    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=336,
        patch_size=14,
    )
    text = LlamaConfig(
        hidden_size=512, intermediate_size=1408, num_hidden_layers=14, num_attention_heads=8, vocab_size=4096
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=tower, text_config=text, image_token_index=3, image_seq_length=576)
    )
    ids = torch.randint(10, 4000, (batch, 640))
    ids[:, 10:586] = 3
    labels = ids.clone()
    labels[:, :620] = IGNORED
    pixels = torch.randn(batch, 3, 336, 336)
    return model, {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "labels": labels
    }  # fmt: skip


def step(model: nn.Module, inputs: dict[str, Tensor], setting: Setting, read: Callable[[], float]) -> float:
    """Run a step, and return its seconds."""
    with setting.open(model):
        wait(inputs)
        start = read()
        model(**inputs, use_cache=False).loss.backward()
        wait(inputs)
        seconds = read() - start
    model.zero_grad(set_to_none=True)
    return seconds


def wait(inputs: dict[str, Tensor]) -> None:
    """Wait until an accelerator has finished its work."""
    if inputs["input_ids"].device.type != "cpu":
        torch.accelerator.synchronize()


def memory(model: nn.Module, inputs: dict[str, Tensor], setting: Setting, read: Callable[[], float]) -> int:
    """Return the bytes of a step: above the weights on a GPU, on a CPU what autograd keeps for the backward."""
    if inputs["input_ids"].is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(model, inputs, setting, read)
        return torch.cuda.max_memory_allocated() - before
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step(model, inputs, setting, read)
    return sum(kept.values())


def measure(name: str, model: nn.Module, inputs: dict[str, Tensor], count: int) -> dict[str, Any]:
    """Time and memory of steps of one model and batch."""
    for tower in family_for(model).towers:
        tower.requires_grad_(False)
    model.train()
    device = inputs["input_ids"].device
    read = clock_of("cpu" if device.type == "cpu" else "wall")
    settings = {FULL: Setting(), AGAIN: Setting(), **MEASURED}
    runs = {what: partial(step, model, inputs, setting, read) for what, setting in settings.items()}
    seconds: dict[str, list[float]] = {what: [] for what in runs}
    for results in rounds(runs, count):
        for what, value in results.items():
            seconds[what].append(value)
    return {
        "model": name,
        "batch": len(inputs["input_ids"]),
        "columns": inputs["input_ids"].shape[1],
        "rounds": count,
        "seconds": seconds,
        "ratios": {what: ratio(seconds[FULL], seconds[what]).to_dict() for what in settings if what != FULL},
        "bytes": {what: memory(model, inputs, settings[what], read) for what in settings if what != AGAIN},
    }


def table(record: dict[str, Any]) -> str:
    """Speed-up and memory of a step by model, batch and budget."""
    names = [FULL, AGAIN, *MEASURED]
    lines = ["| model, batch | | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for cell in record["cells"]:
        speeds = [f"{_middle(cell['seconds'][FULL]):.2f} s"]
        for what in names[1:]:
            pair = cell["ratios"][what]
            speeds.append(f"{pair['median']:.2f} [{pair['low']:.2f}, {pair['high']:.2f}]")
        sizes = [f"{cell['bytes'][what] / 2**20:,.0f}" if what in cell["bytes"] else "" for what in names]
        lines.append(f"| {cell['model']}, {cell['batch']} | times as fast | {' | '.join(speeds)} |")
        lines.append(f"| | MiB | {' | '.join(sizes)} |")
    count, where = record["cells"][0]["rounds"], record["machine"]["device"]
    lines += [
        "",
        f"Medians of {count} interleaved rounds on {where}, in brackets the {interval_words(count)}. MiB: "
        + ("the peak above the weights." if where != "one CPU thread" else "what autograd keeps for the backward."),
        "",
    ]
    return "\n".join(lines)


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def guide(page: str, record: dict[str, Any]) -> str:
    """The guide with the table of a record."""
    return between(page, "training-step", table(record))


def main(arguments: list[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a hub id or folder (default: the embedded model and a random one of 60 M)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="record to write (default: step.json; your own model: step-own.json)")
    parser.add_argument("--table", action="store_true", help="write the guide's table from the existing record")
    options = parser.parse_args(arguments)
    out = options.out or (Path("step-own.json") if options.model else OUT)
    if not options.table:
        torch.set_num_threads(1)
        device = torch.cuda.get_device_name() if options.device.startswith("cuda") else "one CPU thread"
        record: dict[str, Any] = {
            "commit": commit(),
            "versions": versions(),
            "machine": {"chip": platform.machine(), "device": device, "dtype": options.dtype},
            "cells": [],
        }
        vlm = fv.load(options.model or embedded.NAME, device=options.device, dtype=options.dtype)
        name = vlm.name if options.model else "embedded"
        for batch in options.batch:
            inputs = {key: value.to(options.device) for key, value in batch_of(vlm, batch).items()}
            record["cells"].append(measure(name, vlm.model, inputs, options.rounds))
            if options.model is None:
                model, inputs = middling(batch)
                model, inputs = (
                    model.to(options.device),
                    {key: value.to(options.device) for key, value in inputs.items()},
                )
                record["cells"].append(measure("60 M", model, inputs, options.rounds))
            print(f"batch {batch} done", flush=True)
        out.write_text(json.dumps(record) + "\n", encoding="utf-8")
    record = json.loads(out.read_text(encoding="utf-8"))
    print(table(record))
    if out == OUT:
        GUIDE.write_text(guide(GUIDE.read_text(encoding="utf-8"), record), encoding="utf-8")


if __name__ == "__main__":
    main()
