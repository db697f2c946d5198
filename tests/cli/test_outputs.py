"""Files that are written: refused early, never half there, never overwritten unasked."""

import errno
import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from foveate.cli.options import OutputOptions, TableOptions
from foveate.cli.outputs import check_targets, write_outputs, write_text
from foveate.cli.usage import UsageError
from foveate.errors import InputError
from foveate.plain.table import Table
from tests.forked import full_disk

ENDINGS = {"figure": ".png", "out": ".json"}


def check(figure=None, **outputs):
    check_targets(OutputOptions(**outputs), figure)


@pytest.mark.parametrize("flag", ["figure", "out"])
def test_a_file_that_exists_is_refused_unless_forced(tmp_path, flag):
    (path := tmp_path / f"there{ENDINGS[flag]}").write_text("precious")
    with pytest.raises(InputError, match=rf"--{flag} .*there\.\w+ exists already.*--force"):
        check(**{flag: path})
    check(**{flag: path}, force=True)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("new/a", "cannot be written"),
        ("folder", "is a folder"),
        ("pipe", "is a device or a pipe"),
        ("n" * 300, "cannot be written: File name too long"),
        ("loop", "cannot be written"),
        ("dangling", "cannot be written"),
    ],
)
@pytest.mark.parametrize("flag", ["figure", "out"])
def test_what_cannot_be_written_is_refused_early_and_late_also_with_force(tmp_path, flag, name, says):
    path, ending = tmp_path / (name + ENDINGS[flag]), ENDINGS[flag]
    (tmp_path / f"folder{ending}").mkdir()
    os.mkfifo(pipe := tmp_path / f"pipe{ending}")
    (loop := tmp_path / f"loop{ending}").symlink_to(loop)
    (tmp_path / f"dangling{ending}").symlink_to(tmp_path / "missing" / "a")
    with pytest.raises(InputError, match=rf"--{flag} .*{says}"):
        check(**{flag: path}, force=True)
    assert pipe.is_fifo()
    if name != "pipe":
        with pytest.raises(InputError, match="written"):
            write_text(path, "new", force=True)


def test_flags_that_cannot_be_meant_are_wrong_usage(tmp_path):
    for name in ("figure.txt", "figure", "figure.svg"):
        with pytest.raises(UsageError, match="png"):
            check(figure=tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_refused(tmp_path):
    (locked := tmp_path / "locked").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(InputError, match="Permission"):
        check(out=locked / "a.json")


@pytest.mark.parametrize(("ending", "format"), [("png", "PNG"), ("JPG", "JPEG"), ("webp", "WEBP")])
def test_a_picture_is_written_in_the_format_of_its_ending(tmp_path, ending, format):
    path = tmp_path / f"a.{ending}"
    write_outputs({}, "shown", OutputOptions(), figure=path, draw=lambda: Image.new("RGB", (4, 4)))
    with Image.open(path) as read:
        assert read.format == format


def test_a_file_that_appeared_meanwhile_is_left_and_the_result_is_beside_it(tmp_path, capsys):
    figure, outputs = tmp_path / "a.png", OutputOptions(out=tmp_path / "a.json")
    check_targets(outputs, figure)
    for name in ("a.png", "a.json", "a-2.json"):
        (tmp_path / name).write_text("precious")
    write_outputs({"answer": "red"}, "shown", outputs, figure=figure, draw=lambda: Image.new("RGB", (4, 4)))
    said = capsys.readouterr().err
    assert f"a.json was created by another program and is left unchanged; the result is in {tmp_path}/a-3.json." in said
    assert f"the result is in {tmp_path}/a-2.png." in said
    assert said.count("\n") == 2
    assert [(tmp_path / name).read_text() for name in ("a.png", "a.json", "a-2.json")] == ["precious"] * 3
    assert (tmp_path / "a-3.json").read_text() == '{\n  "answer": "red"\n}\n'
    Image.open(tmp_path / "a-2.png").verify()
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("there", [False, True])
def test_a_file_system_without_hard_links_is_as_careful(tmp_path, monkeypatch, there):
    def no_link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", no_link)
    if there:
        (tmp_path / "a.json").write_text("precious")
    write_text(tmp_path / "a.json", "new")
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == ({"a.json": "precious", "a-2.json": "new"} if there else {"a.json": "new"})


def test_of_many_writers_at_once_each_keeps_its_result(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_text(tmp_path / "a.json", str(number)), range(24)))
    assert sorted(int(path.read_text()) for path in tmp_path.iterdir()) == list(range(24))


@pytest.mark.parametrize("force", [False, True])
def test_a_link_to_a_file_that_is_not_there_yet_stays_one(tmp_path, force):
    (link := tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    check(out=link, force=force)
    write_text(link, "new", force=force)
    assert link.is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"


@pytest.mark.parametrize("ending", ["csv", "md"])
def test_a_full_disk_leaves_no_half_table_and_the_answer_is_printed(tmp_path, capsys, ending):
    (path := tmp_path / f"out.{ending}").write_text("old")
    table = Table("", ["a"], [("x" * 50,)] * 400)
    with full_disk(10_000), pytest.raises(InputError, match=rf"out\.{ending} could not be written: File too large"):
        write_outputs({}, "shown", TableOptions(out=path, force=True), tables=[table])
    assert capsys.readouterr().out == "shown\n"
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [(f"out.{ending}", "old")]
