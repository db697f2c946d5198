"""The tower of Qwen2.5-VL-7B under SDPA, window by window as transformers runs it, and windows of one length at once.

    python benchmarks/speed/windows.py        # prints milliseconds and the ratio, with a picture of 1,296 tokens

Random weights; on a GPU in bfloat16. The sums of a window are the same sums, so the bits may be compared.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as attend
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from foveate.bench.shapes import shape
from foveate.bench.timing import ratio, rounds
from foveate.core.patching import Patcher

SIDE, ROUNDS = 72, 15  # patches: 36 x 36 tokens


class AtOnce:
    """The attention of all windows of a block in one call a length.

    Args:
        lengths: Patches of each window of those blocks that look through windows; the others see all.
    """

    def __init__(self, lengths: list[int]) -> None:
        ends = torch.tensor(lengths).cumsum(0)
        self._groups = []
        for length in dict.fromkeys(lengths):
            starts = torch.tensor([int(end) - length for end, one in zip(ends, lengths, strict=True) if one == length])
            self._groups.append(starts[:, None] + torch.arange(length))

    def to(self, device: torch.device) -> None:
        """Where the patches are."""
        self._groups = [places.to(device) for places in self._groups]

    def __call__(self, block: Any, original: Callable[..., Tensor], hidden: Tensor, **kwargs: Any) -> Tensor:
        attention = block.attn
        heads = attention.qkv(hidden).reshape(len(hidden), 3, attention.num_heads, -1).permute(1, 0, 2, 3).unbind(0)
        query, keys = qwen.apply_rotary_pos_emb_vision(*heads[:2], *kwargs["position_embeddings"])
        made = torch.empty_like(query)
        for places in self._groups:
            windows = [rows[places].transpose(1, 2) for rows in (query, keys, heads[2])]  # (windows, heads, rows, size)
            made[places] = attend(*windows, scale=attention.scaling).transpose(1, 2)
        projected: Tensor = attention.proj(made.flatten(1))
        return projected


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = shape("qwen2.5-vl-7b").make_config().vision_config
    config._attn_implementation = "sdpa"
    tower = qwen.Qwen2_5_VisionTransformerPretrainedModel(config)
    tower = tower.to(device, torch.bfloat16 if device.type == "cuda" else torch.float32).eval()
    grid = torch.tensor([[1, SIDE, SIDE]], device=device)
    pixels = torch.randn(SIDE * SIDE, 3 * 2 * config.patch_size**2, device=device, dtype=tower.dtype)
    seen: list[list[int]] = []
    with Patcher() as patches:
        patches.wrap(tower.blocks[0].attn, "forward", partial(_note, seen))
        tower(pixels, grid)
    at_once = AtOnce(seen[0])
    at_once.to(device)

    def call(patched: bool) -> tuple[float, Tensor]:
        with Patcher() as patches:
            for index, block in enumerate(tower.blocks):
                if patched and index not in config.fullatt_block_indexes:
                    patches.wrap(block.attn, "forward", partial(at_once, block))
            wait()
            began = perf_counter()
            made = tower(pixels, grid).pooler_output
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
    print(f"{len(seen[0])} windows: {said}; {faster.median:.2f} times faster {interval}; apart by {apart:.1e}")


def _note(seen: list[list[int]], original: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    ends = kwargs["cu_seqlens"] if "cu_seqlens" in kwargs else args[1]
    seen.append((ends[1:] - ends[:-1]).tolist())
    return original(*args, **kwargs)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
