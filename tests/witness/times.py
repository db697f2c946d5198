"""How long a prefill takes on the new tree, beside the old one: in one process, in turns, with the old tree against
itself as the control.

    python -m tests.witness.times                       # writes benchmarks/witness/times.txt
    python -m tests.witness.times --pairs 10 --log FILE

Each tree is imported by itself and put on a model of its own with equal random weights; then they run one after the
other, in an order drawn for every round.
"""

import argparse
import contextlib
import sys
import time
from pathlib import Path

import torch
import transformers

from tests.witness.trees import ROOT, new_tree, old_tree, versions

LOG = ROOT / "benchmarks" / "witness" / "times.txt"
LAYERS, WIDTH, TEXT = 16, 512, 64
CUTS = {"layers": (2, 8, 11), "keep": (0.4, 0.3, 0.0)}
METHODS = {
    "random": ("random", CUTS),
    "v2drop": ("v2drop", CUTS),
    "visiondrop": ("visiondrop", {"layer_list": (4, 8, 12)}),
    "mustdrop": ("mustdrop", {
        "pruning_layers": (1, 3, 5, 7), "mode": "budget", "counts": (200, 120, 80, 60), "merge_threshold": 0.9,
    }),
}  # fmt: skip


@contextlib.contextmanager
def imported_from(src):
    """foveate from this folder; the modules that were there come back afterwards."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "foveate"}
    sys.path.insert(0, str(src))
    try:
        yield
    finally:
        sys.path.remove(str(src))
        for name in [name for name in sys.modules if name.split(".")[0] == "foveate"]:
            del sys.modules[name]
        sys.modules.update(before)


def build():
    """A LLaVA of 576 vision tokens with random weights, always the same."""
    torch.manual_seed(0)
    text = transformers.LlamaConfig(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=8, vocab_size=512
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
    )
    config = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=500)
    return transformers.LlavaForConditionalGeneration(config).eval()


def inputs():
    text = torch.arange(1, 1 + TEXT)
    ids = torch.cat((text[:8], torch.full((576,), 500), text[8:]))[None]
    pixels = torch.randn(1, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def prefill(src, name, settings):
    """A prefill of a model of its own with a method on it, of the foveate in this folder."""
    model, given = build(), inputs()
    with imported_from(src):
        import foveate
        from foveate.registry import method

        assert Path(foveate.__file__).is_relative_to(src), foveate.__file__
        foveate.apply(model, method(name)(**settings))
        with torch.no_grad():
            model(**given, use_cache=True, logits_to_keep=1)  # what is imported late is imported here

    def run():
        start = time.perf_counter()
        with torch.no_grad():
            model(**given, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start

    return run


def measured(name, pairs):
    """Ratios new / old and old / old of one method."""
    from foveate.bench.timing import ratio, rounds

    old, new = old_tree().root / "src", new_tree().root / "src"
    runs = {
        "old": prefill(old, *METHODS[name]),
        "new": prefill(new, *METHODS[name]),
        "again": prefill(old, *METHODS[name]),
    }
    found = list(rounds(runs, pairs))
    times = {run: [one[run] for one in found] for run in runs}
    return ratio(times["new"], times["old"]), ratio(times["again"], times["old"])


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m tests.witness.times", description=__doc__)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--log", type=Path, default=LOG)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = []
    for name in METHODS:
        new, again = measured(name, given.pairs)
        lines.append(f"{name:10}  new / old {new.median:.3f} [{new.low:.3f}, {new.high:.3f}]   "
                     f"old / old {again.median:.3f} [{again.low:.3f}, {again.high:.3f}]")  # fmt: skip
        print(lines[-1], flush=True)
    head = [
        f"Seconds of a prefill, {old_tree().commit} (old) and {new_tree().commit} (new), {versions()}, one thread",
        f"{LAYERS} layers of width {WIDTH}, 576 vision tokens and {TEXT} of text, {given.pairs} rounds; median, 95 %",
        "",
    ]
    given.log.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
