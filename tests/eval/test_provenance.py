"""Which weights an answer is of."""

from types import SimpleNamespace

import huggingface_hub

from foveate._loading import Loaded
from foveate.eval.provenance import conditions


def test_a_hub_model_is_named_by_its_commit(tmp_path, monkeypatch):
    """A second revision must not take the answers of the first for its own."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    text = SimpleNamespace(_attn_implementation="sdpa")
    model = SimpleNamespace(device="cpu", dtype="float32")
    model.config = SimpleNamespace(model_type="llava", get_text_config=lambda: text)
    loaded = Loaded("someone/a-model", model, None)
    assert conditions(loaded)["weights"] == "someone/a-model@unknown revision"
    for commit in ("a" * 40, "b" * 40):
        place = tmp_path / "models--someone--a-model"
        (place / "refs").mkdir(parents=True, exist_ok=True)
        (place / "refs/main").write_text(commit)
        (place / "snapshots" / commit).mkdir(parents=True)
        (place / "snapshots" / commit / "config.json").write_text("{}")
        assert conditions(loaded)["weights"] == f"someone/a-model@{commit}"
