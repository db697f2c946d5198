"""Every code block of README and docs runs, and every example, with a tiny random model in place of a large one."""

import copy
import os
import re
import runpy
import shlex
import sys
import tomllib
import types
from pathlib import Path

import pytest
import transformers
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPModel,
    CLIPTokenizer,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

import foveate
from foveate import cli, embedded, registry
from foveate.ask.generation import Generation
from foveate.contract.stages import CacheStage, Shape
from foveate.eval.plan import BASELINES
from foveate.families import support
from foveate.families.proved import PROVED
from foveate.tuning import tuning
from tests.cli.conftest import save_tiny_llava
from tests.families.test_clip import small, spelling
from tests.films import film

ROOT = Path(__file__).parent.parent
hooks = types.SimpleNamespace(**runpy.run_path(str(ROOT / "docs/hooks.py")))
VLLM = ROOT / "docs/guides/vllm.md"  # runs in an environment of its own: plugins/vllm/tests/test_server.py
PAGES = sorted({ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")} - {VLLM})
VIDEOS = ROOT / "docs/guides/video.md"  # needs a model that reads videos: tests/with_torchvision/test_docs.py
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NEEDED = {ROOT / "docs/guides/before-after.md": ("fastapi",)}  # which make setup-page brings
FAMILY = ROOT / "docs/families/llava.md"  # one for all: their code differs in the checkpoint's name
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [body for kind, body in BLOCK.findall(page.read_text()) if kind == language]


def with_blocks(language):
    found = [page for page in PAGES if blocks(page, language) and page != VIDEOS]
    return pytest.mark.parametrize("page", found, ids=[str(page.relative_to(ROOT)) for page in found])


def always(model):
    """A `from_pretrained` that answers this model, and a report without complaints where one is asked for."""
    report = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
    return lambda *_, output_loading_info=False, **__: (model, report) if output_loading_info else model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A LLaVA of 32 layers and 576 vision tokens, so that every preset and figure in the docs fits."""
    return save_tiny_llava(tmp_path_factory.mktemp("tiny"), side=336)


@pytest.fixture(scope="module")
def loaded(tiny):
    """The model and its processor, to be copied: pages may change theirs."""
    return LlavaForConditionalGeneration.from_pretrained(tiny).eval(), LlavaProcessor.from_pretrained(tiny)


@pytest.fixture
def stand_in(tiny, loaded, tmp_path, monkeypatch):
    """A fresh folder with pictures, a film and questions; each model is the tiny one and says two words; a tuning
    tries two settings of its grid; registrations are forgotten."""
    arguments, grid = Generation.arguments, tuning.grid
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Image.effect_mandelbrot((60, 60), (-2, -1.5, 1, 1.5), 50).save("cat.jpg")
    Image.new("RGB", (60, 60), "brown").save("dog.jpg")
    film(tmp_path / "clip.mp4", 12, size=(64, 64))
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (60, 60), "brown").save("pictures/dog.jpg")
    (tmp_path / "receipts").mkdir()
    for number, colour in enumerate(("brown", "white", "teal"), 1):
        Image.new("RGB", (60, 60), colour).save(f"receipts/0{number}.jpg")
    asked = [f'{{"image": "0{number}.jpg", "prompt": "What is the total?"}}' for number in (1, 2, 3)]
    Path("receipts/samples.jsonl").write_text("\n".join(asked))
    Path("questions.jsonl").write_text('{"id": 1, "image": "dog.jpg", "question": "What is it?"}\n')
    Path("questions.csv").write_text("file,text\ncat.jpg,What is it?\n")
    model, processor = copy.deepcopy(loaded)
    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", always(model))
    monkeypatch.setattr(AutoProcessor, "from_pretrained", lambda *_, **__: processor)
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: model.config)
    monkeypatch.setattr(CLIPModel, "from_pretrained", lambda *_, **__: small(model.config.vision_config))
    monkeypatch.setattr(CLIPTokenizer, "from_pretrained", lambda *_, **__: spelling())
    monkeypatch.setattr(embedded, "load", lambda: (model, processor))
    monkeypatch.setattr(embedded, "path", lambda: tiny)
    monkeypatch.setattr(embedded, "picture", lambda: tmp_path / "dog.jpg")
    monkeypatch.setattr(Generation, "arguments", lambda *given: {**arguments(*given), "max_new_tokens": 2})
    monkeypatch.setattr(tuning, "grid", lambda *given: grid(*given)[:2])
    monkeypatch.setattr(registry, "_extra_methods", dict(registry._extra_methods))
    monkeypatch.setattr(registry, "_extra_families", dict(registry._extra_families))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT still reads it
@pytest.mark.filterwarnings("ignore:this model reads no videos")
@with_blocks("python")
def test_python_blocks_run(page, stand_in):
    run_python(page)


@with_blocks("bash")
def test_command_lines_run(page, stand_in, capsys):
    run_command_lines(page, capsys)


def run_python(page):
    """Run all Python blocks of a page, one after the other."""
    for package in NEEDED.get(page, ()):
        pytest.importorskip(package)
    run_source("\n".join(blocks(page, "python")), page)


def run_source(source, page):
    """Run Python as a script of its own, whose classes can be found by their module."""
    module = types.ModuleType("blocks")
    sys.modules["blocks"] = module
    try:
        exec(compile(source, str(page), "exec"), vars(module))
    finally:
        del sys.modules["blocks"]


def run_command_lines(page, capsys):
    """Run all lines of a page that call foveate, with short answers, and look up what they make."""
    for line in "\n".join(blocks(page, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["foveate"]:
            arguments = ["embedded" if "/" in word and word.startswith("llava-hf") else word for word in words[1:]]
            quick = ["--max-new-tokens", "2"] if words[1] in ("generate", "compare", "eval", "batch") else []
            quick += ["--workers", "1"] if words[1] == "eval" else []
            timed = words[1] == "compare" or "--full" in words
            quick += ["--pairs", "2"] if timed and "--pairs" not in words else []
            assert cli.main([*arguments, *quick]) == 0, capsys.readouterr().err
        elif words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {words[1]}"


def test_the_blocks_are_found():
    assert sum(len(blocks(page, "python")) for page in PAGES) >= 15
    assert (
        sum(line.startswith("foveate ") for page in PAGES for b in blocks(page, "bash") for line in b.splitlines()) > 12
    )


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(example, stand_in, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(example)])
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.count("\n") > 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_lines_that_install_foveate_can_work():
    """No index of packages has foveate: it is installed from a checkout, with extras that there are."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    files = {ROOT / "Makefile", *PAGES, *ROOT.glob("examples/**/*.py"), *ROOT.glob("src/**/*.py")}
    text = "\n".join(path.read_text() for path in sorted(files))
    assert re.findall(r"pip install [^\n`]*(?<!of )\bfoveate(?:\[|[\"'`.\s]*$)", text, re.MULTILINE) == []
    named = re.findall(r"""pip install (?:-e )?["']\.\[(\w+)\]""", text) + re.findall(r"install_line\('(\w+)'\)", text)
    assert {"app", "batch", "eval", "ray", "vision"} <= set(named) <= set(extras)


def test_the_readme_promises_no_more_than_there_is():
    page = (ROOT / "README.md").read_text()
    methods, controls, families = map(
        int, re.search(r"(\d+) methods, (\d+) controls and (\d+) families", page).groups()
    )
    assert methods <= len(registry.methods()) - len(BASELINES)
    assert controls <= len(BASELINES)
    assert families <= len(registry.families())
    golden = int(re.search(r"(\d+) methods are tested against vectors", page)[1])
    assert golden <= sum((ROOT / "tests/golden" / name).is_dir() for name in registry.methods())


def used(page):
    """The page of a family as the site has it."""
    return hooks.with_use(page.read_text(), page.stem)


@pytest.mark.filterwarnings("ignore:this model reads no videos")
def test_the_code_of_families_runs(stand_in):
    code = BLOCK.search(used(FAMILY))
    assert code[1] == "python"
    run_source(code[2], FAMILY)


def test_every_family_shows_code_for_a_checkpoint_of_its_own_and_says_what_is_proved_and_refused():
    (expected,) = re.findall(r'fv.load\("(.*)"\)', used(FAMILY))
    for name in registry.families():
        page = used(ROOT / f"docs/families/{name}.md")
        (checkpoint,) = re.findall(r'fv.load\("(.*)"\)', page)
        assert f"`{checkpoint}`" in page.partition("## In code")[0]
        assert (checkpoint == expected) == (name == "llava")
        assert "## What is proved, and what is refused" in page


def test_every_method_and_family_has_its_page():
    assert {f"{name}.md" for name in registry.methods()} <= set(os.listdir(ROOT / "docs/methods"))
    assert {f"{name}.md" for name in registry.families()} <= set(os.listdir(ROOT / "docs/families"))


def test_a_method_that_is_drawn_shows_it_on_its_page():
    """Draw a new one: python docs/pictures.py NAME."""
    for picture in (ROOT / "docs/images/methods").glob("*.webp"):
        page = hooks.with_picture((ROOT / f"docs/methods/{picture.stem}.md").read_text(), picture.stem)
        assert page.count(f"](../images/methods/{picture.name})\n") == 1, picture.stem


def test_the_page_of_every_method_that_reads_the_question_or_cuts_caches_says_what_prompt_and_answer_at_once_do():
    for name, kind in registry.methods().items():
        stages = kind().stages(Shape(depth=32, cls=True))
        page = (ROOT / f"docs/methods/{name}.md").read_text()
        linked = "](../guides/dropping.md#prompt-and-answer-in-one-forward)" in page
        assert linked == any(stage.reads_text or isinstance(stage, CacheStage) for stage in stages), name
    assert "## Prompt and answer in one forward\n" in (ROOT / "docs/guides/dropping.md").read_text()


def test_every_public_name_is_in_the_reference():
    pages = [hooks.filled(page.read_text()) for page in (*(ROOT / "docs").glob("api*.md"), ROOT / "docs/exceptions.md")]
    reference = "".join(pages)
    listed = set(re.findall(r"^::: [\w.]*\.(\w+)$", reference, re.MULTILINE))
    listed |= {name.strip() for found in re.findall(r"members: \[(.*)\]", reference) for name in found.split(",")}
    errors = {name for name in foveate.__all__ if name.endswith("Error")}
    assert "::: foveate.errors" in reference
    assert set(foveate.__all__) - errors - {"__version__"} - listed == set()


def test_every_page_of_a_method_and_of_a_family_is_in_the_navigation():
    nav = [{"Home": "index.md"}, {"Methods": "methods"}, {"Models": "families"}]
    config = types.SimpleNamespace(nav=nav, repo_url="", site_url=None)
    home, methods, models = hooks.on_config(config).nav
    assert home == {"Home": "index.md"}
    listed = [page for entry in methods["Methods"] for page in entry.values()]
    assert listed == sorted(f"methods/{name}" for name in os.listdir(ROOT / "docs/methods"))
    listed = [page for entry in models["Models"] for page in entry.values()]
    families = sorted(f"families/{name}" for name in os.listdir(ROOT / "docs/families"))
    assert listed == ["models.md", "checkpoints.md", *families]


def test_the_address_of_the_site_follows_from_that_of_the_code():
    config = types.SimpleNamespace(nav=[], repo_url="https://github.com/someone/foveate", site_url=None)
    assert hooks.on_config(config).site_url == "https://someone.github.io/foveate/"


def test_the_glossary_has_the_words_of_the_architecture():
    page = hooks.filled((ROOT / "docs/glossary.md").read_text())
    assert "| **retention**" not in page  # it stands with budget
    assert "| **vision token** | a decoder input that came from pixels |" in page
    assert "| **crew** |" in page


def test_each_checkpoint_is_named_by_transformers_and_its_tokens_are_those_of_its_processor():
    folder = Path(transformers.__file__).parent / "models"
    source = "".join(path.read_text() for path in folder.glob("*/*.py"))
    page = hooks.filled((ROOT / "docs/checkpoints.md").read_text())
    for one in hooks.CHECKED:
        assert one.name in source, one.name
        assert f"| `{one.name}` | [{one.family}](families/{one.family}.md) | {one.tokens:,} |" in page
        counted = tokens_of_a_picture(one.family, 768, 1024)
        assert counted in (None, one.tokens), one.name


def tokens_of_a_picture(family, *size):
    """What the processor of a family makes of a picture; None where that needs torchvision, or is one size alone."""
    merged = {"qwen2_vl": 14, "qwen2_5_vl": 14, "qwen3_vl": 16, "qwen3_vl_moe": 16, "qwen3_5": 16, "qwen3_5_moe": 16}
    if family in merged:
        pictures = transformers.Qwen2VLImageProcessorPil(patch_size=merged[family])
        return pictures.get_number_of_image_patches(*size, {}) // 4
    if family in ("glm4v", "glm4v_moe"):
        return transformers.Glm4vImageProcessorPil().get_number_of_image_patches(*size, {}) // 4
    if family == "internvl":
        tiles = transformers.GotOcr2ImageProcessorPil(crop_to_patches=True, size={"height": 448, "width": 448})
        return 256 * tiles.get_number_of_image_patches(*size, {})
    if family == "idefics3":
        return 169 * transformers.Idefics3ImageProcessorPil().get_number_of_image_patches(*size, {})[0]
    if family == "smolvlm":
        sides = {"size": {"longest_edge": 1536}, "max_image_size": {"longest_edge": 384}}
        return 81 * transformers.SmolVLMImageProcessorPil(**sides).get_number_of_image_patches(*size, {})[0]
    if family == "llava_next":
        pictures = transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        )
        settings = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
        processor = transformers.LlavaNextProcessor(pictures, spelling(), **settings)
        return processor._get_num_multimodal_tokens(image_sizes=[size])["num_image_tokens"][0]
    return None


def test_the_guide_lists_every_signal_that_is_served():
    page = hooks.filled((ROOT / "docs/guides/new-method.md").read_text())
    assert hooks.SIGNALS not in page
    assert all(f"| `{kind.__name__}(" in page for kind in support.SERVED)


def test_the_page_about_choosing_says_what_every_method_reads():
    page = hooks.filled((ROOT / "docs/guides/choosing.md").read_text())
    assert hooks.TRAITS not in page
    for name in registry.methods():
        assert f"| [`{name}`](../methods/{name}.md) |" in page
    assert "| before layer 2 | attention of the last token | yes |" in page
    assert "| before layers 3, 17, 22 | hidden states | no |" in page


def test_the_page_about_models_lists_every_family():
    page = hooks.filled((ROOT / "docs/models.md").read_text())
    assert hooks.MODELS not in page
    for name in registry.families():
        assert f"| [`{name}`](families/{name}.md) |" in page
    for name, one in PROVED.items():
        assert f"| {one.title} | `{name}` |" in page
