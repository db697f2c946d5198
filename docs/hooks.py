"""What MkDocs fills in automatically: navigation, tables, reference. A new method or family needs no line here."""

from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
MODELS, REFERENCE = "<!-- models -->", "<!-- methods -->"
"""Where the table of models and the reference of the methods go."""


def on_config(config: Any) -> Any:
    """Put the pages of methods into the navigation."""
    config.nav = [{"Methods": method_pages()} if "Methods" in entry else entry for entry in config.nav]
    return config


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in what is derived."""
    return filled(markdown)


def filled(markdown: str) -> str:
    """A page with its placeholders filled."""
    if MODELS in markdown:
        markdown = markdown.replace(MODELS, models())
    if REFERENCE in markdown:
        markdown = markdown.replace(REFERENCE, reference())
    return markdown


def method_pages() -> list[dict[str, str]]:
    """A title and a file for each page in docs/methods."""
    pages = sorted((DOCS / "methods").glob("*.md"))
    return [
        {page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "): f"methods/{page.name}"} for page in pages
    ]


def reference() -> str:
    """An entry for the class of each method."""
    import foveate

    return "\n\n".join(f"::: {module}.{name}" for name, module in foveate._methods().items())


def models() -> str:
    """Where tokens can be dropped in each family, which methods raise an error, and which models are not supported."""
    from foveate.cli.lists import STAGES, marks
    from foveate.families.unserved import UNSERVED
    from foveate.registry import support

    heads = ["family", *STAGES.values()]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    refused = []
    for family, modalities in support().items():
        cells = marks(modalities)[:-1]
        lines.append(f"| [`{family}`](families/{family}.md) | {' | '.join(cells)} |")
        for modality, methods in modalities.items():
            refused += [
                f"- {method} on `{family}` ({modality}): {answer}"
                for method, answer in methods.items()
                if isinstance(answer, str)
            ]
    if refused:
        lines += ["", "These raise an error:", "", *refused]
    lines += ["", "foveate cannot support these models:", "", "| `model_type` | reason |", "|---|---|"]
    lines += [f"| `{name}` | {reason} |" for name, reason in UNSERVED.items()]
    return "\n".join(lines)
