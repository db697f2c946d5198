import pytest

import foveate as fv
from foveate.contract.method import Chain

PRESETS = [preset for name, preset in fv.presets().items() if name.startswith("chain/")]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_a_chain_spends_what_its_name_says(preset):
    nominal = int(preset.name.split("/")[2].split("-")[0])
    plan = preset.method.plan(32, (576,))
    assert nominal - 1 < sum(plan) / 32 < nominal + 0.5
    assert plan[0] < 576


def test_tokens_in_each_layer_worked_out_by_hand():
    """V2Drop keeps three tenths of 110 for five layers, then one; or half of 42 to the end."""
    late, half = (fv.preset(PRESETS[place].name).plan(32, (576,)) for place in (0, 2))
    assert late == (110,) * 17 + (33,) * 5 + (1,) * 10
    assert half == (42,) * 17 + (21,) * 15


def test_they_have_names():
    for preset in PRESETS:
        assert fv.preset(preset.name) == preset.method
        assert isinstance(preset.method, Chain)
