"""What MkDocs alone can make: the navigation, and each page's Markdown beside it.

docs/tables.py writes what pages list of the code into the pages themselves. A new method or family needs no line here.
"""

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
SOURCES: dict[str, str] = {}
"""The Markdown of each built page, by its URL."""


def on_config(config: Any) -> Any:
    """Put the pages of methods and families into the navigation, and derive `site_url` from `repo_url`."""
    lists = {"Methods": method_pages, "Models": family_pages}
    config.nav = [{name: lists[name]()} if (name := next(iter(entry))) in lists else entry for entry in config.nav]
    place = re.fullmatch(r"https://github\.com/([\w-]+)/([\w.-]+?)/?", config.repo_url or "")
    if place and not config.site_url:
        config.site_url = f"https://{place[1]}.github.io/{place[2]}/"
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> None:
    """Note a page's Markdown."""
    SOURCES[page.url] = markdown


def on_post_build(config: Any) -> None:
    """Write each page's Markdown next to it, for the copy button, and llms.txt, which lists them."""
    site, home = Path(config.site_dir), config.site_url or ""
    lines = [f"# {config.site_name}", "", f"> {config.site_description}"]
    for url, markdown in SOURCES.items():
        (site / url / "index.md").write_text(markdown, encoding="utf-8")
    for entry in config.nav:
        ((section, below),) = entry.items()
        pages = [{section: below}] if isinstance(below, str) else below
        lines += ["", f"## {section}", ""]
        for page in pages:
            ((title, name),) = page.items()
            folder = re.sub(r"(index)?\.md$", "", name)
            lines.append(f"- [{title}]({home}{folder + '/' if folder else ''}index.md)")
    (site / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def family_pages() -> list[dict[str, str]]:
    """Return the pages about all models, then title and file of each page in docs/families."""
    first = [{"All models": "models.md"}, {"By checkpoint name": "checkpoints.md"}]
    return [*first, *pages_of("families")]


def method_pages() -> list[dict[str, str]]:
    """Return title and file of each page in docs/methods."""
    return pages_of("methods")


def pages_of(folder: str) -> list[dict[str, str]]:
    """Return title and file of each page in a folder of docs."""
    pages = sorted((DOCS / folder).glob("*.md"))
    return [
        {page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "): f"{folder}/{page.name}"} for page in pages
    ]
