import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
from foveate import naming
from foveate.contract import Cut, Method, PatchStage, PixelView, Shape
from foveate.families.derived import Derived
from foveate.families.support import reach
from foveate.methods.pixelprune import PixelPrune
from foveate.registry import family_for
from tests import oracle
from tests.families.test_qwen_subset import features_of
from tests.methods.test_resize import patches_of
from tests.models import QWENS, batch, generate, given, is_vision, tiny
from tests.probes import PatchCut

EXAMPLES = [PixelPrune(tau=1.0), PixelPrune(tau=0.9, metric="rmse")]
KEEP_ALL = PixelPrune()
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
MEAN, STD = 0.45, 0.27


# -- the decision ----------------------------------------------------------------------------------------------


def view_of(levels):
    """A view of (frames, rows, columns, numbers) levels from 0 to 255, normalised."""
    numbers = torch.ones(levels.shape[-1])
    return PixelView((levels / 255 - MEAN) / STD, MEAN * numbers, STD * numbers)


def stays(method, view):
    (stage,) = method.stages(Shape(6))
    return stage.cut(view).stays.view(view.units.shape[:3])


def looped(levels, alike):
    """The same, a unit at a time; and what stands in every unit's place."""
    shown, stay = levels.clone(), torch.ones(levels.shape[:3], dtype=torch.bool)
    for frame, row, column in itertools.product(*map(range, levels.shape[:3])):
        if row == column == 0:
            continue
        grid = shown[frame]
        predicted = grid[row, column - 1] if column else grid[row - 1, 0]
        if row and column:
            corner, above = grid[row - 1, column - 1], grid[row - 1, column]
            if alike(corner, predicted) and not alike(corner, above):
                predicted = above
        if alike(levels[frame, row, column], predicted):
            stay[frame, row, column] = False
            grid[row, column] = predicted
    return stay, shown


def drawn(grid, noise, seed, frames=2):
    """Units of a few colours in patches, with some noise: (frames, rows, columns, numbers) levels."""
    rng = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (3, 12), generator=rng)
    coarse = torch.randint(0, 3, (frames, -(-grid[0] // 2), -(-grid[1] // 3)), generator=rng)
    blocks = coarse.repeat_interleave(2, 1).repeat_interleave(3, 2)[:, : grid[0], : grid[1]]
    levels = colours[blocks] + torch.randint(-noise, noise + 1, (frames, *grid, 12), generator=rng)
    return levels.clamp(0, 255).float()


APART = {
    "max": lambda a, b: (a - b).abs().max(),
    "mae": lambda a, b: (a - b).abs().mean(),
    "rmse": lambda a, b: (a - b).pow(2).mean() ** 0.5,
}
GRIDS = [(1, 1), (1, 9), (9, 1), (2, 2), (7, 10), (12, 9)]


@pytest.mark.parametrize("grid", GRIDS)
def test_equal_units_leave_as_in_a_loop_and_no_pixel_is_lost(grid):
    for seed in range(6):
        levels = drawn(grid, noise=0, seed=seed)
        expected, shown = looped(levels, lambda a, b: torch.equal(a, b))
        assert torch.equal(stays(PixelPrune(), view_of(levels)), expected)
        assert torch.equal(shown, levels)
        if grid == (12, 9):
            assert 0.05 < expected.float().mean() < 0.7


@pytest.mark.parametrize("metric", APART)
@pytest.mark.parametrize("grid", GRIDS)
def test_units_that_are_alike_leave_as_in_a_loop_and_errors_do_not_add_up(grid, metric):
    left = []
    for seed, tau in itertools.product(range(3), (0.0001, 4 / 255, 9.3 / 255, 24 / 255)):
        levels = drawn(grid, noise=seed * 4, seed=seed)
        limit = round(255 * tau) if metric == "max" else 255 * tau
        expected, shown = looped(levels, lambda a, b, limit=limit: APART[metric](a, b) <= limit)
        assert torch.equal(stays(PixelPrune(tau=tau, metric=metric), view_of(levels)), expected)
        assert max(APART[metric](a, b) for a, b in zip(shown.view(-1, 12), levels.view(-1, 12), strict=True)) <= limit
        left.append(expected.float().mean().item())
    assert len(set(left)) > 2 or grid == (1, 1)


def test_levels_count_where_shares_miss_them_by_a_hair():
    for step in range(1, 40):
        levels = torch.tensor([[[[100.0], [100.0 + step]]]])
        assert stays(PixelPrune(tau=step / 255), view_of(levels)).flatten().tolist() == [True, False]
        assert stays(PixelPrune(tau=(step - 1) / 255), view_of(levels)).flatten().tolist() == [True, True]


# -- on models -------------------------------------------------------------------------------------------------


def pixels_of(family, levels):
    """What goes into a family of (frames, 3, height, width) levels: patches, normalised, and their grid."""
    known = family_for(tiny(family))
    vision = known.model.config.vision_config
    side, patch, frames = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
    mean, std = (torch.tensor(of).view(3, 1, 1) for of in (known.pixel_mean, known.pixel_std))
    normal = (levels / 255 - mean) / std
    times = []
    for time in normal.split(frames):
        of_frames = [patches_of(frame, side, patch, 1).view(-1, 3, 1, patch * patch) for frame in time]
        times.append(torch.cat(of_frames, dim=2).flatten(1))
    height, width = levels.shape[-2:]
    return torch.cat(times), torch.tensor([[len(times), height // patch, width // patch]])


def screen(family, seed=0, size=(5, 6), frames=2):
    """A picture of a few rectangles, as many tokens as `size`; its frames are the same."""
    cell = 2 * tiny(family).config.vision_config.patch_size
    rng = torch.Generator().manual_seed(seed)
    levels = torch.full((3, size[0] * cell, size[1] * cell), 240.0)
    for _ in range(2):
        top, left = (int(torch.randint(0, one * cell, (), generator=rng)) for one in size)
        colour = torch.randint(0, 256, (3, 1, 1), generator=rng).float()
        levels[:, top : top + 2 * cell, left : left + 2 * cell] = colour
    return levels.expand(frames, -1, -1, -1)


def with_screens(family, word="titit"):
    """The inputs of a prompt whose pictures are screens, as many tokens as they were before."""
    inputs = batch(family, [word])
    pixels = []
    for seed, (_, height, width) in enumerate(inputs["image_grid_thw"].tolist()):
        pixels.append(pixels_of(family, screen(family, seed, (height // 2, width // 2)))[0])
    return {**inputs, "pixel_values": torch.cat(pixels)}


@pytest.mark.parametrize("family", QWENS)
def test_a_view_has_the_pixels_of_each_token(family):
    model = tiny(family)
    cell, rng = 2 * model.config.vision_config.patch_size, torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (4, 3, 2 * cell, 3 * cell), generator=rng).float()
    levels[2:, :, :cell] = levels[2:3, :, :cell]
    (view,) = family_for(model).pixel_views(*pixels_of(family, levels))
    assert view.units.shape[:3] == (2, 2, 3)
    got = view.levels()
    for time, row, column in itertools.product(range(2), range(2), range(3)):
        of_token = levels[
            2 * time : 2 * time + 2, :, row * cell : (row + 1) * cell, column * cell : (column + 1) * cell
        ]
        assert torch.equal(got[time, row, column].sort().values, of_token.flatten().sort().values)


@pytest.mark.parametrize("family", QWENS)
def test_the_model_answers_as_to_a_prompt_that_is_so_short_with_the_positions_of_the_long_one(family):
    model, inputs, method = tiny(family), with_screens(family), PixelPrune()
    with fv.drop(model, method) as trace, torch.no_grad():
        output = model.model.get_image_features(**given(model, inputs))
        logits = model(**inputs, logits_to_keep=1).logits
        cached = generate(model, inputs).logits
    (stage,) = trace.latest.stages
    assert (stage.where, stage.place, stage.layer) == ("pixels", "before the vision tower", None)
    kept = stage.kept[0]
    assert 2 < len(kept) < trace.vision_tokens[0]
    counts = [len(image) for image in trace.latest.tower_tokens[0]]
    assert sum(counts) == len(kept)

    def rows_of(images):
        return torch.cat([image[:count] for image, count in zip(images, counts, strict=True)])

    there = is_vision(inputs["input_ids"][0])
    rows = torch.cat(((~there).nonzero()[:, 0], there.nonzero()[:, 0][kept])).sort().values
    embeds = model.get_input_embeddings()(inputs["input_ids"])[:, rows]
    features, *deep = features_of(output)
    embeds[0, there[rows]] = rows_of(features)
    short = {"inputs_embeds": embeds, "position_ids": oracle.positions(model, inputs, 0)[..., rows]}
    if deep:
        short["visual_pos_masks"] = there[rows][None]
        short["deepstack_visual_embeds"] = [rows_of(images) for images in deep]
    with torch.no_grad():
        wanted = model.lm_head(model.get_decoder()(**short).last_hidden_state[:, -1:])
    torch.testing.assert_close(logits, wanted, **CLOSE)
    torch.testing.assert_close(cached[0], wanted[:, 0], **CLOSE)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"])
def test_a_picture_of_one_colour_leaves_one_token_and_pictures_are_never_compared(family):
    model, inputs = tiny(family), batch(family, ["titit"])
    grey = {**inputs, "pixel_values": torch.full_like(inputs["pixel_values"], 0.25)}
    with fv.drop(model, PixelPrune()) as trace:
        generate(model, grey)
    assert [len(image) for image in trace.latest.tower_tokens[0]] == [1, 1]
    assert trace.stages[0].after == (2,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pixels_decide_before_the_model_rounds_them(dtype):
    """Of 256 levels bfloat16 has fewer: neighbours a level apart are equal to the tower, and stay."""
    family = "qwen2_vl"
    model, cell = tiny(family), 28
    steps = torch.arange(8 * cell) // cell + 200.0
    pixels, grid = pixels_of(family, steps.expand(2, 3, cell, -1).contiguous())
    inputs = {"pixel_values": pixels, "image_grid_thw": grid}
    half = {**inputs, "pixel_values": pixels.to(dtype)}
    for method in (PixelPrune(), PixelPrune(tau=2 / 255)):
        (whole,), (rounded,) = (
            (stays(method, view) for view in family_for(model).pixel_views(*values.values()))
            for values in (inputs, half)
        )
        if dtype == torch.float16 or method.tau == 0:
            assert torch.equal(whole, rounded)
    assert whole.flatten().tolist() == [True, False, False] * 2 + [True, False]


def test_frames_are_apart_and_the_second_picture_of_a_temporal_patch_counts():
    model = tiny("qwen2_vl")
    still = screen("qwen2_vl", frames=4).clone()

    def of(film):
        (view,) = family_for(model).pixel_views(*pixels_of("qwen2_vl", film))
        return stays(PixelPrune(), view)

    first, second = of(still)
    assert torch.equal(first, second)  # the same, and not predicted from the frame before
    row, column = (~second).nonzero()[-1].tolist()
    moved = still.clone()
    moved[3, :, 28 * row + 5, 28 * column + 5] = 7  # in the last picture alone
    assert torch.equal(of(moved)[0], first)
    assert of(moved)[1, row, column]


# -- chains, refusals, cost ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_chain_works_on_what_is_left(family):
    chain = naming.parse("pixelprune+divprune:keep=0.3+v2drop:layers=2,4;keep=0.5,0.3+finalkv")
    model, inputs = tiny(family), with_screens(family)
    assert chain.plan(6, (15,)) is None
    with fv.drop(model, chain) as trace:
        generate(model, inputs)
    where = [(stage.where, stage.layer) for stage in trace.stages]
    assert where == [("pixels", None), ("layer", 0), ("layer", 2), ("layer", 4), ("kv", None)]
    counts = [stage.after[0] for stage in trace.stages]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 3
    sizes = [len(one) for one in torch.split(torch.arange(15), [6, 9])]
    known = {"text_tokens": 10, "vision_tokens": sizes, "grids": [[(2, 3)], [(3, 3)]]}
    told = fv.cost(model, method=chain, **known, **trace.latest.ran())
    whole = fv.cost(model, **known)
    assert told.tower_flops < whole.tower_flops
    assert trace.show([screen_image(inputs, index) for index in range(2)]).size[0] > 100


def screen_image(inputs, index):
    from PIL import Image

    _, height, width = inputs["image_grid_thw"][index].tolist()
    return Image.new("RGB", (14 * width, 14 * height), (200, 200, 255))


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        ("pixelprune+resize:keep=0.5", "PixelStages and PatchStages"),
        ("pixelprune+visionzip", "before the tower and in it"),
        ("pixelprune+hiprune", "before the tower and in it"),
        ("pixelprune+tome", "before the tower and in it"),
        ("pixelprune+mustdrop", "before the tower and in it"),
        ("pixelprune+pixelprune", "has 2 PatchStages"),
        ("pixelprune+averagepool", "rows and columns of this model's vision tokens are not known"),
        ("pixelprune+evs", "Let no other stage of a chain drop tokens in front of it"),
    ],
)
def test_what_cannot_stand_behind_it_is_refused(chain, said):
    model = tiny("qwen2_vl")
    with pytest.raises(fv.UnsupportedError, match=said), fv.drop(model, naming.parse(chain)):
        generate(model, with_screens("qwen2_vl"))


def test_it_takes_no_budget_and_other_families_say_why_they_refuse_it():
    with pytest.raises(fv.SettingError, match="PixelPrune"):
        PixelPrune().with_budget(retention=0.3)
    assert PixelPrune().plan(28, (576,)) is None
    reasons = {name: reach(PixelPrune(), kind) for name, kind in {**fv.families(), "derived": Derived}.items()}
    refused = {name: one.partition("needs all of them: ")[2] for name, one in reasons.items() if isinstance(one, str)}
    assert refused == {
        "gemma4": "its pooler derives the cells of patches, and their number, from the full length.",
        "derived": "how it cuts pictures into patches is not known.",
    }


class EveryThird(Method):
    """The tokens 0, 3, 6 and so on, whatever they show."""

    name = "every third"

    def stages(self, shape):
        return (PatchStage(choose=lambda view, count: Cut.take(torch.arange(0, len(view), 3), len(view))),)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"])
def test_the_tower_is_counted_on_what_is_left(family):
    model, modality = tiny(family, "eager"), "video" if family == "qwen2_vl" else "image"
    model.model.visual.config._attn_implementation = "eager"
    grid = [3, 8, 12] if modality == "video" else [1, 24, 32]
    cells = [(grid[1] // 2, grid[2] // 2)] * grid[0]
    vision, total = model.config.vision_config, grid[0] * grid[1] * grid[2] // 4
    patches = torch.randn(4 * total, 3 * vision.temporal_patch_size * vision.patch_size**2)
    name = "pixel_values_videos" if modality == "video" else "pixel_values"
    inputs = {name: patches, f"{modality}_grid_thw": torch.tensor([grid])}
    known = {"text_tokens": 5, "vision_tokens": total, "grids": [cells]}
    for method, places in ((None, range(total)), (EveryThird(), range(0, total, 3))):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            if method is None:
                getattr(model.model, f"get_{modality}_features")(**inputs)
            else:
                with fv.drop(model, method):
                    getattr(model.model, f"get_{modality}_features")(**inputs)
        given_ = {} if method is None else {"tokens": [len(places)] * 6, "tower_tokens": [places]}
        told = fv.cost(model, method=method, **known, **given_)
        assert told.tower_flops + told.projector_flops == counter.get_total_flops()


def test_a_count_that_is_known_needs_no_pixels_to_be_planned():
    assert PatchCut(keep=0.5).plan(6, (24,), [((4, 6),)]) == (12,) * 6
