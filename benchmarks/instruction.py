"""Measure an instruction in front of every page. Writes benchmarks/instruction.json and the tables of the batch guide.

    python benchmarks/instruction.py            # 10 to 30 minutes on one core
    python benchmarks/instruction.py --table    # write the tables from the existing record

Time: a page and its question to the first token, afresh and after the instruction that was prefilled once, on a random
model, by the share of vision tokens that stay. Runs are interleaved, and "afresh" runs twice as a control. The page's
preprocessing is not timed. Accuracy: what the instruction costs the embedded model, in front of the page and behind it,
on the same questions. Rounding: how far both ways differ on the embedded model in bfloat16 and in float32.
"""

import argparse
import json
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from prefix import interval, shaped

import foveate as fv
from foveate import embedded
from foveate.ask.generation import FirstToken
from foveate.ask.look import look_at_system
from foveate.ask.running import answers_to
from foveate.bench.shapes import shape
from foveate.bench.stopwatch import clock_of
from foveate.bench.timing import interval_words, ratio, rounds
from foveate.cost import cost
from foveate.embedded.questions import one_per_task
from foveate.embedded.scenes import scene
from foveate.eval.held_out import SPLIT
from foveate.plain.stats import Resampled, estimate
from foveate.plain.table import between
from foveate.runs.versions import commit, versions

OUT = Path(__file__).with_suffix(".json")
GUIDE = Path(__file__).parents[1] / "docs/guides/batch.md"
WORDS = (
    "You read scanned pages. Answer from the page alone, in one line, without a comment. "
    "If a field is missing, say none."
)
QUESTION = "What does the text say?"
SHARES = {"all 576": None, "a third": 1 / 3, "a ninth": 1 / 9}
TASKS = ("colour", "read text", "quadrant", "count")
FIRST = 5_000_000
"""Number of the first scene: none was trained on."""
INSTRUCTION, LARGE = 400, "llava-1.5-7b"
"""Tokens of the instruction for which FLOPs are counted, and the model."""


def instruction(vlm: fv.VLM, tokens: int) -> str:
    """The words, repeated until they have this many tokens."""
    text = WORDS
    while len(vlm.tokenizer(text, add_special_tokens=False).input_ids) < tokens:
        text += f" {WORDS}"
    return text


def method_of(share: float | None) -> fv.Method | None:
    return None if share is None else fv.VidCom2(retention=share)


# -- time ---------------------------------------------------------------------------------------------------------


def times(layers: int, width: int, tokens: int, count: int) -> dict[str, Any]:
    """Ratios of processor time, afresh over after the instruction."""
    vlm, read, one = shaped(layers, width), clock_of("cpu"), fv.Generation(max_new_tokens=1)
    page = Image.open(embedded.picture()).convert("RGB")
    prompt = vlm.prepare(page, QUESTION, system=instruction(vlm, tokens))
    text = look_at_system(vlm, prompt, None)
    assert text is not None

    def timed(call: Callable[[], object]) -> float:
        start = read()
        call()  # the token is on the host when it returns
        return read() - start

    runs: dict[str, Callable[[], float]] = {}
    for name, share in SHARES.items():
        method = method_of(share)
        for again in ("", " again"):
            runs[f"afresh{again}, {name}"] = partial(timed, partial(vlm.answer, prompt, method, generation=one))
        runs[f"after the text, {name}"] = partial(timed, partial(answers_to, vlm, [prompt], method, one, text))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for results in rounds(runs, count):
        for name, value in results.items():
            seconds[name].append(value)
    pairs = {
        name: {
            "ratio": ratio(seconds[f"afresh, {name}"], seconds[f"after the text, {name}"]).to_dict(),
            "control": ratio(seconds[f"afresh again, {name}"], seconds[f"afresh, {name}"]).to_dict(),
        }
        for name in SHARES
    }
    sizes = {"instruction": text.tokens, "text": prompt.text_tokens, "vision": prompt.vision_tokens}
    return {"model": vlm.name, "rounds": count, "tokens": sizes, "ratios": pairs, "seconds": seconds}


def flops() -> dict[str, list[float]]:
    """FLOPs of a page of a 7B model, afresh and after the instruction, whose columns its rows then attend to."""
    config, rest = shape(LARGE).make_config(), 25
    counts = {}
    for name, share in SHARES.items():
        afresh, after = (
            cost(config, text_tokens=text, vision_tokens=(576,), method=method_of(share)).total_flops
            for text in (INSTRUCTION + rest, rest)
        )
        rows, text = 576 * (share or 1) + rest, config.text_config
        # Two products of every row with the instruction's keys and values, on every layer.
        after += 4 * rows * INSTRUCTION * text.hidden_size * text.num_hidden_layers
        counts[name] = [float(afresh), float(after)]
    return counts


# -- accuracy -----------------------------------------------------------------------------------------------------


def answers(vlm: fv.VLM, count: int) -> dict[str, Any]:
    """Right or wrong for each question and way, with a third of the tokens."""
    short, long = WORDS, instruction(vlm, 340)
    tokens = {text: len(vlm.tokenizer(text, add_special_tokens=False).input_ids) for text in (short, long)}
    ways: dict[str, Callable[[str], dict[str, str]]] = {"none": lambda asked: {"prompt": asked}}
    for text in (short, long):
        ways[f"{tokens[text]} tokens, in front"] = lambda asked, text=text: {"prompt": asked, "system": text}
        ways[f"{tokens[text]} tokens, behind the page"] = lambda asked, text=text: {"prompt": f"{text} {asked}"}
    rows: list[dict[str, Any]] = []
    for number in range(count):
        drawn = scene(SPLIT, FIRST + number)
        questions = [one for one in one_per_task(drawn, SPLIT, FIRST + number) if one.task in TASKS]
        for one in questions[number % max(1, len(questions)) :][:1]:
            picture, row = Image.fromarray(drawn.image), {"scene": number, "task": one.task}
            for way, keywords in ways.items():
                answer = vlm.ask(picture, method=method_of(1 / 3), **keywords(one.question))
                row[way] = answer.text == one.answer
            rows.append(row)
    return {"ways": list(ways), "rows": rows}


def rounding(count: int) -> dict[str, Any]:
    """By number format: how many first tokens after the text are not those afresh, and how log-probabilities differ."""
    result = {}
    for dtype in ("bfloat16", "float32"):
        vlm, differ, gaps = fv.load(dtype=dtype, device="cpu"), 0, []
        for number in range(count):
            picture = Image.fromarray(scene(SPLIT, FIRST + number).image)
            prompt = vlm.prepare(picture, QUESTION, system=WORDS)
            method, one = method_of(1 / 3), fv.Generation(max_new_tokens=1)
            text, extra = look_at_system(vlm, prompt, method), {"logits_processor": [FirstToken()]}
            after = answers_to(vlm, [prompt], method, one, text, extra)[0]
            alone = vlm.answer(prompt, method, generation=one, first=True)
            differ += after.tokens != alone.tokens
            likely = alone.first > -10  # what an answer might say
            gaps.append(float((after.first - alone.first)[likely].abs().max()))
        result[dtype] = {"pages": count, "differ": differ, "median": float(np.median(gaps)), "largest": max(gaps)}
    return result


# -- tables -------------------------------------------------------------------------------------------------------


def tables(record: dict[str, Any]) -> str:
    """The tables of the guide, in Markdown."""
    times = record["times"]
    sizes = times["tokens"]
    lines = [
        f"Time to the first token of a page with {sizes['instruction']} tokens of instruction ({times['model']}), and "
        f"FLOPs of {LARGE} with {INSTRUCTION}:",
        "",
        "| vision tokens kept | time afresh ÷ after the text | TFLOPs afresh, after the text |",
        "|---|---|---|",
    ]
    for name, pair in times["ratios"].items():
        work = ", ".join(f"{count / 1e12:.1f}" for count in record["flops"][name])
        lines.append(f"| {name} | {interval(pair['ratio'])} | {work} |")
    control = ", ".join(interval(pair["control"]) for pair in times["ratios"].values())
    rows = record["answers"]["rows"]
    lines += [
        "",
        f"Medians of {times['rounds']} interleaved rounds of processor time, in brackets the "
        f"{interval_words(times['rounds'])}. The controls, afresh twice, are {control}. Decoding is not faster.",
        "",
        "An instruction has a price of its own: keep it short, and in front. The embedded model, which was not trained "
        f"with any, answers {len(rows)} questions about as many pictures with a third of the tokens (VidCom2):",
        "",
        "| instruction | right | beside none |",
        "|---|---|---|",
    ]
    resampled = Resampled([row["scene"] for row in rows])
    for way in record["answers"]["ways"]:
        right, none = (np.array([row[name] for row in rows], dtype=float) for name in (way, "none"))
        shares = [estimate(resampled.means(values)) for values in (right, right - none)]
        cells = [f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}]" for share in shares]
        lines.append(f"| {way} | {cells[0]} | {'' if way == 'none' else cells[1]} |")
    half, full = (record["rounding"][dtype] for dtype in ("bfloat16", "float32"))
    lines += [
        "",
        f"In bfloat16, {half['differ']} of {half['pages']} first tokens are not those afresh, and log-probabilities "
        f"above −10 differ by up to {half['largest']:.2g} (median {half['median']:.2g}); in float32 {full['differ']}, "
        f"and by up to {full['largest']:.1g}.",
        "",
    ]
    return "\n".join(lines)


def guide(page: str, record: dict[str, Any]) -> str:
    """The guide with the tables of a record."""
    return between(page, "instruction", tables(record))


def main(arguments: list[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=340, help="fewest tokens of the instruction that is timed")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--table", action="store_true", help="write the tables from the existing record")
    options = parser.parse_args(arguments)
    if not options.table:
        torch.set_num_threads(1)
        record = {
            "machine": {"chip": platform.machine(), "threads": torch.get_num_threads()},
            "versions": versions() | {"python": platform.python_version()},
            "commit": commit(),
            "flops": flops(),
            "times": times(options.layers, options.width, options.tokens, options.rounds),
            "answers": answers(fv.load(device="cpu"), options.questions),
            "rounding": rounding(max(2, options.questions // 4)),
        }
        options.out.write_text(json.dumps(record) + "\n", encoding="utf-8")
    record = json.loads(options.out.read_text(encoding="utf-8"))
    print(tables(record))
    if options.out == OUT:
        GUIDE.write_text(guide(GUIDE.read_text(encoding="utf-8"), record), encoding="utf-8")


if __name__ == "__main__":
    main()
