"""Damaged files of foveate's own making: records of tunings, methods' JSON, stores of answers, samples to tune on."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from foveate.catalogue import methods
from foveate.cli.checks import check_methods
from foveate.cli.tune import Tune
from foveate.eval.answer_store import open_answers
from foveate.methods.mustdrop import MustDrop
from foveate.methods.v2drop import V2Drop
from foveate.naming import parse
from foveate.tune import Tuned
from tests.fuzz.judging import Case, Wrong
from tests.fuzz.mutating import altered, damaged, text_of
from tests.tune.presets import preset_of

TUNED = preset_of(MustDrop(global_thr=0.002, individual_thr=0.004), task="receipts, grün")
FULL_ROW = {"answer": "red", "spent": 64.0, "vision_tokens": 576, "flops": 1e9, "first": {"ids": [5], "logs": [-0.5]}}
ROW = {"answer": "grün, \n", "spent": 64.5, "vision_tokens": 576, "flops": None, "kl": 0.125}
OF_A_BENCHMARK = {"tokens": [5, 2], "retention": 0.1, "media": "a picture", "setting": {"method": "v2drop"}}
ROWS = (
    {"method": "full", "question": "1/colour", **FULL_ROW},
    {"method": "v2drop a", "question": "1/colour", **ROW},
    {"method": "full", "question": "pope/2", **FULL_ROW, **OF_A_BENCHMARK},
    {"method": "v2drop a", "question": "pope/2", **ROW, **OF_A_BENCHMARK},
)
SAMPLES = "".join(json.dumps({"image": f"{at}.png", "prompt": "What is this?"}) + "\n" for at in range(4)).encode()


@cache
def stored() -> tuple[str, bytes]:
    """A store's file: its name, and its bytes."""
    folder = Path(tempfile.mkdtemp())
    with open_answers({}, folder) as answers:
        answers.add(ROWS)
    (path,) = folder.glob("*/part-*.jsonl")
    data = path.read_bytes()
    shutil.rmtree(folder)
    return str(path.relative_to(folder)), data


@cache
def tuned() -> bytes:
    """A record's file."""
    with tempfile.TemporaryDirectory() as folder:
        TUNED.save(path := Path(folder) / "record.json")
        return path.read_bytes()


def case(rng: Random, folder: Path) -> Case:
    """A file of one kind, damaged."""
    return rng.choice((_record, _method, _store, _samples))(rng, folder)


def _damaged_json(rng: Random, data: bytes) -> bytes:
    """Damaged as bytes, or with other values in it."""
    if rng.random() < 0.5:
        return damaged(rng, data)
    return text_of(altered(rng, json.loads(data)))


def _record(rng: Random, folder: Path) -> Case:
    (path := folder / "record.json").write_bytes(_damaged_json(rng, tuned()))

    def load() -> None:
        record = Tuned.load(path)
        again = Tuned.from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False)))
        if again != record:
            raise Wrong(f"{record} does not survive its JSON")

    return Case("the record of a tuning", load)


def _method(rng: Random, folder: Path) -> Case:
    """A method's own JSON, or a record, behind --method."""
    kind = rng.choice(sorted(methods()))
    own = json.dumps(methods()[kind]().to_dict()).encode()
    chain = json.dumps((MustDrop() + V2Drop()).to_dict()).encode()
    (path := folder / "method.json").write_bytes(_damaged_json(rng, rng.choice((own, tuned(), chain))))

    def load() -> None:
        check_methods([str(path)])
        parse(str(path))

    return Case(f"--method {path.name}, of {kind}", load)


def _store(rng: Random, folder: Path) -> Case:
    """A store gives a row as it was written, or not at all."""
    name, data = stored()
    with open_answers({}, folder):
        pass
    (folder / name).write_bytes(damaged(rng, data, (data,)))

    def load() -> None:
        with open_answers({}, folder) as answers:
            known = [row for row in ROWS if answers.get(row["method"], row["question"]) is not None]
            if any(answers.get(row["method"], row["question"]) != row for row in known):
                raise Wrong("a damaged row has other values")
            if len(known) != len(answers):
                raise Wrong("a row that nobody wrote")
            answers.add(ROWS)
        with open_answers({}, folder) as answers:
            if [answers.get(row["method"], row["question"]) for row in ROWS] != list(ROWS):
                raise Wrong("rows that were added are not there")

    return Case(f"a store of answers, {name}", load)


def _samples(rng: Random, folder: Path) -> Case:
    data = damaged(rng, SAMPLES)
    if rng.random() < 0.5:
        rows: Any = [altered(rng, json.loads(line)) for line in SAMPLES.splitlines()]
        data = b"\n".join(map(text_of, rows))
    (path := folder / "samples.jsonl").write_bytes(data)

    def load() -> None:
        for picture, prompt in Tune(samples=path, retention=0.5)._asked():
            if not isinstance(prompt, str) or prompt == "None":
                raise Wrong(f"{picture} is asked {prompt!r}")

    return Case("samples to tune on", load)
