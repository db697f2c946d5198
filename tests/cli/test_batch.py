"""`foveate batch`: what it prints, how it ends, and what it refuses before anything slow."""

import json
import signal

import pytest
from PIL import Image

from foveate.ask.answers import Answerer
from foveate.batch.rows import RowAsking
from foveate.cli.usage import DONE, WRONG_USAGE
from foveate.runs import store

WORDS = ("--method", "v2drop:layers=1,2,3;retention=0.33", "--max-new-tokens", 3, "--device", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six pictures, and a text."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        Image.new("RGB", (80, 80), (40 * number, 90, 200 - 30 * number)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def batch(run, tiny_llava, folder, tmp_path):
    """Run `foveate batch` on the folder and the tiny model."""

    def call(*arguments, path=folder):
        return run("batch", path, tmp_path / "out", "--model", tiny_llava, *WORDS, *arguments)

    return call


@pytest.fixture
def table(folder, tmp_path):
    """Rows about the pictures of the folder."""
    path = tmp_path / "in.jsonl"
    rows = [{"id": str(n), "image": str(folder / f"{n}.png"), "question": "What is this"} for n in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def interruptible():
    """Let SIGINT interrupt, also where the tests run behind nohup or in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def answers(out):
    """Answers by id."""
    lines = [line for part in out.glob("part-*.jsonl") for line in part.read_text().splitlines()]
    rows = [json.loads(line) for line in lines]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row["answer"] for row in rows}


def test_a_folder_is_answered_and_a_second_run_has_nothing_to_do(batch, tmp_path):
    code, out, err = batch("--prompt", "What is this")
    assert code == 3
    assert "Rows       7, of which 6 are answered" in out
    assert "Bad        1, with their reasons in bad.jsonl" in out
    assert "This run   7 rows in" in out
    assert "% of 36 vision tokens, on average" in out
    assert err.splitlines()[0] == "foveate: Answering: 7 to do"
    code, out, err = batch("--prompt", "What is this", "--json")
    values = json.loads(out)
    assert (code, err) == (3, "")
    assert (values["rows"], values["answered"], values["bad"], values["left"], values["asked"]) == (7, 6, 1, 0, 0)
    assert sorted(answers(tmp_path / "out")) == [f"{number}.png" for number in range(6)]


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_after_the_rows_in_hand_and_the_next_run_goes_on(
    batch, table, tmp_path, monkeypatch, number, code, word
):
    words = ("--batch-size", 2)
    assert batch(*words, path=table)[0] == 0
    (tmp_path / "out").rename(tmp_path / "whole")
    before = signal.getsignal(signal.SIGINT)
    answered = Answerer._answer_batch

    def interrupted(self, batch, shared):
        signal.raise_signal(number)
        return answered(self, batch, shared)

    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "_answer_batch", interrupted)
        ended, out, err = batch(*words, path=table)
    assert ended == code
    assert "Left       4; run the same command again to resume" in out
    assert err.splitlines()[1:] == [
        "foveate: ending after the current rows; press Ctrl-C again to end at once",
        *([line] if (line := err.splitlines()[2]).startswith("foveate: Answering: 2") else []),
        f"foveate: {word}.",
    ]
    assert signal.getsignal(signal.SIGINT) is before
    assert len(answers(tmp_path / "out")) == 2
    ended, out, err = batch(*words, path=table)
    assert (ended, err.splitlines()[0]) == (0, "foveate: done already: 2 of 6 rows")
    assert answers(tmp_path / "out") == answers(tmp_path / "whole")


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_ends_at_once(batch, table, tmp_path, monkeypatch):
    def interrupted(self, batch, shared):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Answerer, "_answer_batch", interrupted)
    code, out, err = batch(path=table)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "foveate: interrupted."
    assert answers(tmp_path / "out") == {}


def test_parquet_in_gives_parquet_out(batch, table, tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [json.loads(line) for line in table.read_text().splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "in.parquet")
    assert batch(path=tmp_path / "in.parquet")[0] == 0
    (part,) = (tmp_path / "out").glob("part-*.parquet")
    assert pyarrow.parquet.read_table(part).column("id").to_pylist() == [str(number) for number in range(6)]


def test_a_limit_reasons_and_labels_are_told(batch, table, tmp_path):
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    rows[1]["image"] = "missing.png"
    for row in rows:
        row["label"] = "tabby"
    table.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    code, out, err = batch("--limit", 3, "--workers", 1, path=table)
    assert code == 3
    assert "Rows       3, of which 2 are answered" in out
    assert "1: … cannot be read: No such file or directory. Check the path" in out
    assert "Accuracy   0.0% of the answers whose rows have a label" in out
    assert err.index("each process loads the model") < err.index("Answering")


def columns(out):
    """Rows in order."""
    rows = [json.loads(line) for part in out.glob("part-*.jsonl") for line in part.read_text().splitlines()]
    return sorted(rows, key=lambda row: row["row"])


def test_a_folder_in_use_is_told_before_the_model_is_loaded(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PATIENCE", 0.1)
    monkeypatch.setattr(RowAsking, "load", lambda asking: pytest.fail("loaded"))
    with store.open_store(tmp_path / "out", "row"):
        code, _, err = run("batch", folder, tmp_path / "out", "--prompt", "What?")
    assert code == 1
    assert "in use" in err


def test_choices_are_two_texts_or_more(batch, table, tmp_path):
    for texts in ((), ("yes",), ("yes,no",)):
        code, _, err = batch("--choices", *texts, path=table)
        assert code == WRONG_USAGE
        assert "choices" in err
        assert "spaces" in err
    assert batch("--choices", "yes", "no", path=table)[0] == DONE
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["settings"]["choices"] == ["yes", "no"]
    _, _, err = batch("--choices", "no", "yes", path=table)
    assert "choices was ['yes', 'no'], and is ['no', 'yes']" in err


def test_a_system_text_is_given_or_in_a_file(batch, table, tmp_path):
    file = tmp_path / "instruction.txt"
    file.write_text("\ufeffw1 is w2 this ?\n", encoding="utf-8")
    assert batch("--system-file", file, path=table)[0] == DONE
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["settings"]["system"] == "w1 is w2 this ?"
    assert batch("--system", "w1 is w2 this ?", path=table)[0] == DONE  # the same job
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff\xfe")
    for flags, word in (
        (("--system", "w1", "--system-file", file), "both"),
        (("--system", " "), "empty"),
        (("--system-file", bad), "UTF-8"),
        (("--system-file", tmp_path), "directory"),
        (("--system-file", tmp_path / "none.txt"), "none.txt"),
    ):
        code, _, err = batch(*flags, path=table)
        assert code == WRONG_USAGE
        assert word in err
