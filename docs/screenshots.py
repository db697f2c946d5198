"""Take the pictures of the page for the documentation: docs/images/page-NAME.webp.

    python docs/screenshots.py [NAME …]

Needs `make setup-page` and Chromium: FOVEATE_CHROMIUM names it, or it is on the PATH. The embedded model answers.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent / "images"
LONG = 600_000
"""Milliseconds until an answer must be there, on a busy machine."""
MOST = 150_000
"""Bytes of a picture."""
GAP = 24
"""Pixels between the columns of a long picture."""
DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 1.5}
SHOTS = {
    "light": (DESKTOP | {"color_scheme": "light"}, 0),
    "dark": (DESKTOP | {"color_scheme": "dark"}, 1),
    "phone": (PHONE | {"color_scheme": "light"}, 0),
}
"""The browser, and which example is taken."""


def main(names: list[str]) -> int:
    """Take the named pictures, or all; the exit code."""
    if unknown := sorted(set(names) - set(SHOTS)):
        print(f"screenshots.py: no picture {unknown[0]!r}. There are: {', '.join(SHOTS)}.", file=sys.stderr)
        return 2
    chromium = os.environ.get("FOVEATE_CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        print("screenshots.py: no Chromium. Install it, or name it with FOVEATE_CHROMIUM.", file=sys.stderr)
        return 1
    with served() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name in names or SHOTS:
            take(browser, url, name)
        browser.close()
    return 0


@contextmanager
def served() -> Iterator[str]:
    """The address of the page, served until the end."""
    program = "import sys; from foveate.cli import main; sys.exit(main(['demo', '--port', '0', '--json']))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "}\n":
            break
    try:
        yield json.loads("".join(lines))["url"]
    finally:
        process.terminate()
        process.wait()


def take(browser: Any, url: str, name: str) -> None:
    """One picture."""
    options, example = SHOTS[name]
    context = browser.new_context(**options)
    context.set_default_timeout(LONG)
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#ask")
    if example:
        page.locator("#examples label").nth(example).click()
        page.wait_for_selector("#answers .fv-hint")
        page.wait_for_timeout(2000)
    page.click("#ask")
    page.wait_for_selector("#share", state="visible")
    page.wait_for_timeout(2000)  # until the last picture is drawn
    file = io.BytesIO(page.screenshot(full_page=True))
    context.close()
    path = FOLDER / f"page-{name}.webp"
    picture = Image.open(file)
    if picture.height > 2 * picture.width:
        picture = in_columns(picture, 3)
    for quality in range(90, 30, -10):
        picture.save(path, quality=quality, method=6)
        if path.stat().st_size < MOST:
            break
    print(f"{name}: {path.stat().st_size / 1000:.0f} kB", flush=True)


def in_columns(picture: Image.Image, count: int) -> Image.Image:
    """A long picture cut into columns that stand side by side."""
    tall = -(-picture.height // count)
    sheet = Image.new("RGB", (count * (picture.width + GAP) - GAP, tall), "#d0d5dd")
    for number in range(count):
        part = picture.crop((0, number * tall, picture.width, min((number + 1) * tall, picture.height)))
        sheet.paste("white", (number * (picture.width + GAP), 0, number * (picture.width + GAP) + picture.width, tall))
        sheet.paste(part, (number * (picture.width + GAP), 0))
    return sheet


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
