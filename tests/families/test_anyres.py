"""Pictures of any resolution: tile order, unpadding and newlines, against loops written by hand."""

import pytest
import torch

import foveate as fv
from foveate.families.llava_next import LlavaNext
from foveate.methods.resize import Resize
from foveate.registry import family_for
from tests.families.llavas import next_video
from tests.models import cuts_of, made_of, tiny


def prompt(size: tuple[int, int], seed: int = 0) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {"pixel_values": torch.randn(1, 5, 3, 70, 70, generator=rng), "image_sizes": torch.tensor([size])}


def tokens_of(given: dict[str, torch.Tensor], family: str = "llava_next") -> int:
    with torch.no_grad():
        return len(tiny(family).model.get_image_features(**given).pooler_output[0])


def test_boxes_against_a_hand_calculation():
    """A picture 200 wide and 33 high goes on three tiles of 70 in a row, 15 x 5 patches of which the middle three rows
    are picture: scaled by 210 / 200 it is 34.65 pixels high, 2 patches and a bit, and an even number of rows leaves."""
    inputs = prompt((33, 200))
    assert tokens_of(inputs) == 25 + 3 * (15 + 1)
    (picture,) = LlavaNext.pictures(tiny("llava_next").config, "image", inputs, [73])
    boxes = picture.boxes
    assert boxes[7].tolist() == pytest.approx([2 / 5, 1 / 5, 3 / 5, 2 / 5])  # base view, second row, third column
    assert boxes[25].tolist() == pytest.approx([0, 0, 1 / 15, 1 / 3])
    assert boxes[25 + 16 + 3].tolist() == pytest.approx([3 / 15, 1 / 3, 4 / 15, 2 / 3])
    assert boxes.isnan().any(-1).nonzero()[:, 0].tolist() == [40, 56, 72]  # a newline behind every row


@pytest.mark.parametrize("size", [(140, 90), (70, 70), (60, 140), (140, 140), (33, 200), (200, 33), (71, 70), (9, 400)])
@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_every_token_has_a_box_for_any_shape_and_newlines_close_every_row(family, size):
    inputs = prompt(size)
    count = tokens_of(inputs, family)
    (picture,) = family_for(tiny(family)).pictures(tiny(family).config, "image", inputs, [count])
    boxes = picture.boxes
    nowhere = boxes.isnan().any(-1)
    assert len(boxes) == count
    assert nowhere[-1]
    assert not nowhere[:25].any()
    assert nowhere.sum() == max(1, len(boxes[25:][~nowhere[25:]][:, 1].unique()))


@pytest.mark.parametrize(("size", "left"), [((4, 400), 9 + 10), ((1, 400), 9 + 7), ((400, 1), 9 + 5)])
def test_a_smaller_picture_so_long_that_next_to_nothing_of_its_map_is_left(size, left):
    """A base view of 3 x 3, and one row with its newline, or the newlines of rows of which the model keeps nothing."""
    inputs, model = prompt(size), tiny("llava_next")
    with fv.drop(model, Resize(keep=0.4)), torch.no_grad():
        (small,) = model.model.get_image_features(**inputs).pooler_output
    cut = small._foveate.cut
    assert len(small) == tokens_of(inputs) == len(cut.parent)
    assert sorted(set(cut.parent.tolist())) == list(range(left))
    assert small[:left].any(dim=-1).all()
    assert not small[left:].any()


@pytest.mark.parametrize(
    ("size", "down", "across"), [((140, 90), 2, 2), ((33, 200), 1, 3), ((200, 33), 3, 1), ((60, 140), 1, 2)]
)
def test_the_tower_ranks_patches_of_all_crops_and_padding_never_stays(size, down, across):
    """CLS attention from the eager tower, and a loop that stitches and unpads by hand."""
    inputs = prompt(size, seed=3)
    model = tiny("llava_next", "eager")
    with torch.no_grad():
        crops = inputs["pixel_values"][0, : 1 + down * across]
        attention = model.model.vision_tower(crops, output_attentions=True).attentions[1]  # layer -2 of three
    scores = attention[:, :, 0, 1:].sum(dim=1)  # (crops, 25)
    height, width = size
    scale = min(5 * down / height, 5 * across / width)
    top = (5 * down - int(round(height * scale, 7))) // 2
    left = (5 * across - int(round(width * scale, 7))) // 2
    told = [(float(scores[0, cell]), cell) for cell in range(25)]
    at = 25
    for row in range(top, 5 * down - top):
        for column in range(left, 5 * across - left):
            crop = 1 + (row // 5) * across + column // 5
            told.append((float(scores[crop, row % 5 * 5 + column % 5]), at))
            at += 1
        at += 1  # the newline
    count = tokens_of(inputs)
    assert at == count
    expected = sorted(index for _, index in sorted(told, key=lambda pair: (-pair[0], pair[1]))[:12])
    method = fv.VisionDrop(dominant=12, contextual=0, layer_list=(), image_token_list=(), reference=count)
    with fv.drop(model, method), torch.no_grad():
        (features,) = model.model.get_image_features(**inputs).pooler_output
    with torch.no_grad():
        (whole,) = model.model.get_image_features(**inputs).pooler_output
    assert features._foveate.cut.source.tolist() == expected
    torch.testing.assert_close(features[:12], whole[expected])
    assert not features[12:].any()


def test_a_base_view_alone_keeps_its_newline():
    """No pinpoint makes one, but the model packs one so."""
    (picture,) = LlavaNext.pictures(tiny("llava_next").config, "image", {"image_sizes": torch.tensor([[70, 70]])}, [26])
    boxes = picture.boxes
    assert boxes.isnan().any(-1).tolist() == [False] * 25 + [True]


def video(mode, seed=0):
    config = next_video(spatial_pool_mode=mode)
    config._attn_implementation = "eager"
    return made_of("llava_next_video", config).model, torch.randn(
        2, 3, 3, 70, 70, generator=torch.Generator().manual_seed(seed)
    )


@pytest.mark.parametrize("mode", ["average", "max", "conv"])
def test_a_next_videos_frames_are_scored_as_they_are_pooled(mode):
    """5 x 5 patches make 2 x 2 tokens, the last row and column none; behind a convolution scores are averaged."""
    model, pixels = video(mode)
    method = fv.VisionDrop(dominant=5, contextual=0, layer_list=(), image_token_list=(), reference=12)
    with torch.no_grad():
        whole = model.get_video_features(pixels).pooler_output
        with fv.drop(model, method):
            reduced = model.get_video_features(pixels)
        attention = model.vision_tower(pixels.flatten(0, 1), output_attentions=True).attentions[1]
    patches = attention[:, :, 0, 1:].sum(dim=1).view(2, 3, 5, 5)
    for index in range(2):
        scores = []
        for frame in range(3):
            for row in range(2):
                for column in range(2):
                    cell = patches[index, frame, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
                    scores.append(float(cell.max() if mode == "max" else cell.mean()))
        best = sorted(sorted(range(12), key=lambda one: -scores[one])[:5])
        assert cuts_of(reduced)[index].source.tolist() == best
        torch.testing.assert_close(reduced.pooler_output[index, :5], whole[index, best])
        assert not reduced.pooler_output[index, 5:].any()


@pytest.mark.parametrize("mode", ["average", "conv"])
def test_a_next_videos_smaller_frames_are_pooled_as_the_model_pools(mode):
    model, pixels = video(mode, seed=1)
    small = torch.nn.functional.interpolate(pixels.flatten(0, 1), (28, 28), mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = model.get_video_features(small.view(2, 3, 3, 28, 28), interpolate_pos_encoding=True).pooler_output
        with fv.drop(model, fv.Resize(keep=0.3)):
            got = model.get_video_features(pixels)
    assert expected.shape[1] == 3
    torch.testing.assert_close(got.pooler_output[:, :3], expected)
    assert [cut.source.tolist() for cut in cuts_of(got)] == [[3, 7, 11]] * 2
