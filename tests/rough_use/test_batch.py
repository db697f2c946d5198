"""`foveate batch`: inputs that end a job, or lose what stands in them."""

import json
import re
import sys
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet
import pytest

import foveate as fv
from foveate.batch.rows import Predictor, bad_row
from foveate.naming import parse
from foveate.runs import samples
from foveate.runs.crew import rows_of
from foveate.runs.listener import Listener
from foveate.runs.samples import MediaSample, samples_in
from tests.batch.conftest import rows_in
from tests.runs.test_samples import samples_of, write_lines

GOOD = {"id": "a", "image": "1.png", "question": "What?"}
CELLS = "id,image,question\na,1.png,What?\n"
WORDS = ("--method", "v2drop:layers=1,2,3", "--max-new-tokens", 3, "--device", "cpu")


def test_rows_that_come_while_a_job_runs_are_not_answered_under_the_old_digest(answer, questions, tmp_path):
    path = questions(4)

    class Editing(Listener):
        def stage(self, doing, total, done=0):
            path.write_text(path.read_text().replace("row ", "new ") + questions(2, "more.jsonl").read_text())
            return super().stage(doing, total, done)

    with suppress(fv.InputError):
        assert answer(path, listener=Editing()).left == 0
    assert not [row["id"] for row in rows_in(tmp_path / "out").values() if row["id"].startswith("new")]


def test_the_lines_of_a_cell_above_the_limit_are_no_rows(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text(CELLS + f'b,1.png,"{"x" * 131_073}\ninside,1.png,What?\n"\nc,1.png,What?\n')
    assert [(row.number, row.id) for row in samples_of(path) if isinstance(row, MediaSample)][-1] == (2, "c")


def test_a_question_far_beyond_the_model_is_a_bad_row(asking, vlm, pictures, tmp_path):
    path = tmp_path / "in.jsonl"
    write_lines(path, [{**GOOD, "image": str(pictures / "0.png"), "question": "w1 " * 66_667}])
    looks = iter([False, True, True])  # the file is read, and the model is not run
    (row,) = rows_of(Predictor(asking, vlm=vlm), samples_of(path), looks.__next__)
    assert "model was made for" in row["reason"]


UNASKED = {
    "a date after 9999": pa.array([253_402_300_800], pa.timestamp("s")),
    "an unknown time zone": pa.array([0], pa.timestamp("s", "Mars/Olympus")),
    "text that is no UTF-8": pa.array([b"\xff"]).view(pa.string()),
}


@pytest.mark.parametrize("column", UNASKED.values(), ids=UNASKED)
def test_a_parquet_column_that_nobody_asks_for_ends_no_job(column, tmp_path):
    path = tmp_path / "in.parquet"
    columns = {name: pa.array([value]) for name, value in GOOD.items()}
    pyarrow.parquet.write_table(pa.table({**columns, "other": column}), path)
    assert [row.id for row in samples_of(path)] == ["a"]


def test_a_parquet_column_that_is_asked_for_is_never_emptied(tmp_path):
    path = tmp_path / "in.parquet"
    columns = {name: pa.array([value]) for name, value in GOOD.items()}
    pyarrow.parquet.write_table(pa.table({**columns, "id": pa.array([2**50], pa.timestamp("s"))}), path)
    with pytest.raises(OverflowError):
        samples_of(path)


def test_a_parquet_column_that_nobody_asks_for_is_not_read(tmp_path):
    path = tmp_path / "in.parquet"
    table = pa.table({**{name: [value] for name, value in GOOD.items()}, "blob": ["x" * 1000]})
    pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    path.write_bytes(re.sub(rb"(?s).{20}x{1000}", b"\xff" * 1020, path.read_bytes()))
    assert [row.id for row in samples_of(path)] == ["a"]


def test_a_csv_may_have_commas_behind_its_last_column(tmp_path):
    (path := tmp_path / "in.csv").write_text(CELLS.replace("\n", ",,\n"))
    assert [row.id for row in samples_of(path)] == ["a"]


class Name(str):
    """A column's name that counts how often it is compared."""

    compared = 0

    def __eq__(self, other):
        Name.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def test_many_columns_are_not_compared_each_with_each(tmp_path, monkeypatch):
    names = [Name(name) for name in (*GOOD, *(f"column {number}" for number in range(300)))]
    (path := tmp_path / "in.csv").write_text(",".join(names) + "\n" + "a,1.png,What?\n")
    monkeypatch.setattr(samples.csv, "reader", lambda *_, **__: iter([names, list(GOOD.values())]))
    assert [row.id for row in samples_of(path)] == ["a"]
    assert Name.compared < 10 * len(names)


def test_two_files_whose_names_print_alike_are_two_rows(tmp_path):
    for name in ("a\n.png", "a\\n.png"):
        (tmp_path / name).touch()
    assert samples_in(tmp_path, question="What?").count() == 2


def test_a_folder_may_number_its_rows(run, model, pictures, tmp_path):
    words = ("--prompt", "What", "--number-rows", "--model", model, *WORDS)
    code, _, _ = run("batch", pictures, tmp_path / "out", *words)
    assert code == 0


def test_parts_of_parquet_are_refused_before_any_work_where_there_is_no_pyarrow(
    run, model, questions, tmp_path, monkeypatch
):
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = run("batch", questions(2), tmp_path / "out", "--parts", "parquet", "--model", model, *WORDS)
    assert (code, "pyarrow" in err, "Answering" in err) == (1, True, False)


@pytest.mark.parametrize("wrong", [{"image": "http://x.y/z.png"}, {"id": 1.5}])
def test_a_bad_row_keeps_all_that_it_was(tmp_path, wrong):
    path = tmp_path / "in.jsonl"
    write_lines(path, [{**GOOD, **wrong}])
    (bad,) = samples_of(path)
    text = json.dumps(bad_row(bad, bad.reason))
    assert [value for value in {**GOOD, **wrong}.values() if str(value) not in text] == []


def test_a_job_whose_rows_are_mostly_bad_does_not_end_as_done(run, model, questions, tmp_path):
    path = questions(6)
    path.write_text(path.read_text().replace(".png", ".none", 5))
    code, out, _ = run("batch", path, tmp_path / "out", "--model", model, *WORDS)
    assert "of which 1 are answered" in out
    assert code != 0


def test_columns_that_are_not_asked_about_go_into_the_output(answer, questions, tmp_path):
    path = questions(1)
    path.write_text(path.read_text().replace('"id"', '"label": "tabby", "id"'))
    answer(path)
    assert "tabby" in json.dumps(rows_in(tmp_path / "out"))


def test_another_method_is_named_as_it_was_written(answer, questions):
    answer(questions(2), method=parse("v2drop"))
    with pytest.raises(fv.InputError) as refused:
        answer(questions(2), method=parse("visiondrop"))
    assert "v2drop" in str(refused.value)
    assert "[{" not in str(refused.value)
