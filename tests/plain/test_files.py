"""What is no file is said for what it is, without waiting for it."""

import os
import socket
import stat

import pytest

from foveate.errors import InputError
from foveate.plain import files
from foveate.plain.files import check_readable, open_readable

LOOKS = pytest.mark.parametrize("look", [check_readable, open_readable])


def refusal(look, path):
    with pytest.raises(InputError) as refused:
        look(path)
    return str(refused.value)


@LOOKS
def test_a_file_passes(look, tmp_path):
    (path := tmp_path / "a.png").write_bytes(b"content")
    opened = look(path)
    if opened is not None:
        with opened:
            assert opened.read() == b"content"


@LOOKS
def test_a_pipe_is_no_file_and_nobody_waits_for_it(look, tmp_path):
    os.mkfifo(path := tmp_path / "pipe.png")
    assert refusal(look, path) == f"{path} is a pipe, socket or device, not a file. Save its content to a file first."


@LOOKS
def test_a_socket_is_no_file(look, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket may have 107 bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.mp4")
        assert "socket or device" in refusal(look, tmp_path / "socket.mp4")


@LOOKS
@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero", "/dev/random"])
def test_a_device_is_no_file(look, device, tmp_path):
    (tmp_path / "link.png").symlink_to(device)
    path = tmp_path / "link.png"
    assert "socket or device" in refusal(look, path)


@LOOKS
def test_a_folder_an_empty_file_and_no_file_are_said_for_what_they_are(look, tmp_path):
    assert "is a folder, not a picture or video. Name the files in it." in refusal(look, tmp_path)
    (tmp_path / "empty.png").touch()
    assert "is empty (0 bytes)" in refusal(look, tmp_path / "empty.png")
    assert "cannot be read: No such file or directory. Check the path" in refusal(look, tmp_path / "none.png")


@LOOKS
def test_links_that_lead_nowhere_or_in_a_circle_are_no_files(look, tmp_path):
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "gone")
    (tmp_path / "circle.png").symlink_to("circle.png")
    assert "No such file" in refusal(look, tmp_path / "nowhere.png")
    assert "Too many levels of symbolic links" in refusal(look, tmp_path / "circle.png")


@LOOKS
@pytest.mark.parametrize("name", ["a\0b.png", "n" * 300 + ".png", "file.png/inside.png"])
def test_impossible_names_are_refused(look, name, tmp_path):
    (tmp_path / "file.png").write_bytes(b"content")
    said = refusal(look, tmp_path / name)
    assert said.isprintable()
    assert "cannot be read" in said


def test_what_is_put_in_a_files_place_is_looked_at_again(tmp_path, monkeypatch):
    (path := tmp_path / "a.png").write_bytes(b"content")
    check_readable(path)
    path.unlink()
    os.mkfifo(path)
    assert "is a pipe" in refusal(open_readable, path)
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_nothing_stays_open_of_what_is_refused(tmp_path, monkeypatch):
    opened, original = [], os.open

    def noted(*arguments):
        opened.append(original(*arguments))
        return opened[-1]

    monkeypatch.setattr(files.os, "open", noted)
    assert "is a folder" in refusal(open_readable, tmp_path)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])
