"""Estimate what dropping saves on a model that you have not downloaded: FLOPs and KV cache, from its config.

python examples/cost.py
"""

from transformers import LlavaConfig

import foveate as fv

config = LlavaConfig()  # the defaults are LLaVA-1.5-7B
prompt = {"text_tokens": 40, "vision_tokens": 576}
whole = fv.cost(config, **prompt)
print(f"LLaVA-1.5-7B, 576 + 40 tokens: {whole.prefill_flops / 1e12:.2f} TFLOP in the decoder's prefill")
for name, preset in fv.presets().items():
    if "llava-1.5" in name and preset.method.plan(32, (576,)) is not None:  # MustDrop's counts depend on the picture
        less = fv.cost(config, **prompt, method=preset.method)
        flops, kv = less.prefill_flops / whole.prefill_flops, less.kv_bytes / whole.kv_bytes
        print(f"{name:28} retention {less.retention:6.1%}   prefill {flops:6.1%}   KV cache {kv:6.1%}")
