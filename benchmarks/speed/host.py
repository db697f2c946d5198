"""Time the host's share of replays: kernels cost nothing, so that what is left is what Python does around them.

    OMP_NUM_THREADS=1 python benchmarks/speed/host.py                # two minutes of one core; writes host.json

A model of LLaVA-1.5-7B's depth is 16 numbers wide, its prompt short, and its recordings replay no kernels. Processor
time of the thread in paired rounds: a prefill with its tower, and a step of decoding. A plain run computes its tiny
kernels where the host of a GPU would launch them.
"""

import argparse
import cProfile
import json
import pstats
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import thread_time
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import foveate as fv
from foveate.bench.timing import ratio, rounds
from foveate.core import tapes
from foveate.core.patching import Patcher
from foveate.engine.doors import drop_or_not
from foveate.plain.stats import median_of
from foveate.runs.versions import commit, versions

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.recorder import Recorder

OUT = Path(__file__).resolve().with_name("host.json")
FULL, AGAIN, AROUND = "full", "full again", "full without its decoder"
THIRD = fv.V2Drop(retention=1 / 3)
ROWS: dict[str, tuple[fv.Method | None, bool]] = {
    FULL: (None, False),
    AGAIN: (None, False),
    AROUND: (None, False),
    "full as a graph": (None, True),
    "v2drop:1/3": (THIRD, False),
    "v2drop:1/3 as a graph": (THIRD, True),
}
"""Methods, and whether they run as graphs."""
SIDE = 56
FEW, MANY = 2, 24
"""Answer tokens of two answers. Their difference is the time of the steps between."""


class Free(Recorder):
    """A recording that runs its kernels once, for the test that accepts it."""

    is_accepted = False

    def replay(self) -> None:
        if not self.is_accepted:
            super().replay()
        self.is_accepted = True


def narrow() -> tuple[Any, dict[str, torch.Tensor]]:
    """A model of LLaVA-1.5-7B's depth, and a prompt of 51 columns with 16 vision tokens."""
    width = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1}
    vision = CLIPVisionConfig(num_hidden_layers=24, image_size=SIDE, patch_size=14, **width)
    text = LlamaConfig(num_hidden_layers=32, num_key_value_heads=1, vocab_size=32064, **width)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=32000, image_seq_length=16)
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[5] * 5 + [32000] * 16 + [7] * 30])
    pixels = torch.randn(1, 3, SIDE, SIDE)
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


def calls_of(model: Any, inputs: dict[str, torch.Tensor]) -> dict[str, Callable[[], Any]]:
    """The calls to time: a prefill, and two answers."""

    def answer(tokens: int) -> Any:
        return model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)

    prefill = partial(model, **inputs, logits_to_keep=1)
    return {"prefill": prefill, "few": partial(answer, FEW), "many": partial(answer, MANY)}


def timed(calls: dict[str, Callable[[], Any]], model: Any, row: tuple[fv.Method | None, bool]) -> dict[str, float]:
    """Milliseconds of a prefill and of a step inside a context, and whether all of them were replayed."""
    method, is_graph = row
    milliseconds = {}
    with torch.no_grad(), drop_or_not(model, method, is_graph) as trace:
        for name, call in {"warm-up": calls["prefill"], **calls}.items():
            began = thread_time()
            call()
            milliseconds[name] = 1000 * (thread_time() - began)
    step = (milliseconds["many"] - milliseconds["few"]) / (MANY - FEW)
    parts = (trace.graphs.tower, trace.graphs.decoder, trace.graphs.steps) if trace.graphs is not None else ()
    return {"prefill": milliseconds["prefill"], "step": step, "plain": sum(sum(one.plain.values()) for one in parts)}


def timed_around(calls: dict[str, Callable[[], Any]], model: Any) -> dict[str, float]:
    """As `timed`, for what transformers does around the decoder in a step: a stored output takes its place."""
    decoder = model.model.language_model
    run: Callable[..., Any] = decoder.forward
    latest: list[Any] = []  # the output of an answer's first step

    def forward(**kwargs: Any) -> Any:
        if kwargs["inputs_embeds"].shape[1] > 1:
            latest.clear()
            return run(**kwargs)
        if not latest:
            latest.append(run(**kwargs))
        return latest[0]

    with Patcher() as patches:
        patches.put(decoder, "forward", forward)
        return timed(calls, model, (None, False))


def python_calls(call: Callable[[], Any], model: Any, row: tuple[fv.Method | None, bool]) -> int:
    """Count the function calls of Python in one call."""
    method, is_graph = row
    profile = cProfile.Profile()
    with torch.no_grad(), drop_or_not(model, method, is_graph):
        call()
        profile.runcall(call)
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def measure(count: int) -> dict[str, Any]:
    """Time all rows in paired rounds. A row's ratio is that of its time to the untouched model's without graphs."""
    torch.set_num_threads(1)
    tapes.TAPES["cpu"] = lambda device, lane: Free()  # type: ignore[assignment,return-value]
    model, inputs = narrow()
    calls = calls_of(model, inputs)
    runs = {name: partial(timed, calls, model, row) for name, row in ROWS.items()}
    runs[AROUND] = partial(timed_around, calls, model)
    for _ in range(3):  # count, record and replay
        for run in runs.values():
            run()
    series: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
    for times in rounds(runs, count):
        for name, milliseconds in times.items():
            series[name].append(milliseconds)
    result = {}
    for name, row in ROWS.items():
        if any(milliseconds["plain"] for milliseconds in series[name]):
            raise SystemExit(f"{name} was not always replayed")
        result[name] = {"calls of Python in a prefill": python_calls(calls["prefill"], model, row)}
        for part in ("prefill", "step"):
            times, base = [[milliseconds[part] for milliseconds in series[one]] for one in (name, FULL)]
            beside = ratio(times, base)
            figures = [round(value, 3) for value in (beside.median, beside.low, beside.high)]
            result[name][part] = {"ms": round(median_of(times).value, 2), f"share of {FULL}": figures}
    return result


def main() -> None:
    """Time all rows, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    record = {"command": shlex.join(["python", *sys.argv]), "commit": commit(), "versions": versions()}
    record |= {"rounds": options.rounds, "rows": measure(options.rounds)}
    options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for name, row in record["rows"].items():
        print(name, row)


if __name__ == "__main__":
    main()
