"""Every format gives the same rows; what is no row is told, and reading goes on behind it."""

import base64
import csv
import gzip
import json
import os

import numpy as np
import pandas
import pytest
from PIL import Image

import foveate as fv
from foveate.ask.media import read_media
from foveate.embedded import picture
from foveate.runs import samples
from foveate.runs.samples import Bad, SampleColumns, as_said, labels_in, samples_in

ROWS = [
    {"id": "a", "image": "1.png", "question": "What is this?"},
    {"id": "bä", "image": ["1.png", "/elsewhere/2.png"], "question": 'Which, "the first", or\nthe second?'},
    {"id": "c", "image": "3.png", "question": "[Nothing] to see?"},
]


def samples_of(path, **options):
    return list(samples_in(path, **options).read())


def rows_of(path, **options):
    """What samples are asked; bad ones as they are."""
    return [
        one if isinstance(one, Bad) else (one.number, one.id, one.media, one.question)
        for one in samples_of(path, **options)
    ]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerow(rows[0])
        for row in rows:
            cells = [json.dumps(cell) if isinstance(cell, list) else cell for cell in row.values()]
            writer.writerow(cells)


def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    lists = [{**row, "image": row["image"] if isinstance(row["image"], list) else [row["image"]]} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(lists), path, row_group_size=2)


WRITERS = {".jsonl": write_lines, ".csv": write_csv, ".tsv": write_csv, ".parquet": write_parquet}


@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, ending):
    path = tmp_path / f"in{ending}"
    WRITERS[ending](path, ROWS)
    assert rows_of(path) == [
        (0, "a", (str(tmp_path / "1.png"),), "What is this?"),
        (1, "bä", (str(tmp_path / "1.png"), "/elsewhere/2.png"), 'Which, "the first", or\nthe second?'),
        (2, "c", (str(tmp_path / "3.png"),), "[Nothing] to see?"),
    ]


def test_columns_may_have_other_names_and_paths_another_start(tmp_path):
    path = tmp_path / "in.jsonl"
    write_lines(path, [{"key": 7, "file": "1.png", "image": "wrong.png", "text": "What?"}])
    columns = SampleColumns(media=("file",), question=("text",), id="key")
    assert rows_of(path, columns=columns, root="/start") == [(0, 7, ("/start/1.png",), "What?")]
    assert rows_of(path, columns=SampleColumns(id=None), question="Which?") == [
        (0, "0", (str(tmp_path / "wrong.png"),), "Which?")
    ]


BAD_LINES = [
    (b"nonsense", "not valid JSON"),
    (b'{"id": "x", "image": "1.png"', "not valid JSON"),
    (b'"\xff\xfe"', "not valid JSON"),
    (b"[" * 100_000, "not valid JSON"),
    (b"[1, 2]", "got a list"),
    (b'{"id": "x", "question": "What?"}', "nothing under media or image .*; it has id, question"),
    (b'{"id": "x", "image": null, "question": "What?"}', "nothing under media"),
    (b'{"id": "x", "image": 5, "question": "What?"}', "path of a file, or a list of them; got 5"),
    (b'{"id": "x", "image": ["1.png", {}], "question": "What?"}', "got {}"),
    (b'{"id": "x", "image": "https://a.b/1.png", "question": "What?"}', "Nothing is downloaded"),
    (b'{"id": "x", "image": "1.png", "question": ["What?"]}', "A question must be a text; got"),
    (b'{"id": "x", "image": "1.png", "question": "  "}', "A question must be a text; got"),
    (b'{"id": "x", "image": "1.png", "question": "\\ud800"}', "not valid Unicode"),
    (b'{"id": true, "image": "1.png", "question": "What?"}', "whole number; got True"),
    (b'{"id": 1.5, "image": "1.png", "question": "What?"}', "whole number; got 1.5"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_line_that_is_no_row_is_told_and_the_next_is_read(tmp_path, line, reason):
    path = tmp_path / "in.jsonl"
    path.write_bytes(line + b'\n\n  \n{"id": "good", "image": "1.png", "question": "What?"}')
    bad, good = rows_of(path)
    assert isinstance(bad, Bad)
    assert bad.number == 0
    with pytest.raises(ValueError, match=reason):
        raise ValueError(bad.reason)
    json.dumps(bad.record)
    assert good == (1, "good", (str(tmp_path / "1.png"),), "What?")


def test_a_line_without_an_end_takes_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "LINE", 100)
    good = b'{"id": "good", "image": "1.png", "question": "What?"}\n'
    path = tmp_path / "in.jsonl"
    for long in (b"x" * 99 + b"\n", b"x" * 100 + b"\n", b"x" * 350 + b"\n", b"x" * 100):
        path.write_bytes(good + long + (good if long.endswith(b"\n") else b""))
        first, bad, *rest = samples_of(path)
        assert (first.id, bad.number, len(rest)) == ("good", 1, long.endswith(b"\n"))
        assert ("more than 100 bytes" in bad.reason) == (len(long) > 100 or not long.endswith(b"\n"))


def test_a_mark_at_the_start_of_a_file_is_no_part_of_it(tmp_path):
    (tmp_path / "in.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode())
    write_csv(tmp_path / "in.csv", ROWS[:1])
    (tmp_path / "in.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "in.csv").read_bytes())
    assert (
        rows_of(tmp_path / "in.jsonl")
        == rows_of(tmp_path / "in.csv")
        == [(0, "a", (str(tmp_path / "1.png"),), "What is this?")]
    )


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "; ", ", "])
def test_csv_is_read_as_spreadsheets_write_it(tmp_path, separator, start, end):
    path = tmp_path / "in.csv"
    lines = [("id", "image", "question"), ("a", " 1.png ", "How much, 1,5 or 2,5?"), ("b", '"2; 3.png"', '"A; b, c?"')]
    if separator not in (";", "; "):
        lines[1] = ("a", "1.png\u00a0", '"How much, 1,5 or 2,5?"')
    path.write_text(start + end.join(separator.join(cells) for cells in lines) + end, encoding="utf-8")
    assert rows_of(path) == [
        (0, "a", (str(tmp_path / "1.png"),), "How much, 1,5 or 2,5?"),
        (1, "b", (str(tmp_path / "2; 3.png"),), "A; b, c?"),
    ]


def test_csv_lines_of_another_length_are_told(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text(f"id,image,question\na,1.png,What?,more\nb,1.png\n\nc,{'x' * 200_000},\nd,1.png,What?\n")
    more, fewer, long, good = samples_of(path)
    assert "4 cells, but there are 3 columns" in more.reason
    assert "nothing under question" in fewer.reason
    assert "nothing under question" in long.reason
    assert long.record["image"] == "x" * 200_000
    assert good.id == "d"
    path.write_text("id,id,question\n")
    with pytest.raises(fv.InputError, match="two columns 'id'"):
        rows_of(path)


def test_a_quote_that_is_never_closed_is_told_and_swallows_no_row_unseen(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text('id,image,question\na,1.png,"What?"x\nb,1.png,5" of what?\nc,1.png,"What?\nd,1.png,What?\n')
    closed, good, never = samples_of(path)
    assert "not valid CSV: ',' expected after '\"'" in closed.reason
    assert good.question == '5" of what?'
    assert "not valid CSV: unexpected end of data" in never.reason


REFUSED = {
    "packed.jsonl": (gzip.compress(b"{}"), "gzip"),
    "damaged.parquet": (b"PAR1 nonsense PAR1", "Parquet"),
    "in.txt": (b"{}", "jsonl"),
    "in": (b"{}", "jsonl"),
    "empty.jsonl": (b"", "is empty"),
    "pipe.jsonl": (None, "a pipe"),
}


@pytest.mark.parametrize(("name", "content", "why"), [(name, *case) for name, case in REFUSED.items()], ids=REFUSED)
def test_what_cannot_be_read_is_refused(tmp_path, name, content, why):
    if content is None:
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(fv.InputError, match=why):
        rows_of(tmp_path / name)


def test_a_folder_is_read_by_name_without_what_is_hidden(tmp_path):
    for name in ("b.png", "a/2.png", "a/1.png", ".hidden", ".git/x", "c/ä b\n.txt", "Z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    samples = samples_of(tmp_path, question="What?")
    ids = ["Z.png", "a/1.png", "a/2.png", "b.png", "c/ä b\\n.txt", "caf\\udce9.png", "dangling", "loop"]
    assert [row.id for row in samples] == ids
    assert rows_of(tmp_path, question="What?")[1] == (1, "a/1.png", (str(tmp_path / "a/1.png"),), "What?")
    assert samples[4].media == (str(tmp_path / "c/ä b\n.txt"),)


def test_the_digest_of_a_folder_knows_its_files(tmp_path):
    (tmp_path / "a.png").write_bytes(b"1")
    before = samples_in(tmp_path, question="What?").source.digest()
    assert samples_in(tmp_path, question="What?").source.digest() == before
    (tmp_path / "b.png").write_bytes(b"1")
    assert samples_in(tmp_path, question="What?").source.digest() != before


# The first pass


def test_ids_that_are_there_twice_are_refused_with_their_rows(tmp_path):
    path = tmp_path / "in.jsonl"
    write_lines(path, [{**ROWS[0], "id": name} for name in ("a", "1", 2, "b", 1)])
    with pytest.raises(fv.InputError, match="1 and 4"):
        samples_in(path).count()
    assert samples_in(path), SampleColumns(id=None).count() == 5


def test_rows_without_ids_are_numbered_also_beside_one_that_has_one(tmp_path):
    path = tmp_path / "in.jsonl"
    without = {key: value for key, value in ROWS[0].items() if key != "id"}
    write_lines(path, [without, ROWS[0], {**without, "id": None}])
    assert [one.id for one in samples_of(path)] == ["0", "a", "2"]
    assert samples_in(path).count() == 3
    write_lines(path, [without, {**without, "id": 0}])
    with pytest.raises(fv.InputError, match="0 and 1"):
        samples_in(path).count()
    write_lines(path, [{**without, "name": "a"}, without])
    good, bad = samples_of(path, columns=SampleColumns(id="name"))
    assert good.id == "a"
    assert "got None under name. Give the row one, or use row numbers (foveate batch: --number" in bad.reason


def test_an_input_without_a_row_that_can_be_asked_is_refused(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("\n\n")
    with pytest.raises(fv.InputError, match="has no row"):
        samples_in(path).count()
    write_lines(path, [{"id": 1, "file": "1.png", "question": "What?"}] * 2)
    with pytest.raises(fv.InputError, match="Row 0"):
        samples_in(path).count()
    (tmp_path / "empty").mkdir()
    with pytest.raises(fv.InputError, match="has no row"):
        samples_in(tmp_path / "empty", question="What?").count()
    with pytest.raises(fv.SettingError, match="question"):
        samples_in(tmp_path / "empty")


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_whole_numbers_beside_a_gap_are_whole_numbers(tmp_path, ending):
    table = pandas.DataFrame({"id": [1, None, 30], "image": "1.png", "question": "What?", "label": [3, None, 4]})
    path = tmp_path / f"in{ending}"
    if ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_dict("records")))  # NaN, as Python writes it
    elif ending == ".csv":
        table.to_csv(path)
    else:
        table.to_parquet(path)
    samples = samples_of(path)
    assert [labels_in(sample.record)[:1] for sample in samples] in ([("3",), (), ("4",)], [("3.0",), (), ("4.0",)])
    assert [bool(labels_in(sample.record)) and is_right("3", sample) for sample in samples] == [True, False, False]
    ids = [sample.id for sample in samples]
    assert ids == (["1.0", "1", "30.0"] if ending == ".csv" else [1, 1, 30])  # the gap is row 1
    assert len({type(name) for name in ids}) == 1


def is_right(answer, sample):
    return as_said(answer) in map(as_said, labels_in(sample.record))


@pytest.mark.parametrize("label", [3.0, [3.0], "3.0", [7, 3.0], "3", ["3.00"], -0.0])
def test_a_label_is_the_number_whatever_wrote_it(label):
    assert as_said("3.") in map(as_said, labels_in({"label": label})) or as_said("0") in labels_in({"label": label})


@pytest.mark.parametrize("bad", [{"image": None}, {"question": 7}, {"image": []}, {"image": "http://x/y.png"}])
@pytest.mark.parametrize("name", [1, "1", 1.0])
def test_an_id_of_a_bad_row_is_no_other_rows_too(tmp_path, bad, name):
    row = {"id": 1, "image": "1.png", "question": "What?"}
    write_lines(path := tmp_path / "in.jsonl", [row, {**row, "id": 2}, {**row, "id": name, **bad}])
    with pytest.raises(fv.InputError, match="same id"):
        samples_in(path).count()


@pytest.mark.parametrize("image", [[], None, "", "absent"])
def test_a_row_without_a_picture_is_bad_unless_rows_may_be_texts(tmp_path, image):
    row = {"id": 1, "question": "What?"} if image == "absent" else {"id": 1, "image": image, "question": "What?"}
    write_lines(path := tmp_path / "in.jsonl", [row])
    (sample,) = samples_of(path)
    assert isinstance(sample, Bad)
    (sample,) = samples_of(path, columns=SampleColumns(text_only=True))
    assert sample.media == ()


PIXELS = picture().read_bytes()
TEXT = base64.b64encode(PIXELS).decode()


def shown(sample):
    return [np.asarray(medium.image) for medium in read_media(list(sample.media))]


@pytest.mark.parametrize(
    "image",
    [
        TEXT, [TEXT, TEXT], f"data:image/png;base64,{TEXT}", {"bytes": PIXELS, "path": "a.png"},
        {"bytes": PIXELS, "path": None}, [{"bytes": PIXELS, "path": None}], PIXELS,
        {"bytes": None, "path": str(picture())},
        base64.encodebytes(PIXELS).decode(),
    ],
)  # fmt: skip
def test_pictures_that_a_file_holds_itself_are_read(tmp_path, image):
    import pyarrow
    import pyarrow.parquet

    row = {"id": "a", "image": image, "question": "What?"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "in.parquet")
    paths = [tmp_path / "in.parquet"]
    if isinstance(image, str):
        write_lines(tmp_path / "in.jsonl", [row])
        pandas.DataFrame([row]).to_csv(tmp_path / "in.tsv", sep="\t", index_label="index")
        paths += [tmp_path / "in.jsonl", tmp_path / "in.tsv"]
    for path in paths:
        (sample,) = samples_of(path)
        assert len(sample.media) == len(image if isinstance(image, list) else [image])
        assert all(np.array_equal(pixels, Image.open(picture()).convert("RGB")) for pixels in shown(sample))
        assert "base64" not in str(sample.record)
        assert TEXT not in str(sample.record)


def test_a_film_that_a_table_holds_is_a_film(tmp_path):
    write_lines(path := tmp_path / "in.jsonl", [{"video": TEXT, "question": "?"}])
    (sample,) = samples_of(path)
    assert sample.media[0].startswith("data:video/")
