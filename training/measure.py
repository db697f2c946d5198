"""Exact-match accuracy of an exported model, task by task, on held-out scenes, sketches and films.

    python training/measure.py [FOLDER] [--scenes N] [--sketches N] [--films N] [--generate M] [--out FILE]

The questions of a picture are packed behind one image and scored under teacher forcing: every token of
the answer, its end included, must be the arg-max. That is what greedy decoding of each question
alone would give; `--generate` checks it with `model.generate` on the first M scenes.
"""

import argparse
import hashlib
import json
import platform
import time
from collections.abc import Sequence
from math import sqrt
from pathlib import Path

import torch
import transformers
from PIL import Image

from data import pictures
from export import import_network
from foveate.embedded import FILM_TASKS, TASKS, path
from foveate.embedded.films import film
from foveate.embedded.questions import TaskQuestion, one_per_film_task, one_per_task
from foveate.embedded.scenes import Scene, scene, sketch
from losses import right_answers
from network import Network
from packing import pack
from tokenizer import build

__all__ = ["interval", "marks", "table"]

KINDS = ("scenes", "sketches", "films")


def interval(right: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, p = 1.96, right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


@torch.no_grad()
def marks(network: Network, shown: Sequence[Scene], questions: list[TaskQuestion], tokenizer: object) -> list[bool]:
    """Which of the questions about one picture, or the frames of a film, are answered word for word; float32."""
    features, _ = network.tower(pictures(list(shown)), torch.float32)
    prefix = network.prefix(features, len(shown))
    packed = pack([questions], tokenizer, prefix.shape[1])
    hidden = network.decoder(prefix, network.decoder.embed(packed.ids), packed.position, packed.mask)
    return right_answers(network.logits(hidden[0][packed.at]), packed, len(questions))


def about(kind: str, index: int, side: int) -> tuple[Sequence[Scene], list[TaskQuestion]]:
    """Held-out scene, sketch or film number `index`, and one question of each task about it."""
    if kind == "films":
        one = film("held-out", index)
        return one.frames, one_per_film_task(one, "held-out", index)
    picture = (sketch if kind == "sketches" else scene)("held-out", index, side)
    return [picture], one_per_task(picture, "held-out", index)


def table(results: dict[str, list[bool]]) -> dict[str, dict[str, float]]:
    """n, right, accuracy and interval of each task, and of all together."""
    rows = {}
    everything = [mark for each in results.values() for mark in each]
    tasks = [task for task in (*TASKS, *FILM_TASKS) if task in results]
    for task, each in (*((task, results[task]) for task in tasks), ("all", everything)):
        low, high = interval(sum(each), len(each))
        rows[task] = {
            "n": len(each),
            "right": sum(each),
            "accuracy": round(sum(each) / len(each), 4),
            "low": round(low, 4),
            "high": round(high, 4),
        }
    return rows


def generated(folder: Path, index: int) -> list[str]:
    """Answers of `model.generate` to one held-out scene's questions, one question at a time."""
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = transformers.AutoProcessor.from_pretrained(folder)
    one = scene("held-out", index)
    answers = []
    for question in one_per_task(one, "held-out", index):
        prompt = f"USER: <image>\n{question.question} ASSISTANT:"
        inputs = processor(images=Image.fromarray(one.image), text=prompt, return_tensors="pt")
        output = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.decode(output, skip_special_tokens=True).strip())
    return answers


def provenance(folder: Path) -> dict[str, object]:
    """Which weights, and on what they ran."""
    return {
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "hardware": "2 virtual cores of an AMD EPYC (Zen 5), one thread",
    }


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=path())
    for kind in KINDS:
        parser.add_argument(f"--{kind}", type=int, default=150)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--side", type=int, default=336)
    parser.add_argument("--generate", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    network, tokenizer = import_network(args.folder), build()
    began = time.time()
    results: dict[str, dict[str, list[bool]]] = {}
    agree = compared = 0
    for kind in KINDS:
        for index in range(args.first, args.first + getattr(args, kind)):
            shown, questions = about(kind, index, args.side)
            right = marks(network, shown, questions, tokenizer) if questions else []
            for question, mark in zip(questions, right, strict=True):
                results.setdefault(kind, {}).setdefault(question.task, []).append(mark)
            if kind == "scenes" and index - args.first < args.generate:
                answers = generated(args.folder, index)
                agree += sum((a == q.answer) == mark for a, q, mark in zip(answers, questions, right, strict=True))
                compared += len(answers)
    record = {
        "what": "exact match on held-out scenes, sketches and films, full model, no dropping",
        "numbers": {kind: f"held-out {args.first} to {args.first + getattr(args, kind) - 1}" for kind in results},
        "side": args.side,
        "decoder layers": network.shape.layers,
        "dtype": "float32 arithmetic on the shipped bfloat16 weights",
        "agreement with model.generate": f"{agree} of {compared}",
        "seconds": round(time.time() - began, 1),
        **provenance(args.folder),
        **{"tasks" if kind == "scenes" else kind: table(of_kind) for kind, of_kind in results.items()},
    }
    print(json.dumps(record, indent=2))
    if args.out:
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
