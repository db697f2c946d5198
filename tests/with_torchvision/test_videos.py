"""Videos end to end: a real file, the command line, real processors, tiny random models."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import foveate as fv
from foveate.ask.loading import load
from foveate.video import read
from tests import oracle
from tests.cli.checkpoints import TEMPLATE, save_qwen3_5
from tests.films import film

FAMILIES = ("qwen2_vl", "llava_onevision")
TOKENS = {"qwen2_vl": lambda frames: 12 * ((frames + 1) // 2), "llava_onevision": lambda frames: 9 * frames + 1}
QUESTION = ("--prompt", "What happens ?", "--max-new-tokens", 2)
THIRD = ("--retention", 1 / 3)
CLOSE = {"atol": 5e-5, "rtol": 1e-4}


def moving(index, count, size):
    """A bright square on noise goes from left to right."""
    picture = np.random.default_rng(index // 4).integers(0, 120, (size[1], size[0], 3), dtype=np.uint8)
    left = (size[0] - 20) * index // max(1, count - 1)
    picture[10:30, left : left + 20] = (240, 230, 40)
    return picture


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Six seconds, 112 x 84."""
    return film(tmp_path_factory.mktemp("clips") / "clip.mp4", size=(112, 84), draw=moving)


@pytest.fixture(scope="module")
def loaded(folders):
    return {family: load(str(folder), device="cpu") for family, folder in folders.items()}


@pytest.mark.parametrize(("frames", "family"), [(9, "qwen2_vl"), (8, "llava_onevision")])
def test_generate_answers_about_a_video_file(run, folders, clip, tmp_path, family, frames):
    figure = tmp_path / "kept.png"
    asked = (clip, *QUESTION, "--model", folders[family], "--frames", frames, "--figure", figure, "--json", *THIRD)
    code, out, err = run("generate", *asked)
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["vision_tokens"] == [TOKENS[family](frames)]
    assert told["videos"] == [
        {
            "path": str(clip),
            "frames": frames,
            "seconds": pytest.approx([6 * (at + 0.5) / frames for at in range(frames)], abs=0.1),
            "note": None,
        }
    ]
    assert told["images"] == []
    method = fv.V2Drop.from_dict(told["setting"])
    assert told["mean_tokens"] == pytest.approx(sum(method.plan(28, told["vision_tokens"])) / 28)
    assert told["cost"]["retention"] == pytest.approx(told["retention"])
    assert told["cost"]["tower_flops"] > 0
    kept = told["trace"]["kept_by_frame"][0]
    assert [sum(counts) for counts in kept] == [stage["after"][0] for stage in told["trace"]["stages"]]
    assert len(kept[0]) == ((frames + 1) // 2 if family == "qwen2_vl" else frames)
    with Image.open(figure) as drawn:
        assert drawn.width > 700


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_model_gets_is_what_its_own_processor_makes_of_the_frames(loaded, clip, family):
    one, clip_read = loaded[family], read(clip, frames=6)
    inputs = one.prepare([clip_read], "What happens ?").inputs
    frames = [Image.fromarray(frame) for frame in clip_read.frames]
    content = [{"type": "video", "video": frames}, {"type": "text", "text": "What happens ?"}]
    own = one.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"do_sample_frames": False},
    )
    assert torch.equal(inputs["input_ids"], own["input_ids"])
    torch.testing.assert_close(inputs["pixel_values_videos"], own["pixel_values_videos"])


def test_a_film_of_one_frame_is_that_of_two_alike_where_a_processor_takes_no_less(tmp_path):
    one = load(str(save_qwen3_5(tmp_path)), device="cpu")
    place = "<|vision_start|><|video_pad|><|vision_end|> "
    one.processor.chat_template = TEMPLATE.replace("MEDIA", place)
    frame = moving(0, 1, (112, 84))
    single, double = (one.prepare([[frame] * count], "What is this ?") for count in (1, 2))
    assert torch.equal(single.inputs["pixel_values_videos"], double.inputs["pixel_values_videos"])
    assert single.vision_tokens == double.vision_tokens
    answer = one.answer(single, "v2drop", retention=0.5)
    assert answer.retention == pytest.approx(0.5, abs=0.05)
    assert answer.trace.show(*single.shown)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scope", ["sample", "frame"])
def test_dropping_is_the_independent_recompute(loaded, clip, family, scope):
    one = loaded[family]
    inputs = one.prepare([read(clip, frames=8)], "What happens ?").inputs
    method = fv.V2Drop(layers=(3, 16, 22), keep=(0.5, 0.3, 0.2), scope=scope)
    with fv.drop(one.model, method) as trace, torch.no_grad():
        out = one.model.generate(
            **inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
    start = inputs["input_ids"].shape[1]
    cuts = {stage.layer: stage.kept[0] for stage in trace.stages}
    with torch.no_grad():
        logits, _ = oracle.forward(one.model, inputs, out.sequences[0, start:-1], cuts)
    torch.testing.assert_close(torch.cat(out.logits), logits, **CLOSE)
    counts = trace.kept_by_frame()[0]
    assert (max(counts) - min(counts) <= 1) == (scope == "frame")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_videos_is_each_alone(loaded, clip, family):
    one = loaded[family]
    clips = [read(clip, frames=4), read(clip, frames=4, start=2)]
    alone = [one.prepare([each], "What happens ?").inputs for each in clips]
    together = {name: torch.cat([each[name] for each in alone]) for name in alone[0]}
    method = fv.V2Drop(layers=(3, 16), keep=(0.5, 0.3), scope="frame")
    with fv.drop(one.model, method) as trace, torch.no_grad():
        logits = one.model(**together, logits_to_keep=1).logits
    for index, each in enumerate(alone):
        with fv.drop(one.model, method) as single, torch.no_grad():
            expected = one.model(**each, logits_to_keep=1).logits
        torch.testing.assert_close(logits[index], expected[0], **CLOSE)
        assert trace.stages[1].kept[index].tolist() == single.stages[1].kept[0].tolist()


def test_videos_of_unequal_length_that_a_model_does_not_take_are_refused_with_what_to_do(run, folders, clip, tmp_path):
    short = film(tmp_path / "short.mp4", 3)
    asked = (clip, short, *QUESTION, "--json", "--frames")
    assert json.loads(run("generate", *asked, 4, "--model", folders["qwen2_vl"])[1])["vision_tokens"] == [24, 8]
    code, out, err = run("generate", *asked, 4, "--model", folders["llava_onevision"])
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "refuses 4 frames of 112 x 84, 3 frames of 64 x 48 pixels: " in err
    assert err.endswith("Take the same number of frames of each video: 3.\n")
    told = json.loads(run("generate", *asked, 3, "--model", folders["llava_onevision"])[1])
    assert told["vision_tokens"] == [56]  # nothing stands between them
