"""Time grouped-query attention of one layer in a decode step on a CPU: as transformers calls it, and packed.

    python benchmarks/speed/grouped.py        # prints milliseconds and the ratio, at 6,000 and 30,000 cached rows

28 query heads share 4 key heads of size 128, as in Qwen2.5-VL-7B; float32, one sample. Packed, the seven queries of a
group become seven rows of one head, so that each key is read once instead of seven times.
"""

from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attend

from foveate.bench.timing import ratio, rounds

QUERY_HEADS, KEY_HEADS, SIZE, ROUNDS = 28, 4, 128, 15


def grouped(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend as transformers does. Returns (1, query heads, 1, size)."""
    return attend(query, keys, values, enable_gqa=True)


def packed(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend with each group's queries as rows of its key head. Returns (1, query heads, 1, size)."""
    # (1, 28, 1, 128) -> (1, 4 key heads, 7 queries, 128), attended, and back
    rows = query.unflatten(1, (KEY_HEADS, -1)).flatten(2, 3)
    return attend(rows, keys, values).flatten(1, 2)[:, :, None]


def seconds(run: partial[Tensor]) -> float:
    began = perf_counter()
    run()
    return perf_counter() - began


def main() -> None:
    for cached in (6_000, 30_000):
        query = torch.randn(1, QUERY_HEADS, 1, SIZE)
        keys, values = torch.randn(2, 1, KEY_HEADS, cached, SIZE).unbind()
        runs = {how.__name__: partial(how, query, keys, values) for how in (grouped, packed)}
        apart = (runs["grouped"]() - runs["packed"]()).abs().max().item()
        timed = {"grouped again": runs["grouped"], **runs}
        found = list(rounds({name: partial(seconds, run) for name, run in timed.items()}, ROUNDS))
        times = {name: [one[name] for one in found] for name in timed}
        words = [f"{name} {1000 * median(series):.1f} ms" for name, series in times.items()]
        faster, again = (ratio(times["grouped"], times[name]) for name in ("packed", "grouped again"))
        interval = (
            f"[{faster.low:.2f}, {faster.high:.2f}], itself {again.median:.2f} [{again.low:.2f}, {again.high:.2f}]"
        )
        print(f"{cached:,} rows: {', '.join(words)}; {faster.median:.2f} times faster {interval}; apart by {apart:.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        main()
