import numpy as np
import pytest

from foveate.errors import InputError
from foveate.eval.videos import frames

av = pytest.importorskip("av")

RATE, LENGTH = 10, 60


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Six seconds that brighten from black to white."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for at in range(LENGTH):
            grey = np.full((48, 64, 3), round(255 * at / (LENGTH - 1)), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


def brightness(clip):
    return clip.frames.mean(axis=(1, 2, 3)) / 255


def test_frames_are_the_middles_of_equal_parts(film):
    clip = frames(film, 4)
    assert clip.frames.shape == (4, 48, 64, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.seconds == pytest.approx((0.7, 2.2, 3.7, 5.2), abs=0.11)
    assert brightness(clip) == pytest.approx(np.array(clip.seconds) / 5.9, abs=0.03)


def test_no_more_frames_than_there_are(film):
    assert len(frames(film, 1000).frames) == LENGTH


def test_only_the_part_that_is_meant(film):
    clip = frames(film, 3, start=3.0, end=6.0)
    assert min(clip.seconds) >= 2.9
    assert brightness(clip)[0] > 0.5


def test_the_metadata_are_those_of_the_file(film):
    told = frames(film, 2).metadata()
    assert (told["fps"], told["total_num_frames"], told["duration"]) == (RATE, LENGTH, 6.0)
    assert len(told["frames_indices"]) == 2


@pytest.mark.parametrize("content", [b"", b"no video at all"])
def test_what_is_no_video_is_named(tmp_path, content):
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"film\.mp4 cannot be read as a video"):
        frames(path, 2)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.mp4 cannot be read"):
        frames(tmp_path / "none.mp4", 2)
