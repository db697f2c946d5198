"""Thirty questions at every door of foveate, to be asked of two trees whose answers must be equal bit by bit.

    PYTHONPATH=OLD/src python -m tests.every_door before.json
    PYTHONPATH=src python -m tests.every_door after.json        (drop sure behind it: these two doors alone)
    python -m tests.every_door --against before.json after.json (prints every difference; exits with 1 if there is one)

Texts, token ids, kept tokens, cache lengths, FLOPs, confidences: floats are written as hexadecimal numbers, tensors as
checksums. Times, dates, versions and folders are left out. One thread, so that sums are added in one order.
"""

import base64
import contextlib
import hashlib
import importlib
import io
import itertools
import json
import os
import re
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.csv
import pyarrow.parquet
import torch
from PIL import Image
from starlette.testclient import TestClient

import foveate as fv
from foveate import embedded
from foveate.app import replies, subjects
from foveate.ask.answers import Answerer, in_order
from foveate.cli import main as command
from foveate.embedded.films import film
from foveate.embedded.questions import one_per_film_task, one_per_task
from foveate.embedded.scenes import scene
from foveate.integrations.lmms_eval import manifest
from tests.films import film as encode

TREE = Path(fv.__file__).parents[2]
LEFT_OUT = {
    "foveate", "torch", "transformers", "versions", "commit", "date", "created", "time", "seconds",
    "answer_seconds", "prepare_seconds", "rows_per_second",
}  # fmt: skip
METHODS = (
    "v2drop", "fastv", "visionzip", "divprune", "visiondrop", "mustdrop", "vscan", "sparsevlm", "pyramiddrop", "dart",
    "vidcom2", "tome", "random:seed=3", "visionzip+v2drop:metric=l1", "divprune+fastv", "tome+random:seed=1",
)  # fmt: skip
FEW = None, "v2drop", "visionzip+v2drop:metric=l1"
LIMIT = {"max_new_tokens": 12}
LOOK = {"method": "vidcom2", "tokens": 64, "sure": 0.95}
COMMANDS = """
generate
generate 1.png --prompt "What is written ?" --method divprune --retention 0.3
generate 2.png --prompt "How many ?" --method divprune+fastv --budget 99 --max-new-tokens 5
generate 3.png 4.png --prompt "How many ?" --method mustdrop
generate 1.png --prompt "How many ?" --method random --seed 7 --set keep=0.5 --set layers=4
generate 1.png --prompt "What?" --method v2drop --budget 3
generate 0.png --prompt "What is written ?" --prompt "How many ?" --method divprune
generate 0.png --prompt "What is written ?" --prompt "How many ?" --method fastv
generate 0.png --prompt "What is written ?" --prompt "How many ?" --method look.json
generate 0.mp4 --prompt "What comes first?" --model embedded-films
compare 1.png --prompt "What is written ?" --pairs 2 --method v2drop --method random --method resize
batch in.jsonl lines --max-new-tokens 12
batch in.jsonl chain --max-new-tokens 12 --method visionzip+v2drop:metric=l1 --batch-size 4
batch in.csv csv --max-new-tokens 12 --untouched
batch in.parquet parquet --max-new-tokens 12 --method divprune --budget 50
batch in.parquet looks --max-new-tokens 12 --method look.json --parts jsonl
eval --questions 11 --method v2drop --method tome+v2drop --method random --retention 0.2 --workers 1 --cache c --draws 2
eval --model embedded-films --questions 6 --method vidcom2 --budget 200 --no-baselines --workers 1 --cache c
eval --samples in.csv --method divprune --budget 60 --no-baselines --workers 1 --cache c
tune --samples in.csv --agreement 0.6 --budget 64 --budget 120 --max-new-tokens 12 --out sure.json
generate 1.png --prompt "What is written ?" --method sure.json --max-new-tokens 12
count 0.png 1.png
count 0.png 1.png --method visionzip+v2drop --budget 300
count 0.mp4 --model embedded-films
check
methods
methods mustdrop
models
models llava
presets
presets llava-1.5-7b
"""


def plain(value: Any) -> Any:
    """A value as JSON that is equal where, and only where, all its bits are."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items() if key not in LEFT_OUT}
    if isinstance(value, torch.Tensor):
        data = value.detach().contiguous().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype} {list(value.shape)} {hashlib.sha256(data).hexdigest()}"
    if isinstance(value, list | tuple):
        if len(value) > 8 and all(type(item) is int for item in value):
            return " ".join(map(str, value))  # kept tokens in a line
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, str):
        return value.replace(str(TREE), "TREE").replace(os.getcwd(), "HERE")
    return value


def answer(ask: Callable[..., Any], *words: Any, **how: Any) -> Any:
    """What comes of asking: of an answer all that is said of it, of a refusal its type."""
    try:
        reply = ask(*words, **how)
    except fv.FoveateError as error:
        return type(error).__name__
    return plain(reply.to_dict() if hasattr(reply, "to_dict") else reply)


@cache
def vlm(name: str = embedded.NAME) -> fv.VLM:
    """A model, loaded once."""
    return fv.load(name, device="cpu")


@cache
def questions() -> list[dict[str, str]]:
    """Thirty questions about drawn pictures, which lie in this folder."""
    rows = []
    for number in range(8):
        drawn = scene("demo", number)
        Image.fromarray(drawn.image).save(f"{number}.png")
        for place, asked in enumerate(one_per_task(drawn, "demo", number)):
            row = {"image": f"{number}.png", "question": asked.question, "label": asked.answer, "task": asked.task}
            rows.append({"id": f"{number}-{place}", **row})
    rows.sort(key=lambda row: row["id"].split("-")[::-1])  # the first of each picture, then the second
    return rows[:30]


@cache
def films() -> list[dict[str, str]]:
    """Questions about two drawn films, encoded."""
    rows = []
    for number in range(2):
        drawn = film("demo", number)
        path, images = f"{number}.mp4", [frame.image for frame in drawn.frames]
        encode(Path(path), 8, rate=2, size=(168, 168), draw=lambda index, *_, images=images: images[index])
        rows += [{"image": path, "question": asked.question} for asked in one_per_film_task(drawn, "demo", number)[:3]]
    return [{"id": f"film-{place}", **row} for place, row in enumerate(rows)]


def turns() -> list[tuple[str, str, str]]:
    """Picture, question and method: the methods take turns."""
    methods = itertools.cycle(METHODS)
    return [(row["image"], row["question"], next(methods)) for row in questions()]


# -- the library ----------------------------------------------------------------------------------------------------


def drop() -> Any:
    """Around generate: every method there is, chains, and the model behind them."""
    names = [name for name in METHODS if ":" in name or "+" in name] + list(fv.methods())
    asked = zip(names, itertools.cycle(questions()), strict=False)
    answers = {name: answer(generate_around, name, row["image"], row["question"]) for name, row in asked}
    return answers | {"untouched": plain(vlm().model(**vlm().prepare("0.png", "What?").inputs).logits)}


def generate_around(name: str, image: str, text: str) -> dict[str, Any]:
    """What generate makes inside `fv.drop`."""
    inputs = vlm().prepare(image, text).inputs
    with fv.drop(vlm().model, name) as trace:
        made = vlm().model.generate(
            **inputs, **LIMIT, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    return {"ids": made.sequences.tolist(), "logits": list(made.logits), "trace": trace.to_dict()}


def ask() -> Any:
    """One question a call: methods in turn, the full model, other decoding, several pictures, turns, choices."""
    asking = vlm().ask
    answers = [answer(asking, image, text, method=name, retention=0.25, **LIMIT) for image, text, name in turns()]
    content = [{"type": "image", "path": "0.png"}, {"type": "text", "text": "What is written ?"}]
    said = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
    said.append({"role": "user", "content": "How many ?"})
    sampled = {"temperature": 0.9, "top_p": 0.9, "seed": 5}
    decodings: Any = [sampled, {"num_beams": 2}, {"stop": ["e"]}, {"fit": "pad"}]
    for name in FEW:
        answers += [answer(asking, "1.png", "What is written ?", method=name, **how, **LIMIT) for how in decodings]
        answers.append(answer(asking, ["0.png", "1.png"], "How many ?", method=name, **LIMIT))
        answers.append(answer(asking, messages=said, method=name, **LIMIT))
        answers.append(answer(asking, "2.png", "Is it red?", choices=["yes", "no", "none"], method=name))
    return answers


def many() -> Any:
    """Prompts in a batch, with their first token's log-probabilities; `ask_many`; a look, and ten questions on it."""
    prompts = [vlm().prepare(image, text) for image, text, _ in turns()[:6]]
    drops = vlm().method_for("divprune", 576, tokens=100)
    answerer = Answerer(vlm(), drops, first=True)
    replies = [*in_order(answerer.replies(prompts, lambda prompt, _: prompt))]
    replies.append(vlm().answer(prompts[0], drops, first=True))
    answers: list[Any] = [plain(reply.first) for reply in replies]
    asked = [(row["image"], row["question"]) for row in questions()]
    for name in (None, METHODS[-3]):
        replies += vlm().ask_many(asked, batch_size=4, method=name, **LIMIT)
    for name in (None, "divprune", "visionzip", "v2drop"):
        prefix = vlm().look("1.png", method=name)
        replies += [prefix.ask(text, **LIMIT) for _, text in asked[:5]]
        replies += prefix.ask_many([text for _, text in asked[5:10]], **LIMIT)
    return [*answers, *(plain(reply.to_dict()) for reply in replies)]


def stream() -> Any:
    """Piece by piece."""
    answers = []
    for image, text, name in turns()[:16]:
        with vlm().ask(image, text, method=name, stream=True, **LIMIT) as pieces:
            answers.append({"pieces": list(pieces), "reply": plain(pieces.answer.to_dict())})
    return answers


def sure() -> Any:
    """A second look, alone and in batches."""
    asked = [(row["image"], row["question"]) for row in questions()]
    alone = [vlm().ask(image, text, **LOOK, **LIMIT) for image, text in asked[:15]]
    return [plain(reply.to_dict()) for reply in [*alone, *vlm().ask_many(asked, batch_size=4, **LOOK, **LIMIT)]]


def films_asked() -> Any:
    """Films, of the model for films with methods in turn, and as pictures of the other."""
    turns = itertools.cycle(["v2drop", "vidcom2", "dycoke", "fastvid", "holitom", "flashvid", "evs", "dtd", None])
    asked = zip(films() * 3, turns, strict=False)
    asking = vlm(embedded.FILMS).ask
    answers = [answer(asking, row["image"], row["question"], method=name, **LIMIT) for row, name in asked]
    return [*answers, answer(vlm().ask, "0.mp4", "What is it?", frames=3, method="v2drop")]


def commands() -> Any:
    """Every line of `COMMANDS`, in order, and the rows that `batch` leaves: one of its pictures is missing."""
    rows = [*questions(), *films()[:1]]
    lines = [*rows, {"id": "bad", "image": "none.png", "question": "What?"}]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    table = pyarrow.Table.from_pylist(rows[:9])
    pyarrow.csv.write_csv(table, "in.csv")
    pyarrow.parquet.write_table(table, "in.parquet")
    fv.SecondLook(method=fv.VidCom2(tokens=64), sure=0.95).save("look.json")
    answers: dict[str, Any] = {}
    for line in COMMANDS.strip().splitlines():
        out, words = io.StringIO(), shlex.split(line)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            code = command([*words, "--json"])
        answers[line] = {"code": code, "out": plain(json.loads(out.getvalue() or "null"))}
        if words[0] == "batch":
            parts = sorted(Path(words[2]).glob("*.jsonl"))
            left = [json.loads(row) for part in parts for row in part.read_text().splitlines()]
            for part in Path(words[2]).glob("*.parquet"):
                left += pyarrow.parquet.read_table(part).to_pylist()
            answers[line]["rows"] = sorted(map(plain, left), key=json.dumps)
    return answers


# -- the page, the server and lmms-eval -----------------------------------------------------------------------------


def page() -> Any:
    """What the page writes: replies as they grow, cards without their times, and the program that asks the same."""
    answers = []
    shown = [*subjects.examples()[:2], subjects.opened(questions()[0]["image"])]
    for subject, name in zip(itertools.cycle(shown), [replies.FULL, *METHODS[:8], "look"], strict=False):
        asking: Any = {replies.FULL: {}, "look": LOOK}.get(name, {"method": name, "retention": 0.3}) | LIMIT
        said = list(replies.ask(vlm(), subject, "What is written ?", name, asking))
        cards = re.sub(r"[\d.]+ s\b", "", replies.cards([said[-1]]))
        code = replies.program(subject, "What?", [name], vlm().name, {"retention": 0.3} | LIMIT)
        answers.append([[reply.text for reply in said], cards, code, plain(said[-1].answer.to_dict())])
    return answers


def server() -> Any:
    """`examples/servers/own.py`, without a network: whole answers and streams."""
    folder = str(TREE / "examples/servers")
    sys.path.insert(0, folder)
    own = importlib.import_module("own")
    sys.path.remove(folder)
    client = TestClient(own.server(vlm(), own.options_of([])))
    answers = []
    for (image, text, name), streams in zip(turns()[:16], itertools.cycle([False, True]), strict=False):
        url = "data:image/png;base64," + base64.b64encode(Path(image).read_bytes()).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        body = {"model": vlm().name, "messages": [{"role": "user", "content": content}], "max_tokens": 12}
        reply = client.post("/v1/chat/completions", json=body | {"method": name, "retention": 0.3, "stream": streams})
        lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line and "[DONE]" not in line]
        answers.append([[json.loads(line).get(key) for key in ("choices", "usage", "foveate")] for line in lines])
    return plain(answers)


def lmms_eval() -> Any:
    """The model that `lmms_eval --model foveate` makes, on requests as lmms-eval hands them over."""
    module, _, name = manifest().chat_class_path.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    settings = {"max_new_tokens": 12, "temperature": 0, "do_sample": False}
    asked = [SimpleNamespace(args=("", messages_of, settings, place, "drawn", "test")) for place in range(30)]
    answers = []
    for words in ("", ",method=v2drop:metric=cosine,budget=192"):
        model = kind.create_from_arg_string(f"pretrained=embedded,device=cpu{words}", {"batch_size": "4"})
        model.task_dict = {"drawn": {"test": questions()}}
        with contextlib.redirect_stderr(io.StringIO()):
            replies = model.generate_until(asked)
        answers += [[reply.text, reply.token_counts.output_tokens] for reply in replies]
    return answers


def messages_of(row: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row as the chat that lmms-eval makes of it."""
    content = [{"type": "image", "url": Image.open(row["image"])}, {"type": "text", "text": row["question"]}]
    return [{"role": "user", "content": content}]


DOORS = (drop, ask, many, stream, sure, films_asked, commands, page, server, lmms_eval)


# -- before and after -----------------------------------------------------------------------------------------------


def differences(before: Any, after: Any, where: str) -> list[str]:
    """Where two values differ, a line each."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted(before.keys() | after.keys())
        pairs = [(before.get(key, "nothing"), after.get(key, "nothing"), f"{where}/{key}") for key in keys]
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = [(*pair, f"{where}/{place}") for place, pair in enumerate(zip(before, after, strict=True))]
    else:
        return [] if before == after else [f"{where}: {before!s:.150} -> {after!s:.150}"]
    return [line for pair in pairs for line in differences(*pair)]


def main(words: list[str]) -> int:
    """Ask at these doors, at all for none, or compare two files."""
    if words[0] == "--against":
        before, after = (json.loads(Path(path).read_text()) for path in words[1:])
        lines = differences(before, after, "")
        print("\n".join([*lines, f"{len(lines)} differences at {len(before)} doors"]))
        return int(bool(lines))
    out = Path(words[0]).resolve()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["XDG_CACHE_HOME"] = str(Path(folder, "cache"))  # where another tree's answers are not
        print(f"{len(questions())} questions about pictures, {len(films())} about films", file=sys.stderr)
        for door in DOORS:
            if door.__name__ in words[1:] or not words[1:]:
                begun = time.process_time()
                answers[door.__name__] = door()
                print(f"{door.__name__}: {time.process_time() - begun:.1f} s", file=sys.stderr, flush=True)
                out.write_text(json.dumps(answers, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
