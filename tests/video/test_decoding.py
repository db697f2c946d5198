"""Video files of every odd kind, encoded here: the frames on show at the right times, or a refusal that says why."""

import itertools
import os
import random
import struct
import sys
import warnings
from fractions import Fraction
from functools import cache

import av
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from foveate.errors import InputError, SettingError, UnsupportedError
from foveate.plain import memory
from foveate.video import decoding, read, shape_of
from foveate.video.wanted import FramesWanted
from tests.ask.test_pictures import png_claiming
from tests.films import QUARTERS, brightness, encoded, film, matrix, sound

UNSTEADY = [0.05 * index for index in range(15)] + [1.0, 3.0, 5.0, 7.0, 9.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("films")


@pytest.fixture(scope="module")
def steady(folder):
    """Six seconds, ten frames a second, from black to white."""
    return film(folder / "steady.mp4")


@cache
def every_frame(path):
    """An independent look: (time, brightness) of all frames, in order."""
    with av.open(str(path)) as container:
        return [(float(f.time), f.to_ndarray(format="rgb24").mean() / 255) for f in container.decode(video=0)]


def on_show(path, time):
    """The frame that a viewer sees at a time."""
    return [frame for frame in every_frame(path) if frame[0] <= time + 1e-6][-1]


@pytest.mark.parametrize("wanted", [{}, {"frames": 4}, {"fps": 3}, {"fps": 2, "frames": 5, "start": 1, "end": 3}])
def test_the_shape_of_a_clip_is_known_before_a_frame_is_decoded(steady, folder, wanted, monkeypatch):
    wide = film(folder / "wide.mp4", size=(96, 48), gop=60)
    shapes = [read(path, **wanted).frames.shape[:3] for path in (steady, wide)]
    monkeypatch.setattr(decoding, "_Decoder", None)
    assert [shape_of(path, **wanted) for path in (steady, wide)] == shapes
    assert shape_of(steady.read_bytes(), **wanted) == shapes[0]


BLANK = {
    "steady": {},
    "unsteady": {"times": UNSTEADY, "count": len(UNSTEADY)},
    "long": {"count": 2100, "size": (16, 16)},
}


@pytest.mark.parametrize("wanted", [{}, {"frames": 4}, {"fps": 3}, {"fps": 2, "frames": 5, "start": 1, "end": 3}])
@pytest.mark.parametrize("kind", BLANK)
def test_blank_frames_have_the_size_and_the_times_of_those_that_are_read(folder, kind, wanted):
    path = folder / f"{kind}.mp4"
    if not path.exists():
        film(path, **BLANK[kind])
    if kind == "long" and "fps" in wanted:
        wanted = wanted | {"frames": 20}
    clip, blank = read(path, **wanted), decoding.clip_of(path, FramesWanted(**wanted), blank=True)
    assert blank.frames.shape == clip.frames.shape
    assert blank.seconds == pytest.approx(clip.seconds, abs=1e-6)
    assert (blank.start, blank.end, blank.rate, blank.note, blank.chosen) == (
        clip.start, clip.end, clip.rate, clip.note, clip.chosen,
    )  # fmt: skip


def test_frames_are_the_middles_of_equal_parts(steady):
    clip = read(steady, frames=4)
    assert clip.frames.shape == (4, 48, 64, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.seconds == pytest.approx((0.7, 2.2, 3.7, 5.2))
    assert brightness(clip.frames) == pytest.approx([second / 5.9 for second in clip.seconds], abs=0.02)
    assert (clip.start, clip.end, clip.rate, clip.note) == (0, 6, 10, None)


def test_by_rate_frames_come_from_the_first_one_on_and_no_more_than_a_number_evenly_spread(steady):
    assert read(steady, fps=2).seconds == pytest.approx([0.5 * at for at in range(12)])
    assert read(steady, fps=0.1).seconds == (0.0,)
    assert read(steady, fps=2, frames=20).seconds == read(steady, fps=2).seconds
    assert read(steady, fps=5, frames=3).seconds == read(steady, frames=3).seconds


@pytest.mark.parametrize("fps", [10, 30, 1e300])
def test_a_rate_above_the_files_gives_every_frame_once(steady, fps):
    assert read(steady, fps=fps).seconds == pytest.approx([0.1 * at for at in range(60)])
    assert len(read(steady, fps=fps, frames=7)) == 7


def test_a_rate_that_would_fill_the_memory_wants_a_number_with_it(long):
    with pytest.raises(SettingError, match="6000"):
        read(long, fps=20)
    assert len(read(long, fps=20, frames=10)) == 10


@pytest.mark.parametrize("frames", [6000, 10**12])
def test_more_frames_than_the_memory_holds_are_refused(long, monkeypatch, frames):
    monkeypatch.setattr(memory, "available", lambda: 2.0**24)
    with pytest.raises(SettingError, match="GiB"):
        read(long, frames=frames)
    assert len(read(long, frames=40)) == 40


def test_a_clip_shorter_than_asked_gives_every_frame_once(steady):
    clip = read(steady, frames=1000)
    assert clip.seconds == pytest.approx([0.1 * at for at in range(60)])
    assert np.diff(brightness(clip.frames)).min() > 0


def test_one_frame(folder):
    clip = read(film(folder / "one.mp4", 1), frames=8)
    assert (len(clip), clip.seconds) == (1, (0.0,))
    assert len(read(folder / "one.mp4", fps=1)) == 1


def test_only_the_part_that_is_meant(steady):
    clip = read(steady, frames=3, start=3.0, end=6.0)
    assert clip.seconds == pytest.approx((3.5, 4.5, 5.5))
    assert (clip.start, clip.end) == (3, 6)
    assert read(steady, fps=1, start=1.25, end=3.5).seconds == pytest.approx((1.25, 2.2, 3.2))
    assert read(steady, frames=99, start=2.0, end=2.5).seconds == pytest.approx((2.0, 2.1, 2.2, 2.3, 2.4))


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_an_unsteady_rate_is_followed_in_time(folder, kind):
    path = film(folder / f"unsteady.{kind}", 20, rate=30, times=UNSTEADY)
    clip = read(path, frames=6)
    wanted = [clip.end * (at + 0.5) / 6 for at in range(6)]
    assert brightness(clip.frames) == pytest.approx([on_show(path, time)[1] for time in wanted], abs=0.01)
    changes = itertools.pairwise([(0.0, -1.0), *zip(clip.seconds, brightness(clip.frames), strict=True)])
    for (before, seen), (second, now) in changes:
        assert second > before or seen < 0
        if now != seen:  # new on show: its own time; else that at which it is shown again
            assert on_show(path, second)[0] == pytest.approx(second, abs=1e-3)


def test_of_an_unsteady_clip_that_is_short_every_frame_comes_with_its_time(folder):
    path = film(folder / "short.mp4", 20, rate=30, times=UNSTEADY)
    assert read(path, frames=32).seconds == pytest.approx(UNSTEADY, abs=1e-3)
    assert read(path, frames=32, start=0.9, end=6).seconds == pytest.approx((1, 3, 5), abs=1e-3)


@pytest.mark.parametrize("kind", ["webm", "avi", "ts"])
def test_containers_of_all_kinds_give_the_same_frames(folder, steady, kind):
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(kind, "libx264")
    clip, known = read(film(folder / f"film.{kind}", codec=codec), frames=7), read(steady, frames=7)
    assert clip.seconds == pytest.approx(known.seconds, abs=2e-3)
    assert brightness(clip.frames) == pytest.approx(brightness(known.frames), abs=0.02)


def test_what_an_edit_list_cuts_off_is_not_there(folder):
    """As a phone does that trims a video without encoding it anew: the first second and a half is in the file still."""
    data = bytearray(film(folder / "trimmed.mp4").read_bytes())
    at = data.index(b"elst") + 12
    duration, begin = struct.unpack(">Ii", data[at : at + 8])
    data[at : at + 8] = struct.pack(">Ii", duration - 1500, begin + 15360)  # of 1000 and of 10240 a second
    (folder / "trimmed.mp4").write_bytes(data)
    clip = read(folder / "trimmed.mp4", frames=99)
    assert (len(clip), clip.end) == (45, pytest.approx(4.5))
    assert clip.seconds == pytest.approx([0.1 * step for step in range(45)])
    assert brightness(clip.frames) == pytest.approx([(second + 1.5) / 5.9 for second in clip.seconds], abs=0.02)


def test_a_bare_stream_has_frames_at_its_nominal_rate(folder):
    clip = read(film(folder / "bare.h264"), frames=6)
    assert brightness(clip.frames) == pytest.approx(brightness(read(folder / "bare.h264", frames=60).frames[5::10]))
    assert clip.note is None


@pytest.mark.parametrize(
    ("kind", "codec", "counts"),
    [("vob", "mpeg2video", (30, 60, 40)), ("mkv", "libx264", (30, 60)), ("vob", "mpeg2video", (1500, 1500))],
)
def test_recordings_in_one_file_whose_times_begin_again_are_shown_in_turn(tmp_path, kind, codec, counts):
    """As of recorders that append, and of files that are joined."""
    contents = []
    for number, count in enumerate(counts):
        shade = np.full((48, 64, 3), 60 + 50 * number, np.uint8)
        part = film(tmp_path / f"{number}.{kind}", count, rate=25, codec=codec, draw=lambda *_, shade=shade: shade)
        contents.append(part.read_bytes())
    (path := tmp_path / f"joined.{kind}").write_bytes(b"".join(contents))
    clip, total = read(path, frames=26), sum(counts)
    assert clip.end == pytest.approx(total / 25, abs=0.1)
    shades = [60 + 50 * int(np.searchsorted(np.cumsum(counts), 25 * second + 1e-6)) for second in clip.seconds]
    near = abs(clip.frames.mean((1, 2, 3)) - shades) < 5
    assert near.sum() >= len(clip) - len(counts)  # a frame beside a joint may be either's
    assert clip.note is None


@pytest.mark.parametrize(("kind", "sounds"), [("mp4", "aac"), ("mkv", "aac"), ("ts", "mp2")])
def test_a_film_that_begins_behind_its_sound_has_the_times_of_players(tmp_path, kind, sounds):
    path = late(tmp_path / f"late.{kind}", sounds)
    clip = read(path, frames=4)
    assert clip.seconds == pytest.approx((2.5, 3.5, 4.5, 5.5), abs=0.15)
    assert (clip.start, clip.end) == pytest.approx((2, 6), abs=0.1)
    assert read(path, fps=1, start=3.05, end=5).seconds == pytest.approx((3.05, 4.0), abs=0.15)
    assert clip.metadata()["duration"] == pytest.approx(4, abs=0.1)
    with pytest.raises(InputError, match="from 2"):
        read(path, end=1.5)


def late(path, codec):
    """Six seconds of sound; the film begins two seconds behind it and goes on for four."""
    with av.open(str(path), "w") as container:
        pictures, voice = container.add_stream("libx264", rate=10), container.add_stream(codec, rate=32000)
        pictures.width, pictures.height, pictures.pix_fmt, voice.layout = 64, 48, "yuv420p", "mono"
        pictures.time_base = pictures.codec_context.time_base = Fraction(1, 10)
        for tenth in range(60):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 3200), np.float32), format="fltp", layout="mono")
            if codec == "mp2":
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 3200), np.int16), format="s16", layout="mono")
            silence.rate, silence.pts = 32000, 3200 * tenth
            container.mux(voice.encode(silence))
            if tenth >= 20:
                frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 4 * tenth, np.uint8), format="rgb24")
                frame.pts, frame.time_base = tenth, Fraction(1, 10)
                container.mux(pictures.encode(frame))
        container.mux(voice.encode())
        container.mux(pictures.encode())
    return path


def quadrants(index, count, size):
    """Red, green; blue, white."""
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    tall, wide = size[1] // 2, size[0] // 2
    picture[:tall, :wide], picture[:tall, wide:] = (250, 10, 10), (10, 250, 10)
    picture[tall:, :wide], picture[tall:, wide:] = (10, 10, 250), (250, 250, 250)
    return picture


def corners(frame):
    """The colours of its quadrants, by name."""
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    tall, wide = frame.shape[0] // 4, frame.shape[1] // 4
    return [names[tuple(int(c > 128) for c in frame[y, x])] for y in (tall, -tall) for x in (wide, -wide)]


@pytest.mark.parametrize(
    ("turn", "seen"),
    [
        (QUARTERS[0], ["red", "green", "blue", "white"]),
        (QUARTERS[90], ["blue", "red", "white", "green"]),
        (QUARTERS[180], ["white", "blue", "green", "red"]),
        (QUARTERS[270], ["green", "white", "red", "blue"]),
        ((-1, 0, 0, 1), ["green", "red", "white", "blue"]),
        ((1, 0, 0, -1), ["blue", "white", "red", "green"]),
        ((0, 1, 1, 0), ["red", "blue", "green", "white"]),
    ],
)
def test_a_video_filmed_sideways_or_mirrored_is_upright(tmp_path, turn, seen):
    path = matrix(film(tmp_path / "phone.mp4", 3, size=(64, 32), draw=quadrants), turn)
    frame = read(path, frames=1).frames[0]
    assert frame.shape == ((64, 32, 3) if turn[0] == 0 else (32, 64, 3))
    assert corners(frame) == seen


@pytest.mark.parametrize(("tag", "full"), [(1, 1), (1, 2), (5, 1), (9, 1)], ids=["709", "709 full", "601", "2020"])
def test_colours_are_those_that_the_file_says(tmp_path, tag, full):
    wanted = np.array([[200, 40, 30], [40, 180, 60], [30, 60, 200], [190, 120, 70]], float)
    kr, kb = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}[tag]
    r, g, b = (wanted / 255).T
    luma = kr * r + (1 - kr - kb) * g + kb * b
    u, v = (b - luma) / (2 * (1 - kb)), (r - luma) / (2 * (1 - kr))
    planes = (
        [255 * luma, 128 + 255 * u, 128 + 255 * v] if full == 2 else [16 + 219 * luma, 128 + 224 * u, 128 + 224 * v]
    )
    yuv = np.stack(planes).round().astype(np.uint8).repeat(16, axis=1)[:, None].repeat(64, axis=1)  # (3, 64, 64)
    frame = av.VideoFrame.from_ndarray(yuv, format="yuv444p")
    frame.colorspace, frame.color_range = tag, full
    settings = {"pixels": "yuv444p", "options": {"qp": "2"}, "colorspace": tag, "color_range": full}
    seen = read(encoded(tmp_path / "colours.mp4", frame, **settings), frames=1).frames[0][32, 8::16]
    assert np.abs(seen - wanted).max() <= 4


def test_pixels_that_are_not_square_are_made_square(tmp_path):
    path = encoded(tmp_path / "wide.mp4", quadrants(0, 1, (48, 64)), sample_aspect_ratio=2)
    assert read(path).frames.shape == (1, 64, 96, 3)


@pytest.fixture(scope="module")
def long(folder):
    """Five minutes, 6,000 frames."""
    return film(folder / "long.mp4", 6000, rate=20, size=(32, 32), gop=100)


@pytest.fixture
def decoded(monkeypatch):
    """The times of all frames that are decoded from now on."""
    times, original = [], decoding._Decoder._decode

    def counted(self, *entered, **named):
        for frame in original(self, *entered, **named):
            times.append(frame[1])
            yield frame

    monkeypatch.setattr(decoding._Decoder, "_decode", counted)
    return times


def test_of_a_long_file_only_what_is_near_the_wanted_frames_is_decoded(long, decoded):
    clip = read(long, frames=8)
    assert brightness(clip.frames) == pytest.approx([second / 300 for second in clip.seconds], abs=0.02)
    assert len(decoded) < 8 * 110  # a group of pictures each, of 6,000


@pytest.mark.parametrize("kind", ["ts", "mkv", "avi"])
def test_long_files_without_an_index_of_their_frames_are_read_alike(folder, kind, decoded):
    codec = "mpeg4" if kind == "avi" else "libx264"
    path = film(folder / f"long.{kind}", 3000, rate=20, size=(32, 32), gop=100, codec=codec)
    clip = read(path, frames=4)
    assert brightness(clip.frames) == pytest.approx([second / 150 for second in clip.seconds], abs=0.02)
    assert clip.note is None
    assert len(decoded) < 1500


def test_frames_that_are_near_each_other_are_decoded_once(long, decoded):
    assert len(read(long, fps=2, start=100, end=140)) == 80
    assert len(decoded) < 40 * 20 + 200


def test_a_long_file_with_one_key_frame_is_not_gone_through_for_every_frame(folder, decoded):
    path = film(folder / "endless.mp4", 3000, rate=20, size=(32, 32), gop=100_000)
    clip = read(path, frames=24)
    assert brightness(clip.frames) == pytest.approx([second / 150 for second in clip.seconds], abs=0.02)
    assert len(decoded) < 1.5 * 3000


def test_a_file_that_breaks_off_gives_the_part_that_is_there_and_says_so(folder):
    whole = film(folder / "whole.mp4", 200, size=(160, 120), gop=20, options={"movflags": "faststart"}).read_bytes()
    (path := folder / "broken-off.mp4").write_bytes(whole[: len(whole) * 6 // 10])
    with pytest.warns(
        UserWarning, match=r"broken-off\.mp4 breaks off after \d\.\d of 20\.0 s: \d of 8 frames could"
    ) as w:
        clip = read(path, frames=8)
    assert clip.note == str(w[0].message)
    assert 6 <= len(clip) <= 8
    assert clip.end < 12
    assert brightness(clip.frames) == pytest.approx([second / 19.9 for second in clip.seconds], abs=0.02)


@pytest.mark.parametrize("kind", ["mkv", "ts"])
def test_streams_that_end_early_are_read_to_their_end(folder, kind):
    whole = film(folder / f"whole.{kind}", 200, size=(160, 120)).read_bytes()
    (path := folder / f"half.{kind}").write_bytes(whole[: len(whole) // 2])
    if kind == "mkv":  # a transport stream has no header that promises more
        with pytest.warns(UserWarning, match=r"half\.mkv breaks off after .* of 20\.0 s: 8 of 8 frames"):
            clip = read(path, frames=8)
    else:
        clip = read(path, frames=8)
    assert len(clip) == 8
    assert brightness(clip.frames) == pytest.approx([second / 19.9 for second in clip.seconds], abs=0.02)


def grainy(index, count, size):
    """As `brightening`, with noise, so that no frame is a few bytes."""
    noise = np.random.default_rng(index).integers(-20, 21, (size[1], size[0], 3))
    return (20 + 215 * index / (count - 1) + noise).round().astype(np.uint8)


def test_damage_in_the_middle_leaves_out_what_cannot_be_read_and_says_so(folder):
    data = bytearray(film(folder / "good.mp4", 200, gop=20, draw=grainy).read_bytes())
    start = data.index(b"mdat") + 4
    length = int.from_bytes(data[start - 8 : start - 4], "big") - 8
    third, quarter = start + length // 3, length // 4
    data[third : third + quarter] = np.random.default_rng(0).bytes(quarter)
    (path := folder / "scratched.mp4").write_bytes(data)
    with pytest.warns(UserWarning, match=r"scratched\.mp4 is damaged: \d+ of 16 frames could be read, some of them"):
        clip = read(path, frames=16)
    assert 8 <= len(clip) < 16
    assert np.diff(clip.seconds).min() > 0
    right = [
        abs(seen - (20 + 215 * at / 19.9) / 255) for seen, at in zip(brightness(clip.frames), clip.seconds, strict=True)
    ]
    assert sum(off < 0.02 for off in right) >= len(clip) - 2  # next to the damage they may be smeared


def moving(index, count, size):
    """A picture of noise that moves, so that no two frames are alike."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(noise).resize((size[0] * 2, size[1] * 2), Image.Resampling.BICUBIC))
    return np.ascontiguousarray(wide[index % size[1] :, index % size[0] :][: size[1], : size[0]])


OPEN = {"x264-params": "open-gop=1:keyint=25:bframes=3:scenecut=0"}
GRADUAL = {"x264-params": "intra-refresh=1:keyint=25"}
HEALTHY = [
    *((kind, "libx264", {"bf": "3"}) for kind in ("mp4", "mkv", "ts", "avi", "flv", "mpg")),
    *((kind, "libx264", options) for kind in ("mp4", "ts", "avi") for options in (OPEN, GRADUAL)),
    *((kind, "libx265", {"x265-params": "log-level=none:open-gop=1:keyint=25"}) for kind in ("mp4", "ts")),
    *((kind, "mpeg4", {"bf": "2"}) for kind in ("mp4", "avi", "ts")),
    *((kind, "mpeg2video", {"bf": "2"}) for kind in ("mpg", "ts")),
    ("webm", "libvpx", {}),
    ("webm", "libvpx-vp9", {}),
    ("asf", "wmv2", {}),
    ("mkv", "ffv1", {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "codec", "options"), HEALTHY)
def test_a_frame_does_not_depend_on_the_way_to_it(tmp_path, kind, codec, options):
    path = film(tmp_path / f"film.{kind}", 120, codec=codec, gop=25, draw=moving, stream_options=options)
    every = read(path, frames=200)
    assert (every.note, len(every) > 110) == (None, True)
    for asked in ({"frames": 1}, {"frames": 2}, *({"start": at, "frames": 1} for at in (2.5, 6.0, 9.1))):
        clip = read(path, **asked)
        assert clip.note is None
        for second, frame in zip(clip.seconds, clip.frames, strict=True):
            number = np.searchsorted(every.seconds, second + 1e-6) - 1
            assert (frame == every.frames[number]).all()


@pytest.mark.parametrize(
    ("kind", "codec", "least"),
    [
        ("mp4", "libx264", 1.0),
        *(
            pytest.param(*film, marks=pytest.mark.further)
            for film in [
                ("mkv", "libx264", 0.8), ("ts", "libx264", 0.8), ("avi", "mpeg4", 1.0), ("mpg", "mpeg2video", 1.0),
                ("mp4", "libx265", 0.6),
            ]
        ),
    ],
)  # fmt: skip
def test_films_that_damage_smears_have_a_note(tmp_path, kind, codec, least):
    """Twenty bits of one packet; of the shares that were measured, `least` is a little below."""
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = film(
        tmp_path / f"film.{kind}", 60, codec=codec, draw=moving, size=(160, 128), gop=50, stream_options=options
    )
    right, good, draw = read(path, frames=60), path.read_bytes(), random.Random(1)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.pos]
    smeared = []
    for _ in range(20):
        data = bytearray(good)
        at, size = draw.choice(packets[5:-5])
        for _ in range(20):
            data[at + draw.randrange(size // 3, size)] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            clip = read(path, frames=60)
        levels = abs(clip.frames.astype(int) - right.frames[: len(clip)]).mean((1, 2, 3))
        if len(clip) < len(right) or levels.max() > 4:
            smeared.append(clip.note is not None)
    assert len(smeared) >= 5
    assert np.mean(smeared) >= least


def zeroed(content):
    """A film without the data of any frame."""
    at = content.index(b"mdat") + 4
    length = int.from_bytes(content[at - 8 : at - 4], "big") - 8
    return content[:at] + bytes(length) + content[at + length :]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("zeroed", zeroed, "decoded"),
        ("headless", lambda content: content[: len(content) // 2], "headless"),  # the index comes last
        ("text", lambda _: b"no video at all", "readable"),
        ("zeros", lambda _: b"\x00" * 5000, "readable"),
        ("noise", lambda _: os.urandom(4096), "readable"),
        ("unknown", lambda content: content.replace(b"avc1", b"zzzz"), "Convert"),
    ],
)
def test_what_cannot_be_read_is_refused(folder, steady, name, content, says):
    (path := folder / f"{name}.mp4").write_bytes(content(steady.read_bytes()))
    with pytest.raises(InputError, match=says):
        read(path)


def test_sound_alone_is_refused(tmp_path):
    with pytest.raises(InputError, match="sound"):
        read(sound(tmp_path / "song.m4a"))


PLAYLISTS = {
    "concat": "ffconcat version 1.0\nfile steady.mp4\n",
    "hls": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:6\n#EXTINF:6.0,\nsteady.ts\n#EXT-X-ENDLIST\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>steady.mp4</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_nothing_but_the_file_itself_is_opened(folder, steady, kind):
    film(folder / "steady.ts")
    for ending in ("mp4", "m3u8", "mpd", "sdp", "ffconcat"):
        (path := folder / f"list-{kind}.{ending}").write_text(PLAYLISTS[kind])
        with pytest.raises(InputError, match=r"is a playlist or script that names other|is not a readable video"):
            read(path)


def test_neither_may_a_format_that_is_let_through_open_another_file(folder, steady, monkeypatch):
    monkeypatch.setattr(decoding, "FORMATS", (*decoding.FORMATS, "concat", "hls"))
    (path := folder / "script.mp4").write_text(PLAYLISTS["concat"])
    with pytest.raises(InputError):
        read(path)


@pytest.mark.parametrize("name", ["concat:steady.mp4", "subfile,,start,0,end,0,,:steady.mp4"])
def test_the_name_of_a_protocol_is_a_file_that_is_not_there(folder, steady, monkeypatch, name):
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match="directory"):
        read(name)


def test_a_name_with_a_number_in_it_is_no_pattern(folder, steady):
    film(folder / "scene001.mp4", 3)
    path = folder / "scene%03d.mp4"
    path.write_bytes(steady.read_bytes())
    assert len(read(path, frames=99)) == 60


def test_damaged_videos_end_in_one_line_each(folder, steady, capfd):
    whole, path = steady.read_bytes(), folder / "mutant.mp4"
    draw, lines = np.random.default_rng(0), []
    for _ in range(60):
        mutant = bytearray(whole)
        for place in draw.integers(0, len(whole), 12):
            mutant[place] = draw.integers(256)
        path.write_bytes(mutant[: draw.integers(40, len(whole) + 1)])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                assert len(read(path, frames=4)) <= 4
        except InputError as refused:
            lines.append(str(refused))
    assert lines
    assert all(line.isprintable() for line in lines)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("wide", "says"), [(60_000, "no frame of it can be decoded"), (5_000, "take about")])
def test_frames_that_are_too_large_are_refused_before_they_are_decoded(tmp_path, monkeypatch, wide, says):
    monkeypatch.setattr(memory, "available", lambda: 2.0**28)
    (path := tmp_path / "film.mp4").write_bytes(png_claiming(wide, wide))
    with pytest.raises(InputError, match=says):
        read(path)


def test_room_is_asked_for_by_the_header_and_by_the_first_frame(steady, monkeypatch):
    asked = []
    monkeypatch.setattr(decoding, "check_room", lambda what, *_: asked.append(what))
    height, width = read(steady, frames=4).frames.shape[1:3]
    assert asked.count(f"4 frames of {width} x {height} pixels take") == 2


def test_a_part_behind_the_end_is_refused(steady):
    with pytest.raises(InputError, match="start=7"):
        read(steady, start=7)


def test_without_pyav_the_extra_is_named(steady, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UnsupportedError, match="install"):
        read(steady)


@settings(max_examples=10)
@given(count=st.integers(1, 70), start=st.floats(0, 5.5), length=st.floats(0.05, 6))
def test_what_is_read_is_what_a_viewer_sees(steady, count, start, length):
    clip = read(steady, frames=count, start=start, end=start + length)
    assert 1 <= len(clip) <= count
    assert (np.diff(clip.seconds) > 0).all()
    for second, seen in zip(clip.seconds, brightness(clip.frames), strict=True):
        assert seen == pytest.approx(on_show(steady, second)[1], abs=0.01)
