"""Patches that leave before towers which need all of them: as full-length blocks in which rows that left are copies."""

import copy
import functools
import itertools
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
from foveate.methods.pixelprune import PixelPrune
from tests import oracle
from tests.families import test_thinning as thinning
from tests.families.test_thinning import CLOSE, failing, features, hooks, of_copies, places_of, seen, strong, tower_of
from tests.methods.test_pixelprune import looped
from tests.models import IMAGE, QWENS, VIDEO, batch, generate, given, tiny, with_video

MODALITIES = [pair for pair in thinning.MODALITIES if pair[0] not in QWENS]
RETURNS = [family for family, modality in MODALITIES if modality == "image"]
CLS = {"video_llava": "video"}
"""Where each frame has a CLS among the vision tokens."""


def unit_of(config):
    """Patches of the side of a token that is made of a block of them, in words of the test alone."""
    if hasattr(config, "scale_factor"):
        return config.scale_factor
    if hasattr(config, "downsample_ratio"):
        return round(1 / config.downsample_ratio)
    if hasattr(config, "mm_tokens_per_image"):
        side = config.vision_config.image_size // config.vision_config.patch_size
        return side // math.isqrt(config.mm_tokens_per_image)
    return config.spatial_merge_size if config.model_type == "mistral3" else 1


def patch_of(config):
    patch = config.vision_config.patch_size
    return patch if isinstance(patch, int) else patch[0]


def painted(family, words):
    """Inputs whose pictures are made of squares of three colours, one a unit; padding stays as it is."""
    inputs, config = batch(family, words), tiny(family).config
    side = unit_of(config) * patch_of(config)
    for name in [name for name in inputs if name.startswith("pixel_values")]:
        pixels = inputs[name]
        rows, columns = (torch.arange(length) // side for length in pixels.shape[-2:])
        # By what a picture was before, so that it is the same alone and in any batch.
        mark = (1000 * pixels[..., :1, 0, 0].abs()).long()[..., None, None]
        drawn = (mark // (1 + rows[:, None] // 2) + columns // 3 * (mark + rows[:, None])) % 3 / 2.0 - 0.4
        inputs[name] = torch.where(pixels == 0, pixels, drawn.expand_as(pixels))
    return inputs


def units_that_stay(pictures, config):
    """Patches of each picture, (channels, height, width), whose unit stays, by loops: (rows, columns) bool."""
    side, patch, cells = unit_of(config), patch_of(config), []
    for picture in pictures:
        pixels = side * patch
        rows, columns = (length // pixels for length in picture.shape[1:])
        units = [
            picture[:, r * pixels : (r + 1) * pixels, c * pixels : (c + 1) * pixels].flatten()
            for r, c in itertools.product(range(rows), range(columns))
        ]
        stay, _ = looped(torch.stack(units).view(1, rows, columns, -1), torch.equal)
        patches = torch.ones([length // patch for length in picture.shape[1:]], dtype=torch.bool)
        for r, c in itertools.product(range(rows), range(columns)):
            patches[r * side : (r + 1) * side, c * side : (c + 1) * side] = stay[0, r, c]
        cells.append(patches)
    return cells


def pictures_of(args, kwargs):
    """What the tower is given, picture by picture without padding."""
    pixels = args[0] if args else kwargs["pixel_values"]
    if "image_sizes" in kwargs:
        return [
            one[:, :h, :w] for one, (h, w) in zip(pixels, torch.as_tensor(kwargs["image_sizes"]).tolist(), strict=True)
        ]
    return list(pixels)


def fed_by(model, modality, run, segments, kept):
    """Which tokens change with rows of the tower that stay: with these in each segment, or with any."""
    _, blocks, read = tower_of(model, modality)

    def ran(seed, places):
        def leave(_, args, output):
            rows = torch.zeros_like(output) if output.dim() == 3 else torch.zeros_like(output)[None]
            values = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
            for at in places:
                rows[at] = values[at]
            return rows.view_as(output)

        with hooks() as on, torch.no_grad():
            for index in read:
                on.append(blocks[index].register_forward_hook(leave, prepend=True))
            return features(run())[0]

    some = [segment[row] for segment, rows in zip(segments, kept, strict=True) for row in rows]
    every = [at for segment in segments for at in segment]
    return [(ran(0, places) != ran(1, places)).any(dim=-1) for places in (some, every)]


def by_picture(model, output, of, inputs, modality):
    """What a call answered, picture by picture, (tokens, width) each."""
    features = oracle.features_of(model.model, output, of, modality)
    wanted = IMAGE if modality == "image" else VIDEO
    return oracle.by_picture(model, features, inputs["input_ids"][0] == wanted)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "modality"), MODALITIES)
def test_rows_that_left_are_copies_and_tokens_made_of_them_alone_leave(family, modality, kernel):
    model = strong(family, kernel)
    inputs = painted(family, ["titit"] if modality == "image" else [with_video(family)])
    of = given(model, inputs, modality)

    def run():
        return getattr(model.model, f"get_{modality}_features")(**of)

    tower, blocks, _ = tower_of(model, modality)
    call, before = seen(tower, blocks[0], run)
    segments = places_of(model, tower, call, before.shape[-2])
    masks = units_that_stay(pictures_of(*call), model.config)
    kept = [mask.flatten().nonzero()[:, 0].tolist() for mask in masks]
    assert len({len(rows) for rows in kept}) > 1 or len(kept) < 3
    assert sum(map(len, kept)) < sum(map(len, segments))
    wanted = of_copies(model, modality, run, kept, 0.0)[0]
    fed, ranked = fed_by(model, modality, run, segments, kept)
    lengths = [len(image) for image in by_picture(model, run(), of, inputs, modality)]
    answered, core, name = [], model.model, f"get_{modality}_features"
    original = getattr(core, name)

    @functools.wraps(original)
    def noted(*args, **kwargs):
        answered.append(original(*args, **kwargs))
        return answered[-1]

    setattr(core, name, noted)
    try:
        with fv.drop(model, PixelPrune()), torch.no_grad():
            model(**inputs)  # the prompt tells tiles apart
    finally:
        delattr(core, name)
    images = by_picture(model, answered[0], of, inputs, modality)
    assert [len(image) for image in images] == lengths
    parts = zip(images, wanted.split(lengths), fed.split(lengths), ranked.split(lengths), strict=True)
    for ours, whole, stays, is_ranked in parts:
        closing = (~is_ranked).nonzero()[:, 0]
        if CLS.get(family) == modality:
            ours, rows = torch.cat((ours[closing], ours[is_ranked])), torch.cat((whole[closing], whole[stays]))
        else:
            rows = torch.cat((whole[stays], whole[closing] if len(closing) == 1 else whole[:0]))
        torch.testing.assert_close(ours[: len(rows)], rows, **CLOSE)
        assert not ours[len(rows) :].any()


@pytest.mark.parametrize("family", RETURNS)
def test_a_batch_is_its_samples_alone_and_the_model_is_restored(family):
    model, words, method = tiny(family), ["titit", "tit", "ttt"], PixelPrune() + fv.DivPrune(keep=0.4)
    inputs = painted(family, words)
    with torch.no_grad():
        plain = model(**inputs).logits
    with fv.drop(model, method) as trace:
        together = generate(model, inputs)
    assert [stage.where for stage in trace.stages] == ["pixels", "layer"]
    assert trace.stages[0].after[0] < trace.vision_tokens[0]
    for index, word in enumerate(words):
        alone = painted(family, [word])
        with fv.drop(model, method) as single:
            ours = generate(model, alone)
        if word != "ttt":
            assert single.latest.tower_rows[0] == trace.latest.tower_rows[index]
            assert single.stages[0].after[0] == trace.stages[0].after[index]
        torch.testing.assert_close(ours.logits[0][0], together.logits[0][index], atol=1e-3, rtol=1e-3)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("family", RETURNS)
def test_where_nothing_leaves_the_model_is_the_plain_one_and_an_error_leaves_nothing_behind(family):
    model, inputs = tiny(family), batch(family, ["titit"])
    with torch.no_grad():
        plain = model(**inputs).logits
    with fv.drop(model, PixelPrune()) as trace, torch.no_grad():
        assert torch.equal(model(**inputs).logits, plain)
    assert not trace.stages
    assert trace.latest.tower_rows == [[(), ()]]
    _, blocks, _ = tower_of(model, "image")
    with failing(model, blocks[1]), fv.drop(model, PixelPrune()), torch.no_grad():
        model(**painted(family, ["titit"]))
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("family", RETURNS)
def test_rows_leave_once(family):
    for chain in (PixelPrune() + fv.ThinTower(), PixelPrune() + fv.VisionZip(), PixelPrune() + fv.ToMe()):
        with pytest.raises(fv.UnsupportedError, match="before the tower"), fv.drop(tiny(family), chain):
            pass


def test_padding_of_a_picture_neither_runs_nor_counts():
    """A tile whose right half is padding; where padding leaves no rectangle, it is refused."""
    model = strong("idefics3")
    inputs, patch = painted("idefics3", ["tit"]), model.config.vision_config.patch_size
    pixels = inputs["pixel_values"]
    mask = torch.ones(*pixels.shape[:2], *pixels.shape[3:], dtype=torch.long)
    mask[..., 2 * patch :] = 0

    def run():
        return model.model.get_image_features(pixel_values=pixels, pixel_attention_mask=mask)

    tower, blocks, _ = tower_of(model, "image")
    call, before = seen(tower, blocks[0], run)
    segments = places_of(model, tower, call, before.shape[-2])
    stays = [stay.flatten() for stay in units_that_stay(pictures_of(*call), model.config)]
    kept = [
        [at for at, (_, row) in enumerate(segment) if stay[row]] for segment, stay in zip(segments, stays, strict=True)
    ]
    wanted, (fed, _) = of_copies(model, "image", run, kept, 0.0)[0], fed_by(
        model, "image", run, [[(at, row) for row in range(len(stay))] for at, stay in enumerate(stays)],
        [stay.nonzero()[:, 0].tolist() for stay in stays],
    )  # fmt: skip
    with fv.drop(model, PixelPrune()), torch.no_grad():
        ours = torch.cat([one.flatten(0, -2) for one in run().pooler_output])
    inside = [row for _, row in segments[0]]
    assert len(inside) < before.shape[-2]
    assert 0 < fed.sum() < len(fed)
    real = fed.clone()
    real[:] = False
    for tile, segment in enumerate(segments):
        side = unit_of(model.config)
        columns = pixels.shape[-1] // patch
        cells = {(row // columns // side) * (columns // side) + row % columns // side for _, row in segment}
        for cell in cells:
            real[tile * (columns // side) ** 2 + cell] = True
    torch.testing.assert_close(ours[: int(fed.sum())][real[fed]], wanted[fed & real], **CLOSE)
    mask[..., :patch, patch:] = 0
    with fv.drop(model, PixelPrune()), torch.no_grad(), pytest.raises(fv.UnsupportedError, match="no rectangle"):
        run()


def test_tokens_that_are_no_units_are_refused():
    """Where a LLaVA takes the CLS for a token, it is not known which patches a token is made of."""
    model = copy.deepcopy(tiny("llava"))
    model.config.vision_feature_select_strategy = "full"
    inputs = painted("llava", ["tit"])
    with fv.drop(model, PixelPrune()), torch.no_grad(), pytest.raises(fv.UnsupportedError, match="places"):
        model.model.get_image_features(pixel_values=inputs["pixel_values"])


@pytest.mark.parametrize("family", [name for name in RETURNS if name != "smolvlm"])
def test_the_cost_is_of_the_rows_that_ran(family):
    """As torch counts it: all patches are embedded, the rows that ran go through the blocks, and all are projected."""
    model, inputs = strong(family, "eager"), painted(family, ["titit"])
    of = given(model, inputs)
    with fv.drop(model, PixelPrune()) as trace, torch.no_grad():
        model(**inputs)
    (rows,) = trace.latest.tower_rows
    with FlopCounterMode(display=False) as counter, fv.drop(model, PixelPrune()), torch.no_grad():
        model.model.get_image_features(**of)
    (sizes,) = [[image.length for image in media] for media in trace.latest.media]
    known = {"text_tokens": 5, "vision_tokens": sizes, "tower_images": [len(image) for image in rows]}
    if family == "mistral3":
        side = model.config.spatial_merge_size * model.config.vision_config.patch_size
        known["grids"] = [[(height // side, width // side)] for height, width in of["image_sizes"].tolist()]
    counts = [count for (count,) in trace.latest.per_layer]
    told = fv.cost(model, method=PixelPrune(), tokens=counts, tower_rows=rows, **known)
    plain = fv.cost(model, **known)
    tower, blocks, _ = tower_of(model, "image")
    call, before = seen(tower, blocks[0], lambda: model.model.get_image_features(**of))
    patches = [picture.shape[1] * picture.shape[2] // patch_of(model.config) ** 2 for picture in pictures_of(*call)]
    ran = list(itertools.chain(*rows))
    nearest = sum(2 * count * few * before.shape[-1] for count, few in zip(patches, ran, strict=True))
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        model.model.get_image_features(**of)
    saved = whole.get_total_flops() - counter.get_total_flops()
    assert plain.tower_flops - told.tower_flops - nearest == saved
    assert told.projector_flops == plain.projector_flops
    assert told.tower_flops < plain.tower_flops
    with pytest.raises(fv.SettingError, match="tower_rows"):
        fv.cost(model, method=PixelPrune(), tokens=counts, **known)
    with pytest.raises(fv.SettingError, match="tower_rows"):
        fv.cost(
            model, method=PixelPrune(), tokens=counts,
            tower_rows=[[*rows[0], 1], *rows[1:]], **known,
        )  # fmt: skip
    half = fv.cost(
        model, method=PixelPrune(), tokens=counts,
        tower_rows=[(), *rows[1:]], **known,
    )  # fmt: skip
    assert told.tower_flops < half.tower_flops < plain.tower_flops
