"""Long strips: what the processor would make of them, without the memory that it would take for that."""

import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from foveate import embedded
from foveate.ask import strips
from foveate.ask.pictures import Picture
from foveate.ask.strips import within_reach
from foveate.video import Clip

NEAR = 2.5 / 127.5  # of the processor's values: two shades of 256, in single pixels


@pytest.fixture
def vlm(cropping):
    return cropping


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(vlm, *media, **more):
    return vlm.prepare(list(media), embedded.QUESTION, **more).inputs["pixel_values"].numpy()


def processed(vlm, image):
    """What the processor itself makes of a picture, whatever memory that takes."""
    return np.asarray(vlm.processor.image_processor(image)["pixel_values"])


@pytest.mark.parametrize("size", [(41, 2), (2, 41), (30, 1), (1, 63), (350, 17), (17, 351), (1501, 59), (33, 900)])
def test_of_a_strip_the_model_sees_what_the_processor_keeps_of_it(vlm, size):
    picture = noise(*size)
    seen = pixels(vlm, picture)
    assert seen.shape == (1, 3, 336, 336)
    difference = np.abs(seen - processed(vlm, picture))
    assert difference.max() < NEAR
    assert (difference > 0).mean() < 0.001


@pytest.mark.parametrize("size", [(40, 2), (2, 40), (8, 8), (64, 48), (336, 336), (500, 300), (7392, 350), (336, 6800)])
def test_any_other_picture_goes_to_the_processor_as_it_is(vlm, size):
    picture = noise(*size)
    given = Picture(None, picture)
    assert within_reach(given, vlm.processor).image is picture
    assert np.array_equal(pixels(vlm, picture), processed(vlm, picture))


def test_a_strip_and_a_picture_go_in_together(vlm):
    strip, picture = noise(90, 3), noise(64, 48)
    assert np.array_equal(pixels(vlm, strip, picture)[1:], processed(vlm, picture))
    assert np.array_equal(pixels(vlm, strip, picture)[:1], pixels(vlm, strip))


def test_what_is_shown_and_noted_is_the_strip_itself(vlm):
    strip = noise(90, 3)
    prompt = vlm.prepare(strip, embedded.QUESTION)
    (shown,) = prompt.shown
    assert shown.size == (90, 3)
    assert prompt.notes[0].startswith("the processor cuts off 97% of the picture (left and right)")


def test_frames_of_a_film_as_narrow_are_strips_too(vlm):
    frames = np.stack([np.asarray(noise(90, 3, seed)) for seed in range(2)])
    clip = Clip(Path("film.mp4"), frames, (0.0, 1.0), 0.0, 2.0, 1.0)
    centres = within_reach(clip, vlm.processor)
    assert centres.frames.shape == (2, 336, 336, 3)
    assert np.array_equal(
        centres.frames[1], np.asarray(within_reach(Picture(None, noise(90, 3, 1)), vlm.processor).image)
    )
    square = Clip(Path("film.mp4"), frames[:, :, :3], (0.0, 1.0), 0.0, 2.0, 1.0)
    assert within_reach(square, vlm.processor) is square


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"height": 336, "width": 336}},
        {"size": {"shortest_edge": 336, "longest_edge": 672}},
        {"do_resize": False},
        {"crop_size": {"height": 224, "width": 224}},
        {"crop_size": None},
    ],
)
def test_processors_that_do_anything_else_get_the_strip(settings):
    usual = {
        "size": {"shortest_edge": 336},
        "crop_size": {"height": 336, "width": 336},
        "do_resize": True,
        "resample": Image.Resampling.BICUBIC,
    }
    strip = Picture(None, noise(90, 3))
    taken = within_reach(strip, SimpleNamespace(image_processor=SimpleNamespace(**usual)))
    assert taken.image.size == (336, 336)
    processor = SimpleNamespace(image_processor=SimpleNamespace(**usual | settings))
    assert within_reach(strip, processor).image is strip.image


PEAK = """
import resource, sys
from PIL import Image
import foveate as fv
vlm = fv.load()
vlm.prepare(Image.new("RGB", (336, 336)), "What is this?")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for size in ((2000, 1), (1, 10_000), (65_535, 1)):
    vlm.prepare(Image.new("RGB", size), "What is this?")
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def test_a_strip_takes_no_more_memory_than_any_picture():
    limit = 8 * 2**30  # where this fails, the machine is not to go down with it

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, preexec_fn=limited)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100 * 2**20


@pytest.mark.parametrize("size", [(300, 3), (301, 1), (2, 257), (299, 14)])
def test_a_small_square_is_the_large_one_made_smaller(size, monkeypatch):
    monkeypatch.setattr(strips, "LARGE", 100)
    strip = Image.effect_noise(size, 90).convert("RGB")
    side, (width, height) = max(size), size
    times = -(-side // 100)
    whole = Image.new("RGB", (-(-side // times) * times,) * 2, (127, 120, 104))
    whole.paste(strip, ((side - width) // 2, (side - height) // 2))
    small = strips.small_square(strip, (127, 120, 104))
    assert small.size == (whole.width // times,) * 2
    apart = np.abs(np.asarray(small, dtype=int) - np.asarray(whole.reduce(times), dtype=int))
    assert apart.max() <= 1
    assert strips.is_strip(size)
