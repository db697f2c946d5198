"""Which versions of transformers work, and what is used of them that they do not promise."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
import types
import warnings
from pathlib import Path

import pytest
import torch
from transformers import OPTConfig
from transformers.models.opt.modeling_opt import OPTAttention

import foveate as fv
from foveate._transformers import NAMES, NEWEST, OLDEST, FeatureCall, check_version, probe, rotation, turns
from foveate.families.llava import Llava
from tests.forked import ANEW, said_by
from tests.models import FAMILIES, tiny

ROOT = Path(__file__).parent.parent
NEWEST_CAP = "5." + str(int(NEWEST.partition(".")[2]) + 1)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_promised_is_still_there(name):
    importlib.import_module(name.partition(":")[0])
    assert [what for what in probe() if NAMES[name] in what or name.partition(":")[2].partition("(")[0] in what] == []


OTHERS = {
    "_C", "_asdict", "_buffers", "_cdata", "_checkpoint_wrapped_module", "_compiled_call_impl", "_cuda_releasePool",
    "_exit", "_foreach_copy_",
    "_forward_hooks", "_forward_pre_hooks", "_functorch", "_get_config", "_get_float32_matmul_precision",
    "_get_fp32_precision_getter", "_getframe", "_has_any_global_hook", "_hf_hook", "_inheriting",
    "_len_torch_dispatch_stack", "_modules", "_orig_mod", "_prepare_metric_and_aggregation",
    "_replace", "_scaled_dot_product_flash_attention_for_cpu", "_schema", "_to_copy", "_unique2", "_version",
}  # fmt: skip
"""Names of torch, accelerate, lmms-eval and Python: operators are counted by them, writes and offloading are seen,
processes are ended, and a task's functions are taken without its data."""


def test_every_such_name_is_listed():
    """Imports from below the top of transformers, and underscored attributes that nothing here has made."""
    imported, used, calls = {}, {}, set()
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers."):
                imported |= {f"{node.module}:{alias.name}": path for alias in node.names}
            elif isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                calls |= {node.attr} if own or isinstance(node.ctx, ast.Store) else set()
                used |= {} if own else {node.attr: path}
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
                name = ast.unparse(node.args[1])[1:-1]
                used |= {name: path} if re.fullmatch(r"_[^_]\w*", name) else {}
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                calls.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                calls.add(node.target.id)
    listed = {re.match(r"[^:]+:\w+", name).group() for name in NAMES}
    assert {name: path for name, path in imported.items() if name not in listed} == {}
    modules = {path.stem for path in (ROOT / "src").rglob("_*.py")}
    foreign = set(used) - calls - modules - OTHERS - set(re.findall(r"\b_\w+", " ".join(NAMES)))
    assert {name: used[name] for name in foreign} == {}
    assert len(imported) > 5


@pytest.mark.parametrize("family", FAMILIES)
def test_a_decoders_rope_is_found(family):
    decoder = fv.families()[tiny(family).config.model_type](tiny(family))
    layer = next(layer for layer in decoder.layers if hasattr(layer, "self_attn"))
    assert rotation(layer.self_attn) is not None
    assert hasattr(decoder.text, "rotary_emb")


def test_an_attention_without_rope_turns_nothing():
    assert not turns(OPTAttention(OPTConfig(hidden_size=8, num_attention_heads=2), layer_idx=0))
    assert turns(tiny("llava").model.language_model.layers[0].self_attn)


@pytest.mark.parametrize("version", ["4.57.3", "5.9.0", "5.16.0"])
def test_an_older_version_is_refused(version):
    with pytest.raises(fv.UnsupportedError, match=rf"needs transformers {OLDEST} or newer; this is {version}"):
        check_version(version)


@pytest.mark.parametrize("version", [OLDEST, "5.20.1", f"{NEWEST}.0", f"{NEWEST}.7"])
def test_a_tested_version_is_silent(version):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_version(version)


@pytest.mark.parametrize("version", ["5.25.0", "5.100.0.dev0", "6.0.0rc1"])
def test_a_newer_version_is_warned_of(version):
    with pytest.warns(UserWarning, match=f"up to {NEWEST}; this is {version}"):
        check_version(version)


def test_a_family_whose_model_came_later_is_refused_by_name():
    class Later(Llava):
        oldest = "99.1"

    with pytest.raises(fv.UnsupportedError, match="Later"):
        Later(tiny("llava"))


IMPORTING = """
import importlib, transformers
transformers.__version__ = "5.16.0"
from foveate.errors import UnsupportedError
for room in ("engine", "families"):
    try:
        importlib.import_module(f"foveate.{room}")
    except UnsupportedError as error:
        print(error)
"""


def test_importing_says_so():
    assert said_by(ANEW + IMPORTING).count("foveate needs transformers") == 2


def test_the_range_is_stated_where_it_is_looked_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"transformers>={OLDEST},<{NEWEST_CAP}" in project["dependencies"]
    assert f"transformers=={OLDEST}" in (ROOT / "Makefile").read_text()
    for page in ("README.md", "docs/guides/getting-started.md", "docs/guides/faq.md"):
        assert f"transformers {OLDEST} to {NEWEST}" in (ROOT / page).read_text(), page


def test_mrope_with_axes_is_combined_as_the_module_does_it(monkeypatch):
    """What Qwen2-VL's module has in 5.16."""
    module = types.ModuleType("qwen_as_it_was")
    module.apply_multimodal_rotary_pos_emb = lambda q, k, cos, sin, mrope_section: (q, k, cos, sin, mrope_section)
    module.apply_rotary_pos_emb = None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    attention = type("Attention", (), {"__module__": module.__name__})()
    attention.config = types.SimpleNamespace(rope_parameters={"mrope_section": [2, 1, 1]})
    assert rotation(attention)(1, 2, 3, 4) == (1, 2, 3, 4, [2, 1, 1])


def test_features_in_the_form_of_5_16_are_brought_to_that_of_today_and_back():
    core = types.SimpleNamespace(
        image_newline=torch.tensor([8.0, 9.0]), config=types.SimpleNamespace(model_type="llava_onevision")
    )
    frames, deep = torch.arange(12.0).view(2, 3, 2), torch.arange(6.0)

    def get_video_features(pixel_values, **kwargs):
        return types.SimpleNamespace(pooler_output=pixel_values, other=kwargs)

    call = FeatureCall(core, "video", get_video_features, (frames,), {"a": 1})
    assert set(call.arguments) == {"pixel_values_videos", "a"}
    output = call.run(a=2)
    assert output.other == {"a": 2}
    assert output.pooler_output[:, 3].tolist() == [[8, 9]] * 2
    assert call.answer(output).pooler_output.tolist() == frames.tolist()
    doubled = call.run(pixel_values_videos=2 * frames)
    assert call.answer(doubled).pooler_output.tolist() == (2 * frames).tolist()

    def get_image_features(pixel_values):
        return types.SimpleNamespace(pooler_output=pixel_values.split([2, 4]), deepstack_features=[deep, 2 * deep])

    call = FeatureCall(core, "image", get_image_features, (torch.zeros(6, 2),), {})
    output = call.run()
    assert [part.tolist() for part in output.deepstack_features[0]] == [[0, 1], [2, 3, 4, 5]]
    assert torch.stack(call.answer(output).deepstack_features).tolist() == [deep.tolist(), (2 * deep).tolist()]


def test_features_in_the_form_of_today_stay_as_they_are():
    parts = [torch.zeros(2, 2)]

    def get_video_features(pixel_values_videos):
        return types.SimpleNamespace(pooler_output=[pixel_values_videos], deepstack_features=[parts])

    call = FeatureCall(None, "video", get_video_features, (), {"pixel_values_videos": parts[0]})
    output = call.answer(call.run())
    assert output.pooler_output[0] is parts[0]
    assert output.deepstack_features[0] is parts


def test_a_torchvision_of_another_torch_is_named(tmp_path):
    """One that cannot be imported stops transformers; the message says what to do."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    info = tmp_path / "torchvision-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from foveate.cli import main; sys.exit(main(['generate']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip uninstall torchvision" in done.stderr
    assert "Traceback" not in done.stderr
