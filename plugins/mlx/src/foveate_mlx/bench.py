"""`foveate-mlx bench MODEL METHOD`: time and memory with and without dropping, in alternating rounds on one prompt."""

import json
import time
from argparse import Namespace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import mlx.core as mx
import mlx_vlm
from mlx_vlm.prompt_utils import apply_chat_template

from foveate.errors import InputError, UnsupportedError
from foveate.plain.writing import publish
from foveate_mlx import drop


def bench(options: Namespace) -> None:
    """Measure, print the medians, and write every round as JSON.

    Raises:
        InputError: If no rounds are asked for, or the file cannot be written.
        UnsupportedError: If there is no Metal.
    """
    if options.rounds < 1:
        raise InputError(f"--rounds must be at least 1; got {options.rounds}.")
    if not mx.metal.is_available():
        raise UnsupportedError("There is no Metal here, so there is nothing to measure. Run bench on a Mac.")
    model, processor = mlx_vlm.load(options.model)
    prompt = apply_chat_template(processor, model.config, options.prompt, num_images=1)

    def measure() -> dict[str, float]:
        mx.clear_cache()
        mx.reset_peak_memory()
        times = [time.perf_counter()]
        for _ in mlx_vlm.stream_generate(model, processor, prompt, options.image, max_tokens=32, temperature=0.0):
            times.append(time.perf_counter())
        peak = mx.get_peak_memory() / 1e9
        return {"first token, s": times[1] - times[0], "answer, s": times[-1] - times[0], "peak memory, GB": peak}

    rounds: list[dict[str, Any]] = []
    for _ in range(options.rounds + 1):
        full = measure()
        with drop(model, options.method, tokens=options.tokens, retention=options.retention) as trace:
            rounds.append({"full": full, "dropping": measure()})
    record = {
        "asked": vars(options),
        "trace": str(trace),
        "versions": {name: version(name) for name in ("foveate", "foveate-mlx", "mlx", "mlx-vlm", "torch")},
        "machine": mx.device_info(),
        "rounds": rounds[1:],  # the first one warms up
    }
    print(f"{trace}. Medians of {options.rounds}, full and dropping:")
    for name in full:
        full_of, less_of = (median(one[side][name] for one in rounds[1:]) for side in ("full", "dropping"))
        print(f"  {name}: {full_of:.3g} and {less_of:.3g}")
    text = json.dumps(record, indent=1, default=str) + "\n"
    print(f"Every round is in {publish(Path(options.out), lambda part: part.write_text(text), force=False)}.")
