"""What dropping costs this model: exact match with several methods.

    python training/dropping.py [--scenes N] [--out FILE]
    python training/dropping.py --every 128 64 [--scenes N] [--out FILE]   # all methods there are, at these budgets

One question of each of three tasks a scene, answered by `model.generate` with the method attached. This is a
check that dropping matters here, and in which order; it is no proof that a method is better in general.
"""

import argparse
import json
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from PIL import Image

import foveate
from foveate import embedded
from foveate.embedded.questions import one_per_task
from foveate.embedded.scenes import scene
from measure import provenance, table

TASKS = ("colour", "read text", "character")
LAYERS = (3, 17, 22)
KEEPS = {192: (0.5, 0.3, 0.0), 128: (0.28, 0.25, 0.0), 64: (0.05, 0.05, 0.0)}


def settings() -> dict[str, object]:
    """Name -> method, or None for the full model."""
    found: dict[str, object] = {"full": None}
    for tokens, keep in KEEPS.items():
        found[f"V2Drop {tokens}"] = foveate.V2Drop(layers=LAYERS, keep=keep)
        found[f"random {tokens}"] = foveate.Random(layers=LAYERS, keep=keep)
    return found


def every(model: object, budgets: list[int]) -> dict[str, object]:
    """Every method there is, at mean token counts; one that cannot meet a budget is left out and named."""
    found: dict[str, object] = {"full": None}
    for tokens in budgets:
        for name, kind in sorted(foveate.methods().items()):
            try:
                found[f"{name} {tokens}"] = kind.for_budget(model, tokens=tokens)
            except foveate.BudgetError as error:
                print(f"infeasible: {error}")
    return found


def main() -> None:
    """Answer, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--first", type=int, default=2000)
    parser.add_argument("--every", type=int, nargs="+", metavar="TOKENS")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = embedded.load()
    began = time.time()
    chosen = every(model, args.every) if args.every else settings()
    results: dict[str, dict[str, list[bool]]] = {name: {} for name in chosen}
    spent: dict[str, list[float]] = {name: [] for name in chosen}
    for index in range(args.first, args.first + args.scenes):
        one = scene("held-out", index)
        for q in one_per_task(one, "held-out", index):
            if q.task not in TASKS:
                continue
            text = f"USER: <image>\n{q.question} ASSISTANT:"
            inputs = processor(images=Image.fromarray(one.image), text=text, return_tensors="pt")
            for name, method in chosen.items():
                with foveate.drop(model, method) if method else nullcontext() as trace:
                    ids = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
                spent[name].append(trace.tokens[0] if trace else 576.0)
                answer = processor.decode(ids, skip_special_tokens=True).strip()
                results[name].setdefault(q.task, []).append(answer == q.answer)
    record = {
        "what": "exact match with dropping; budgets in the names, mean tokens a decoder layer really processed below",
        "settings": {name: method.to_dict() if method else None for name, method in chosen.items()},
        "mean tokens": {name: round(sum(each) / len(each), 2) for name, each in spent.items()},
        "scenes": f"held-out {args.first} to {args.first + args.scenes - 1}",
        "seconds": round(time.time() - began, 1),
        **provenance(embedded.path()),
        "methods": {name: table(rows) for name, rows in results.items()},
    }
    print(json.dumps(record, indent=2))
    if args.out:
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
