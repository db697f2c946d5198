"""The table of what works where, also with methods of one's own."""

import pytest

import foveate as fv
from foveate import registry
from foveate.contract import LayerStage
from foveate.contract.method import Method
from foveate.contract.settings import Layer, Share


class Demanding(Method):
    """Keeps a share before a layer; neither has a default."""

    name = "demanding"

    layer: Layer
    keep: Share

    def stages(self, shape):
        return (LayerStage(self.layer, keep=self.keep, score=lambda view: view.hidden.sum(-1)),)


@pytest.fixture
def demanding(monkeypatch):
    monkeypatch.setattr(registry, "_extra_methods", dict(registry._extra_methods))
    return fv.register_method(Demanding)


def test_a_method_without_defaults_is_said_to_have_none(demanding):
    table = registry.support()
    assert {answers["image"]["demanding"] for answers in table.values()} == {
        "demanding has no defaults: what works depends on its settings."
    }
    assert table["llava"]["image"]["v2drop"] == ["layer"]
