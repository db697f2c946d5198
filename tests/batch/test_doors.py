"""Whatever an input holds, what is written can be read: by pandas, pyarrow and datasets, as the guide does it."""

import json
import math
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from foveate.batch.job import Job, run
from foveate.batch.rows import RowAsking
from foveate.cli.outputs import write_text
from foveate.cli.screen import as_json
from foveate.plain.table import Table, in_file, number
from tests.batch.places import Echo

pandas = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

ANY = st.sampled_from("\udce9\ud800\0\r\u2028\\") | st.characters(exclude_categories=())  # surrogates among them
TEXT = st.text(ANY, max_size=8)
FLOATS = st.floats()
KINDS = (
    TEXT,
    FLOATS,
    st.integers(),
    st.booleans(),
    st.lists(TEXT, max_size=2),
    st.just({}),
    st.lists(FLOATS, max_size=2),
)
OURS = {"id", "image", "question", "label"}


@st.composite
def tables(draw):
    """Rows whose columns are of one kind each, with gaps."""
    names = draw(st.lists(TEXT.filter(lambda name: name not in OURS), max_size=3, unique_by=readable))
    columns = {name: draw(st.sampled_from(KINDS)) for name in names}
    count = draw(st.integers(1, 4))
    return [{name: draw(st.none() | values) for name, values in columns.items()} for _ in range(count)]


def readable(text):
    return text.encode(errors="backslashreplace").decode().replace("\0", "\\0")


def readers(ending):
    import datasets
    import pyarrow.json
    import pyarrow.parquet

    def hub(path):
        kind = {"jsonl": "json"}.get(ending, ending)
        with tempfile.TemporaryDirectory() as cache:
            return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=cache).to_list()

    if ending == "parquet":
        return [pandas.read_parquet, lambda path: pyarrow.parquet.read_table(path).to_pylist(), hub]
    return [lambda path: pandas.read_json(path, lines=True), lambda path: pyarrow.json.read_json(path).to_pylist(), hub]


@settings(max_examples=60, deadline=None)
@given(rows=tables(), ending=st.sampled_from(["jsonl", "parquet"]), reader=st.integers(0, 2))
def test_parts_are_read_back(rows, ending, reader):
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "in.jsonl"), Path(folder, "out")
        asked = [{"id": f"a{at}", "image": "1.png", "question": "What?"} for at in range(len(rows))]
        path.write_text("".join(json.dumps({**row, **more}) + "\n" for row, more in zip(rows, asked, strict=True)))
        run(Job(input=path, out=out, asking=RowAsking(model="echo"), parts=ending), Echo())
        (part,) = out.glob("part-*")
        assert len(readers(ending)[reader](part)) == len(rows)
        for line in (out / "bad.jsonl").read_text().splitlines() if (out / "bad.jsonl").exists() else ():
            raise AssertionError(line)


@settings(max_examples=60, deadline=None)
@given(cells=st.lists(TEXT, min_size=1, max_size=3), value=FLOATS)
def test_tables_and_records_are_read_back(cells, value):
    with tempfile.TemporaryDirectory() as folder:
        table = Table(cells[0], ["name", "value"], [(cell, number(value, ".3g")) for cell in cells], cells)
        for ending in (".csv", ".md"):
            write_text(path := Path(folder, f"told{ending}"), in_file([table], ending))
            path.read_bytes().decode()
        read = pandas.read_csv(Path(folder, "told.csv"), skip_blank_lines=False, keep_default_na=False, dtype=str)
        assert len(read) == len(cells)
        write_text(Path(folder, "told.json"), as_json({cells[0]: cells, "value": [value]}))
        values = json.loads(Path(folder, "told.json").read_bytes().decode(), parse_constant=pytest.fail)
        assert values["value"] == [value if math.isfinite(value) else None] or cells[0] == "value"
        assert cells[0] == "value" or len(values[readable(cells[0])]) == len(cells)


def test_a_picture_whose_name_is_no_text_is_found_again_under_its_written_name(tmp_path, answer, pictures):
    named = tmp_path / "caf\udce9.png"
    named.write_bytes((pictures / "0.png").read_bytes())
    rows = [{"image": str(named), "question": "What"}, {"image": str(named), "question": 7}]
    (path := tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert answer(path).answered == 1
    part, bad = (json.loads((tmp_path / "out" / name).read_text()) for name in ("part-00000.jsonl", "bad.jsonl"))
    assert "\\udce9" in part["image"]
    path.write_text("".join(json.dumps({**row, "question": "What", "row": 0}) + "\n" for row in (part, bad)))
    assert answer(path, out="again").answered == 2
