"""What a decode step costs with many rows in the cache: writes benchmarks/speed/decode.json.

    python benchmarks/speed/decode.py

A decoder of 8 layers, 512 wide, 8 query heads, random weights, one sample; caches of random rows. Steps of the
untouched model, whose layers copy all keys and values for each token, beside the same steps with foveate's layers,
which write the new row into free places; and the untouched model against itself. Logits are compared bit for bit.
"""

import json
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from foveate._versions import commit, versions
from foveate.bench.timing import ratio, rounds
from foveate.engine.cache import pruned_layer

HERE = Path(__file__).resolve().parent
LAYERS, WIDTH, HEADS, STEPS = 8, 512, 8, 4


def model_of(kv_heads: int) -> LlamaForCausalLM:
    """The decoder."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=kv_heads, vocab_size=128, max_position_embeddings=2**16,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def cache_of(rows: int, kv_heads: int, ours: bool) -> DynamicCache:
    """Rows that nobody computed, the same in both kinds of layer."""
    made = torch.Generator().manual_seed(rows)
    cache = DynamicCache()
    for layer in range(LAYERS):
        keys, values = (torch.randn(1, kv_heads, rows, WIDTH // HEADS, generator=made) for _ in range(2))
        cache.update(keys, values, layer)
        if ours:
            pruned_layer(cache, layer)
    return cache


def steps(model: LlamaForCausalLM, cache: DynamicCache) -> float:
    """Seconds of each of some steps."""
    start = perf_counter()
    for _ in range(STEPS):
        model(input_ids=torch.ones(1, 1, dtype=torch.long), past_key_values=cache)
    return (perf_counter() - start) / STEPS


@torch.no_grad()
def measured(rows: int, kv_heads: int, count: int) -> dict[str, object]:
    """One size: milliseconds and ratios."""
    model = model_of(kv_heads)
    token = torch.ones(1, 1, dtype=torch.long)
    first, second = (
        model(input_ids=token, past_key_values=cache_of(rows, kv_heads, ours)).logits for ours in (False, True)
    )
    runs = {
        name: partial(steps, model, cache_of(rows, kv_heads, name == "room"))
        for name in ("untouched", "untouched again", "room")
    }
    found = list(rounds(runs, count))
    times = {name: [each[name] for each in found] for name in runs}
    return {
        "rows": rows,
        "kv heads": kv_heads,
        "same logits": bool(torch.equal(first, second)),
        "milliseconds": {name: round(1000 * median(series), 1) for name, series in times.items()},
        "÷ untouched": {name: ratio(times[name], times["untouched"]).to_dict() for name in ("untouched again", "room")},
    }


def main() -> None:
    """Measure all sizes."""
    found = [measured(rows, kv_heads, 9) for rows in (6_000, 30_000) for kv_heads in (8, 2)]
    made = {"command": "python benchmarks/speed/decode.py", "commit": commit(), "versions": versions()}
    record = {**made, "sizes": found}
    (HERE / "decode.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
