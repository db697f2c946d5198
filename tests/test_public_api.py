"""The public face: its list is pinned, and looking at it costs nothing."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import foveate
from foveate import registry
from tests.forked import ANEW, said_by

METHODS = [kind.__name__ for kind in registry.methods().values() if kind.__module__.startswith("foveate.")] + [
    "Chain",
]
"""Read off the files in foveate/methods."""
PUBLIC = [
    "BudgetError", "Cost", "Cut", "Extension", "Family", "FoveateError", "InputError", "KeywordError", "Method",
    "MethodError", "Preset", "Tuned", "SessionError", "SettingError", "ShapeError", "StageRecord", "Trace",
    "UnknownNameError", "UnsupportedError", "__version__", "free_graphs", "Answer", "Generation", "Prefix", "Question",
    "SecondLook", "VLM", "apply", "cost", "drop", "families", "load", "methods", "preset", "presets", "register_family",
    "register_method", "remove", "tune", "Kept", "drop_rows",
]  # fmt: skip


def test_the_list_of_public_names_is_this_one():
    assert sorted(foveate.__all__) == sorted([*PUBLIC, *METHODS])


@pytest.mark.parametrize("name", [*PUBLIC, *METHODS])
def test_every_public_name_is_there_and_documented(name):
    value = getattr(foveate, name)
    assert value is getattr(foveate, name)
    if name != "__version__":
        assert value.__doc__


def test_every_name_and_room_is_found_before_any_other_was():
    """Each is the first that a fresh import of foveate is asked for; one name stands for all of its file."""
    rooms = [path.stem for path in Path(foveate.__file__).parent.glob("[!_.]*") if path.suffix != ".typed"]
    assert {"embedded", "viz", "testing", *foveate._SHOWN} <= {*rooms}
    names = {home: name for name, home in foveate._HOMES.items() if not home.startswith("foveate.methods.")}.values()
    for words in ("embedded.picture()", "methods()", "families()", "cost.Known", "V2Drop", *names, *rooms):
        said_by(f"{ANEW}\nimport foveate as fv\nfv.{words}")


def test_completion_offers_what_the_documentation_names():
    offered = {*dir(foveate)} - {*foveate.__all__}
    assert offered.isdisjoint({"app", "cli", "core", "engine", "plain", "runs"})
    pages = "".join(page.read_text() for page in Path(__file__).parents[1].glob("docs/**/*.md"))
    assert {"embedded", "viz", "video", "testing"} <= offered
    assert {room for room in offered if f"foveate.{room}" in pages} == offered


def test_a_type_checker_sees_what_python_sees():
    tree = ast.parse(Path(foveate.__file__).read_text())
    under_type_checking = next(
        node for node in tree.body if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    )
    seen = {name.name for node in under_type_checking.body for name in node.names}
    assert seen - set(METHODS) | {"__version__"} == set(PUBLIC)  # a method that is not listed is Any to it


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        foveate.prune  # noqa: B018


def test_importing_loads_nothing_slow():
    program = "import sys, foveate; sys.exit(any(n in sys.modules for n in ('torch', 'transformers', 'numpy', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_graphs_are_loaded_with_their_flag_alone():
    program = "import sys, foveate.bench, foveate.engine.doors; sys.exit('.replays' in ' '.join(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


WITHOUT = """
import sys, torch, transformers
from transformers import AutoModelForImageTextToText
for name in list(sys.modules):
    if name.partition(".")[0] in ("filelock", "foveate", "matplotlib", "rich", "tyro"):
        del sys.modules[name]
sys.modules.update(dict.fromkeys(("filelock", "matplotlib", "rich", "tyro")))
import foveate as fv
"""
"""The beginning of a program in an environment without the extra for the commands."""


def test_a_worker_needs_no_package_of_the_commands():
    worked = """
from foveate.batch import Predictor
told = Predictor(prompt="What is this?", method="divprune", retention=1 / 3)({"image": [str(fv.embedded.picture())]})
print(told["error"])
model = fv.load().model
with fv.drop(model, "v2drop", retention=1 / 3) as trace:
    print(trace, trace._repr_html_())
"""
    assert said_by(WITHOUT + worked).startswith("[None]\nTrace(")


NEEDS = {
    "drawing": "fv.viz",
    "texts in drawings": "from foveate.embedded import drawing; drawing.font('DejaVuSans', 20)",
    "tables as text": "from foveate.plain.table import Table; str(Table('', ['a'], []))",
}


@pytest.mark.parametrize("use", NEEDS.values(), ids=NEEDS)
def test_what_needs_the_commands_extra_names_it(use):
    program = f"try:\n    {use}\nexcept fv.UnsupportedError as error:\n    print(error)"
    assert "[cli]" in said_by(WITHOUT + program)


def test_a_command_without_its_extra_names_it():
    program = "from foveate import cli; sys.stderr = sys.stdout; print(cli.main(['--version']), cli.main(['methods']))"
    said = said_by(WITHOUT + program)
    assert ("[cli]" in said, said.split()[-2:]) == (True, ["0", "1"])


def test_importing_changes_nothing_of_torch_or_transformers_and_does_not_load_pytest():
    program = """
import random, sys
import torch, transformers
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
before = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.initial_seed(),
          sorted(ALL_ATTENTION_FUNCTIONS.valid_keys()), random.getstate())
import foveate
for name in foveate.__all__:
    getattr(foveate, name)
foveate.methods(), foveate.families()
import foveate.testing
after = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), torch.initial_seed(),
         sorted(ALL_ATTENTION_FUNCTIONS.valid_keys()), random.getstate())
raise SystemExit(before != after or "pytest" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_version_is_the_packages():
    from importlib.metadata import version

    assert foveate.__version__ == version("foveate")
    root = Path(__file__).parent.parent
    assert f"\nversion: {foveate.__version__}\n" in (root / "CITATION.cff").read_text()
    for plugin in ("vllm", "mlx"):
        pins = (root / f"plugins/{plugin}/pyproject.toml").read_text()
        assert re.search(rf'"foveate(\[cli\])?=={foveate.__version__}"', pins)
