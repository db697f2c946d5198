"""A tower on some of its patches: as a run of all that hides the others' keys."""

import copy
import inspect
import itertools

import pytest
import torch
from transformers import AttentionInterface, vision_utils

import foveate as fv
from foveate.core.cut import Cut
from foveate.registry import family_for
from tests.models import QWENS, given, tiny

GRIDS = {
    "image": [[[1, 6, 8], [1, 20, 14], [1, 4, 4], [1, 2, 30]], [[1, 2, 2], [1, 18, 18]]],
    "video": [[[3, 10, 12], [2, 6, 6]]],
}
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
NAMES = {"image": "pixel_values", "video": "pixel_values_videos"}
INPUTS = [(modality, grids) for modality, several in GRIDS.items() for grids in several]


class Chosen:
    """In the place of the engine's reducer: these tokens stay; None: all of an image."""

    def __init__(self, stays):
        self.stays = stays

    def leave(self, views):
        kept = zip(views, self.stays, strict=True)
        return [None if stays is None else Cut.take(stays.nonzero()[:, 0], len(view)) for view, stays in kept]


def pictures(model, modality, grids):
    """What `get_*_features` takes."""
    vision, rng = model.config.vision_config, torch.Generator().manual_seed(0)
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    thw = torch.tensor(grids)
    pixels = torch.randn(int(thw.prod(-1).sum()), width, generator=rng)
    return {NAMES[modality]: pixels, f"{modality}_grid_thw": thw}


def chosen(grids, share):
    """Some tokens of each image at random; the first frame of each video, and the first rows, lose all."""
    rng, stays = torch.Generator().manual_seed(1), []
    for times, height, width in grids:
        of_image = torch.rand(times, height // 2, width // 2, generator=rng) < share
        if share < 0.5:
            of_image[0, : 1 if times == 1 else height] = False
        of_image[-1, -1, -1] = True
        stays.append(of_image.flatten())
    return stays


def on_subset(model, modality, inputs, stays):
    """The features of each image, and deepstack's, as the family makes them of these tokens."""
    known, call = family_for(model), getattr(model.model, f"get_{modality}_features")
    with torch.no_grad():
        output, cuts = known.encode_subset(lambda: call(**inputs), modality, inputs, Chosen(stays))
    assert [len(cut.source) for cut in cuts if cut is not None] == [int(one.sum()) for one in stays if one is not None]
    return features_of(output)


def features_of(output):
    """The features of each image, then deepstack's of each depth, which transformers 5.16 keeps in one tensor."""
    images, depths = list(output.pooler_output), getattr(output, "deepstack_features", None) or []
    sizes = [len(image) for image in images]
    whole = [torch.cat(tuple(deep)) if not torch.is_tensor(deep) else deep for deep in depths]
    return [images, *(list(deep.split(sizes)) for deep in whole)]


def window_order(model, grids):
    """The tokens in the order in which the blocks have them."""
    visual = model.model.visual
    if not hasattr(visual, "window_size"):
        return torch.arange(sum(t * h * w for t, h, w in grids) // 4)
    return vision_utils.get_vision_window_index(torch.tensor(grids), 2, visual.window_size, visual.patch_size)[0]


def hidden_keys(module, query, key, value, attention_mask=None, scaling=None, **_):
    """Attention that sees the keys of patches that stay; those of `hidden_keys.stays` are of all patches, in order."""
    start = hidden_keys.start
    seen = hidden_keys.stays[start : start + key.shape[2]]
    hidden_keys.start = (start + key.shape[2]) % len(hidden_keys.stays)
    logits = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, -1e30)
    return (logits.softmax(-1) @ value).transpose(1, 2), None


AttentionInterface.register("hidden_keys", hidden_keys)


@pytest.mark.parametrize("share", [0.6, 0.1])
@pytest.mark.parametrize("family", QWENS)
def test_the_rest_is_what_a_run_of_all_makes_of_it_with_hidden_keys(family, share):
    model = tiny(family, "eager" if share < 0.5 else "sdpa")
    whole = copy.deepcopy(model)
    whole.model.visual.config._attn_implementation = "hidden_keys"
    for modality, grids in INPUTS:
        inputs, stays = pictures(model, modality, grids), chosen(grids, share)
        hidden_keys.stays = torch.cat(stays)[window_order(model, grids)].repeat_interleave(4)
        hidden_keys.start = 0
        with torch.no_grad():
            wanted = features_of(getattr(whole.model, f"get_{modality}_features")(**inputs))
        got = on_subset(model, modality, inputs, stays)
        assert len(got) == len(wanted) == 1 + len(getattr(model.model.visual, "deepstack_merger_list", ()))
        for ours, theirs in zip(itertools.chain(*got), itertools.chain(*wanted), strict=True):
            assert ours.shape == theirs.shape
        for depth in range(len(got)):
            for ours, theirs, kept in zip(got[depth], wanted[depth], stays, strict=True):
                left = int(kept.sum())
                torch.testing.assert_close(ours[:left], theirs[kept], **CLOSE)
                assert not ours[left:].any()


@pytest.mark.parametrize("family", QWENS)
def test_all_of_them_are_the_plain_tower_bit_for_bit(family):
    model = tiny(family)
    for modality, grids in INPUTS:
        inputs = pictures(model, modality, grids)
        with torch.no_grad():
            plain = features_of(getattr(model.model, f"get_{modality}_features")(**inputs))
        whole = [torch.ones(t * h * w // 4, dtype=torch.bool) for t, h, w in grids]
        for ours, theirs in zip(on_subset(model, modality, inputs, whole), plain, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        assert "forward" not in vars(model.model.visual)


def test_an_image_that_keeps_all_beside_one_that_does_not():
    model = tiny("qwen2_5_vl")
    grids = [[1, 6, 8], [1, 8, 8]]
    inputs, stays = pictures(model, "image", grids), chosen(grids, 0.3)
    with torch.no_grad():
        plain = model.model.get_image_features(**inputs).pooler_output
    (first, second), *_ = on_subset(model, "image", inputs, [None, stays[1]])
    torch.testing.assert_close(first, plain[0])
    assert not second[int(stays[1].sum()) :].any()


@pytest.mark.parametrize("family", QWENS)
def test_the_tower_takes_every_argument_by_the_name_it_is_given(family):
    """Where transformers renames one, the tower would make its own of the whole grid, and fail by shapes at best."""
    model = tiny(family)
    known, grids = family_for(model), torch.tensor([[1, 6, 8], [1, 4, 4]])
    arguments = known.subset_arguments(grids, torch.ones(64, dtype=torch.bool))
    source = inspect.getsource(vision_utils)
    for name in set(arguments) - {"grid_thw"}:
        assert f'kwargs.pop("{name}"' in source
    seen = {}
    hook = model.model.visual.blocks[0].register_forward_pre_hook(
        lambda block, args, kwargs: seen.update(kwargs), with_kwargs=True
    )
    inputs = pictures(model, "image", grids.tolist())
    on_subset(model, "image", inputs, chosen(grids.tolist(), 0.5))
    hook.remove()
    left = {"position_ids", "interp_indices", "interp_weights", "window_index", "cu_window_seqlens"} & set(seen)
    assert not left


@pytest.mark.parametrize("name", ["image_cu_seqlens", "image_position_ids", "cu_seqlens", "image_max_seqlen"])
def test_what_a_user_has_made_of_all_patches_is_refused(name):
    model = tiny("qwen2_vl")
    inputs = pictures(model, "image", [[1, 4, 4]])
    with (
        fv.drop(model, fv.PixelPrune()),
        pytest.raises(fv.UnsupportedError, match=f"{name} describes all patches"),
        torch.no_grad(),
    ):
        model.model.get_image_features(**inputs, **{name: torch.tensor([0, 16], dtype=torch.int32)})


def test_what_is_of_the_other_modality_is_left_to_transformers():
    model = tiny("qwen2_vl")
    inputs = pictures(model, "image", [[1, 4, 4]])
    with fv.drop(model, fv.PixelPrune()), torch.no_grad():
        model.model.get_image_features(**inputs, video_cu_seqlens=torch.tensor([0, 1]))
    assert given(model, inputs) == inputs
