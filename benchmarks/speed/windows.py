"""Time the tower of Qwen2.5-VL-7B under SDPA: window by window as in transformers, and equal windows in one call.

    python benchmarks/speed/windows.py        # prints milliseconds and the ratio, with a picture of 1,296 tokens

The weights are random; on a GPU they are bfloat16. Both ways compute the same sums, so their results can be compared
bit for bit.
"""

from functools import partial
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from foveate._transformers import get_vision_window_index
from foveate.bench.shapes import shape
from foveate.bench.timing import ratio, rounds
from foveate.core.patching import Patcher
from foveate.families.tap import attend_at_once, segments_of

SIDE, ROUNDS = 72, 15  # patches: 36 x 36 tokens


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = shape("qwen2.5-vl-7b").make_config().vision_config
    config._attn_implementation = "sdpa"
    tower = qwen.Qwen2_5_VisionTransformerPretrainedModel(config)
    tower = tower.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval()
    grid = torch.tensor([[1, SIDE, SIDE]], device=device)
    pixels = torch.randn(SIDE * SIDE, 3 * 2 * config.patch_size**2, device=device, dtype=tower.dtype)
    grids = torch.tensor([[1, SIDE, SIDE]])
    index, ends = get_vision_window_index(grids, config.spatial_merge_size, config.window_size, config.patch_size)

    def call(patched: bool) -> tuple[float, Tensor]:
        arguments = {}
        if patched:
            arguments = {"window_index": index, "cu_window_seqlens": ends}
        with Patcher() as patches:
            if patched:
                attend_at_once(patches, [block.attn for block in tower.blocks], segments_of([ends], device))
            wait()
            began = perf_counter()
            made = tower(pixels, grid, **arguments).pooler_output
            wait()
            return perf_counter() - began, made

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    ways = {
        "one by one": partial(call, False),
        "one by one again": partial(call, False),
        "at once": partial(call, True),
    }
    apart = (call(True)[1] - call(False)[1]).abs().max().item()
    found = list(rounds({name: (lambda run=run: run()[0]) for name, run in ways.items()}, ROUNDS))
    times = {name: [one[name] for one in found] for name in ways}
    faster, again = (ratio(times["one by one"], times[name]) for name in ("at once", "one by one again"))
    said = ", ".join(f"{name} {1000 * median(series):.1f} ms" for name, series in times.items())
    interval = f"[{faster.low:.2f}, {faster.high:.2f}]; itself {again.median:.2f} [{again.low:.2f}, {again.high:.2f}]"
    print(f"{len(ends) - 1} windows: {said}; {faster.median:.2f} times faster {interval}; apart by {apart:.1e}")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
