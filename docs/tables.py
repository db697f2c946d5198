"""Write what pages in docs list of the code, between their marks: `make tables`. A test compares the pages."""

import re
import runpy
from collections.abc import Callable
from dataclasses import MISSING, fields
from functools import cache, partial
from inspect import cleandoc
from pathlib import Path
from typing import Any, NamedTuple

from foveate.plain.table import between

DOCS = Path(__file__).parent

WORDS = {
    "Hidden": "hidden states",
    "CachedAttention": "attention of the question",
    "Keys": "keys",
    "KeyNorms": "key norms",
    "Normed": "normalised hidden states",
    "OwnSignal": "your own function",
    "Pivots": "hidden states of some text tokens",
    "TowerAttention": "tower attention",
    "TowerKeys": "tower keys",
    "Cls": "tower CLS",
    "Deepstack": "deepstack features",
    "Cells": "positions in the picture",
    "Columns": "positions in the prompt",
    "Features": "features",
    "Products": "products of text queries and keys",
    "ValueLikeness": "similarity of values",
    "Rotary": "RoPE angles",
    "Text": "hidden states of the text",
}
ROWS = {
    "last": "of the last token",
    "after": "of the text after the image",
    "but_last": "of the text after the image, except its last token",
    "null": "of the first token after the image",
    "raters": "of words that resemble the image",
    "vision": "of vision tokens",
}
"""Names of signals in the table of methods, and of the tokens that pay attention."""
PLACES = (
    "before the tower",
    "in the tower",
    "after the tower",
    "after the projector",
    "before layers",
    "in the cache",
    "nothing (decoding reads fewer tokens)",
)


def main() -> None:
    """Write every page of which the generated text is out of date."""
    for page in DOCS.glob("**/*.md"):
        if (text := filled(page)) != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")


def filled(page: Path) -> str:
    """Return a page with its marks filled in."""
    markdown = page.read_text(encoding="utf-8")
    for mark, write in {**PARTS, "use": partial(use, page)}.items():
        if f"<!-- {mark}: begin -->" in markdown:
            markdown = between(markdown, mark, f"{write().strip()}\n")
    return markdown


@cache
def works() -> dict[str, dict[str, dict[str, Any]]]:
    """What works on which family."""
    from foveate.registry import support

    return support()


def records() -> str:
    """Return the table of community records, or a sentence that there are none."""
    script = runpy.run_path(str(DOCS.parent / "benchmarks/real/records.py"))
    kept = script["stored"]()
    return script["table"](kept).to_markdown() if kept else "Nobody has contributed a record yet."


class Checkpoint(NamedTuple):
    """A row of the table of checkpoints.

    Attributes:
        name: The hub id, as in the source of transformers.
        family: The `model_type`.
        tokens: Vision tokens of a picture of 1024 x 768 pixels, by the processor's rule.
        rule: The rule in words.
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
    Checkpoint("google/gemma-3-4b-it", "gemma3", 256, "always, unless pan and scan is on"),
    Checkpoint("google/paligemma2-3b-mix-224", "paligemma", 256, "always; 1,024 at 448 pixels, 4,096 at 896"),
    Checkpoint("mistralai/Mistral-Small-3.1-24B-Instruct-2503", "mistral3", 1036, "one per 28 × 28 pixels"),
    Checkpoint("zai-org/GLM-4.1V-9B-Thinking", "glm4v", 999, "one per 28 × 28 pixels"),
    Checkpoint("zai-org/GLM-4.5V", "glm4v_moe", 999, "one per 28 × 28 pixels"),
)


def checkpoints() -> str:
    """Return the table of checkpoints: tokens of a picture, and the rule."""
    heads = ["checkpoint", "family", "tokens at 1024 × 768, *computed*", "rule"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, family, tokens, rule in CHECKED:
        lines.append(f"| `{name}` | [{family}](families/{family}.md) | {tokens:,} | {rule} |")
    return "\n".join(lines)


FAMILY = """
## In code

```python
import foveate as fv

vlm = fv.load("{name}")
answer = vlm.ask("cat.jpg", "What is it doing?", method="v2drop", retention=1/3)               # a picture
print(answer, f"{{answer.retention:.0%}} of {{answer.vision_tokens}} vision tokens")

film = vlm.ask("clip.mp4", "What happens?", frames=3, method="vidcom2", retention=1/4)         # {film}

questions = [("cat.jpg", "What is this?"), ("dog.jpg", "What is this?")]
for answer in vlm.ask_many(questions, batch_size=2, method="v2drop", retention=1/3):           # a batch
    print(answer.prompt.text, answer)
```

Around your own code: `with fv.drop(model, "v2drop", retention=1/3): model.generate(**inputs)`
([scripts](../guides/before-after.md)).

## Tests and limits

[Tested](../models.md#what-the-tests-check) on a tiny random model with transformers {oldest} to 5.24, and on no real
checkpoint. Run [`foveate check {name}`](../guides/check.md) on yours. foveate drops tokens of {modalities}. {refused}
"""


def use(page: Path) -> str:
    """Return the example code of a family's page, and the sections on tests and limits."""
    from foveate.registry import families

    markdown, serves = page.read_text(encoding="utf-8"), works()[page.stem]
    refused = {answer for methods in serves.values() for answer in methods.values() if isinstance(answer, str)}
    values = {
        "name": re.search(r"^\| checkpoints \| `([^`]+)`", markdown, re.MULTILINE)[1],
        "film": "a video" if "video" in serves else "a video; each frame is passed as a picture",
        "oldest": getattr(families()[page.stem], "oldest", "5.16.1"),
        "modalities": "pictures and videos" if "video" in serves else "pictures",
        "refused": "These raise an error: " + " ".join(sorted(refused)) if refused else "Every method is supported.",
    }
    return FAMILY.format_map(values)


def traits() -> str:
    """Return the table of methods: where each drops tokens by default, what it reads, and if the question matters."""
    import foveate
    from foveate.contract.stages import ImageStage, LayerStage, PatchStage, Shape

    lines = ["| method | drops tokens | reads | does the question matter? |", "|---|---|---|---|"]
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
    """Return the name of a signal in the table of methods."""
    kind = type(signal).__name__
    return f"attention {ROWS[signal.rows]}" if kind == "Attention" else WORDS.get(kind, kind)


def signals() -> str:
    """Return the table of docs/guides/new-method.md: signals, stages that read them, names in views, and meanings."""
    from foveate.families.support import SERVED, reader_of

    lines = ["| signal | read by | in the view | meaning |", "|---|---|---|---|"]
    for kind in sorted(SERVED, key=lambda kind: kind.__name__):
        meaning = cleandoc(kind.__doc__ or "").partition("\n\n")[0]
        required = [field.name for field in fields(kind) if field.default is MISSING]  # OwnSignal's function
        arguments = ", ".join(
            field.name if field.name in required else f"{field.name}={field.default!r}"
            for field in fields(kind)
            if field.repr  # not what foveate sets itself
        )
        reader = f"`{reader_of(kind(*[reader_of] * len(required)))[0]}`"
        cells = (f"`{kind.__name__}({arguments})`", reader, f"`view.{kind.kind}`", " ".join(meaning.split()))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


PROVED_ON = (
    "These models have no family. Where a mark stands, foveate supports them from their structure, tested with the "
    "listed version of transformers and later ones:"
)


def models() -> str:
    """Return the tables of models: where tokens can be dropped in each, and what raises an error."""
    from foveate.cli.lists import PLACES, STAGES, marks
    from foveate.families.proved import PROVED, UNSERVED

    heads = ["family", *STAGES.values()]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    refused: dict[tuple[str, str, str], list[str]] = {}
    for family, modalities in works().items():
        cells = marks(modalities)[:-1]
        lines.append(f"| [`{family}`](families/{family}.md) | {' | '.join(cells)} |")
        for modality, methods in modalities.items():
            for method, answer in methods.items():
                if isinstance(answer, str):
                    refused.setdefault((method, family, answer), []).append(modality)
    if refused:
        lines += ["", "These raise an error:", ""]
    for (method, family, answer), kinds in refused.items():
        lines.append(f"- {method} on `{family}` ({' and '.join(kinds)}): {answer}")
    heads = ["models", "`model_type`", *PLACES.values(), "transformers", "not supported"]
    lines += ["", PROVED_ON, "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, one in PROVED.items():
        places = ["x" if place in one.places else "" for place in PLACES]
        lines.append(f"| {' | '.join((one.title, f'`{name}`', *places, one.since, one.refused))} |")
    lines += ["", "foveate cannot support these models:", "", "| `model_type` | reason |", "|---|---|"]
    lines += [f"| `{name}` | {reason} |" for name, reason in UNSERVED.items()]
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "models": models,
    "checkpoints": checkpoints,
    "traits": traits,
    "signals": signals,
    "records": records,
}
"""What writes the text between the marks `<!-- NAME: begin -->` and `<!-- NAME: end -->`, by their name."""


if __name__ == "__main__":
    main()
