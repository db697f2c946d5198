"""The page in a browser: asking, uploading, sharing, copying, heat maps; and that nothing else is served or fetched.

Needs Gradio (`make setup-page`), playwright and Chromium: FOVEATE_CHROMIUM names it, or it is on the PATH.
"""

import base64
import contextlib
import http.client
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np
import pytest
from PIL import Image

from foveate.app.examples import examples

CHROMIUM = os.environ.get("FOVEATE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
if CHROMIUM is None:
    MISSING.append("Chromium")
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"THE PAGE IS NOT TESTED: {', '.join(MISSING)} missing; see make setup-page"
)

ROOT = Path(__file__).parents[2]
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
LONG = 120_000  # milliseconds: a busy machine
QUESTION = "What is this ?"


class Served:
    """The page as `foveate demo` serves it, in a process of its own."""

    def __init__(self, *arguments, folder=None):
        program = "import sys; from foveate.cli import main; sys.exit(main(['demo', *sys.argv[1:]]))"
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        if folder is not None:
            environment["TMPDIR"] = str(folder)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "--port", "0", "--json", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line == "}\n":
                break
        assert lines, self.process.stderr.read()
        self.url = json.loads("".join(lines))["url"]

    def get(self, path, method="GET", body=None, headers=None):
        """An answer to a path that no client has tidied: status, headers, bytes."""
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=60)
        connection.putrequest(method, path, skip_host=False, skip_accept_encoding=True)
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        with contextlib.closing(connection):
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()

    def end(self, how=signal.SIGINT):
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    page = Served("--model", folder, "--max-new-tokens", 4, folder=tmp_path_factory.mktemp("served"))
    yield page
    page.process.kill()
    page.process.communicate()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            yield chromium
            chromium.close()


@pytest.fixture
def page(browser, served):
    yield from opened(browser, served)


def opened(browser, served, **options):
    """A tab that notes what goes wrong in it and what it asks of others."""
    context = browser.new_context(accept_downloads=True, **options)
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab = context.new_page()
    tab.set_default_timeout(LONG)
    tab.elsewhere, tab.errors = [], []
    tab.on("request", lambda request: tab.elsewhere.append(request.url) if is_elsewhere(request.url, served) else None)
    tab.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.on("console", lambda line: tab.errors.append(line.text) if line.type == "error" else None)
    tab.goto(served.url)
    tab.wait_for_selector("#ask")
    yield tab
    assert tab.elsewhere == []
    assert tab.errors == []
    context.close()


def is_elsewhere(url, served):
    return not url.startswith((served.url, "data:", "blob:"))


def ask(tab, question=QUESTION):
    tab.fill("#question textarea", question)
    tab.click("#ask")
    tab.wait_for_selector("#answers article dl")
    tab.wait_for_selector("#share", state="visible")


def cards(tab):
    return {
        card.locator("h3").inner_text(): card.locator(".fv-text").inner_text()
        for card in tab.locator("#answers article").all()
    }


def test_the_full_model_answers_first_and_methods_beside_it(page, vlm):
    ask(page)
    assert list(cards(page)) == ["full model", "v2drop", "visionzip", "random"]
    first = examples()[0].medium
    assert cards(page)["full model"] == vlm.ask(first, QUESTION, max_new_tokens=4).text
    wanted = vlm.ask(first, QUESTION, method="v2drop", retention=0.33, max_new_tokens=4)
    assert cards(page)["v2drop"] == wanted.text
    words = page.locator("#answers article").nth(1).inner_text()
    assert f"{wanted.spent:.0f} of 36 ({wanted.retention:.0%})" in words
    for label in ("Vision tokens", "FLOPs to the first token", "KV cache", "Time"):
        assert label in words


def test_the_slider_goes_through_the_stages(page):
    ask(page)
    handle = page.locator("#stages input[type=range]")
    most = int(handle.get_attribute("max"))
    assert most >= 3
    seen = []
    for stop in range(most + 1):
        handle.fill(str(stop))
        page.wait_for_function(
            "words => (text => text && !words.includes(text))(document.querySelector('#stop-words').innerText.trim())",
            arg=seen,
        )
        seen.append(page.inner_text("#stop-words").strip())
        assert page.locator("#panels figure").count() == 4
    assert seen[0] == "The picture"
    assert all(word.startswith(("In the", "Before decoder layer")) for word in seen[1:])


def test_an_example_brings_its_questions(page):
    page.locator("#examples button.thumbnail-item").nth(2).click()
    question, _ = examples()[2].questions[0]
    page.wait_for_function("text => document.querySelector('#question textarea').value === text", arg=question)
    other, right = examples()[2].questions[1]
    page.get_by_role("button", name=other).click()
    page.wait_for_function("text => document.querySelector('#question textarea').value === text", arg=other)
    page.click("#ask")
    page.wait_for_selector("#answers .fv-right")
    assert right in page.inner_text("#answers .fv-right")


def test_an_uploaded_picture_is_asked_about(page, picture, vlm):
    page.set_input_files("#file input[type=file]", picture)
    page.wait_for_selector("#answers .fv-hint")
    page.wait_for_function("document.querySelector('#file').innerText.includes('picture')")
    ask(page)
    assert cards(page)["full model"] == vlm.ask(picture, QUESTION, max_new_tokens=4).text


@pytest.mark.parametrize("name", ["broken.png", "broken.mp4", "empty.jpg"])
def test_a_bad_file_has_a_clear_message_and_the_page_goes_on(page, tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"" if name == "empty.jpg" else b"nothing of the kind")
    page.set_input_files("#file input[type=file]", path)
    words = page.locator("#notice [role=alert]").inner_text() if name != "empty.jpg" else ""
    if name == "empty.jpg":  # which browsers and Gradio may refuse themselves
        page.wait_for_function("/empty|0 B|rror/.test(document.body.innerText)")
    else:
        assert name in words
        assert str(tmp_path) not in words
        assert "/" not in words
    ask(page)
    assert len(cards(page)) == 4
    page.errors[:] = [line for line in page.errors if "Failed to load resource" not in line]


def test_a_picture_of_all_answers_is_downloaded(page):
    ask(page)
    with page.expect_download() as download:
        page.click("#share")
    assert download.value.suggested_filename == "foveate.png"
    picture = Image.open(download.value.path())
    assert picture.format == "PNG"
    assert picture.width > 400
    assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_the_python_is_copied_and_runs(page, folder, tmp_path):
    ask(page)
    page.get_by_role("button", name="The same in Python").click()
    page.locator("#python button[aria-label*=opy], #python button[title*=opy]").first.click()
    page.wait_for_function("async () => (await navigator.clipboard.readText()).includes('vlm.ask(')")
    program = page.evaluate("navigator.clipboard.readText()")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [line.split(": ")[0] for line in done.stdout.splitlines()] == ["full model", "v2drop", "visionzip", "random"]
    for name, text in cards(page).items():
        assert f"{name}: {text}" in done.stdout


def test_an_empty_question_is_refused(page):
    page.fill("#question textarea", "  ")
    page.click("#ask")
    assert "What is the question?" in page.locator("#answers [role=alert]").inner_text()


def test_heat_maps_fill_and_methods_are_compared(page):
    page.get_by_role("tab", name="Where do methods look?").click()
    page.click("#look")
    page.wait_for_function("document.querySelector('#maps').innerText.includes('Mean over 12 pictures')")
    assert page.locator("#maps figure").count() == 4
    numbers = [float(cell) for cell in page.locator("#maps td").all_inner_texts()]
    assert len(numbers) == 16
    assert numbers[::5] == [1.0] * 4
    assert all(0 <= number <= 1 for number in numbers)


@pytest.mark.parametrize("options", [PHONE, PHONE | {"color_scheme": "dark"}], ids=["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(browser, served, options):
    for tab in opened(browser, served, **options):
        for selector in (None, "#share"):
            if selector:
                ask(tab)
            assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        tab.get_by_role("tab", name="Where do methods look?").click()
        tab.click("#look")
        tab.wait_for_selector("#maps table")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_letters_can_be_read_in_light_and_in_dark(browser, served, scheme):
    for tab in opened(browser, served, color_scheme=scheme):
        ask(tab)
        ground = shade(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (ground > 0.7) == (scheme == "light")
        for selector in (".fv-head p", ".fv-text", ".fv-card dt", ".fv-note", ".fv-foot"):
            colour = tab.locator(selector).first.evaluate("node => getComputedStyle(node).color")
            assert abs(shade(colour) - ground) > 0.35, (selector, colour)


def shade(colour):
    """How bright a colour of a browser is, in [0, 1]."""
    numbers = [float(number) for number in re.findall(r"[\d.]+", colour)][:3]
    if colour.startswith("rgb"):
        return sum(numbers) / 3 / 255
    return sum(numbers) / 3


# -- what is served, and how it ends --------------------------------------------------------------------------


def secret_paths(secret):
    """Ways in which people have asked Gradio for files that are none of its own."""
    plain = str(secret)
    up = "/".join([".."] * 12)
    return [
        *(plain, plain.lstrip("/"), f"/{plain}", f"{up}{plain}", quote(f"{up}{plain}", safe=""), f"./{up}{plain}"),
        *(f"file://{plain}", quote(plain, safe=""), plain.replace("/", "%2F"), plain.replace("/", "%252F")),
        *(f"/tmp/{up}{plain}", f"{plain}%00.png", "/etc/passwd", f"{up}/etc/passwd", "..%2f..%2f..%2fetc%2fpasswd"),
    ]


def test_no_file_outside_its_own_folder_is_served(served, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.txt"
    secret.write_text("hush-hush-7319")
    own = next(Path(tmp_path_factory.getbasetemp()).glob("served*/foveate-page-*"))
    (own.parent / "beside.txt").write_text("hush-hush-7319")
    paths = [*secret_paths(secret), f"{own}/../beside.txt", f"{own}/%2e%2e/beside.txt", f"{own}/..%2fbeside.txt"]
    routes = ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/svelte/")
    for path in paths:
        for route in routes:
            status, _, body = served.get(f"{route}{path}")
            assert b"hush-hush" not in body, (route, path)
            assert b"root:" not in body, (route, path)
            assert status >= 400, (route, path)
    status, _, body = served.get(f"/gradio_api/file={ROOT}/pyproject.toml")
    assert status >= 400, body[:100]


def test_an_event_cannot_name_a_file_of_the_machine(served, tmp_path, monkeypatch):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 40), "red").save(secret)
    config = json.loads(served.get("/config")[2])
    (upload,) = (one["id"] for one in config["dependencies"] if any(event == "upload" for _, event in one["targets"]))
    for path in (str(secret), "http://127.0.0.1:9/a.png", "/etc/passwd"):
        data = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}], "fn_index": upload, "session_hash": "s"}
        for route in ("/gradio_api/queue/join", "/gradio_api/run/predict"):
            headers = {"Content-Type": "application/json"}
            assert served.get(route, "POST", json.dumps(data).encode(), headers)[0] == 403


@pytest.mark.parametrize(
    "path", ["/gradio_api/proxy=https://x.hf.space/", "/gradio_api/file=http://127.0.0.1:1/", "/monitoring", "/docs"]
)
def test_nothing_is_fetched_for_others(served, path):
    assert served.get(path)[0] == 404


def test_an_upload_beyond_the_limit_is_refused(served):
    status, _, _ = served.get("/gradio_api/upload", "POST", None, {"Content-Length": str(10**9)})
    assert status == 413


def test_every_answer_forbids_other_addresses(served):
    _, headers, body = served.get("/")
    assert "default-src 'self'" in headers["content-security-policy"]
    assert b"googleapis" not in body
    assert b"cdnjs" not in body


@pytest.mark.parametrize(
    ("how", "code", "words"), [(signal.SIGINT, 0, "the page is closed"), (signal.SIGTERM, 143, "")]
)
def test_it_ends_cleanly_and_leaves_nothing_behind(browser, folder, tmp_path, how, code, words):
    served = Served("--model", folder, folder=tmp_path)
    assert len(list(tmp_path.glob("foveate-page-*"))) == 1
    tab = browser.new_page()
    tab.goto(served.url)
    tab.wait_for_selector("#ask")
    tab.click("#ask")  # an answer is on its way
    ended, out, err = served.end(how)
    tab.close()
    assert ended == code, err
    assert words in err
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.glob("foveate-page-*")) == []


def test_two_visitors_do_not_share_a_picture(browser, served, picture):
    (first, second) = (opened(browser, served) for _ in range(2))
    one, other = next(first), next(second)
    one.set_input_files("#file input[type=file]", picture)
    one.wait_for_function("document.querySelector('#file').innerText.includes('picture')")
    before = other.locator("#panels img").first.get_attribute("src")
    ask(other)
    assert other.locator("#panels figure").count() == 4
    plain = Image.open(io.BytesIO(base64.b64decode(before.split(",")[1])))
    assert (
        abs(np.asarray(plain.resize((9, 9)), float) - np.asarray(examples()[0].pictures[0].resize((9, 9)))).max() < 25
    )
    for visitor in (first, second):
        next(visitor, None)
