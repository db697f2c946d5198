"""Measure a decode step with many rows in the KV cache. Writes benchmarks/speed/decode.json.

    python benchmarks/speed/decode.py

The model is a LLaVA with a decoder of 8 layers, width 512 and 8 query heads, random weights and one sample. Caches hold
random rows, all of them vision tokens. The untouched model, whose layers copy all keys and values for each token, is
compared with itself; with foveate's layers, which write the new row into free space ("room"); with Read, which gathers
a fifth of the rows once; and with a stage in each step, from layer 1 on, that picks the same fifth again ("step,
reused") or a new one ("step, anew"). If all rows are read, logits are compared bit for bit.
"""

import json
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.cache_utils import DynamicCache

from foveate._transformers import with_cache
from foveate.bench.timing import ratio, rounds
from foveate.contract import CachedAttention, DecodeStage, Method, ReadView, Shape, Stage, attended
from foveate.engine.cache import pruned_layer
from foveate.engine.doors import drop_or_not
from foveate.engine.lives.chosen import Chosen
from foveate.engine.lives.limited import CHOICE, KINDS, Choice, Kinds, LimitedLayer
from foveate.methods.read import Read
from foveate.runs.versions import commit, versions

HERE = Path(__file__).resolve().parent
LAYERS, WIDTH, HEADS, STEPS, KEEP, ROUNDS = 8, 512, 8, 2, 0.2, 9


class Steps(Method):
    """Pick rows in each step: those with the most attention, or those read in the step before."""

    name = "steps"

    anew: bool = True

    def stages(self, shape: Shape) -> tuple[Stage, ...]:
        score = attended if self.anew else before
        return (DecodeStage(1, when="step", reads=(CachedAttention(),), keep=KEEP, score=score),)


def before(view: ReadView) -> torch.Tensor:
    """Score 1 for the rows that the step before read, else 0."""
    return view.read_before.float()


WAYS: dict[str, Method | None] = {
    "untouched": None,
    "untouched again": None,
    "room": None,
    "read": Read(keep=KEEP),
    "step, reused": Steps(anew=False),
    "step, anew": Steps(anew=True),
}


def model_of(kv_heads: int) -> LlavaForConditionalGeneration:
    """Build the model. It gets no picture."""
    torch.manual_seed(0)
    text = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=kv_heads, vocab_size=128, max_position_embeddings=2**16,
    )  # fmt: skip
    tower = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    return LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config=tower, image_token_index=127)
    ).eval()


def cache_of(rows: int, kv_heads: int, way: str) -> DynamicCache:
    """A cache of random rows, equal for all kinds of layers."""
    random = torch.Generator().manual_seed(rows)
    cache = DynamicCache()
    for layer in range(LAYERS):
        keys, values = (torch.randn(1, kv_heads, rows, WIDTH // HEADS, generator=random) for _ in range(2))
        cache.update(keys, values, layer)
        if not way.startswith("untouched"):
            pruned_layer(cache, layer)
    columns = torch.arange(rows)[None]
    kinds = torch.full((1, rows), 2, dtype=torch.int8)
    for index, layer in enumerate(cache.layers if WAYS[way] is not None else ()):
        layer.notes = {KINDS: Kinds(kinds)}
        if way == "read":
            some = torch.randperm(rows, generator=random)[: int(KEEP * rows)]
            stays = torch.zeros(1, rows, dtype=torch.bool).index_fill(1, some, True)
            cache.layers[index] = LimitedLayer(layer, Chosen.exactly(columns, stays, [len(some)]))
    if way.startswith("step"):
        nothing = torch.zeros(1, rows)
        choice = Choice(columns, kinds, nothing, nothing != 0, rows, [(rows, 0)])
        cache.layers[0].notes = {**cache.layers[0].notes, CHOICE: choice}
    return cache


def steps(model: LlavaForConditionalGeneration, cache: DynamicCache, method: Method | None) -> float:
    """Mean seconds of a decode step."""
    with drop_or_not(model, method):
        start = perf_counter()
        for _ in range(STEPS):
            model(input_ids=torch.ones(1, 1, dtype=torch.long), **with_cache(cache))
        return (perf_counter() - start) / STEPS


@torch.no_grad()
def measured(rows: int, kv_heads: int, count: int) -> dict[str, object]:
    """Measure one size: milliseconds and ratios."""
    model = model_of(kv_heads)
    token = torch.ones(1, 1, dtype=torch.long)
    first, second = (
        model(input_ids=token, **with_cache(cache_of(rows, kv_heads, way))).logits for way in ("untouched", "room")
    )
    runs = {name: partial(steps, model, cache_of(rows, kv_heads, name), method) for name, method in WAYS.items()}
    measured_rounds = list(rounds(runs, count))
    times = {name: [each[name] for each in measured_rounds] for name in runs}
    return {
        "rows": rows,
        "kv heads": kv_heads,
        "same logits": bool(torch.equal(first, second)),
        "milliseconds": {name: round(1000 * median(series), 1) for name, series in times.items()},
        "÷ untouched": {name: ratio(times[name], times["untouched"]).to_dict() for name in [*times][1:]},
    }


def main() -> None:
    """Measure all sizes and write the record after each."""
    source = {"command": "python benchmarks/speed/decode.py", "commit": commit(), "versions": versions()}
    sizes: list[dict[str, object]] = []
    for rows, kv_heads in ((6_000, 8), (6_000, 2), (30_000, 8), (30_000, 2)):
        sizes.append(measured(rows, kv_heads, ROUNDS))
        record = {**source, "sizes": sizes}
        (HERE / "decode.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
