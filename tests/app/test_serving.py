"""What the page serves to whom, and how it ends; without a browser. Needs Gradio (`make setup-page`)."""

import json
import signal
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


def test_an_upload_is_served(served, tmp_path):
    """So that the test above does not pass because nothing is served."""
    (tmp_path / "a.txt").write_text("it is there")
    path = served.upload(tmp_path / "a.txt")["path"]
    assert served.get(f"/gradio_api/file={path}")[2] == b"it is there"


def test_an_event_cannot_name_a_file_of_the_machine(served, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 40), "red").save(secret)
    for path in (str(secret), "http://127.0.0.1:9/a.png", "/etc/passwd"):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        event = json.dumps({"data": [file], "fn_index": served.event("file"), "session_hash": "s"}).encode()
        for route in ("/gradio_api/queue/join", "/gradio_api/run/predict"):
            assert served.get(route, "POST", event, JSON)[0] == 403


@pytest.mark.parametrize(
    "path", ["/gradio_api/proxy=https://x.hf.space/", "/gradio_api/file=http://127.0.0.1:1/", "/monitoring", "/docs"]
)
def test_nothing_is_fetched_for_others(served, path):
    assert served.get(path)[0] == 404


def test_an_upload_beyond_the_limit_is_refused(served):
    status, _, _ = served.get("/gradio_api/upload", "POST", None, {"Content-Length": str(10**9)})
    assert status == 413


def test_what_the_page_installs_reads_films_with_the_version_that_tests_run_with():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("av>") for requirement in extras["app"])
    recipe = (ROOT / "Makefile").read_text().partition("$(PAGE_READY): $(LIGHT)\n")[2].partition("\n\n")[0]
    assert "$(AV)" in recipe
    assert "^av==" in recipe  # lmms-eval's, in constraints.txt, is not asked for


def test_every_answer_forbids_other_addresses(served):
    _, headers, body = served.get("/")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert b"googleapis" not in body
    assert b"cdnjs" not in body


def test_without_pyav_pictures_are_asked_about_and_ctrl_c_ends_it_while_an_answer_comes(folder, tmp_path, picture):
    served = Served("--model", folder, "--max-new-tokens", 5000, folder=tmp_path, missing="av")
    assert len(served.files) == 1
    asking = [None, "What is this ?", [], 33]
    assert "Reading videos needs PyAV" in served.use("file", served.upload(film(tmp_path / "clip.mp4", 4)))
    refused = served.use("ask", *asking)  # not about a picture from before the film
    assert "role='alert'" in refused
    assert "<article" not in refused
    served.use("file", served.upload(picture))
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


def test_notes_begin_with_a_capital_but_names_of_files_stay_as_they_are():
    from foveate.app.parts import notice

    shown = notice(["anim.gif has 3 frames", "the sides are cut off", "anim.gif has 3 frames"]).value
    assert shown.count("anim.gif has 3 frames") == 1
    assert "The sides are cut off" in shown
    assert not notice([]).visible
