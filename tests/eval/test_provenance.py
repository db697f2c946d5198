"""Which weights an answer is of, and what else decides it."""

import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch

import foveate as fv
from foveate import embedded
from foveate.ask.loading import load
from foveate.ask.vlm import VLM
from foveate.eval import provenance
from foveate.eval.lmms.requests import RequestAnswerer
from foveate.eval.provenance import conditions
from foveate.eval.records import fingerprint


def test_a_hub_model_is_named_by_its_commit(tmp_path, monkeypatch):
    """A second revision must not take the answers of the first for its own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    loaded = stub("someone/a-model")
    assert conditions(loaded)["weights"] == "someone/a-model@unknown revision"
    for commit in ("a" * 40, "b" * 40):
        place = tmp_path / "models--someone--a-model"
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs/main").write_text(commit)
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / "config.json").write_text("{}")
        assert conditions(loaded)["weights"] == f"someone/a-model@{commit}"


def stub(name) -> VLM:
    """A model of this name that was never loaded."""
    text = SimpleNamespace(_attn_implementation="sdpa")
    model = torch.nn.Linear(1, 1, device="meta")
    model.device, model.dtype, model.generation_config = "cpu", "float32", SimpleNamespace()
    model.config = SimpleNamespace(model_type="llava", get_text_config=lambda: text)
    return VLM(model, SimpleNamespace(tokenizer=[]), str(name))


def key(loaded) -> str:
    return fingerprint(RequestAnswerer(loaded).conditions())


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(embedded.path(), place := tmp_path / "model")
    return place


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
        "video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
        "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
        "chat_template.json", "additional_chat_templates/short.jinja", "model.safetensors",
    ],
)  # fmt: skip
def test_every_file_that_decides_an_answer_is_part_of_the_key(folder, name):
    before, path = key(stub(folder)), folder / name
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        file.write(b" ")
    assert key(stub(folder)) != before


def test_what_decides_nothing_is_no_part_of_the_key(folder):
    before = key(stub(folder))
    (folder / "MODEL_CARD.md").write_text("Another card.")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs")
    (folder / "checkpoints.json").mkdir()
    assert key(stub(folder)) == before
    moved = folder.rename(folder.parent / "elsewhere")
    assert key(stub(moved)) == before


def test_conduct_number_format_kernel_and_versions_are_part_of_the_key(folder, monkeypatch):
    device = torch.device("cpu")
    loaded = load(str(folder), device=device)
    keys = {
        key(loaded),
        key(load(str(folder), device=device, dtype="bfloat16")),
        key(load(str(folder), device=device, attention="eager")),
    }
    for other in ({"protocol": "llava"}, {"most_frames": 8}):
        keys.add(fingerprint(RequestAnswerer(loaded, **other).conditions()))
    assert len(keys) == 5
    for library in ("foveate", "torch", "transformers"):
        with monkeypatch.context() as changed:
            changed.setattr(provenance, "versions", lambda name=library: {name: "0.0.0"})
            keys.add(key(loaded))
    with monkeypatch.context() as changed:
        changed.setattr("importlib.metadata.version", lambda name: "0.0.0")
        keys.add(key(loaded))
    assert len(keys) == 9


def test_a_changed_file_of_a_hub_model_is_another_key(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--someone--a-model"
    commit = "a" * 40
    (place / "refs").mkdir(parents=True)
    (place / "refs/main").write_text(commit)
    (snapshot := place / "snapshots" / commit).mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / name).write_text("{}")
    keys = {key(stub("someone/a-model"))}
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (snapshot / name).write_text('{"changed": 1}')
        keys.add(key(stub("someone/a-model")))
    assert len(keys) == 4


def test_a_model_that_was_changed_in_memory_is_another_one():
    loaded = fv.load(device="cpu")
    before = conditions(loaded)
    with torch.no_grad():
        loaded.model.lm_head.weight[0, 0] += 1
    changed = conditions(loaded)
    assert before != changed
    loaded.model.lm_head.weight.data[0, 0] += 1
    assert conditions(loaded) not in (before, changed)
    changed = conditions(loaded)
    loaded.processor.image_processor.image_mean = [0.5, 0.5, 0.4]
    assert conditions(loaded) != changed
