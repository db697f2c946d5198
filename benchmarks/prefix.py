"""Measure what looking once saves. Writes benchmarks/prefix.json and prints its tables.

    python benchmarks/prefix.py                                            # a few minutes on one core
    python benchmarks/prefix.py --model llava-hf/llava-1.5-7b-hf --out gpu.json --clock wall

Measures the time to the first token of the second and the hundredth question after a look, and of the question asked
afresh, with and without dropping. Runs are interleaved; "fresh" runs twice as a control. A fresh question is timed
without the preprocessing of the picture, and a question after a look from its text on. Also measures the bytes of a
prefix by method and budget, which are exact.
"""

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor

import foveate as fv
from foveate import embedded
from foveate.ask.loading import random_model
from foveate.bench.stopwatch import clock_of
from foveate.bench.timing import interval_words, ratio, rounds
from foveate.plain.table import Column, Table
from foveate.runs.versions import commit, versions

OUT = Path(__file__).with_suffix(".json")
METHODS = ("v2drop", "visiondrop", "visionzip")
TOKENS = (192, 96)
QUESTION = "What is the colour of the square beside the ring?"


def shaped(layers: int, width: int) -> fv.VLM:
    """The embedded model's architecture with random weights: 576 vision tokens, and a decoder of this size."""
    config = AutoConfig.from_pretrained(embedded.path())
    heads = max(2, width // 64)
    config.text_config.update({"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 3 * width})
    config.text_config.update({"num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": width // heads})
    config.vision_config.update({"num_hidden_layers": 6, "hidden_size": width // 2, "intermediate_size": 2 * width})
    config.vision_config.update({"num_attention_heads": heads})
    model = random_model(config, torch.device("cpu"), torch.float32)
    return fv.VLM(model, AutoProcessor.from_pretrained(embedded.path()), f"random, {layers} layers {width} wide")


# -- time ---------------------------------------------------------------------------------------------------------


def times(vlm: fv.VLM, picture: Any, count: int, clock: str, many: int) -> dict[str, Any]:
    """Ratios of times to the first token."""
    read, one = clock_of(clock), fv.Generation(max_new_tokens=1)
    prompt = vlm.prepare(picture, QUESTION)
    options: dict[str, dict[str, Any]] = {"no dropping": {}}
    options |= {f"v2drop, {tokens}": {"method": "v2drop", "tokens": tokens} for tokens in TOKENS}
    options["visiondrop, 192"] = {"method": "visiondrop", "tokens": 192}

    def timed(call: Callable[[], object]) -> float:
        start = read()
        call()  # the token is on the host when it returns
        return read() - start

    runs: dict[str, Callable[[], float]] = {}
    for again in ("", " again"):
        runs[f"fresh, no dropping{again}"] = partial(timed, partial(vlm.answer, prompt, generation=one))
    for name, option in options.items():
        if option:
            runs[f"fresh, {name}"] = partial(timed, partial(vlm.answer, prompt, generation=one, **option))
        runs[f"look, {name}"] = partial(timed, partial(vlm.look, picture, **option))
        for number in (2, many):
            prefix = vlm.look(picture, **option)
            for _ in range(number - 2):
                prefix.ask(QUESTION, max_new_tokens=1)
            runs[f"question {number}, {name}"] = partial(timed, partial(prefix.ask, QUESTION, max_new_tokens=1))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for answers in rounds(runs, count):
        for name, value in answers.items():
            seconds[name].append(value)

    def over(run: str, base: str) -> dict[str, Any]:
        return {"run": run, "base": base, **ratio(seconds[run], seconds[base]).to_dict()}

    whole = "fresh, no dropping"
    pairs = [over(f"{whole} again", whole)]
    for name in options:
        for number in (2, many):
            pairs.append(over(whole, f"question {number}, {name}"))
            if name != "no dropping":
                pairs.append(over(f"fresh, {name}", f"question {number}, {name}"))
        pairs.append(over(f"question {many}, {name}", f"question 2, {name}"))
    text = prompt.text_tokens
    return {"rounds": count, "clock": clock, "text_tokens": text, "ratios": pairs, "seconds": seconds}


# -- memory -------------------------------------------------------------------------------------------------------


def sizes(vlm: fv.VLM, picture: Any) -> list[dict[str, Any]]:
    """Bytes of a prefix by method and budget, alone and with a batch of eight answers after it."""
    rows = [_size(vlm.look(picture), "none", None)]
    for method in METHODS:
        for tokens in TOKENS:
            rows.append(_size(vlm.look(picture, method=method, tokens=tokens), method, tokens))
    return rows


def _size(prefix: fv.Prefix, method: str, tokens: int | None) -> dict[str, Any]:
    answers = list(prefix.ask_many([QUESTION] * 8, max_new_tokens=8))
    return {
        "method": method,
        "tokens": tokens,
        "bytes": prefix.nbytes,
        "bytes_behind_a_batch_of_8": sum(answer.kv_bytes for answer in answers),
    }


# -- tables -------------------------------------------------------------------------------------------------------


def interval(pair: dict[str, Any], digits: int = 2) -> str:
    """A ratio and its interval as text, `1.00 [0.88, 1.04]`."""
    return f"{pair['median']:.{digits}f} [{pair['low']:.{digits}f}, {pair['high']:.{digits}f}]"


def sheets(record: dict[str, Any]) -> list[Table]:
    """The tables of a record."""
    times = record["times"]
    words = interval_words(times["rounds"])
    lines = []
    for pair in times["ratios"]:
        lines.append((pair["run"], pair["base"], interval(pair)))
    heads = ["Time of", "over that of", Column("Ratio", right=True)]
    title = f"Time to the first token: {record['model']}, 576 vision tokens, {times['text_tokens']} of text"
    note = f"Medians of {times['rounds']} interleaved rounds, in brackets the {words}; {times['clock']} time."
    memory = []
    for row in record["sizes"]:
        megabytes = [f"{row[name] / 1e6:.2f}" for name in ("bytes", "bytes_behind_a_batch_of_8")]
        memory.append((row["method"], str(row["tokens"] or 576), *megabytes))
    columns = ["Method", *(Column(head, right=True) for head in ("Tokens", "Prefix, MB", "With 8 answers, MB"))]
    return [Table(title, heads, lines, [note]), Table("Memory of a prefix, float32", columns, memory)]


def page(record: dict[str, Any]) -> str:
    """The tables of the guide, in Markdown."""
    times = record["times"]
    ratios = {(pair["run"], pair["base"]): pair for pair in times["ratios"]}
    many = max(int(base.split()[1].strip(",")) for _, base in ratios if base.startswith("question"))

    def words(run: str, base: str) -> str:
        pair = ratios.get((run, base))
        return "" if pair is None else interval(pair, digits=1)

    whole = "fresh, no dropping"
    lines = [
        f"| look with | afresh, no dropping ÷ question 2 | ÷ question {many} | afresh, same method ÷ question 2 "
        f"| ÷ question {many} |",
        "|---|---|---|---|---|",
    ]
    names = dict.fromkeys(base.split(", ", 1)[1] for _, base in ratios if base.startswith("question"))
    for name in names:
        cells = [words(run, f"question {n}, {name}") for run in (whole, f"fresh, {name}") for n in (2, many)]
        if name == "no dropping":  # both columns for asking afresh are equal
            cells[2:] = "", ""
        lines.append(f"| {' | '.join((name, *cells))} |")
    control = interval(ratios[f"{whole} again", whole])
    lines += [
        "",
        f"The control, asking afresh twice without dropping, is {control}.",
        "",
        "| method | mean tokens per layer | prefix, MB | with a batch of eight answers of 8 tokens, MB |",
        "|---|---|---|---|",
    ]
    for row in record["sizes"]:
        held = [f"{row[name] / 1e6:.1f}" for name in ("bytes", "bytes_behind_a_batch_of_8")]
        lines.append(f"| {' | '.join((row['method'], str(row['tokens'] or 576), *held))} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id or folder of a model to use instead of random weights")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--many", type=int, default=100, help="number of the later question")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    vlm = fv.load(options.model) if options.model else shaped(options.layers, options.width)
    picture = Image.open(embedded.picture()).convert("RGB")
    record = {
        "model": vlm.name,
        "weights": "the checkpoint's" if options.model else "random",
        "machine": {"device": str(vlm.model.device), "chip": platform.machine(), "threads": torch.get_num_threads()},
        "versions": versions() | {"python": platform.python_version()},
        "commit": commit(),
        "times": times(vlm, picture, options.rounds, options.clock, options.many),
        "sizes": sizes(vlm, picture),
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for sheet in sheets(record):
        print(sheet.to_text(width=110))


if __name__ == "__main__":
    main()
