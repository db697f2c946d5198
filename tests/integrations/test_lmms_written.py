"""What lmms-eval's own command line writes to: a folder a setting, and none where a run fails."""

import pytest

from foveate.eval.lmms.label import Label
from foveate.eval.lmms.setting import Setting


@pytest.mark.parametrize(
    ("setting", "about", "folder"),
    [
        (Setting(), {"model": "llava-hf/llava-1.5-7b-hf"}, "llava-hf__llava-1.5-7b-hf__full"),
        (Setting(name="v2drop", budget=192), {"model": "embedded"}, "embedded__v2drop__192-tokens"),
        (Setting(name="random", retention=1 / 3, seed=2), {}, "m__random__retention-0.3333__seed-2"),
        (Setting(name="v2drop"), {"protocol": "llava"}, "m__v2drop__retention-0.3333__llava"),
        (Setting(name="v2drop/llava-1.5-7b/192"), {"most_frames": 8}, "m__v2drop-llava-1.5-7b-192__8-frames"),
        (
            Setting(name="visiondrop+v2drop", budget=64, settings={"layers": [3]}),
            {},
            "m__visiondrop+v2drop__layers=3__64-tokens",
        ),
    ],
)
def test_a_folder_speaks(setting, about, folder):
    label = Label(**{"model": "m", **about}, setting=setting)
    assert label.folder == folder


def test_long_names_stay_short_and_apart():
    schedule = f"layers={','.join(map(str, range(1, 60)))};keep={','.join(['1'] * 59)}"
    settings = [Setting(name=f"v2drop:{schedule};min_keep={last}") for last in (1, 2)]
    names = [Label(model="m", setting=setting).folder for setting in settings]
    assert len(set(names)) == 2
    assert max(map(len, names)) < 100
