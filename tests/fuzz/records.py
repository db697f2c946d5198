"""Damaged files of foveate's own making: records of tunings, methods' JSON, stores of answers, samples to tune on."""

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from hypothesis import strategies as st

from foveate.cli.checks import check_methods
from foveate.cli.tune import Tune
from foveate.eval.records import open_answers
from foveate.methods.mustdrop import MustDrop
from foveate.methods.v2drop import V2Drop
from foveate.naming import parse
from foveate.registry import methods
from foveate.tuning import Tuned
from tests.fuzz.judging import Case, Wrong
from tests.fuzz.mutating import altered, damaged, damaged_json, json_of
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
SAMPLES = [{"image": f"{at}.png", "prompt": "What is this?"} for at in range(4)]


@cache
def stored() -> tuple[str, bytes]:
    """A store's file: its name, and its bytes."""
    with tempfile.TemporaryDirectory() as folder:
        with open_answers({}, Path(folder)) as answers:
            answers.add(ROWS)
        (path,) = Path(folder).glob("*/part-*.jsonl")
        return str(path.relative_to(folder)), path.read_bytes()


@cache
def tuned() -> bytes:
    """A record's file."""
    with tempfile.TemporaryDirectory() as folder:
        TUNED.save(path := Path(folder) / "record.json")
        return path.read_bytes()


def cases() -> list[st.SearchStrategy[Case]]:
    """A strategy for each kind of file: damaged ones."""
    own = st.sampled_from(sorted(methods())).map(lambda kind: json_of(methods()[kind]().to_dict()))
    chain = json_of((MustDrop() + V2Drop()).to_dict())
    method = (own | st.sampled_from((tuned(), chain))).flatmap(damaged_json)
    samples = st.tuples(*map(altered, SAMPLES)).map(lambda rows: b"\n".join(map(json_of, rows)))
    samples |= damaged(b"".join(json_of(row) + b"\n" for row in SAMPLES))
    name, data = stored()
    return [
        damaged_json(tuned()).map(lambda data: _case("record.json", data, _record)),
        method.map(lambda data: _case("method.json", data, _method)),
        damaged(data, (data,)).map(lambda data: _case(name, data, _store)),
        samples.map(lambda data: _case("samples.jsonl", data, _samples)),
    ]


def _case(name: str, data: bytes, read: Callable[[Path], None]) -> Case:
    def put(folder: Path) -> None:
        if read is _store:
            with open_answers({}, folder):  # its manifest
                pass
        (folder / name).write_bytes(data)

    return Case(f"{name} of {len(data)} bytes", lambda folder: read(folder / name), put)


def _record(path: Path) -> None:
    record = Tuned.load(path)
    again = Tuned.from_dict(json.loads(json.dumps(record.to_dict(), allow_nan=False)))
    if again != record:
        raise Wrong("a record does not survive its JSON", record)


def _method(path: Path) -> None:
    """A method's own JSON, or a record, behind --method."""
    check_methods([str(path)])
    parse(str(path))


def _store(path: Path) -> None:
    """A store gives a row as it was written, or not at all."""
    folder = path.parents[1]
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


def _samples(path: Path) -> None:
    for _, prompt, *_ in Tune(samples=path, retention=(0.5,))._asked():
        if not isinstance(prompt, str) or prompt == "None":
            raise Wrong("a picture is asked what is no text", repr(prompt))
