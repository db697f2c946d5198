"""The CLS tokens inside Video-LLaVA's videos: never a patch, never ranked, always there."""

import pytest
import torch

import foveate as fv
from tests.invariants.settings import EXAMPLES, works
from tests.models import batch, features, generate, tiny

FRAMES, PATCHES = 3, 25
FIRST = [0, 26, 52]


def video(seed=0):
    return batch("video_llava", ["tvt"], seed)


def patches(token):
    """Which patch of the video a token is, frames one after the other."""
    return [one - one // 26 - 1 for one in token]


@pytest.mark.parametrize("name", [name for name in EXAMPLES if works(name, "video_llava", "v")])
def test_the_cls_of_every_frame_stays_at_every_stage(name):
    model, inputs = tiny("video_llava"), video()
    with fv.drop(model, EXAMPLES[name]) as trace:
        generate(model, inputs, new_tokens=2)
    assert trace.vision_tokens == [78]
    for stage in trace.cuts:
        kept, origin = stage.kept[0].tolist(), stage.origin[0].tolist()
        assert set(FIRST) <= set(kept)
        assert len(origin) == stage.after[0] < 78
        for row, members in enumerate(stage.merged[0]):
            first = origin[row] in FIRST
            assert members.tolist() == [origin[row]] if first else not set(FIRST) & set(members.tolist())


def test_tokens_that_no_pictures_and_no_frames_make_are_refused():
    with pytest.raises(fv.SettingError, match="27"):
        fv.cost(tiny("video_llava"), text_tokens=7, vision_tokens=27)


@pytest.mark.parametrize("keep", [0.0, 0.2, 0.5])
def test_shares_are_of_the_patches(keep):
    """Of 75 patches; the three CLS come on top, also where a single patch is left."""
    model, inputs = tiny("video_llava"), video()
    method = fv.V2Drop(layers=(1,), keep=(keep,))
    with fv.drop(model, method) as trace, torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    kept = trace.stages[0].kept[0].tolist()
    assert len(kept) == max(1, int(75 * keep)) + 3 == trace.latest.per_layer[-1][0]
    columns = (inputs["input_ids"][0] == 92).nonzero()[:, 0]
    moved = (states[1] - states[0])[0, columns].norm(dim=-1)
    best = sorted((i for i in range(78) if i not in FIRST), key=lambda i: -moved[i].item())
    assert kept == sorted(FIRST + best[: max(1, int(75 * keep))])
    told = fv.cost(model, text_tokens=7, vision_tokens=78, method=method)
    assert told.tokens == tuple(layer[0] for layer in trace.latest.per_layer)
    assert told.retention == pytest.approx(trace.retention[0])


def test_the_tower_ranks_patches_of_all_frames_together():
    """CLS attention of the eager video tower, frame by frame; the CLS features are the model's own."""
    inputs, model = video(seed=2), tiny("video_llava", "eager")
    method = fv.VisionDrop(dominant=12, contextual=0, layer_list=(), image_token_list=(), reference=75)
    with torch.no_grad():
        tower = model.model.video_tower(inputs["pixel_values_videos"][0], output_attentions=True)
        scores = tower.attentions[1][:, :, 0, 1:].sum(dim=1).flatten()
        (whole,) = features(model, inputs, "video")
        with fv.drop(model, method) as trace:
            (reduced,) = features(model, inputs, "video")
            model(**inputs)
    best = sorted(sorted(range(75), key=lambda i: (-scores[i].item(), i))[:12])
    tokens = [1 + patch + patch // 25 for patch in best]
    assert trace.stages[0].kept[0].tolist() == sorted(FIRST + tokens)
    torch.testing.assert_close(reduced[FIRST], whole[FIRST])
    free = [token for token in range(78) if token not in FIRST]
    torch.testing.assert_close(reduced[free[:12]], whole[tokens])


def test_a_picture_by_its_old_name():
    """transformers' processor gives pictures as pixel_values_images."""
    model, inputs = tiny("video_llava"), batch("video_llava", ["titit"])
    old = {"pixel_values_images" if name == "pixel_values" else name: value for name, value in inputs.items()}
    for method in (fv.VisionDrop(dominant=5, contextual=2, layer_list=(), image_token_list=(), reference=25),
                   fv.MustDrop(pruning_layers=(1,)), fv.Resize(keep=0.4)):  # fmt: skip
        with fv.drop(model, method):
            out = generate(model, inputs)
        with fv.drop(model, method):
            same = generate(model, old)
        assert torch.equal(out.sequences, same.sequences)
