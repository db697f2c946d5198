"""Asking stands alone: nothing else in foveate loads, prompts or generates."""

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "foveate"
ROOM = SOURCE / "ask"

EXCEPT = {
    "embedded/__init__.py": "load() hands out the bare model and its processor, for users of transformers",
    "testing/checking.py": "runs generate on a user's model, with its inputs as tensors",
    "testing/models.py": "makes tiny random models, which no checkpoint holds",
    "testing/contract.py": "runs generate on tiny random models that are given as tensors",
}
"""Modules that may load, prompt or generate by themselves, each with its reason."""

CALLS = {"from_pretrained", "apply_chat_template", "generate"}
NAMES = {"AutoProcessor", "AutoTokenizer", "GenerationConfig"}
MODULES = sorted(str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if ROOM not in path.parents)


def asks_by_itself(tree):
    """What a module does that only foveate.ask may do, each with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Attribute) and called.attr in CALLS:
                yield f"line {node.lineno} calls .{called.attr}"
            name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
            if name == "processor" and ast.unparse(called) != "platform.processor":
                yield f"line {node.lineno} calls a processor"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers"):
            for alias in node.names:
                if alias.name in NAMES or alias.name.startswith("AutoModel"):
                    yield f"line {node.lineno} imports {alias.name}"
        elif isinstance(node, ast.Attribute) and (node.attr in NAMES or node.attr.startswith("AutoModel")):
            yield f"line {node.lineno} takes {node.attr}"


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def test_only_asking_loads_prompts_and_generates():
    found = {name: list(asks_by_itself(tree_of(SOURCE / name))) for name in MODULES}
    assert {name for name, what in found.items() if what} == set(EXCEPT)


def test_asking_prints_nothing():
    trees = map(tree_of, ROOM.glob("*.py"))
    assert not any(isinstance(node, ast.Name) and node.id == "print" for tree in trees for node in ast.walk(tree))


def test_the_scan_finds_what_it_looks_for():
    source = """
from transformers import AutoProcessor, AutoModelForImageTextToText
import transformers
def f(model, vlm):
    transformers.AutoTokenizer.from_pretrained("a")
    model.generate()
    vlm.processor(text="a")
    processor.apply_chat_template([])
    model.config
"""
    assert len(list(asks_by_itself(ast.parse(source)))) == 7
