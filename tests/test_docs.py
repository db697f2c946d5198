"""Every code block of README and docs runs, and every example, with a tiny random model in place of a large one."""

import copy
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest
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
from foveate.cli.catalogue import method_rows
from foveate.contract.follow import reads_text
from foveate.contract.stages import Shape
from foveate.tuning import tuning
from tests.cli.conftest import save_tiny_llava
from tests.families.test_clip import small, spelling
from tests.films import film

ROOT = Path(__file__).parent.parent
hooks = types.SimpleNamespace(**runpy.run_path(str(ROOT / "docs/hooks.py")))
tables = types.SimpleNamespace(**runpy.run_path(str(ROOT / "docs/tables.py")))
# These run in environments of their own: plugins/vllm/tests/test_server.py, plugins/mlx/tests/test_commands.py.
PLUGINS = {ROOT / "docs/guides/vllm.md", ROOT / "docs/guides/mlx.md"}
PAGES = sorted({ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")} - PLUGINS)
VIDEOS = ROOT / "docs/guides/video.md"  # needs a model that reads videos: tests/with_torchvision/test_docs.py
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
QUICK = {"train.py": ("--steps", "1", "--batch", "1", "--questions", "1")}  # arguments of examples that take minutes
NEEDED = {ROOT / "docs/guides/before-after.md": ("fastapi",)}  # which make setup-page brings
FAMILY = ROOT / "docs/families/llava.md"  # one for all: their code differs in the checkpoint's name
OWN_CLASSES = [ROOT / f"docs/guides/{name}.md" for name in ("new-method", "new-family")]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [body for kind, body in BLOCK.findall(page.read_text()) if kind == language]


def with_blocks(language):
    alike = {page for page in PAGES if page.parent == FAMILY.parent} - {FAMILY}
    pages = [page for page in PAGES if blocks(page, language) and page != VIDEOS and page not in alike]
    return pytest.mark.parametrize("page", pages, ids=[str(page.relative_to(ROOT)) for page in pages])


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
    monkeypatch.setattr(embedded, "is_drawn", lambda image: True)  # the model is another one than its name says
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


def test_the_method_of_one_file_runs_at_a_command(stand_in, capsys):
    (source,) = (body for body in blocks(ROOT / "docs/guides/new-method.md", "python") if "OwnSignal" in body)
    assert len(source.splitlines()) <= 40
    Path("mine.py").write_text(source)
    words = ["generate", "cat.jpg", "--prompt", "What is it?", "--method", "./mine.py", "--retention", "0.4"]
    assert cli.main(words) == 0, capsys.readouterr().err


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A folder with every class that guides and the example show, in files of their own, and methods to copy."""
    folder = tmp_path_factory.mktemp("classes")
    for page in OWN_CLASSES:
        (folder / f"{page.stem.replace('-', '_')}.py").write_text("\n".join(blocks(page, "python")))
    for name in ("v2drop", "divprune", "evs"):
        shutil.copy(ROOT / f"src/foveate/methods/{name}.py", folder)
    shutil.copy(ROOT / "examples/new_method/src/foveate_longest/__init__.py", folder / "longest.py")
    shutil.copy(ROOT / "tests/type_hints/own_classes.py", folder)
    return folder


def test_mypy_accepts_the_classes_of_guides(classes):
    run = [sys.executable, "-m", "mypy", "--strict", *map(str, sorted(classes.glob("*.py")))]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_accepts_the_classes_of_guides(classes):
    options = {"extraPaths": [str(ROOT / "src")], "typeCheckingMode": "standard"}
    (classes / "pyrightconfig.json").write_text(json.dumps(options))
    run = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--project", str(classes)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_guide_to_batch_loads_ids_and_answers_as_they_are_written(tmp_path, monkeypatch, capsys):
    source = next(body for body in blocks(ROOT / "docs/guides/batch.md", "python") if "import pandas" in body)
    ids = ["001", "1_7", "12345678901234567890", "2026-05-01", "true"]
    (tmp_path / "answers-7").mkdir()
    for place, key in enumerate(ids):
        row = {"row": place, "id": key, "image": "a.png", "answer": ids[-place], "taken_at": "2026-05-01", "notes": []}
        (tmp_path / f"answers-7/part-{place:05}.jsonl").write_text(json.dumps(row) + "\n")
    monkeypatch.chdir(tmp_path)
    names = {"Path": Path}
    exec(source, names)
    for table in (names["table"].to_dict("list"), names["answers"].to_dict()):
        read = sorted(zip(table["row"], table["id"], table["answer"], table["taken_at"], strict=True))
        assert [row[1:] for row in read] == [(key, ids[-place], "2026-05-01") for place, key in enumerate(ids)]


@pytest.mark.further
def test_the_guide_to_pages_indexes_in_several_processes(tmp_path):
    pytest.importorskip("sentence_transformers", minversion="6")
    page = ROOT / "docs/guides/pages.md"
    (source,) = (body for body in blocks(page, "python") if "ProcessPoolExecutor" in body)
    (tmp_path / "index.py").write_text(source)
    done = subprocess.run([sys.executable, "index.py"], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.stdout == "[192, 192]\n", done.stderr


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
    run_lines("\n".join(blocks(page, "bash")).splitlines(), capsys)


def run_lines(lines, capsys):
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] == ["foveate"]:
            arguments = ["embedded" if "/" in word and word.startswith("llava-hf") else word for word in words[1:]]
            quick = ["--max-new-tokens", "2"] if words[1] in ("generate", "compare", "eval", "batch") else []
            quick += ["--workers", "1"] if words[1] == "eval" else []
            quick += ["--pairs", "2"] if words[1] == "compare" and "--pairs" not in words else []
            assert cli.main([*arguments, *quick]) == 0, capsys.readouterr().err
        elif words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {words[1]}"


def test_what_make_demo_calls_runs(stand_in, capsys):
    recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
    lines = re.findall(r"^\t@HF_HUB.*\$\(BIN\)/(foveate .*)", recipe, re.MULTILINE)
    Path("out").mkdir()
    run_lines(lines, capsys)
    assert len(lines) == 2


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")  # TRL still sets it
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(example, stand_in, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(example), *QUICK.get(example.name, ())])
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
    named = re.findall(r"""pip install (?:-e )?["']\.\[(\w+)\]""", text)
    named += re.findall(r"""(?:install_line|extra)\(["'](\w+)["']""", text)
    assert {"app", "batch", "cli", "eval", "st", "vision"} <= set(named) <= set(extras)


def test_no_table_is_cut_in_two():
    """Rows below an empty line are text with bars."""
    pages = [*PAGES, *PLUGINS, *ROOT.glob("benchmarks/*/README.md")]
    beginnings = {page.name: re.findall(r"(?<!\|)\n(\|.*\n(?!\|[ :|-]+\|\n))", page.read_text()) for page in pages}
    assert {name: rows for name, rows in beginnings.items() if rows} == {}


def test_the_readme_counts_what_there_is():
    text, more = (ROOT / "README.md").read_text(), {"thintower", "read", "finalkv", "coordinates"}
    controls = {"random", "uniform", "averagepool", "resize"}
    published = registry.methods().keys() - more - controls
    assert f"{len(published)} published methods" in text
    assert f"all {len(registry.families())} families" in text
    assert f"{len(published & set(os.listdir(ROOT / 'tests/golden')))} methods are also compared" in text


def test_every_method_and_family_has_its_page():
    assert {f"{name}.md" for name in registry.methods()} <= set(os.listdir(ROOT / "docs/methods"))
    assert {f"{name}.md" for name in registry.families()} <= set(os.listdir(ROOT / "docs/families"))


def test_pages_of_methods_that_read_the_question_say_so():
    pages = {name: (ROOT / f"docs/methods/{name}.md").read_text() for name in registry.methods()}
    asked = {name for name, kind in registry.methods().items() if reads_text(kind().stages(Shape(depth=32, cls=True)))}
    assert {"fastv", "cdpruner"} <= asked
    limits = {name: page.rpartition("## Limits")[2] for name, page in pages.items()}
    assert asked == {name for name, text in limits.items() if "reads the question: see [what follows" in text}


def test_pages_of_methods_show_what_they_keep():
    for picture in ROOT.glob("docs/images/methods/*.webp"):
        page = (ROOT / f"docs/methods/{picture.stem}.md").read_text()
        assert f"](../images/methods/{picture.name})" in page


def test_every_public_name_is_in_the_reference():
    reference = "".join(page.read_text() for page in (ROOT / "docs").glob("api*.md"))
    listed = set(re.findall(r"^(?:::: [\w.]*\.|## )(\w+)$", reference, re.MULTILINE))
    listed |= {name.strip() for members in re.findall(r"members: \[(.*)\]", reference) for name in members.split(",")}
    errors = {name for name in foveate.__all__ if name.endswith("Error")}
    assert "::: foveate.errors" in reference
    classes = {kind.__name__ for name, kind in registry.methods().items() if page_shows(name, kind.__name__)}
    assert set(foveate.__all__) - errors - {"__version__"} - listed - classes == set()


def page_shows(name, kind):
    return f"fv.{kind}(" in (ROOT / f"docs/methods/{name}.md").read_text()


def test_pages_of_methods_have_their_settings():
    for row in method_rows():
        page = (ROOT / f"docs/methods/{row['name']}.md").read_text()
        missing = {setting for setting in row["settings"] if not re.search(rf"`{setting}`|\b{setting}=", page)}
        assert missing == set(), row["name"]


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


def test_what_pages_list_of_the_code_is_in_their_files():
    """A reader of the repository sees the files, not the site."""
    pages = sorted(ROOT.glob("docs/**/*.md"))
    texts = {str(page.relative_to(ROOT)): page.read_text() for page in pages}
    stale = [name for name, text in texts.items() if tables.filled(ROOT / name) != text]
    assert stale == [], "run make tables"
    assert {name for name, text in texts.items() if re.search(r"^<!-- \w+ -->$", text, re.MULTILINE)} == set()
    marks = re.findall(r"^<!-- (\w+): begin -->$", "\n".join(texts.values()), re.MULTILINE)
    assert tables.PARTS.keys() <= set(marks)
    assert marks.count("use") == len(registry.families())
