"""Measure dropping in a vLLM server, from one client to many. Writes serving.json and prints its tables.

    make setup-vllm && .venv-vllm/bin/python benchmarks/serving/run.py              # half an hour on two cores
    .venv-vllm/bin/python benchmarks/serving/run.py --rounds 1 --clients 1 8        # a short trial
    .venv-vllm/bin/python benchmarks/serving/run.py --budgets --clients 1 8 32 --rounds 3 \\
        --prompts "a picture and a question" --out benchmarks/serving/budgets.json
    python benchmarks/serving/run.py --model llava-hf/llava-1.5-7b-hf --out gpu.json --methods divprune --pictures 64

There is one server each for stock vLLM, stock again as the control, dropping before the decoder and between its layers,
and random dropping of as many tokens. All servers are started first, then measured in turn, in random order in each
round. A round is every server with every number of clients. Ratios compare a server with stock in the same round and
cell.

The prefix cache and the cache of processed pictures are off, because with them a second request for a picture would
cost nothing in any server. The servers share the GPU's memory: with a large model, choose only a few. With `--model`
the answers are not checked. `--weights dummy` uses random weights of a checkpoint's shape.
"""

import argparse
import json
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from clients import Load, Question, as_url, load
from servers import Server, Setting, running
from tables import AGAIN, LONG, PROMPTS, STOCK, TEXT, USUAL, sheets, summary
from transformers import AutoConfig

from foveate.bench.timing import rounds
from foveate.embedded import TASKS
from foveate.eval.asked import Asked
from foveate.eval.held_out import questions
from foveate.runs.versions import commit, versions

HERE = Path(__file__).resolve().parent
OUT = HERE / "serving.json"
GPU = torch.cuda.is_available()
CUTS = "layers=2,8,16;keep=0.25,0.5,0"
"""Early cuts between layers, which save much: 82 of 576 tokens per layer on average."""
SETTINGS = (
    Setting(name=STOCK),
    Setting(name=AGAIN),
    Setting(name="visionzip, 64", foveate={"method": "visionzip", "tokens": 64}),
    Setting(name="random before layer 0, 64", foveate={"method": "random:layers=0;scope=image", "tokens": 64}),
    Setting(name="v2drop between layers, 82", foveate={"method": f"v2drop:{CUTS}"}),
    Setting(name="random between layers, 82", foveate={"method": f"random:{CUTS}"}),
)
BUDGETS = (
    Setting(name=STOCK),
    Setting(name=AGAIN),
    *(Setting(name=f"visionzip, {tokens}", foveate={"method": "visionzip", "tokens": tokens}) for tokens in (64, 192)),
    Setting(name="divprune, 576", foveate={"method": "divprune", "tokens": 576}),
    *(
        Setting(name=f"v2drop between layers, {tokens}", foveate={"method": f"v2drop:tokens={tokens}"})
        for tokens in (64, 192)
    ),
)
"""Settings at several budgets. The one with 576 tokens drops nothing: it shows the cost of the plug-in itself."""


# -- questions ----------------------------------------------------------------------------------------------------


def asked(prompt: str, pictures: int, checked: bool) -> Iterator[Question]:
    """Yield questions about pictures of the embedded tasks in an endless cycle."""
    pool = questions(TASKS, pictures, seeds=(7,))
    sent = [_question(each, prompt, checked) for each in pool]
    while True:
        yield from sent


def _question(question: Asked, prompt: str, checked: bool) -> Question:
    picture = None if prompt == TEXT else as_url(question.media())
    text = question.text
    if prompt == LONG:
        text = f"{'word ' * 100}{text}"
    answer = question.labels[0] if checked and prompt == USUAL else None
    return Question(text, picture, answer)


def cells(clients: Sequence[int], prompts: Sequence[str] = PROMPTS) -> list[tuple[str, int]]:
    """The (prompt, number of clients) of every cell. Unusual prompts run only with the lowest and a medium number."""
    ordered = sorted(clients)
    others = sorted({ordered[0], ordered[len(ordered) // 2]})
    every = [(USUAL, count) for count in clients] + [(prompt, count) for prompt in (LONG, TEXT) for count in others]
    return [cell for cell in every if cell[0] in prompts]


def requests(clients: int, least: int) -> int:
    """Number of requests in a cell: two for each client, and at least `least`."""
    return max(least, 2 * clients)


# -- measuring ----------------------------------------------------------------------------------------------------


def measure(servers: Sequence[Server], options: argparse.Namespace, checked: bool) -> list[dict[str, Any]]:
    """Measure every cell in every round. Returns one record for each."""
    runs, streams = {}, {}
    for server in servers:
        for prompt, clients in cells(options.clients, options.prompts):
            cell = (server.setting.name, prompt, clients)
            streams[cell] = asked(prompt, options.pictures, checked)
            runs[cell] = partial(_load, server, streams[cell], clients, options)
    beside = {cell: cell[1:] for cell in runs}  # the servers of a cell run directly one after the other
    records = []
    for number, loads in enumerate(rounds(runs, options.rounds, after=_tell, beside=beside)):
        for (setting, prompt, clients), sent in loads.items():
            right = [reply.right for reply in sent.replies if reply.right is not None]
            cell = {"round": number, "setting": setting, "prompt": prompt, "clients": clients}
            cell |= {name: round(value, 5) for name, value in sent.figures().items()}
            records.append(cell | {"requests": len(sent.replies), "right": sum(right), "checked": len(right)})
    return records


def _load(server: Server, stream: Iterator[Question], clients: int, options: argparse.Namespace) -> Load:
    sent = [next(stream) for _ in range(requests(clients, options.requests))]
    return load(server.address, sent, clients, options.new_tokens)


def _tell() -> None:
    print(".", end="", flush=True, file=sys.stderr)


# -- the command --------------------------------------------------------------------------------------------------


def flags(options: argparse.Namespace, servers: int) -> list[str]:
    """The arguments that all servers share, so that they differ only in foveate."""
    words = ["--dtype", options.dtype, "--block-size", options.block_size, "--max-model-len", options.max_model_len]
    words += ["--max-num-seqs", "32", "--enforce-eager", "--no-enable-prefix-caching", "--mm-processor-cache-gb", "0"]
    words += [f"--gpu-memory-utilization={0.9 / servers:.2f}"] if GPU else []
    return [*words, "--load-format", options.weights, *options.flag]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="hub id or folder of a model to use instead of the embedded one")
    parser.add_argument("--weights", default="auto", help="dummy: random weights of the model's shape")
    parser.add_argument("--dtype", default="bfloat16" if GPU else "float32")
    parser.add_argument("--block-size", default="16" if GPU else "32")
    parser.add_argument("--max-model-len", default="8192" if GPU else "2048")
    parser.add_argument(
        "--flag", action="append", default=[], help="a further argument of vLLM, such as --flag=--seed=1"
    )
    parser.add_argument("--settings", nargs="+", default=[one.name for one in SETTINGS], metavar="NAME")
    parser.add_argument("--budgets", action="store_true", help="64, 192 and 576 tokens, instead of --settings")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS, choices=PROMPTS)
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME", help="methods to compare with stock, instead of --settings"
    )
    parser.add_argument("--retention", type=float, default=1 / 9)
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 2, 8, 32])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--requests", type=int, default=6, help="least number of requests in a cell")
    parser.add_argument("--pictures", type=int, default=96, help="number of different questions")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.settings) - {one.name for one in SETTINGS}):
        parser.error(f"there is no setting {unknown[0]!r}; settings: {', '.join(one.name for one in SETTINGS)}")
    settings = [one for one in SETTINGS if one.name in options.settings or one.name == STOCK]
    if options.budgets:
        settings = list(BUDGETS)
    if options.methods:
        rate = {"retention": options.retention}
        settings = [SETTINGS[0], *(Setting(name=name, foveate={"method": name} | rate) for name in options.methods)]
    common = flags(options, len(settings))
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or _embedded(Path(scratch) / "model")
        logs = Path(scratch) / "logs"
        architecture = f"Foveate{AutoConfig.from_pretrained(model).architectures[0]}"
        with running(settings, model, architecture, common, logs) as servers:
            records = measure(servers, options, checked=options.model is None)
    import vllm

    record = {
        "model": options.model or "the embedded model",
        "weights": "random" if options.weights == "dummy" else "the checkpoint's",
        "device": _device(),
        "machine": {"chip": platform.machine(), "threads": torch.get_num_threads()},
        "versions": versions() | {"vllm": vllm.__version__, "python": platform.python_version()},
        "commit": commit(),
        "flags": common,
        "settings": {one.name: one.foveate for one in settings},
        "rounds": options.rounds,
        "new_tokens": options.new_tokens,
        "summary": summary(records),
        "cells": records,
    }
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(file=sys.stderr)
    for sheet in sheets(record):
        print(sheet.to_text(width=170))


def _embedded(folder: Path) -> str:
    sys.path.insert(0, str(HERE.parents[1] / "plugins/vllm"))
    from tests.checkpoints import embedded_checkpoint

    return str(embedded_checkpoint(folder))


def _device() -> str:
    if GPU:
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers are stopped too
    main()
