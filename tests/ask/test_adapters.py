"""The folder of a PEFT adapter is a model: its base inside peft's wrapper, or a refusal in one line."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

import foveate as fv
from foveate.eval.provenance import conditions
from foveate.eval.records import fingerprint
from tests.cli.conftest import save_tiny_llava

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # PEFT still reads it
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QUESTION = "What is this ?"
LORA = peft.LoraConfig(target_modules="all-linear", init_lora_weights=False, r=4)  # of random weights, the tower's too
KINDS = {
    "everywhere": LORA,
    "causal": peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    "dora": peft.LoraConfig(target_modules=["k_proj"], init_lora_weights=False, use_dora=True),
    "projector": peft.LoraConfig(
        target_modules=["q_proj"], init_lora_weights=False, modules_to_save=["multi_modal_projector"]
    ),
    "loha": peft.LoHaConfig(target_modules=["q_proj", "k_proj"], init_weights=False),
    "lokr": peft.LoKrConfig(target_modules=["q_proj", "k_proj"], init_weights=False),
    "ia3": peft.IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[], init_ia3_weights=False),
}
METHODS = (None, fv.V2Drop(layers=(1,), keep=(0.4,)), fv.VisionDrop(layer_list=(1,), image_token_list=((8, 4),)))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_llava(tmp_path_factory.mktemp("base"), layers=3)


def adapter(base, folder: Path, config=LORA) -> Path:
    """An adapter of random weights on the model in a folder, as training leaves it."""
    torch.manual_seed(0)
    wrapped = peft.get_peft_model(fv.load(str(base), device="cpu").model, config)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if weight.requires_grad and "modules_to_save" in name:
                weight.mul_(1.5)
    wrapped.save_pretrained(folder)
    change(folder, base_model_name_or_path=str(base))
    return folder


@pytest.fixture
def tuned(base, tmp_path):
    return adapter(base, tmp_path / "tuned")


@pytest.fixture
def picture():
    return Image.radial_gradient("L").resize((84, 84)).convert("RGB")


def change(folder, **values):
    """Other values in the adapter's config."""
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def load(folder):
    return fv.load(str(folder), device="cpu")


def by_hand(base, folder):
    """What a user makes of the two."""
    below = load(base)
    return fv.VLM(peft.PeftModel.from_pretrained(below.model, folder).eval(), below.processor)


def refused(folder, *says):
    """It is refused in one line that says these things."""
    with pytest.raises(fv.InputError) as error:
        load(folder)
    line = str(error.value)
    assert line.startswith(f"Model {str(folder)!r} cannot be loaded: ") or "weights of model" in line
    assert "\n" not in line
    assert len(line) < 1000
    for words in says:
        assert words in line


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_the_model_that_a_user_wraps(base, kind, tmp_path, picture):
    folder = adapter(base, tmp_path / kind, KINDS[kind])
    vlm, hand, below = load(folder), by_hand(base, folder), load(base)
    assert isinstance(vlm.model, peft.PeftModel)
    assert vlm.name == str(folder)
    assert not vlm.model.training
    for method in METHODS:
        inputs = vlm.prepare(picture, QUESTION).inputs
        logits = []
        for model in (vlm.model, hand.model, below.model):
            with torch.no_grad(), fv.drop(model, method or fv.V2Drop(layers=(1,), keep=(1.0,))):
                logits.append(model(**inputs).logits)
        assert torch.equal(logits[0], logits[1])
        assert not torch.equal(logits[0], logits[2])
        asked = [each.ask(picture, QUESTION, method=method, max_new_tokens=4) for each in (vlm, hand)]
        assert asked[0].tokens == asked[1].tokens
        assert asked[0].retention == asked[1].retention


# -- the base model -------------------------------------------------------------------------------------------


def test_a_relative_base_begins_at_the_working_directory(base, tuned, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "models" / "tiny")
    change(tuned, base_model_name_or_path="models/tiny")
    monkeypatch.chdir(tmp_path)
    assert load(tuned).model.config.model_type == "llava"
    monkeypatch.chdir(tuned)
    refused(tuned, "its base model, 'models/tiny' in adapter_config.json", f"start at {tuned}", "hub id")
    change(tuned, base_model_name_or_path="./nosuch")
    refused(tuned, "There is no folder ./nosuch", f"start at {tuned}")


def test_a_base_that_cannot_be_loaded_is_named_with_its_adapter(base, tuned, tmp_path):
    broken = shutil.copytree(base, tmp_path / "broken")
    (broken / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    change(tuned, base_model_name_or_path=str(broken))
    refused(tuned, f"its base model, '{broken}'", "model.safetensors is a git-lfs pointer")


def test_an_adapter_on_an_adapter_is_refused(tuned, tmp_path):
    second = shutil.copytree(tuned, tmp_path / "second")
    change(second, base_model_name_or_path=str(tuned))
    refused(second, "is an adapter too")
    change(second, base_model_name_or_path=str(second))
    refused(second, "is an adapter too")


def test_a_base_in_the_hubs_cache_is_found(base, tuned, tmp_path, monkeypatch):
    place = tmp_path / "cache" / "models--owner--tiny"
    shutil.copytree(base, place / "snapshots" / ("a" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.HF_HUB_CACHE", str(tmp_path / "cache"), raising=False)
    change(tuned, base_model_name_or_path="owner/tiny")
    vlm = load(tuned)
    assert isinstance(vlm.model, peft.PeftModel)
    assert conditions(vlm)["base"]["weights"] == "owner/tiny@" + "a" * 40
    change(tuned, base_model_name_or_path="owner/other")
    refused(tuned, "its base model, 'owner/other'", "cannot be loaded")


def test_a_whole_model_beside_an_adapter_is_refused(base, tuned):
    for file in ("config.json", "model.safetensors"):
        shutil.copy(base / file, tuned)
    refused(tuned, "a whole model (model.safetensors) and an adapter")
    (tuned / "model.safetensors").unlink()
    assert isinstance(load(tuned).model, peft.PeftModel)  # trainers leave the base's config beside the adapter


# -- what the adapter is --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "values"),
    [
        *(("base_model_name_or_path", {"base_model_name_or_path": name}) for name in (None, "", 5)),
        ("v1.5", {"base_model_name_or_path": "owner/name", "revision": "v1.5"}),
        *((repr(kind), {"peft_type": kind}) for kind in ("PREFIX_TUNING", "PROMPT_TUNING", "XLORA", None, ["LORA"])),
        ("alora_invocation_tokens", {"alora_invocation_tokens": [5]}),
        ("layer_replication", {"layer_replication": [[0, 2]]}),
        ("megatron_config", {"megatron_config": {"a": 1}}),
        ("bias", {"bias": "lora_only"}),
        ("nosuch", {"target_modules": ["nosuch"]}),
    ],
)
def test_settings_that_cannot_be_served_are_refused(tuned, word, values):
    change(tuned, **values)
    refused(tuned, word)


def test_weights_of_a_deeper_or_shallower_base_are_refused(base, tuned, tmp_path):
    """peft says nothing of those that it drops, and only warns of those that are missing."""
    for layers, says in ((2, "unexpected"), (4, "missing")):
        other = save_tiny_llava(tmp_path / f"other-{layers}", layers=layers)
        change(tuned, base_model_name_or_path=str(other))
        refused(tuned, "do not match its base model", says, "lora_A")


def test_weights_that_are_renamed_misshapen_or_not_there_are_refused(tuned):
    weights = load_file(tuned / WEIGHTS)
    name = sorted(weights)[0]
    save_file({key + "_old" if key == name else key: value for key, value in weights.items()}, tuned / WEIGHTS)
    refused(tuned, "1 missing", "1 unexpected")
    save_file(weights | {name: weights[name][:2].clone()}, tuned / WEIGHTS)
    refused(tuned, "size mismatch")
    (tuned / WEIGHTS).write_bytes(b"\x00")
    refused(tuned, "its adapter cannot be read")
    (tuned / WEIGHTS).unlink()
    torch.save(weights, tuned / "adapter_model.bin")
    refused(tuned, f"there is no {WEIGHTS}")


# -- the processor --------------------------------------------------------------------------------------------


def test_the_folders_processor_comes_before_the_bases(base, tuned):
    assert load(tuned).processor.patch_size == 14
    processor = AutoProcessor.from_pretrained(base)
    processor.chat_template = processor.chat_template.replace("USER", "ASSISTANT")
    processor.save_pretrained(tuned)
    assert load(tuned).processor.chat_template == processor.chat_template
    assert load(base).processor.chat_template != processor.chat_template


def test_a_tokenizer_alone_is_not_passed_over(base, tuned):
    AutoProcessor.from_pretrained(base).tokenizer.save_pretrained(tuned)
    refused(tuned, "its folder has tokenizer_config.json but no processor_config.json")


# -- around loading -------------------------------------------------------------------------------------------


def test_without_peft_a_line_says_how_to_install_it(tuned, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(fv.UnsupportedError, match="adapter"):
        load(tuned)


def test_answers_depend_on_the_adapter_and_on_its_base(base, tuned, tmp_path):
    """Answers are kept by this: an adapter that was trained on, or another base, must be asked again."""
    below = shutil.copytree(base, tmp_path / "below")
    change(tuned, base_model_name_or_path=str(below))
    vlm = load(tuned)
    keys = {fingerprint(conditions(vlm))}
    assert fingerprint(conditions(load(tuned))) in keys
    for file in (tuned / WEIGHTS, below / "model.safetensors", below / "tokenizer.json"):
        with file.open("ab") as opened:
            opened.write(b" ")
        keys.add(fingerprint(conditions(vlm)))
    assert len(keys) == 4


@pytest.mark.usefixtures("graphs_on_cpu")
def test_an_adapter_runs_as_graphs_where_its_base_does(base, tmp_path):
    assert fv.load(adapter(base, tmp_path / "lora"), device="cpu", cuda_graphs=True).cuda_graphs
