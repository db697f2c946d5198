"""Files are written completely or not at all, with the permissions that others in the folder get."""

import os

from foveate.plain.writing import publish


def test_a_file_gets_the_permissions_that_a_plain_one_gets_and_the_mask_of_the_process_is_not_touched(
    tmp_path, monkeypatch
):
    (tmp_path / "plain").touch()
    masks = []
    monkeypatch.setattr(os, "umask", lambda mask: masks.append(mask) or 0o022)
    publish(tmp_path / "own", lambda part: part.write_text("1"), force=True)
    assert os.stat(tmp_path / "own").st_mode == os.stat(tmp_path / "plain").st_mode
    assert masks == []
    assert sorted(os.listdir(tmp_path)) == ["own", "plain"]
