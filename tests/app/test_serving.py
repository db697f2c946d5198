"""What the page serves to whom, and how it ends; without a browser. Needs Gradio (`make setup-page`)."""

import json
import signal
import socket
import tomllib
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from tests.app.serving import HAS_GRADIO, JSON, Served
from tests.films import film

pytestmark = pytest.mark.skipif(not HAS_GRADIO, reason="THE PAGE IS NOT TESTED: no Gradio; see make setup-page")
ROOT = Path(__file__).parents[2]


def secret_paths(secret):
    """Ways in which people have asked Gradio for files that are none of its own."""
    plain = str(secret)
    up = "/".join([".."] * 12)
    return [
        *(plain, plain.lstrip("/"), f"/{plain}", f"{up}{plain}", quote(f"{up}{plain}", safe=""), f"./{up}{plain}"),
        *(f"file://{plain}", quote(plain, safe=""), plain.replace("/", "%2F"), plain.replace("/", "%252F")),
        *(f"/tmp/{up}{plain}", f"{plain}%00.png", "/etc/passwd", f"{up}/etc/passwd", "..%2f..%2f..%2fetc%2fpasswd"),
        *(f"..\\..\\{plain}", f"/proc/self/root{plain}", f"{plain}?x=1", f";{plain}", f"%2e%2e/{up}{plain}"),
    ]


def test_no_file_outside_its_own_folder_is_served(served, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("hush-hush-7319")
    (own,) = served.files
    (own.parent / "beside.txt").write_text("hush-hush-7319")
    (own / "a-link").symlink_to(secret)
    links = [f"{own}/a-link", f"{own}/../beside.txt", f"{own}/%2e%2e/beside.txt", f"{own}/..%2fbeside.txt"]
    for path in [*secret_paths(secret), *links, f"{ROOT}/pyproject.toml"]:
        for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/"):
            status, _, body = served.get(f"{route}{path}")
            assert b"hush-hush" not in body, (route, path)
            assert b"root:" not in body, (route, path)
            assert status >= 400, (route, path)


def test_no_program_may_use_an_event_and_stopping_ends_what_is_asked(served):
    events = json.loads(served.get("/config")[2])["dependencies"]
    assert {event["api_visibility"] for event in events} == {"private"}
    asked = [event["id"] for event in events if event["backend_fn"] and event["types"]["generator"]]
    click, submit, _upload, _frames = sorted(asked)
    assert sorted(event["cancels"] for event in events if event["cancels"]) == 4 * [[click, submit]]
    shown = {
        event["show_progress"] for event in events if event["backend_fn"] and not event["cancels"] and event["queue"]
    }
    assert shown == {"hidden"}


def test_an_upload_is_served(served, tmp_path):
    """So that the test above does not pass because nothing is served."""
    (tmp_path / "a.txt").write_text("it is there")
    path = served.upload(tmp_path / "a.txt")["path"]
    assert served.get(f"/gradio_api/file={path}")[2] == b"it is there"


def test_an_event_cannot_name_a_file_of_the_machine_nor_an_address_in_it_nor_any_number(folder, tmp_path):
    served = Served("--model", folder, folder=tmp_path)
    Image.new("RGB", (40, 40), "red").save(tmp_path / "secret.png")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/a.png"
        secret = str(tmp_path / "secret.png")
        (uploaded,) = [served.upload(tmp_path / "secret.png")["path"]]
        for path in (secret, f"file://{secret}", address, f"{uploaded}/../../../secret.png"):
            said = served.use("file", {"path": path, "meta": {"_type": "gradio.FileData"}}, [], 33, 8)
            assert '"success":false' in said
            assert "img src" not in said
        for more in ({"url": address}, {"url": f"file://{secret}"}, {"orig_name": secret}):  # beside one that is there
            served.use("file", {"path": uploaded, "meta": {"_type": "gradio.FileData"}, **more}, [], 33, 8)
        for frames in (0, 33, 10_000):  # others than the slider offers
            assert '"success":false' in served.use("frames", None, [], 33, frames)
        assert served.get(f"/gradio_api/file={address}")[0] == 403
        with pytest.raises(TimeoutError):
            listening.accept()
    _, _, err = served.end(signal.SIGTERM)
    assert "was not uploaded by a user" in err


def test_other_frames_of_a_film_are_read_where_a_visitor_wants_them(served, tmp_path):
    clip = served.upload(film(tmp_path / "clip.mp4", 40))
    for part, frames in (("file", 3), ("frames", 5)):
        assert f"{frames} frames are read" in served.use(part, clip, [], 33, frames)
    assert "no longer here" in served.use("frames", None, [], 33, 5)


@pytest.mark.parametrize("written", ["{}", "v2drop+{}", "{}:layers=3", " '{}' ", '{{"method": "{}"}}'])
def test_no_method_that_is_sent_is_a_file(served, picture, tmp_path, written):
    served.use("file", served.upload(picture), [], 33, 8)
    told = []
    for name in ("secret", "absent"):
        (tmp_path / "secret.json").write_text('{"method": "v2drop", "password": "hush"}')
        text = written.format(tmp_path / f"{name}.json")
        said = served.use("ask", None, "What is this ?", [text], 33, 0, "")
        assert "role='alert'" in said
        assert "hush" not in said
        assert "cannot be read" not in said
        told.append("<article" in said)
    assert told[0] == told[1]


@pytest.mark.parametrize(("host", "status"), [("evil.example", 400), ("localhost", 200), ("127.0.0.1:80", 200)])
def test_another_sites_name_for_this_machine_is_refused(served, host, status):
    assert served.get("/config", headers={"Host": host})[0] == status


def test_an_upload_beyond_the_limit_is_refused(served, tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(bytes(50 * 2**20 + 1))
    status, said = served.uploaded(path)
    assert status == 413
    assert b"maximum allowed size" in said


def test_what_the_page_installs_reads_films_with_the_version_that_tests_run_with():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("av>") for requirement in extras["app"])
    recipe = (ROOT / "Makefile").read_text().partition("$(PAGE_READY): $(LIGHT)\n")[2].partition("\n\n")[0]
    assert "$(AV)" in recipe
    assert "^av==" in recipe  # lmms-eval's, in constraints.txt, is not asked for


def test_the_page_takes_no_fonts_and_scripts_from_elsewhere(served):
    body = served.get("/")[2]
    assert b"googleapis" not in body
    assert b"cdnjs" not in body


def test_without_pyav_pictures_are_asked_about_and_ctrl_c_ends_it_while_an_answer_comes(folder, tmp_path, picture):
    served = Served("--model", folder, "--max-new-tokens", 100_000, folder=tmp_path, missing="av")
    assert len(served.files) == 1
    asking = [None, "What is this ?", [], 33, 0, None]
    assert "Reading videos needs PyAV" in served.use("file", served.upload(film(tmp_path / "clip.mp4", 4)), [], 33, 8)
    refused = served.use("ask", *asking)  # not about a picture from before the film
    assert "role='alert'" in refused
    assert "<article" not in refused
    served.use("file", served.upload(picture), [], 33, 8)
    event = {"data": asking, "fn_index": served.event("ask"), "session_hash": "s"}
    assert served.get("/gradio_api/queue/join", "POST", json.dumps(event).encode(), JSON)[0] == 200
    with (
        served.open("/gradio_api/heartbeat/s") as heartbeat,
        served.open("/gradio_api/queue/data?session_hash=s") as answer,
    ):
        assert b"ALIVE" in heartbeat.readline()
        while b"<article" not in (line := answer.readline()):
            assert not answer.closed
            assert b"process_completed" not in line
        code, out, err = served.end(signal.SIGINT)
    assert (code, out, err) == (0, "", "foveate: the page is closed.\n")
    assert served.files == []
