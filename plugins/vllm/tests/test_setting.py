"""What a server is started with means what it means in the library."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from foveate.contract import LayerStage, Resource, Shape, Signal, Text
from foveate.errors import SettingError, UnsupportedError
from foveate.naming import method_of, parse
from foveate.registry import methods
from foveate_vllm.guards import refuse_stages
from foveate_vllm.setting import Rate, Setting

BUDGETS = (0.05, 0.11, 1 / 3, 0.5, 0.73, 0.8, 0.9, 0.97)
CONFIG = LlavaConfig(
    vision_config=CLIPVisionConfig(image_size=224, patch_size=14), text_config=LlamaConfig(num_hidden_layers=28)
)


def serves(name):
    try:
        Setting({"method": name, "retention": 0.5}, CONFIG)
    except (SettingError, UnsupportedError):
        return False
    return True


NAMES = [name for name in (*methods(), "visionzip+v2drop") if serves(name)]


def test_most_methods_can_be_served():
    assert len(NAMES) > 12


@pytest.mark.parametrize("name", NAMES)
def test_a_servers_budget_is_the_librarys(name):
    for share in BUDGETS:
        setting = Setting({"method": name, "retention": share}, CONFIG)
        assert setting.method(Rate()) == method_of(name, retention=share)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_alone_keeps_a_third_and_an_object_what_it_says(name):
    setting = Setting({"method": name}, CONFIG)
    assert setting.method(Rate()) == method_of(name) == method_of(name, retention=1 / 3)
    assert str(setting.rate) == "33.3% of an image's tokens"
    assert setting.method(Rate(retention=0.5)) == method_of(name, retention=0.5)


def test_a_server_runs_settings_and_dictionaries_as_they_say():
    for method in ("visionzip:dominant=9", parse("visionzip").to_dict(), "visionzip:tokens=9"):
        setting = Setting({"method": method}, CONFIG)
        assert setting.method(Rate()) == (parse(method) if isinstance(method, str) else parse("visionzip"))


@pytest.mark.parametrize("name", ["v2drop:retention=0.2", "visionzip:retention=0.2+finalkv", "v2drop:keep=0.5,0.3,0"])
def test_a_servers_budget_never_replaces_one_that_the_method_brings(name):
    with pytest.raises(SettingError, match="its own"):
        Setting({"method": name, "retention": 0.5}, CONFIG)


@pytest.mark.parametrize("name", ["cdpruner", "mmtok"])
def test_a_method_that_reads_the_question_before_the_decoder_is_refused(name):
    with pytest.raises(UnsupportedError, match="question"):
        Setting({"method": name, "retention": 0.5}, CONFIG)


@dataclass(frozen=True)
class OwnValues(Signal):
    """A signal of one's own, of values that the plug-in does not show."""

    kind: ClassVar[str] = "own_values"
    of_ran: ClassVar[bool] = True

    def read(self, reader, unit):
        return reader.values()[0, reader.vision, 0]


@pytest.mark.parametrize("signal", [Text(), Resource("clip", of="text"), OwnValues()], ids=repr)
def test_a_stage_between_layers_that_reads_what_vllm_does_not_show_is_refused(signal):
    stage = LayerStage(2, reads=(signal,), keep=0.5, score=len)
    with pytest.raises(UnsupportedError, match=r"no stage before decoder layer 2 can read (Text|Resource|OwnValues)\("):
        refuse_stages((stage,), Shape(depth=28))
