import pytest

from foveate.errors import SettingError
from foveate.methods.dtd import DTD
from tests.methods import at
from tests.methods.test_vidcom2 import kept

EXAMPLES = [DTD(threshold=-0.5), DTD(share=0.5), DTD(retention=0.6)]
ONLY_VIDEOS = True
TURNS = at(0, 0, 10, 50, 40, 45)  # from the frame before: by 10 and 50 degrees, and by 30 and 5


@pytest.mark.parametrize(
    ("method", "left"),
    [
        (DTD(threshold=0.9), [0, 1, 3, 4]),  # cos 10° is 0.98, cos 50° 0.64, cos 30° 0.87, cos 5° above 0.99
        (DTD(threshold=0.5), [0, 1]),
        (DTD(share=0.5), [0, 1, 3, 4]),  # one token of each later frame leaves
        (DTD(tokens=3), [0, 1, 3]),  # 50 degrees before 30
    ],
)
def test_three_frames_worked_on_paper(method, left):
    assert kept(method, TURNS, 3) == left


def test_the_threshold_alone_lets_the_video_decide():
    assert DTD().own_count((4, 4)) is None
    assert DTD(share=0.3).own_count((4, 4, 4)) == 4 + 3 + 3


def test_threshold_and_share_are_refused_together():
    with pytest.raises(SettingError, match="threshold and share"):
        DTD(threshold=0.5, share=0.5)
