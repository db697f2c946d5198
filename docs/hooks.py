"""What MkDocs fills in automatically: navigation, tables, reference. A new method or family needs no line here."""

import re
import runpy
from dataclasses import MISSING, fields
from inspect import cleandoc
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

DOCS = Path(__file__).parent
MODELS, REFERENCE, TRAITS, SIGNALS = "<!-- models -->", "<!-- methods -->", "<!-- traits -->", "<!-- signals -->"
"""Where the table of models, the reference of the methods, the table of what they read and that of signals go."""
RECORDS = "<!-- records -->"
"""Where the table of what others measured goes."""
WORDS_HERE, CHECKPOINTS = "<!-- words -->", "<!-- checkpoints -->"
"""Where the words of docs/architecture.md and the table of checkpoints go."""
SOURCES: dict[str, str] = {}
"""The Markdown of each page that was built, by its address."""

WORDS = {
    "Hidden": "hidden states",
    "CachedAttention": "attention of the question",
    "Keys": "keys",
    "KeyNorms": "norms of keys",
    "Normed": "normalised states",
    "OwnSignal": "a function of your own",
    "Pivots": "some text states",
    "TowerAttention": "attention in the tower",
    "TowerKeys": "keys of the tower",
    "Cls": "the tower's CLS",
    "Deepstack": "deepstack features",
    "Cells": "places in the picture",
    "Columns": "places in the prompt",
    "Features": "features",
    "Products": "queries of the text times keys",
    "ValueLikeness": "values of the text and of the tokens",
    "Rotary": "RoPE's angles at places in the prompt",
}
ROWS = {
    "last": "of the last token",
    "after": "of the text after the image",
    "but_last": "of the text after the image, without its last token",
    "null": "of the first token after the image",
    "raters": "of words that resemble the image",
    "vision": "of vision tokens",
}
"""What signals are called there, and whose attention it is."""
PLACES = (
    "before the tower",
    "in the tower",
    "after the tower",
    "after the projector",
    "before layers",
    "in the cache",
    "nothing: answers read less",
)


def on_config(config: Any) -> Any:
    """Put the pages of methods and families into the navigation, and tell where the site is from where the code is."""
    lists = {"Methods": method_pages, "Models": family_pages}
    config.nav = [{name: lists[name]()} if (name := next(iter(entry))) in lists else entry for entry in config.nav]
    place = re.fullmatch(r"https://github\.com/([\w-]+)/([\w.-]+?)/?", config.repo_url or "")
    if place and not config.site_url:
        config.site_url = f"https://{place[1]}.github.io/{place[2]}/"
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what is derived."""
    path = Path(page.file.src_uri)
    if path.parent.name == "methods":
        markdown = with_picture(markdown, path.stem)
    if path.parent.name == "families":
        markdown = with_use(markdown, path.stem)
    markdown = filled(markdown)
    SOURCES[page.url] = markdown
    return markdown


def on_post_build(config: Any) -> None:
    """Write each page's Markdown beside it, for the button that copies it, and llms.txt, which lists them."""
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


def filled(markdown: str) -> str:
    """A page with its placeholders filled."""
    derived = {
        MODELS: models,
        REFERENCE: reference,
        TRAITS: traits,
        SIGNALS: signals,
        RECORDS: records,
        WORDS_HERE: glossary,
        CHECKPOINTS: checkpoints,
    }
    for place, made in derived.items():
        if place in markdown:
            markdown = markdown.replace(place, made())
    return markdown


def records() -> str:
    """What others measured on real checkpoints, or that nobody has yet."""
    script = runpy.run_path(str(DOCS.parent / "benchmarks/real/records.py"))
    kept = script["stored"]()
    return script["table"](kept).to_markdown() if kept else "Nobody has sent a record yet."


def glossary() -> str:
    """The table of words that docs/architecture.md has, with its links as they are one folder up."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    return re.search(r"^\| word \|.*?(?=\n\n)", page, re.MULTILINE | re.DOTALL)[0]


def with_picture(markdown: str, name: str) -> str:
    """A method's page with what it keeps, if docs/pictures.py drew that, in front of its first code or table."""
    first = re.search(r"^(```|\||## )", markdown, re.MULTILINE)
    if first is None or not (DOCS / f"images/methods/{name}.webp").exists():
        return markdown
    title = markdown.splitlines()[0].removeprefix("# ")
    shown = f"![{title}: what it keeps of a picture or video](../images/methods/{name}.webp)\n\n"
    return markdown[: first.start()] + shown + markdown[first.start() :]


class Checkpoint(NamedTuple):
    """What the table of checkpoints says of one.

    Attributes:
        name: Its name, as the source of transformers has it.
        family: Its `model_type`.
        tokens: Vision tokens of a picture of 1024 x 768 pixels, by the rule of its processor.
        rule: That rule, in words.
    """

    name: str
    family: str
    tokens: int
    rule: str


TILES_NEXT = "576 for the whole picture, plus up to four tiles of 336 pixels"
TILES_OV = "729 for the whole picture, plus up to nine tiles of 384 pixels"
CHECKED = (
    Checkpoint("llava-hf/llava-1.5-7b-hf", "llava", 576, "always"),
    Checkpoint("llava-hf/llava-v1.6-mistral-7b-hf", "llava_next", 2340, TILES_NEXT),
    Checkpoint("llava-hf/LLaVA-NeXT-Video-7B-hf", "llava_next_video", 2340, f"{TILES_NEXT}; 144 per frame"),
    Checkpoint("llava-hf/llava-onevision-qwen2-7b-ov-hf", "llava_onevision", 4725, f"{TILES_OV}; 196 per frame"),
    Checkpoint("llava-hf/vip-llava-7b-hf", "vipllava", 576, "always"),
    Checkpoint("LanguageBind/Video-LLaVA-7B-hf", "video_llava", 256, "always; 257 per frame"),
    Checkpoint("Qwen/Qwen2-VL-7B-Instruct", "qwen2_vl", 999, "one per 28 × 28 pixels"),
    Checkpoint("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl", 999, "one per 28 × 28 pixels"),
    Checkpoint("Qwen/Qwen3-VL-4B-Instruct", "qwen3_vl", 768, "one per 32 × 32 pixels"),
    Checkpoint("Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl", 768, "one per 32 × 32 pixels"),
    Checkpoint("Qwen/Qwen3-VL-30B-A3B-Instruct", "qwen3_vl_moe", 768, "one per 32 × 32 pixels"),
    Checkpoint("Qwen/Qwen3.5-27B", "qwen3_5", 768, "one per 32 × 32 pixels"),
    Checkpoint("Qwen/Qwen3.5-35B-A3B", "qwen3_5_moe", 768, "one per 32 × 32 pixels"),
    Checkpoint(
        "OpenGVLab/InternVL3-1B-hf", "internvl", 3328, "256 per tile of 448 pixels, up to 12, plus the whole picture"
    ),
    Checkpoint(
        "HuggingFaceM4/Idefics3-8B-Llama3", "idefics3", 2197, "169 per tile of 364 pixels, plus the whole picture"
    ),
    Checkpoint(
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        "smolvlm",
        1053,
        "81 per tile of 384 pixels, longest side 1,536, plus the whole picture",
    ),
    Checkpoint("google/gemma-3-4b-it", "gemma3", 256, "always, without pan and scan"),
    Checkpoint("google/paligemma2-3b-mix-224", "paligemma", 256, "always; 1,024 at 448 pixels, 4,096 at 896"),
    Checkpoint("mistralai/Mistral-Small-3.1-24B-Instruct-2503", "mistral3", 1036, "one per 28 × 28 pixels"),
    Checkpoint("zai-org/GLM-4.1V-9B-Thinking", "glm4v", 999, "one per 28 × 28 pixels"),
    Checkpoint("zai-org/GLM-4.5V", "glm4v_moe", 999, "one per 28 × 28 pixels"),
)


def checkpoints() -> str:
    """The table of checkpoints: tokens of a picture, tested versions, and the method to begin with."""
    from foveate.registry import families, support

    heads = [
        "checkpoint",
        "family",
        "tokens of a 1024 × 768 picture, *computed*",
        "rule",
        "transformers",
        "besides V2Drop",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, family, tokens, rule in CHECKED:
        serves = support()[family]
        then = ["DivPrune"]
        if not isinstance(serves["image"]["pixelprune"], str):
            then.append("PixelPrune for documents")
        if "video" in serves:
            then.append("VidCom2 for videos")
        oldest = getattr(families()[family], "oldest", "5.16.1")
        cells = (
            f"`{name}`",
            f"[{family}](families/{family}.md)",
            f"{tokens:,}",
            rule,
            f"{oldest} to 5.24",
            "; ".join(then),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


FAMILY_CODE = """
## In code

```python
import foveate as fv

vlm = fv.load("{name}")
answer = vlm.ask("cat.jpg", "What is it doing?", method="v2drop", retention=1/3)               # a picture
print(answer, f"{{answer.retention:.0%}} of {{answer.vision_tokens}} vision tokens")

video = vlm.ask("clip.mp4", "What happens?", frames=3, method="vidcom2", retention=1/4)        # {video}

questions = [("cat.jpg", "What is this?"), ("dog.jpg", "What is this?")]
for answer in vlm.ask_many(questions, batch_size=2, method="v2drop", retention=1/3):           # a batch
    print(answer.prompt.text, answer)
```

If your code has loaded the model: `with fv.drop(model, "v2drop", retention=1/3): model.generate(**inputs)`
([before and after](../guides/before-after.md)). To choose a method and a budget, see [choosing](../guides/choosing.md).
"""
FAMILY_PROOF = """
## What is tested

The tests run every method on a tiny random model of this type, with transformers {oldest} to 5.24. Keeping all tokens
changes no bit, dropping tokens equals masking them, a sample gives the same result in a batch as alone, and the model
is restored. **Not tested**: quality on a real checkpoint. [`foveate check {name}`](../guides/check.md) runs such tests
on yours.

foveate drops tokens of {modalities}. {refused} Setups that no model supports are listed under
[model setups](../guides/your-model.md).
"""


def with_use(markdown: str, name: str) -> str:
    """A family's page with code that runs, what is tested and what raises an error; others have these by hand."""
    from foveate.registry import families, support

    if name not in families():
        return markdown
    serves = support()[name]
    refused = {answer for methods in serves.values() for answer in methods.values() if isinstance(answer, str)}
    video = "a video" if "video" in serves else "a video; this model reads pictures, so each frame is one"
    values = {
        "name": re.search(r"^\| checkpoints \| `([^`]+)`", markdown, re.MULTILINE)[1],
        "video": video,
        "oldest": getattr(families()[name], "oldest", "5.16.1"),
        "modalities": "pictures and videos" if "video" in serves else "pictures",
        "refused": "These raise an error: " + " ".join(sorted(refused)) if refused else "Every method works.",
    }
    table = re.search(r"\A.*?\n\n\|.*?\n\n", markdown + "\n", re.DOTALL).end()
    code, proof = FAMILY_CODE.format_map(values).lstrip(), FAMILY_PROOF.format_map(values)
    rest = markdown[table:].strip()
    notes = f"\n## Good to know\n\n{rest}\n" if rest else ""
    return f"{markdown[:table]}{code}{proof}{notes}"


def family_pages() -> list[dict[str, str]]:
    """The pages about all models, then a title and a file for each page in docs/families."""
    first = [{"All models": "models.md"}, {"By checkpoint name": "checkpoints.md"}]
    return [*first, *pages_of("families")]


def method_pages() -> list[dict[str, str]]:
    """A title and a file for each page in docs/methods."""
    return pages_of("methods")


def pages_of(folder: str) -> list[dict[str, str]]:
    """A title and a file for each page in a folder of docs."""
    pages = sorted((DOCS / folder).glob("*.md"))
    return [
        {page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# "): f"{folder}/{page.name}"} for page in pages
    ]


def reference() -> str:
    """An entry for the class of each method."""
    from foveate.plain import inventory

    kinds = sorted((kind, name) for name, kind in inventory.method_classes().items())
    return "\n\n".join(f"::: foveate.methods.{name}.{kind}" for kind, name in kinds)


def traits() -> str:
    """Where each method works with its default settings, what it reads there, and whether the question matters."""
    import foveate
    from foveate.contract.stages import ImageStage, LayerStage, PatchStage, Shape

    lines = ["| method | drops tokens | reads | depends on the question |", "|---|---|---|---|"]
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
    from foveate.families.support import SERVED, reader_of

    lines = ["| signal | read by | in the view | meaning |", "|---|---|---|---|"]
    for kind in sorted(SERVED, key=lambda kind: kind.__name__):
        meaning, _, options = cleandoc(kind.__doc__ or "").partition("Attributes:")
        meaning += re.sub(
            r"^(\w+(?:, \w+)*):", r"<br>`\1`:", dedent(options.partition("\nRaises:")[0]), flags=re.MULTILINE
        )
        required = [field.name for field in fields(kind) if field.default is MISSING]  # a function of one's own
        given = ", ".join(
            field.name if field.name in required else f"{field.name}={field.default!r}" for field in fields(kind)
        )
        reader = f"`{reader_of(kind(*[reader_of] * len(required)))[0]}`"
        cells = (f"`{kind.__name__}({given})`", reader, f"`view.{kind.kind}`", " ".join(meaning.split()))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


PROVED_ON = (
    "foveate finds the parts of these models by their structure. Each was tested as a tiny random model, with this "
    "version of transformers and with later ones:"
)


def models() -> str:
    """Where tokens can be dropped in each family and in other models, and what raises an error."""
    from foveate.cli.lists import PLACES, STAGES, marks
    from foveate.families.proved import PROVED, UNSERVED
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
