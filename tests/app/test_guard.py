"""What the guard lets through, and how the folder stays small; without Gradio."""

import asyncio
import json
import os
import time

import pytest

from foveate.app.folder import Folder
from foveate.app.guard import HEADERS, Guard, is_open
from foveate.app.limits import Limits


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/config", "/theme.css", "/assets/index.js", "/static/fonts/a.woff2", "/favicon.ico", "/manifest.json"),
        *("/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/queue/join", "/gradio_api/queue/data"),
        "/gradio_api/run/predict",
        *("/gradio_api/heartbeat/abc", "/gradio_api/file=/tmp/foveate-page-x/a/b.png", "/gradio_api/cancel"),
    ],
)
def test_what_the_page_needs_is_open(path):
    assert is_open(path)


@pytest.mark.parametrize(
    "path",
    [
        *("/gradio_api/proxy=https://x.hf.space/a", "/proxy=https://x.hf.space/a", "/monitoring", "/docs"),
        *("/gradio_api/file=http://127.0.0.1:22/", "/gradio_api/file=https:/a.b/c", "/gradio_api/file=%68ttp://a.b"),
        *("/gradio_api/deep_link", "/gradio_api/stream/1/2/3/playlist.m3u8", "/gradio_api/vibe-code/", "/dev/reload"),
        *("/gradio_api/process_recording", "/gradio_api/api/x", "/gradio_api/call/x"),
        *("/gradio_api/openapi.json", "/gradio_api/runs", "/gradio_api/run-history/records", "/login"),
    ],
)
def test_what_else_gradio_has_is_not(path):
    assert not is_open(path)


def asked(guard, path="/", method="GET", headers=(), body=b""):
    """The status and headers of an answer, and whether the application was reached."""
    sent, reached = [], []

    async def application(scope, receive, send):
        reached.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message):
        sent.append(message)

    halves = [
        {"type": "http.request", "body": body[len(body) // 2 :], "more_body": False},
        {"type": "http.request", "body": body[: len(body) // 2], "more_body": True},
    ]

    async def receive():
        return halves.pop()

    guard.application = application
    scope = {"type": "http", "path": path, "method": method, "headers": list(headers)}
    asyncio.run(guard(scope, receive, send))
    if method == "POST" and reached and body:
        assert reached == [body]
    return sent[0]["status"], dict(sent[0]["headers"]), bool(reached)


@pytest.fixture
def guard(tmp_path):
    return Guard(None, Folder(tmp_path, 1000), Limits(file=500, folder=1000))


def test_browsers_are_told_to_load_nothing_from_elsewhere(guard):
    status, headers, reached = asked(guard)
    assert (status, reached) == (200, True)
    assert headers[b"a"] == b"b"
    assert {name: headers[name.encode()].decode() for name in HEADERS} == HEADERS
    assert "default-src 'self'" in HEADERS["content-security-policy"]
    assert "http" not in HEADERS["content-security-policy"]


def test_a_closed_path_does_not_reach_the_application(guard):
    assert asked(guard, "/gradio_api/proxy=https://a.hf.space")[::2] == (404, False)


@pytest.mark.parametrize(
    ("length", "status"), [(b"100", 200), (None, 411), (b"", 411), (b"-5", 411), (b"1e3", 411), (b"99999999", 413)]
)
def test_an_upload_says_its_length_and_is_no_larger_than_a_file(guard, length, status):
    headers = [] if length is None else [(b"content-length", length)]
    assert asked(guard, "/gradio_api/upload", "POST", headers)[::2] == (status, status == 200)


def event(*paths):
    """The body of an event that names these files."""
    return json.dumps({"data": [[{"path": path, "meta": {}} for path in paths], 3], "fn_index": 0}).encode()


def test_an_event_may_name_uploads_and_nothing_else(guard, tmp_path):
    own, other = tmp_path / "a/b.png", tmp_path.parent / "other.png"
    (tmp_path / "link").symlink_to("/etc")
    for path in ("/gradio_api/queue/join", "/gradio_api/run/predict"):
        assert asked(guard, path, "POST", body=event())[::2] == (200, True)
        assert asked(guard, path, "POST", body=event(str(own), str(own)))[::2] == (200, True)
        bad = (
            str(other),
            "/etc/passwd",
            f"{own}/../../../x",
            f"{tmp_path}/link/passwd",
            "http://a.b/c.png",
            "",
            7,
            ["x"],
        )
        for name in bad:
            assert asked(guard, path, "POST", body=event(str(own), name))[::2] == (403, False), name


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b"[" * 100_000, 400), (b"1" * 2**21, 413)])
def test_an_event_is_json_and_not_endless(guard, body, status):
    assert asked(guard, "/gradio_api/queue/join", "POST", body=body)[::2] == (status, False)


def test_uploads_wait_while_the_folder_is_full_of_new_files(guard, tmp_path):
    (tmp_path / "new").write_bytes(b"0" * 950)
    assert asked(guard, "/gradio_api/upload", "POST", [(b"content-length", b"100")])[::2] == (507, False)
    old = time.time() - 1000
    os.utime(tmp_path / "new", (old, old))
    assert asked(guard, "/gradio_api/upload", "POST", [(b"content-length", b"100")])[::2] == (200, True)
    assert not (tmp_path / "new").exists()


def test_other_protocols_pass(guard):
    reached = []

    async def application(scope, receive, send):
        reached.append(scope["type"])

    guard.application = application
    asyncio.run(guard({"type": "lifespan"}, None, None))
    assert reached == ["lifespan"]


def files(folder, *names, size=100):
    for age, name in enumerate(reversed(names), start=1):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"0" * size)
        when = time.time() - 1000 * age
        os.utime(path, (when, when))


def test_the_oldest_files_go_first_and_only_as_many_as_must(tmp_path):
    folder = Folder(tmp_path, 300)
    files(tmp_path, "a/one", "b/two", "c/three")
    assert folder.has_room(0)
    assert len(list(tmp_path.rglob("*/*"))) == 3
    assert folder.has_room(150)
    assert [path.name for path in tmp_path.rglob("*/*")] == ["three"]


def test_what_is_spared_stays(tmp_path):
    folder = Folder(tmp_path, 300)
    files(tmp_path, "a/example")
    folder.spare()
    files(tmp_path, "b/one", "b/two", "b/three")
    assert folder.has_room(200)
    assert (tmp_path / "a/example").exists()
    assert not folder.has_room(301)


def test_links_do_not_lead_out(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    files(outside, "precious", size=5000)
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "folder").symlink_to(outside)
    (inside / "file").symlink_to(outside / "precious")
    Folder(inside, 10).has_room(10)
    assert (outside / "precious").exists()


def test_a_new_place_is_a_folder_of_its_own(tmp_path):
    places = {Folder(tmp_path, 10).new("a.png") for _ in range(5)}
    assert len({place.parent for place in places}) == 5
    assert all(place.parent.is_dir() and len(place.parent.name) == 32 for place in places)
