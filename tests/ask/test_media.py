"""What a processor would cut off is said, and shown whole on a square where that is asked for."""

import os
import time

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaImageProcessorPil

import foveate as fv
from foveate import embedded
from foveate.ask.media import Picture, as_frames, crop_note, read_media, read_once, square
from foveate.errors import InputError, SettingError
from foveate.plain import memory
from foveate.video import read
from tests.ask.conftest import clip_of, random_vlm
from tests.films import film

QUESTION = embedded.QUESTION


@pytest.fixture
def vlm(cropping):
    return cropping


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(vlm, *given, **more):
    return vlm.prepare(*given, **more).inputs["pixel_values"]


@pytest.mark.parametrize(
    ("size", "share", "sides"),
    [((672, 336), "50%", "left and right"), ((336, 672), "50%", "top and bottom"), ((448, 336), "25%", "left and")],
)
def test_the_note_says_the_share_that_is_cut_off(vlm, size, share, sides):
    picture = noise(*size)
    (note,) = vlm.prepare(picture, QUESTION).notes
    assert note.startswith(f"the processor cuts off {share} of the picture ({sides}")
    # Really so much: what the processor makes of the middle alone is the same.
    short = min(size)
    left, top = (size[0] - short) // 2, (size[1] - short) // 2
    middle = picture.crop((left, top, left + short, top + short))
    assert torch.equal(pixels(vlm, picture, QUESTION), pixels(vlm, middle, QUESTION))


@pytest.mark.parametrize("size", [(336, 336), (100, 100), (400, 397)])
def test_of_a_square_nothing_is_said(vlm, size):
    assert crop_note(Picture(None, noise(*size))) is None
    assert vlm.prepare(noise(*size), QUESTION).notes == ()


def test_a_padded_picture_is_that_of_a_square_padded_by_hand(vlm):
    picture = noise(672, 336)
    whole = pixels(vlm, picture, QUESTION, fit="pad")
    by_hand = Image.new("RGB", (672, 672), (127, 127, 127))
    by_hand.paste(picture, (0, 168))
    assert torch.equal(whole, pixels(vlm, by_hand, QUESTION))
    assert not torch.equal(whole, pixels(vlm, picture, QUESTION))
    assert vlm.prepare(picture, QUESTION, fit="pad").notes == ()
    (shown,) = vlm.prepare(picture, QUESTION, fit="pad").shown
    assert shown.tobytes() == by_hand.tobytes()


def test_a_square_picture_stays_as_it_is_bit_for_bit(vlm, demo):
    assert square(demo, vlm.processor).tobytes() == demo.tobytes()
    assert torch.equal(pixels(vlm, demo, QUESTION), pixels(vlm, demo, QUESTION, fit="pad"))
    assert vlm.ask(demo, QUESTION, fit="pad").text == "36KUM"


def test_frames_of_a_clip_are_noted_and_padded_too(vlm):
    pictures = [noise(64, 32, seed) for seed in range(2)]
    clip = clip_of(*pictures)
    notes = vlm.prepare(clip, QUESTION).notes
    assert notes[1].startswith("the processor cuts off 50% of film.mp4 (left and right)")
    prompt = vlm.prepare(clip, QUESTION, fit="pad")
    assert len(prompt.notes) == 1
    by_hand = [square(picture, vlm.processor) for picture in pictures]
    assert torch.equal(prompt.inputs["pixel_values"], pixels(vlm, by_hand, QUESTION))
    assert prompt.clips[0].frames.shape == (2, 64, 64, 3)
    assert prompt.clips[0].seconds == clip.seconds


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3", "llava_next", "internvl"])
def test_processors_that_show_all_of_a_picture_crop_nothing(family):
    """Tiles and squeezed pictures lose nothing, whatever their processors' settings say."""
    vlm = random_vlm(family)
    vlm.processor.image_processor = fv.load().processor.image_processor
    assert not vlm.crops


def test_few_frames_do_where_nobody_said_how_many():
    clip = clip_of(*(noise(8, 8, seed) for seed in range(7)))
    taken, words = as_frames(clip, few=True)
    assert (len(taken), words) == (
        3,
        "this model reads no videos: of the 7 frames read of film.mp4, 3 go in as pictures.",
    )
    taken, words = as_frames(clip, few=False)
    assert (taken, words) == (clip, "this model reads no videos: the 7 frames of film.mp4 go in as pictures.")
    taken, words = as_frames(clip_of(noise(8, 8)), few=True)
    assert words == "this model reads no videos: the one frame of film.mp4 goes in as a picture."


def test_a_processor_that_pads_shows_all_of_a_picture_without_a_word(vlm):
    images = vlm.processor.image_processor
    picture, pads = noise(300, 200), vlm.pads
    vlm.processor.image_processor = LlavaImageProcessorPil(
        do_pad=True,
        size=images.size,
        crop_size=images.crop_size,
        image_mean=images.image_mean,
        image_std=images.image_std,
    )
    try:
        assert vlm.pads
        prompt = vlm.prepare(picture, QUESTION)
        raw = vlm.processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    finally:
        vlm.processor.image_processor = images
    assert vlm.pads == pads
    assert prompt.notes == ()
    (shown,) = prompt.shown
    assert shown.size == (300, 300)
    assert torch.equal(prompt.inputs["pixel_values"], raw)


@pytest.mark.parametrize("how", [{"fit": "pad"}, {"protocol": "llava"}])
def test_a_square_that_does_not_fit_into_memory_is_refused(vlm, monkeypatch, how):
    monkeypatch.setattr(memory, "available", lambda: 2.0**30)
    with pytest.raises(InputError, match=r"11\.7 GiB"):
        vlm.prepare(noise(30_000, 200), QUESTION, **how)


@pytest.mark.parametrize("size", [(201, 1), (3, 60_000)])
def test_a_line_of_pixels_is_refused(vlm, size):
    with pytest.raises(InputError, match=f"A picture is {size[0]} x {size[1]} pixels, more than 200 times as long"):
        vlm.prepare(noise(*size), QUESTION)


def test_an_array_without_pixels_is_no_picture():
    with pytest.raises(InputError, match="not empty"):
        read_media(np.zeros((0, 5, 3), np.uint8))


@pytest.mark.parametrize("keeps", [False, True], ids=["times change", "size and time stay"])
def test_a_file_that_is_written_again_is_read_again(tmp_path, keeps):
    path, shelf, seen = tmp_path / "one.png", {}, []
    for colour in ("red", "blue", "red", "lime"):
        Image.new("RGB", (8, 8), colour).save(path, compress_level=0)  # of one size
        if keeps:
            os.utime(path, (0, 0))
        (picture,) = read_once(str(path), None, None, shelf)
        seen.append(picture.image.getpixel((0, 0)))
    assert seen == [(255, 0, 0), (0, 0, 255), (255, 0, 0), (0, 255, 0)]


def test_a_file_that_stays_is_read_once(tmp_path, monkeypatch):
    noise(8, 8).save(path := tmp_path / "one.png")
    for old in (False, True):
        if old:
            monkeypatch.setattr(time, "time", lambda: path.stat().st_ctime + 3600)
        shelf = {}
        first, again = (read_once((path,), None, None, shelf)[0] for _ in range(2))
        assert first is again


def test_frames_that_a_processor_has_no_room_for_are_refused_before_they_are_read(tmp_path, monkeypatch):
    path = film(tmp_path / "film.mp4", 40, size=(320, 240))
    monkeypatch.setattr(memory, "available", lambda: 40 * 320 * 240 * 20.0)
    with pytest.raises(SettingError, match="40 frames"):
        read_media(path, frames=40)
    assert len(read(path, frames=40)) == 40
    assert len(read_media(path, frames=20)[0]) == 20
