"""The page in a browser: asking, uploading, sharing, copying; and that nothing else is served or fetched.

Needs Gradio (`make setup-page`), playwright and Chromium: FOVEATE_CHROMIUM names it, or it is on the PATH.
"""

import base64
import io
import warnings

import numpy as np
import pytest
from PIL import Image

from foveate.app.subjects import examples
from tests.app.serving import CHROMIUM, HAS_GRADIO, HAS_PLAYWRIGHT
from tests.films import film

NEEDED = {"Gradio": HAS_GRADIO, "playwright": HAS_PLAYWRIGHT, "Chromium": CHROMIUM is not None}
MISSING = ", ".join(name for name, is_there in NEEDED.items() if not is_there)
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"THE PAGE IS NOT TESTED IN A BROWSER: no {MISSING}; see make setup-page"
)

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
LONG = 120_000  # milliseconds: a busy machine
QUESTION = "What is this ?"


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
    """A page of its own."""
    yield from opened(browser, served)


@pytest.fixture(scope="module")
def asked(browser, served):
    """A page on which a question was asked; tests read it, and ask no more."""
    for tab in opened(browser, served):
        ask(tab)
        yield tab


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


def upload(tab, path):
    """Drop a file, and wait until its picture is shown."""
    before = tab.locator("#panels img").first.get_attribute("src")
    tab.set_input_files("#file input[type=file]", path)
    script = "before => ![before, undefined].includes(document.querySelector('#panels img')?.src)"
    tab.wait_for_function(script, arg=before)


def cards(tab):
    """The answers by the names of their methods."""
    answers = {}
    for card in tab.locator("#answers article").all():
        name = card.locator("h3").inner_text().strip()
        answers[name] = card.locator(".fv-text").inner_text()
    return answers


def test_the_full_model_answers_first_and_methods_beside_it(asked, vlm):
    assert list(cards(asked)) == ["full model", "v2drop", "visionzip", "random"]
    first = examples()[0].medium
    assert cards(asked)["full model"] == vlm.ask(first, QUESTION, max_new_tokens=4).text
    wanted = vlm.ask(first, QUESTION, method="v2drop", retention=0.33, max_new_tokens=4)
    assert cards(asked)["v2drop"] == wanted.text
    words = asked.locator("#answers article").nth(1).inner_text()
    assert f"{wanted.spent:.0f} of 36 ({wanted.retention:.0%})" in words
    for label in ("Vision tokens", "FLOPs to the first token", "KV cache", "Time"):
        assert label in words


def test_the_slider_goes_through_the_stages(asked):
    handle = asked.locator("#stages input[type=range]")
    handle.wait_for(state="visible")
    asked.wait_for_function("() => document.querySelector('#stages input[type=range]').value > 0")  # it stands midway
    most = int(handle.get_attribute("max"))
    assert most >= 3
    place = asked.locator("#panels .fv-places p:visible")
    seen = []
    for stop in range(most + 1):
        handle.fill(str(stop))
        seen.append(place.inner_text().strip())
        assert asked.locator("#panels figure:visible").count() == 4
    assert seen[0] == "The picture"
    assert all(word.startswith(("In the", "Before decoder layer")) for word in seen[1:]), seen
    assert len(set(seen)) == most + 1
    number = asked.locator("#stages input[type=number]")
    number.fill("0")
    number.press("Enter")
    asked.wait_for_function("() => document.querySelector('#panels .fv-places p').checkVisibility()")


def test_a_picture_is_made_as_large_as_the_window_and_back_by_mouse_and_by_keyboard(asked):
    picture = asked.locator("#panels figure:visible img").nth(1)
    small = picture.bounding_box()
    picture.click()
    large = picture.bounding_box()
    window = asked.viewport_size
    assert (large["x"], large["y"], large["width"], large["height"]) == (0, 0, window["width"], window["height"])
    asked.keyboard.press("Space")
    assert picture.bounding_box()["width"] == small["width"]


def test_a_picture_of_all_answers_is_downloaded(asked):
    with asked.expect_download() as download:
        asked.click("#share")
    assert download.value.suggested_filename == "foveate.png"
    picture = Image.open(download.value.path())
    assert picture.format == "PNG"
    assert picture.width > 400
    assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_the_python_is_copied_and_runs(asked, capsys):
    asked.get_by_role("button", name="Run this in Python").click()
    asked.locator("#python button[aria-label*=opy], #python button[title*=opy]").first.click()
    asked.wait_for_function("async () => (await navigator.clipboard.readText()).includes('vlm.ask(')")
    program = asked.evaluate("navigator.clipboard.readText()")
    exec(compile(program, "copied", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == ["full model", "v2drop", "visionzip", "random"]
    for line, (name, text) in zip(lines, cards(asked).items(), strict=True):
        assert line.startswith(f"{name}: {text}")


def choose(tab, text):
    """Choose or write a method by keyboard."""
    box = tab.locator(".fv-methods input").first
    box.focus()
    box.press_sequentially(text)
    box.press("Enter")
    box.press("Escape")


def test_a_method_is_chosen_by_keyboard_and_has_a_word_on_what_it_does(page):
    page.locator(".fv-methods input").first.focus()
    words = page.locator(".fv-methods [role=option]").all_inner_texts()
    page.keyboard.press("Escape")
    assert len(words) > 20
    assert all(len(word.split()) > 4 for word in words)
    choose(page, "divprune")
    page.locator(".fv-methods .token", has_text="divprune").wait_for()
    assert page.locator(".fv-methods .token").first.bounding_box()["height"] < 40  # its name, in one line


@pytest.mark.parametrize(
    "window",
    [
        PHONE,
        {"viewport": {"width": 820, "height": 1180}},
        {"viewport": {"width": 1366, "height": 768}},
        {"viewport": {"width": 1440, "height": 900}},
    ],
    ids=["phone", "tablet", "laptop", "desktop"],
)
def test_the_first_screen_says_what_to_press_and_nothing_is_wider_than_the_window(browser, served, window):
    width = window["viewport"]["width"]
    for tab in opened(browser, served, **window):
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        words = tab.locator(".fv-head p").inner_text()
        assert "foveate drops most of them while the model answers" in words
        assert "press Ask" in words
        assert tab.locator(".fv-head").bounding_box()["y"] < 100
        button = tab.locator("#ask").bounding_box()
        assert 0 < button["y"] <= window["viewport"]["height"] - button["height"]
        ask(tab)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width


UNNAMED = """() => [...document.querySelectorAll("#examples *, #picture *, #panels *, #ask, #stop, #question textarea")]
    .filter(part => part.matches("a, button, input, textarea, img, [role]") && part.checkVisibility())
    .filter(part => !(part.ariaLabel || part.alt || part.labels?.[0]?.textContent || part.textContent).trim())
    .map(part => part.outerHTML)"""


def test_what_can_be_used_or_seen_has_a_name(page):
    assert page.evaluate(UNNAMED) == []
    names = page.get_by_role("group", name="Pick an example").get_by_role("radio")
    spoken = [name.evaluate("part => part.labels[0].textContent.trim()") for name in names.all()]
    assert len({*spoken}) == len(spoken) == len(examples())
    assert all("Picture" in name or "Video" in name for name in spoken)


def test_the_examples_are_one_stop_of_the_tab_key_and_arrows_choose(page):
    page.locator("#examples input:checked").focus()
    before = page.locator("#panels img").first.get_attribute("src")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("before => document.querySelector('#panels img')?.src !== before", arg=before)
    stops = []
    while not stops or (stops[-1] != "ask" and len(stops) < 9):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id || document.activeElement.closest('[id]').id"))
    assert stops == ["file", "question", "ask"]


def test_a_phone_shows_the_picture_first_and_large(browser, served):
    for tab in opened(browser, served, **PHONE):
        picture = tab.locator("main img:visible").first.bounding_box()
        assert picture["y"] < tab.locator("#examples").bounding_box()["y"] < tab.locator("#ask").bounding_box()["y"]
        assert picture["width"] > 0.75 * 390
        assert picture["height"] > 180
        assert tab.locator("main img:visible").count() == 1
        ask(tab)
        assert tab.locator("#panels img:visible").count() == 4


def test_a_video_brings_a_slider_of_its_frames_and_the_model_that_reads_videos(page, tmp_path):
    slider = page.locator("#frames input[type=range]")
    assert not slider.is_visible()
    upload(page, film(tmp_path / "clip.mp4", 12, size=(64, 48)))
    slider.wait_for(state="visible")
    notes = page.locator("#notice")
    assert "foveate demo --model embedded-films" in notes.inner_text()
    assert "clip.mp4: 3 frames are read" in notes.inner_text()
    slider.fill("6")
    page.wait_for_function("() => document.querySelector('#notice').innerText.includes('6 frames are read')")


def test_two_visitors_do_not_share_a_picture(browser, served, picture):
    for other in opened(browser, served):
        upload(other, picture)
    for other in opened(browser, served):
        _, _, data = other.locator("#panels img").first.get_attribute("src").partition(",")
        shown = Image.open(io.BytesIO(base64.b64decode(data))).resize((9, 9))
        wanted = examples()[0].pictures[0].resize((9, 9))
        assert abs(np.asarray(shown, float) - np.asarray(wanted)).max() < 25
