"""What MkDocs fills in automatically: navigation, tables, reference. A new method or family needs no line here."""

import re
import runpy
from dataclasses import fields
from inspect import cleandoc
from pathlib import Path
from textwrap import dedent
from typing import Any

DOCS = Path(__file__).parent
MODELS, REFERENCE, TRAITS, SIGNALS = "<!-- models -->", "<!-- methods -->", "<!-- traits -->", "<!-- signals -->"
"""Where the table of models, the reference of the methods, the table of what they read and that of signals go."""
RECORDS = "<!-- records -->"
"""Where the table of what others measured goes."""

WORDS = {
    "Hidden": "hidden states",
    "CachedAttention": "attention of the question",
    "Keys": "keys",
    "KeyNorms": "norms of keys",
    "Normed": "normed states",
    "Pivots": "some text states",
    "TowerAttention": "attention in the tower",
    "TowerKeys": "keys of the tower",
    "Cls": "the tower's CLS",
    "Deepstack": "deepstack features",
    "Cells": "places in the picture",
    "Columns": "places in the prompt",
    "Features": "features",
}
ROWS = {
    "last": "of the last token",
    "after": "of the text behind the image",
    "but_last": "of the text behind the image, without its last token",
    "null": "of the first token behind the image",
    "raters": "of words that resemble the image",
    "vision": "of vision tokens",
}
"""What signals are called there, and whose attention it is."""
PLACES = (
    "before the tower",
    "in the tower",
    "behind the tower",
    "behind the projector",
    "before layers",
    "in the cache",
    "nothing: answers read less",
)


def on_config(config: Any) -> Any:
    """Put the pages of methods into the navigation."""
    config.nav = [{"Methods": method_pages()} if "Methods" in entry else entry for entry in config.nav]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is derived."""
    path = Path(page.file.src_uri)
    return filled(with_picture(markdown, path.stem) if path.parent.name == "methods" else markdown)


def filled(markdown: str) -> str:
    """A page with its placeholders filled."""
    if MODELS in markdown:
        markdown = markdown.replace(MODELS, models())
    if REFERENCE in markdown:
        markdown = markdown.replace(REFERENCE, reference())
    if TRAITS in markdown:
        markdown = markdown.replace(TRAITS, traits())
    if SIGNALS in markdown:
        markdown = markdown.replace(SIGNALS, signals())
    if RECORDS in markdown:
        markdown = markdown.replace(RECORDS, records())
    return markdown


def records() -> str:
    """What others measured on real checkpoints, or that nobody has yet."""
    script = runpy.run_path(str(DOCS.parent / "benchmarks/real/records.py"))
    kept = script["stored"]()
    return script["table"](kept).to_markdown() if kept else "Nobody has sent a record yet."


def with_picture(markdown: str, name: str) -> str:
    """A method's page with what it keeps, if docs/pictures.py drew that, in front of its first code or table."""
    first = re.search(r"^(```|\||## )", markdown, re.MULTILINE)
    if first is None or not (DOCS / f"images/methods/{name}.webp").exists():
        return markdown
    title = markdown.splitlines()[0].removeprefix("# ")
    shown = f"![{title}: what is kept of a picture or film](../images/methods/{name}.webp)\n\n"
    return markdown[: first.start()] + shown + markdown[first.start() :]


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


def traits() -> str:
    """Where each method works with its default settings, what it reads there, and whether the question matters."""
    import foveate
    from foveate.contract.stages import ImageStage, LayerStage, PatchStage, Shape

    lines = ["| method | drops | reads | does the question matter? |", "|---|---|---|---|"]
    for name, kind in foveate.methods().items():
        stages = kind().stages(Shape(depth=32, cls=True))
        layers = list(dict.fromkeys(str(stage.layer) for stage in stages if isinstance(stage, LayerStage)))
        places = dict.fromkeys(PLACES[stage.place] for stage in stages if stage.drops)
        before = f"before layer{'s' * (len(layers) > 1)} {', '.join(layers)}"
        places = [before if place == "before layers" else place for place in places]
        reads = dict.fromkeys(words(signal) for stage in stages for signal in stage.reads)
        if any(isinstance(stage, ImageStage) for stage in stages):
            reads = {"features": None, **reads}
        if any(isinstance(stage, PatchStage) for stage in stages):
            reads = {"pixels": None, **reads}
        asks = "yes" if any(stage.reads_text for stage in stages) else "no"
        cells = (f"[`{name}`](../methods/{name}.md)", ", ".join(places), ", ".join(reads) or "nothing", asks)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def words(signal: Any) -> str:
    """What a signal is called in the table."""
    kind = type(signal).__name__
    return f"attention {ROWS[signal.rows]}" if kind == "Attention" else WORDS.get(kind, kind)


def signals() -> str:
    """What a stage may read: each signal with its options, its name in the view, and what it is."""
    from foveate.families.support import SERVED

    lines = ["| signal | in the view | meaning |", "|---|---|---|"]
    for kind in SERVED:
        meaning, _, options = cleandoc(kind.__doc__ or "").partition("Attributes:")
        meaning += re.sub(
            r"^(\w+(?:, \w+)*):", r"<br>`\1`:", dedent(options.partition("\nRaises:")[0]), flags=re.MULTILINE
        )
        given = ", ".join(f"{field.name}={field.default!r}" for field in fields(kind))
        cells = (f"`{kind.__name__}({given})`", f"`view.{kind.kind}`", " ".join(meaning.split()))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


PROVED_ON = (
    "foveate tells the parts of these models from their structure. Each was proved as a tiny random model, on this "
    "version of transformers and on later ones:"
)


def models() -> str:
    """Where tokens can be dropped in each family and in other models, and what raises an error."""
    from foveate.cli.lists import PLACES, STAGES, marks
    from foveate.families.proved import PROVED
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
    heads = ["models", "`model_type`", *PLACES.values(), "transformers", "refused"]
    lines += ["", PROVED_ON, "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, one in PROVED.items():
        places = ["x" if place in one.places else "" for place in PLACES]
        lines.append(f"| {' | '.join((one.title, f'`{name}`', *places, one.since, one.refused))} |")
    lines += ["", "foveate cannot support these models:", "", "| `model_type` | reason |", "|---|---|"]
    lines += [f"| `{name}` | {reason} |" for name, reason in UNSERVED.items()]
    return "\n".join(lines)
