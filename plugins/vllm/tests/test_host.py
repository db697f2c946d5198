"""vLLM's private names are where they were, with the signatures that they had; what is gone is said at the start."""

import inspect
import re
from pathlib import Path

import pytest

from foveate.errors import UnsupportedError
from foveate_vllm import host
from tests.between.test_guards import configured

STORED = Path(__file__).with_name("signatures.txt")
SOURCES = sorted(Path(host.__file__).parent.glob("*.py"))
OF_AUTHORS = re.compile(
    r"vllm|vllm\.(config|distributed|inputs\.engine|logger|model_executor\.models\.\w+|multimodal[\w.]*)"
)
"""What authors of models import of vLLM."""


def signatures():
    """A line for each name: what it takes, or of what type it is."""
    for name, thing in host.found():
        if callable(thing) and not inspect.isclass(thing):
            yield f"{name}{inspect.signature(thing)}"
        else:
            yield f"{name}: {getattr(thing, 'type', type(thing).__name__)}"


def test_private_names_have_the_signatures_that_they_had():
    """Written by `python -m tests.test_host`, when a new vLLM was read and tried."""
    assert list(signatures()) == STORED.read_text().splitlines()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_only_the_host_imports_more_of_vllm_than_authors_of_models_do(source):
    modules = re.findall(r"^\s*(?:from|import) (vllm[\w.]*)", source.read_text(), flags=re.MULTILINE)
    if source.stem == "__init__":  # which is imported before anybody asks for foveate
        modules = [name for name in modules if name != "vllm.model_executor.models"]
    assert [name for name in modules if not OF_AUTHORS.fullmatch(name)] == []


@pytest.mark.parametrize(
    "name",
    [
        "vllm.v1.core.sched.scheduler:Scheduler._try_schedule_encoder_inputs",
        "vllm.forward_context:get_forward_context",
        "vllm.v1.attention.backends.utils:subclass_attention_backend",
    ],
)
def test_a_server_does_not_start_where_a_name_is_gone_and_says_which(llava_folder, name, monkeypatch):
    monkeypatch.delattr(name.replace(":", "."))
    with pytest.raises(Exception, match=rf"vLLM .* has no {name}\. foveate-vllm .* knows vLLM 0\.32"):
        configured(llava_folder, "visionzip")


def test_a_name_that_is_gone_is_refused_when_it_is_asked_for(monkeypatch):
    monkeypatch.delattr("vllm.v1.attention.backends.utils.subclass_attention_backend")
    with pytest.raises(UnsupportedError, match=r"has no .*subclass_attention_backend"):
        _ = host.subclass_attention_backend
    with pytest.raises(AttributeError, match="nothing"):
        _ = host.nothing


def test_another_vllm_drops_only_where_the_check_passed_for_the_model_and_method(llava_folder, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(host.CHECKING, raising=False)
    monkeypatch.setattr(host, "version_of_vllm", lambda: "0.33.0")
    with pytest.raises(Exception, match=rf"foveate-vllm check {llava_folder} --method visionzip"):
        configured(llava_folder, "visionzip")
    (tmp_path / "foveate").mkdir()
    (tmp_path / "foveate" / "vllm-checks.json").write_text("null")  # damaged
    host.note_passed(str(llava_folder), "visionzip")
    configured(llava_folder, "visionzip")
    for change in ({"version_of_vllm": lambda: "0.33.1"}, {"version": lambda package: "9"}):
        with monkeypatch.context() as patch:
            for name, value in change.items():
                patch.setattr(host, name, value)
            with pytest.raises(Exception, match="foveate-vllm check"):
                configured(llava_folder, "visionzip")
    with pytest.raises(Exception, match="--method divprune:tokens=9"):
        configured(llava_folder, "divprune:tokens=9")


def test_the_check_itself_may_drop_in_another_vllm(llava_folder, monkeypatch):
    monkeypatch.setattr(host, "version_of_vllm", lambda: "0.33.0")
    monkeypatch.setenv(host.CHECKING, "1")
    configured(llava_folder, "visionzip")


if __name__ == "__main__":
    STORED.write_text("\n".join(signatures()) + "\n")
