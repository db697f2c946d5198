"""What lmms-eval's own command line writes to: a folder a setting, and none where a run fails."""

import pytest

from foveate.eval.lmms.answerer import Conduct
from foveate.eval.lmms.label import Label
from foveate.eval.lmms.setting import Setting


@pytest.mark.parametrize(
    ("setting", "conduct", "folder"),
    [
        (Setting(), {}, "org__m__full"),
        (Setting(name="v2drop", budget=192), {}, "org__m__v2drop__192-tokens"),
        (Setting(name="random", retention=1 / 3, seed=2), {}, "org__m__random__retention-0.3333__seed-2"),
        (Setting(name="v2drop"), {"protocol": "llava"}, "org__m__v2drop__retention-0.3333__llava"),
        (Setting(name="v2drop/llava-1.5-7b/192"), {"most_frames": 8}, "org__m__v2drop-llava-1.5-7b-192__8-frames"),
        (Setting(name="v2drop", settings={"layers": [3]}), {}, "org__m__v2drop__layers=3"),
    ],
)
def test_a_folder_speaks(setting, conduct, folder):
    assert Label(model="org/m", setting=setting, conduct=Conduct(**conduct)).folder == folder


def test_long_names_stay_short_and_apart():
    schedule = f"layers={','.join(map(str, range(1, 60)))};keep={','.join(['1'] * 59)}"
    settings = [Setting(name=f"v2drop:{schedule};min_keep={last}") for last in (1, 2)]
    names = [Label(model="m", setting=setting, conduct=Conduct()).folder for setting in settings]
    assert len(set(names)) == 2
    assert max(map(len, names)) < 100
