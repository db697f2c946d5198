"""What people type into the search of the documentation, in a browser: the first hit is the page that answers it.

Needs MkDocs, playwright and Chromium, as tests/app/test_page.py does.
"""

import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest

from tests.app.serving import CHROMIUM, HAS_PLAYWRIGHT

HAS_MKDOCS = importlib.util.find_spec("material") is not None
NEEDED = {"MkDocs": HAS_MKDOCS, "playwright": HAS_PLAYWRIGHT, "Chromium": CHROMIUM is not None}
MISSING = ", ".join(name for name, is_there in NEEDED.items() if not is_there)
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"THE SEARCH OF THE DOCUMENTATION IS NOT TESTED: no {MISSING}; see make setup and setup-page"
)

ROOT = Path(__file__).parent.parent
FAQ = ROOT / "docs/guides/faq.md"
HEADINGS = re.findall(r"^## (.*)$", FAQ.read_text(), re.MULTILINE)
TYPED = {
    "flash attention": "guides/faq/#does-it-work-with-flashattention",
    "OCR": "guides/faq/#which-method-for-documents-and-ocr",
    "speedup": "guides/faq/#how-much-faster-is-it",
    "license": "guides/faq/#under-which-license-may-i-use-it",
    "quantised": "guides/your-model/#quantised-and-offloaded-kv-caches",
    "OOM": "guides/troubleshooting/#cuda-out-of-memory-from-one-large-picture",
    "max_pixels": "guides/choosing/#or-should-i-lower-max_pixels",
    "install": "guides/getting-started/#install",
    "llava-v1.6-mistral-7b-hf": "families/llava_next/",
}
"""Where the first hit leads: a page, and what of it is shown first."""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that says nothing."""

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation, built and served."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def page(site):
    """A tab, which may copy."""
    from playwright.sync_api import sync_playwright

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            context = chromium.new_context()
            context.grant_permissions(["clipboard-read", "clipboard-write"])
            tab = context.new_page()
            tab.set_default_timeout(60_000)
            yield tab
            chromium.close()


@pytest.fixture(scope="module")
def first_hit(page, site):
    """A function that types words, and gives the links of the first hit: its page, then the parts that are shown."""
    _, address = site
    page.goto(address)
    box, hits = page.locator(".md-search__input"), page.locator(".md-search-result__item")

    def search(words):
        for typed, state in (("", "detached"), (words, "attached")):
            box.fill(typed)
            box.press("End")  # the search begins as a key is released
            hits.first.wait_for(state=state)
        links = hits.first.locator("a.md-search-result__link").evaluate_all("links => links.map(link => link.href)")
        return [re.sub(r"\?h=[^#]*", "", link).removeprefix(address) for link in links]

    return search


@pytest.mark.parametrize("question", HEADINGS)
def test_a_question_finds_its_answer(question, first_hit, site):
    folder, _ = site
    whole, first, *_ = first_hit(question)
    heading = re.search(rf'id="{first.partition("#")[2]}">(.*?)<a', (folder / "guides/faq/index.html").read_text())
    assert whole == "guides/faq/"
    assert re.sub("<[^>]*>", "", heading[1]) == question


@pytest.mark.parametrize("words", TYPED)
def test_words_find_the_page_that_answers_them(words, first_hit):
    links = first_hit(words)
    assert links[0] == TYPED[words].partition("#")[0]
    if "#" in TYPED[words]:
        assert links[1] == TYPED[words]


def test_a_page_can_be_copied_and_is_listed_for_language_models(page, site):
    folder, address = site
    page.goto(f"{address}guides/faq/")
    page.locator(".copy-page").click()
    page.get_by_text("Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == (folder / "guides/faq/index.md").read_text()
    assert "## Does it work with vLLM?" in copied
    listed = re.findall(r"\]\((.*)\)", (folder / "llms.txt").read_text())
    assert "guides/faq/index.md" in listed
    assert all((folder / name).is_file() for name in listed)


@pytest.mark.parametrize("width", [390, 820, 1400])
def test_no_page_is_wider_than_the_screen(width, page, site):
    _, address = site
    page.set_viewport_size({"width": width, "height": 900})
    for name in ("", "results/", "checkpoints/", "compared/", "guides/before-after/", "families/qwen3_vl/", "api/"):
        page.goto(address + name)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide == 0, name
