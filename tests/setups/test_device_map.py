"""Models that accelerate has spread: layers in memory, layers and tower on disk, hooks that come and go."""

import copy
import functools

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import remove_hook_from_module
from transformers import AutoModelForImageTextToText

import foveate as fv
from foveate.contract import PixelStage
from tests.cli.conftest import save_tiny_llava
from tests.forked import said_by
from tests.invariants.settings import STAGES
from tests.invariants.test_restore import state
from tests.models import DEPTH, MIXED, batch, generate, tiny
from tests.setups.running import FIRST, METHOD, SETUPS, SOME, prefill, same_prefill
from tests.setups.several_devices import METHODS

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*offload:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following device_map keys:UserWarning"),  # single weights, which it places
]


def half_on_disk(model, tower="disk"):
    """A device map: every other decoder layer on disk, and the tower where it says."""
    core, text = model.model, model.get_decoder()
    (decoder,) = (name for name, module in core.named_children() if module is text)
    places = {f"model.{name}": "cpu" for name, _ in core.named_children() if name != decoder}
    places |= {f"model.{name}": "cpu" for name, _ in core.named_parameters(recurse=False)}
    places |= {name: tower for name in places if "vis" in name or "tower" in name}
    places |= {f"model.{decoder}.{name}": "cpu" for name, _ in text.named_children()}
    del places[f"model.{decoder}.layers"]
    places |= {f"model.{decoder}.layers.{index}": ("cpu", "disk")[index % 2] for index in range(DEPTH)}
    return {**places, "lm_head": "cpu"}


def dispatched(model, folder, tower="disk"):
    return dispatch_model(model, half_on_disk(model, tower), main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.fixture(scope="module")
def spread(tmp_path_factory):
    """Each family's tiny model, half of it on disk."""

    @functools.cache
    def of(family, tower="disk"):
        model = dispatched(copy.deepcopy(tiny(family)), tmp_path_factory.mktemp(family), tower)
        generate(model, batch(family, MIXED), new_tokens=1)  # it works untouched
        return model

    return of


def smaller_pictures(name):
    """Whether the tower's learned positions, which transformers interpolates then, must be in memory."""
    return any(isinstance(stage, PixelStage) for stage in STAGES[name])


@pytest.mark.parametrize(("name", "family"), SETUPS)
def test_half_on_disk_is_all_in_memory(name, family, spread):
    # GLM's tower reads weights past accelerate's hooks, so transformers does not run it from a disk.
    model = spread(family, "cpu" if smaller_pictures(name) or family.startswith("glm") else "disk")
    inputs, before = batch(family, MIXED), state(model)
    assert any(weight.is_meta for weight in model.get_decoder().layers.parameters())
    same_prefill(model, tiny(family), inputs, FIRST[name])
    assert state(model) == before


@pytest.mark.parametrize(
    ("way", "name", "family"),
    [("cpu", "v2drop-0", "qwen2_vl"), ("disk", "visiondrop-0", "llava"), ("cpu", "mustdrop-0", "llava")],
)
def test_every_weight_offloaded(way, name, family, tmp_path):
    model = copy.deepcopy(tiny(family))
    model = cpu_offload(model, "cpu") if way == "cpu" else disk_offload(model, tmp_path, "cpu")
    assert all(weight.is_meta for weight in model.parameters())
    inputs = batch(family, ["titit"])
    same_prefill(model, tiny(family), inputs, FIRST[name])


def test_a_smaller_picture_needs_its_tower_in_memory(spread):
    """transformers reads the position embeddings it interpolates past accelerate's hooks."""
    with pytest.raises(fv.UnsupportedError, match="offloaded"):
        prefill(spread("llava"), batch("llava", ["tit"]), FIRST["resize-0"])


def test_layers_on_several_devices():
    said = said_by("import runpy; runpy.run_module('tests.setups.several_devices', run_name='__main__')")
    assert said.splitlines() == [f"{name} works" for name in METHODS]


@pytest.mark.parametrize("family", SOME)
def test_spreading_a_model_inside_the_context(family, tmp_path):
    """What is left is what accelerate alone would have left, and it can be taken off."""
    model, inputs = copy.deepcopy(tiny(family)), batch(family, ["titt", "tit"])
    plain, before = generate(model, inputs, new_tokens=2), state(model)
    with fv.drop(model, METHOD) as trace:
        expected = generate(model, inputs, new_tokens=2)
        dispatched(model, tmp_path)
        assert torch.equal(torch.cat(generate(model, inputs, new_tokens=2).logits), torch.cat(expected.logits))
    layer = model.model.language_model.layers[1]
    assert layer._old_forward == type(layer).forward.__get__(layer)
    assert torch.equal(torch.cat(generate(model, inputs, new_tokens=2).logits), torch.cat(plain.logits))
    assert len(trace.history) == 2
    remove_hook_from_module(model, recurse=True)
    changed = {name for name, known in state(model).items() if known[2] != before[name][2]}
    assert not changed


def test_taking_accelerates_hooks_off_inside_the_context(tmp_path):
    """That takes the decoder layers' forward away from foveate too: no silent run at full length."""
    model, inputs = dispatched(copy.deepcopy(tiny("llava")), tmp_path, "cpu"), batch("llava", ["tit"])
    with fv.drop(model, METHOD):
        remove_hook_from_module(model, recurse=True)
        for name, weight in tiny("llava").named_parameters():
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(weight.clone()))
        with pytest.raises(fv.SessionError, match="replaced"):
            generate(model, inputs)
    plain = generate(tiny("llava"), inputs)
    assert torch.equal(torch.cat(generate(model, inputs).logits), torch.cat(plain.logits))


def test_a_wrapper_put_around_a_layer_inside_the_context_stays():
    model, inputs, calls = copy.deepcopy(tiny("llava")), batch("llava", ["tit"]), []
    layer = model.model.language_model.layers[2]
    with fv.drop(model, METHOD) as trace:
        ours = layer.forward
        layer.forward = lambda *args, **kwargs: calls.append(1) or ours(*args, **kwargs)
        generate(model, inputs, new_tokens=1)
    assert trace.stages[1].after[0] < 25
    theirs, dropped = layer.forward, len(trace.history)
    assert torch.equal(torch.cat(generate(model, inputs).logits), torch.cat(generate(tiny("llava"), inputs).logits))
    assert layer.forward is theirs
    assert len(calls) == 5
    assert len(trace.history) == dropped


def test_a_checkpoint_loaded_with_a_device_map(tmp_path):
    folder = save_tiny_llava(tmp_path / "model", layers=DEPTH)
    whole = AutoModelForImageTextToText.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(
        folder, device_map=half_on_disk(whole), offload_folder=tmp_path / "offload"
    )
    assert model.hf_device_map["model.language_model.layers.1"] == "disk"
    ids = torch.tensor([[1, 5, *[3] * 36, 6, 7]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 84, 84)}
    same_prefill(model, whole, inputs, METHOD)
