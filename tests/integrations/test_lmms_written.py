"""What a run under lmms-eval's own command line says of itself: in a file a setting."""

import pytest

from foveate.eval.lmms.label import Label
from foveate.eval.lmms.requests import Conduct
from foveate.eval.lmms.setting import Setting


@pytest.mark.parametrize(
    ("setting", "conduct", "name"),
    [
        (Setting(), {}, "org__m__full"),
        (Setting(name="v2drop", budget=192), {}, "org__m__v2drop__192-tokens"),
        (Setting(name="random", retention=1 / 3, seed=2), {}, "org__m__random__retention-0.3333__seed-2"),
        (Setting(name="v2drop"), {"protocol": "llava"}, "org__m__v2drop__retention-0.3333__llava"),
        (Setting(name="v2drop/llava-1.5-7b/192"), {"most_frames": 8}, "org__m__v2drop-llava-1.5-7b-192__8-frames"),
        (Setting(name="v2drop", settings={"layers": [3]}), {}, "org__m__v2drop__layers=3"),
    ],
)
def test_a_name_speaks(setting, conduct, name):
    assert Label(model="org/m", setting=setting, conduct=Conduct(**conduct)).name == name


def test_long_names_stay_short_and_apart():
    schedule = f"layers={','.join(map(str, range(1, 60)))};keep={','.join(['1'] * 59)}"
    settings = [Setting(name=f"v2drop:{schedule};min_keep={last}") for last in (1, 2)]
    names = [Label(model="m", setting=setting, conduct=Conduct()).name for setting in settings]
    assert len(set(names)) == 2
    assert max(map(len, names)) < 100


def test_what_was_spent_is_told_for_all_answers_and_by_task():
    rows = {("pope", 0): (0.25, 144), ("pope", 1): (0.75, 432), ("gqa", 0): (0.5, 288)}
    records = {
        key: {"retention": share, "spent": tokens, "vision_tokens": 576} for key, (share, tokens) in rows.items()
    }
    label = Label(model="m", setting=Setting(name="random", budget=288, seed=2), conduct=Conduct())
    found = label.summary(records)
    assert (found["method"], found["budget"], found["seed"], found["protocol"]) == ("random", 288, 2, "own")
    assert (found["answers"], found["tokens"], found["retention"]) == (3, 288, 0.5)
    assert found["tasks"]["gqa"] == {"answers": 1, "retention": 0.5, "tokens": 288, "vision_tokens": 576}
