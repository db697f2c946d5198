"""Scripts of benchmarks, run small: each writes its record, and what it measures is what its names say."""

import json
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmarks.speed import whole

import foveate as fv
from foveate import embedded
from foveate.ask.generation import generate
from foveate.bench.benched import Benched
from foveate.bench.shapes import shape
from foveate.bench.workload import Workload, synthetic
from foveate.plain.flags import PromptRequest
from foveate.registry import family_for
from tests.memory import AFTER, BEFORE, llava

ROOT = Path(__file__).parents[2]


def script(name):
    """What a script defines, beside the files that lie with it."""
    path = ROOT / "benchmarks" / name
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        return SimpleNamespace(**runpy.run_path(str(path)))


def read(name):
    return json.loads((ROOT / "benchmarks" / name).read_text())


@pytest.mark.parametrize("name", ["quality/table.py", "published/page.py", "speed/table.py"])
def test_tables_of_pages_are_those_of_the_records(name):
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / name, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "page", "record", "fill"),
    [
        ("batch.py", "guides/batch.md", "batch.json", "page"),
        ("coordinates/run.py", "methods/coordinates.md", "coordinates/record.json", "table"),
        ("instruction.py", "guides/batch.md", "instruction.json", "guide"),
        ("memory/run.py", "guides/bench.md", "memory/methods.json", "filled"),
        ("pixels/run.py", "methods/pixelprune.md", "pixels/record.json", "filled"),
        ("prefix.py", "guides/look-once.md", "prefix.json", "page"),
        ("retrieval/run.py", "guides/pages.md", "retrieval/record.json", "guide"),
        ("retrieval/run.py", "../benchmarks/retrieval/README.md", "retrieval/record.json", "filled"),
        ("second_look/run.py", "guides/second-look.md", "second_look/record.json", "guide"),
        ("second_look/run.py", "../benchmarks/second_look/README.md", "second_look/record.json", "page"),
        ("serving/tables.py", "guides/vllm.md", None, "guide"),
        ("serving/tables.py", "../benchmarks/serving/README.md", None, "filled"),
        ("tower/run.py", "methods/thintower.md", "tower/pictures.json", "table"),
        ("tower/run.py", "methods/thintower.md", "tower/films.json", "table"),
        *(
            (f"training/{name}.py", "guides/training.md", f"training/{name}.json", "table")
            for name in ("budgets", "step", "task")
        ),
    ],
)
def test_tables_in_guides_are_those_of_the_records(name, page, record, fill):
    text = (ROOT / "docs" / page).read_text()
    arguments = [] if "second_look" in name or fill in ("page", "table") else [text]
    arguments += [read(record)] if record else []
    arguments += [Path(record).stem] if name.startswith("tower") else []
    assert getattr(script(name), fill)(*arguments).strip() in text


def test_trainings_are_measured(tmp_path, monkeypatch):
    """One step each, and one question about one picture."""
    threads, out = torch.get_num_threads(), tmp_path / "record.json"
    budgets, task, step = (script(f"training/{name}.py") for name in ("budgets", "task", "step"))
    for run, name, value in (
        *((budgets, name, 1) for name in ("TOGETHER", "EACH")),
        (budgets, "TRAINED", ("random 1/9",)),
        (task, "TOGETHER", 1),
        (step, "MEASURED", {"divprune 1/9": step.SETTINGS["divprune 1/9"]}),
    ):
        monkeypatch.setitem(run.main.__globals__, name, value)
    budgets.main(["--seeds", "1", "--steps", "1", "--pictures", "1", "--out", str(out)])
    before, after = json.loads(out.read_text())["rows"]
    assert (before["trained"], after["trained"]) == ("not", "random 1/9")
    assert before["marks"].keys() == after["marks"].keys() == budgets.SETTINGS.keys()
    task.main(["--seeds", "1", "--seconds", "0.01", "--pictures", "2", "--out", str(out)])
    assert [row["steps"] for row in json.loads(out.read_text())["rows"]] == [0, 1, 1, 1] * 2
    step.main(["--model", "embedded", "--batch", "1", "--rounds", "1", "--out", str(out)])
    torch.set_num_threads(threads)
    (cell,) = json.loads(out.read_text())["cells"]
    assert cell["ratios"]["divprune 1/9"]["median"] > 1
    assert cell["bytes"]["divprune 1/9"] < cell["bytes"]["full"]


def test_a_job_of_many_rows(tmp_path, capsys, monkeypatch):
    batch = script("batch.py")
    monkeypatch.setitem(batch.main.__globals__, "MODEL_ROWS", 2)
    result = batch.main(["--rows", "3000", "--out", str(tmp_path / "batch.json")])
    assert json.loads((tmp_path / "batch.json").read_text()) == result == json.loads(capsys.readouterr().out)
    assert [(job["answered"], job["bad"]) for job in result["jobs"]] == [(2997, 3)] * 2


def test_memory_of_a_cell():
    cell = script("memory/run.py").cell("random", 576)
    assert cell["peak"] > 0
    assert len(cell["seconds"]) == len(cell["random"])


def test_a_decode_step_that_reads_less():
    record = script("speed/decode.py").measured(2000, 2, 1)
    assert record["same logits"]
    assert list(record["÷ untouched"]) == ["untouched again", "room", "read", "step, reused", "step, anew"]


@pytest.mark.filterwarnings("ignore:v2drop is not the best choice")
def test_one_look_for_several_questions(tmp_path):
    out = tmp_path / "record.json"
    size = ["--layers", "8", "--width", "64", "--rounds", "2", "--many", "3"]
    script("prefix.py").main([*size, "--out", str(out)])
    record = json.loads(out.read_text())
    assert all(pair["low"] <= pair["median"] <= pair["high"] for pair in record["times"]["ratios"])
    sizes = {(row["method"], row["tokens"]): row["bytes"] for row in record["sizes"]}
    whole = sizes.pop(("none", None))
    for (method, tokens), held in sizes.items():
        assert held == pytest.approx(whole * (tokens + 2) / 578, rel=0.05), method


def test_an_instruction_in_front_of_every_page(tmp_path, monkeypatch):
    run = script("instruction.py")
    monkeypatch.setitem(run.main.__globals__, "SHARES", {"a ninth": 1 / 9})
    out, threads = tmp_path / "record.json", torch.get_num_threads()
    run.main(
        ["--layers", "4", "--width", "64", "--tokens", "90", "--rounds", "2", "--questions", "2", "--out", str(out)]
    )
    torch.set_num_threads(threads)
    record = json.loads(out.read_text())
    assert record["times"]["tokens"]["instruction"] > 90
    assert [len(row) for row in record["answers"]["rows"]] == [2 + len(record["answers"]["ways"])] * 2
    assert record["rounding"]["float32"]["largest"] < 2e-5


def test_a_film_that_is_streamed_goes_on_where_it_was(tmp_path, monkeypatch):
    run = script("growing/run.py")
    for name, value in {"SEEDS": (11,), "METHODS": {"none": {}}, "KEPT": (4,)}.items():
        monkeypatch.setitem(run.answers.__globals__, name, value)
    vlm, done = fv.load(embedded.FILMS, device="cpu"), tmp_path / "part.jsonl"
    rows = run.answers(vlm, 1, done)
    assert sorted(row["third"] for row in rows) == sorted(run.THIRDS)
    assert {*rows[0]} == {"film", "seed", "third", "none, streamed, 4", "none, sampled, 4"}
    monkeypatch.setitem(run.answers.__globals__, "streamed", None)
    assert run.answers(vlm, 1, done) == rows  # nothing is asked again


@pytest.fixture(scope="module")
def retrieval():
    return script("retrieval/run.py")


def test_an_index_of_what_is_left(retrieval, tmp_path, monkeypatch):
    names = retrieval.main.__globals__
    chosen = ("all vectors, 576", "random, 64", "Ward behind the full model, 64", "divprune to 192, Ward behind, 64")
    monkeypatch.setitem(names, "WAYS", [way for way in retrieval.WAYS if way.key in chosen])
    out, folder = tmp_path / "record.json", tmp_path / "files"
    size = ["--train", "2", "--test", "2", "--steps", "2", "--seeds", "2", "--rounds", "1"]

    def run(*more):
        retrieval.main([*size, "--folder", str(folder), "--out", str(out), *more])
        return json.loads(out.read_text())

    record = run()
    assert list(record["times"]) == [*chosen[1:], "all vectors again"]
    for kind in record["kinds"].values():
        assert [row["vectors"] for row in kind["rows"]] == [576, 64, 64, 64]
        assert kind["queries"]["text"] >= 2
    for measured in ("fit", "rows_of", "seconds"):  # a second run reads the files of the first
        monkeypatch.setitem(names, measured, lambda *_: 1.0)
    assert run()["kinds"] == record["kinds"]
    with pytest.raises(SystemExit, match="settings"):
        run("--steps", "3")


def test_every_query_has_one_right_page(retrieval):
    for kind in retrieval.KINDS:
        pages = retrieval.pages_of(kind, "test", 12)
        for page in range(12):
            for text in pages.unique_words(page):
                assert [text in " ".join(words) for words in pages.words].count(True) == 1
                assert text in pages.words[page]
            if (things := pages.combination(page)) is not None:
                assert pages.has[:, things].all(1).nonzero()[0].tolist() == [page]


def test_figures_of_an_index_follow_the_place_of_the_right_page(retrieval):
    head = SimpleNamespace(query=lambda rows: rows)
    index = list(torch.eye(8)[:, None])  # one vector a page
    first, third, last = torch.zeros(3, 1, 8)
    first[0, 0] = 1
    third[0, :3] = torch.tensor([3.0, 2.0, 1.0])
    last[0] = torch.arange(8.0)
    figures = retrieval.by_page(head, [(0, 0, first), (1, 2, third), (1, 0, last)], index)
    assert figures[0, :, 0].tolist() == [1, 1]
    assert figures[1, :, 2].tolist() == [0, 0.5]  # 1 / log2(4)
    assert figures[1, :, 0].tolist() == [0, 0]


def test_layers_that_share_weights_are_those_of_the_whole_model():
    of, cpu = shape("cpu-qwen"), torch.device("cpu")
    of = replace(of, image={"tokens": 64, "grid": [1, 16, 16]})
    shared = whole.Shared(of.name, of.of, of.config, of.image, of.frame).build(cpu, torch.float32)
    plain = of.build(cpu, torch.float32)
    plain.load_state_dict(shared.state_dict())
    layers = family_for(shared).text.layers
    assert len(layers) == len(family_for(plain).text.layers) > whole.OWN
    assert layers[whole.OWN].mlp.up_proj.weight is layers[0].mlp.up_proj.weight
    inputs = synthetic(of, PromptRequest(), cpu, torch.float32).inputs
    said, same = (generate(model, inputs, 4).sequences for model in (shared, plain))
    assert torch.equal(said, same)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """The script on a CPU that has graphs, with a tiny model in the place of every shape; `run` returns its record."""
    gpu = script("speed/gpu.py")
    model, inputs = llava(side=168, width=64, layers=5)
    benched = Benched("tiny", None, model, Workload(inputs, 1, BEFORE + AFTER, (144,)))
    names = gpu.main.__globals__
    puts = {
        "from_shape": lambda *_: benched,
        "DEVICE": "cpu",
        "TOKENS": 3,
        "METHODS": ("v2drop:1/2", "fastv:1/2"),
        "idle_share": lambda run: 0.5,
    }
    for name, put in puts.items():
        monkeypatch.setitem(names, name, put)
    puts = {"is_available": lambda: True, "get_device_name": lambda: "NVIDIA TINY", "synchronize": lambda: None}
    for name, put in (puts | {"memory_reserved": lambda: 0}).items():
        monkeypatch.setattr(torch.cuda, name, put)

    def run(*options):
        out = tmp_path / "record.json"
        monkeypatch.setattr("sys.argv", ["gpu.py", "--rounds", "3", "--out", str(out), *options])
        gpu.main()
        return json.loads(out.read_text())

    return run


@pytest.mark.usefixtures("graphs_on_cpu")
def test_a_quarter_of_an_hour_on_a_gpu(gpu):
    record = gpu("--only", "tiny", "equal", "timed", "tower", "answers")
    assert record["tiny"]["equal"]
    assert all(row["same ids"] for row in record["equal"].values() if isinstance(row, dict))
    for part in ("timed", "answers"):
        rows = record[part]["rows"]
        assert list(rows) == ["full", "full again", "full as a graph", "v2drop:1/3", "v2drop:1/3 as a graph"]
        assert [row["replayed"] for row in rows.values() if "replayed" in row] == [1.0, 1.0]
        assert "times faster than full as a graph" in rows["v2drop:1/3 as a graph"]
    assert record["tower"]["rows"]["full as a graph"]["replayed"] == 1.0
    assert record["timed"]["idle share"]["full"] == 0.5


def test_prefills_of_all_methods_are_timed_without_graphs(gpu):
    rows = gpu("--methods", "--only", "cpu-tiny:1", "--rounds", "2")["cases"]["cpu-tiny:1"]["methods"]
    assert list(rows) == ["full", "full again", "v2drop:1/2", "fastv:1/2"]
