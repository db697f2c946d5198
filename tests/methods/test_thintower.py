import copy
import functools
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import foveate as fv
from foveate.contract import (
    ImageView,
    Method,
    PatchView,
    Shape,
    ThinStage,
    TowerAttention,
    TowerStage,
)
from foveate.core.cut import Cut
from foveate.families.support import refusal
from foveate.methods.thintower import ThinTower
from tests.families.test_thinning import failing, strong, tower_of
from tests.models import FAMILIES, batch, generate, given, tiny

EXAMPLES = [ThinTower(at=0.0), ThinTower(keep=0.2, at=0.5, pick="unlike")]
KEEP_ALL = ThinTower(keep=1.0)
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
SOME = ("llava", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "idefics3", "gemma3")


# -- the setting ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "rows", "left"), [(1 / 3, 576, 192), (0.5, 5, 3), (0.01, 20, 1), (0.25, 2, 1), (0, 7, 1)]
)
def test_how_many_rows_run(keep, rows, left):
    (stage,) = ThinTower(keep=keep).stages(Shape(6))
    cut = stage.cut(PatchView(torch.randn(rows, 4), (1, rows)))
    assert len(cut.source) == left
    assert not stage.drops


@pytest.mark.parametrize(
    ("at", "blocks", "first"), [(1 / 8, 32, 4), (1 / 8, 27, 3), (1 / 8, 23, 3), (0, 9, 0), (0.5, 5, 3), (1, 7, 7)]
)
def test_the_block_is_a_share_of_those_that_are_read_halves_up(at, blocks, first):
    (stage,) = ThinTower(at=at).stages(Shape(6))
    assert stage.first(blocks) == first


# -- what follows --------------------------------------------------------------------------------------------------


def logits_of(model, inputs, method):
    with fv.drop(model, method) as trace, torch.no_grad():
        return model(**inputs).logits, trace


@pytest.mark.parametrize("family", SOME)
def test_members_behind_it_work_on_the_features_that_it_makes(family):
    """As on features that were made before and handed in: what is kept, and the logits."""
    model, inputs = tiny(family), batch(family, ["titit", "tit"])
    thin = ThinTower(at=0.0)
    for later in (fv.DivPrune(keep=0.4), fv.V2Drop(layers=(2, 4), keep=(0.5, 0.5)), fv.VidCom2(keep=0.4)):
        logits, trace = logits_of(model, inputs, thin + later)
        assert trace.stages[0].rows
        wanted, alone = handed_in(model, inputs, thin, later)
        torch.testing.assert_close(logits, wanted, **CLOSE)
        assert [stage.after for stage in trace.cuts] == [stage.after for stage in alone.stages]
        for ours, theirs in zip(trace.cuts, alone.stages, strict=True):
            assert all(torch.equal(one, other) for one, other in zip(ours.kept, theirs.kept, strict=True))


def handed_in(model, inputs, thin, later):
    """A method's logits and trace where the core's function that makes features answers with those of a thin tower."""
    core = model.model
    with fv.drop(model, thin), torch.no_grad():
        output = core.get_image_features(**given(model, inputs))
    core.get_image_features = functools.wraps(core.get_image_features)(lambda *_, **__: output)
    try:
        return logits_of(model, inputs, later)
    finally:
        del core.get_image_features


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"])
def test_pixels_leave_before_and_rows_behind(family):
    """PixelPrune's patches never come; of the others late blocks run on some."""
    model, inputs = tiny(family), batch(family, ["tit"])
    before = fv.PixelPrune(tau=0.9, metric="rmse")
    logits, trace = logits_of(model, inputs, before + ThinTower(at=0.0, keep=0.999))
    wanted, _ = logits_of(model, inputs, before)
    torch.testing.assert_close(logits, wanted, **CLOSE)
    logits, trace = logits_of(model, inputs, before + ThinTower(at=0.0))
    pixels, rows = (next(stage for stage in trace.stages if stage.rows is kind) for kind in (False, True))
    assert pixels.where == "pixels"
    assert rows.before[0] == 4 * pixels.after[0]
    assert not torch.equal(logits, wanted)
    with pytest.raises(fv.UnsupportedError, match="before"):
        logits_of(model, inputs, before + ThinTower(at=0.0, pick="unlike"))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "internvl"])
def test_pictures_are_made_smaller_before(family):
    model, inputs = tiny(family), batch(family, ["tit"])
    _, trace = logits_of(model, inputs, fv.Resize(keep=0.4) + ThinTower(at=0.0))
    (rows,) = [stage for stage in trace.stages if stage.rows]
    _, whole = logits_of(model, inputs, ThinTower(at=0.0))
    assert 0 < rows.before[0] < whole.stages[0].before[0]


# -- identity, records, refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_all_rows_is_the_untouched_model_and_others_say_why_not(family):
    model, inputs = tiny(family), batch(family, ["titit"])
    with torch.no_grad():
        plain = model(**inputs).logits
    if fv.families()[family].needs_all_rows is not None:
        with pytest.raises(fv.UnsupportedError, match="needs all"), fv.drop(model, ThinTower()):
            pass
        return
    assert torch.equal(logits_of(model, inputs, KEEP_ALL)[0], plain)
    assert torch.equal(logits_of(model, inputs, ThinTower(at=1.0))[0], plain)  # behind the last block nothing is left


@pytest.mark.parametrize("family", SOME)
def test_an_error_inside_the_tower_leaves_nothing_behind(family):
    model, inputs = tiny(family), batch(family, ["tit"])
    with torch.no_grad():
        plain = model(**inputs).logits
    tower, _, _ = tower_of(model, "image")
    configs = {name: module.config for name, module in tower.named_modules() if hasattr(module, "config")}
    part = next(module for name, module in tower.named_modules() if name.endswith("mlp"))
    with failing(model, part), fv.drop(model, ThinTower(at=0.0)), torch.no_grad():
        model(**inputs)
    assert all(module.config is configs[name] for name, module in tower.named_modules() if name in configs)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, plain)


def test_the_trace_says_which_rows_ran_and_tokens_are_whole():
    model = tiny("qwen2_vl")
    with fv.drop(model, ThinTower(at=0.0) + fv.DivPrune(keep=0.5)) as trace:
        generate(model, batch("qwen2_vl", ["titit", "ttt"]))
    rows, tokens = trace.stages
    assert (rows.where, rows.rows, tokens.rows) == ("tower", True, False)
    assert rows.before == (60, 0)
    assert rows.after == (20, 0)
    assert trace.latest.tower_rows == [[(8,), (12,)], []]
    assert [len(image) for image in trace.latest.tower_tokens[0]] == [6, 9]
    assert tokens.before == (15, 0)
    assert trace.retention[0] == sum(trace.latest.per_layer[0]) / 15
    assert json.loads(trace.to_json())["stages"][0]["rows"] is True
    assert "rows that ran in the vision tower: 60 to 20" in repr(trace.latest)


def test_features_that_were_made_outside_are_refused():
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    with torch.no_grad():
        output = model.model.get_image_features(**given(model, inputs))
    with fv.drop(model, ThinTower()), pytest.raises(fv.UnsupportedError, match="outside the context"):
        model(
            **{name: value for name, value in inputs.items() if name != "pixel_values"},
            mm_encoder_outputs={"image": output},
        )


class Merging(Method):
    name = "merging"

    def stages(self, shape):
        return (*ThinTower().stages(shape), TowerStage(1, choose=lambda view, count: None))


def paid(view: ImageView):
    return view.attention


@pytest.mark.parametrize(
    ("method", "why"),
    [
        (Merging(), "TowerStage"),
        (ThinTower() + fv.VisionZip(), "also reads TowerAttention"),
        (ThinTower() + ThinTower(), "has 2 ThinStages"),
    ],
    ids=lambda value: str(value),
)
def test_what_it_cannot_stand_beside_is_refused(method, why):
    with pytest.raises(fv.UnsupportedError, match=why), fv.drop(tiny("llava"), method):
        pass


def test_a_host_that_runs_the_tower_itself_refuses():
    """As foveate's plug-in of vLLM asks."""
    assert "this host runs the tower itself" in refusal(ThinTower().stages(Shape(6)), lambda signal: None)


def test_a_stage_that_makes_rows_or_reads_is_refused():
    with pytest.raises(fv.SettingError, match="without new rows"):
        ThinStage(
            keep=0.5,
            pick=lambda view, count: Cut.merge(
                torch.arange(count), view.patches[:count], torch.zeros(len(view), dtype=torch.int64)
            ),
        ).cut(PatchView(torch.randn(4, 2), (2, 2)))
    with pytest.raises(fv.SettingError, match="reads"):
        ThinStage(keep=0.5, score=paid, reads=(TowerAttention(),))


def test_rows_that_others_change_between_blocks_are_refused():
    model = copy.deepcopy(tiny("llava"))
    layers = next(module for name, module in model.named_modules() if name.endswith("encoder.layers"))
    layers[0].register_forward_hook(lambda module, args, output: output + 1)
    with (
        fv.drop(model, ThinTower(at=0.0)),
        pytest.raises(fv.UnsupportedError, match="changes rows between"),
        torch.no_grad(),
    ):
        model(**batch("llava", ["tit"]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_block_is_refused():
    model = copy.deepcopy(tiny("llava"))
    layers = next(module for name, module in model.named_modules() if name.endswith("encoder.layers"))
    layers[-1].compile()
    with fv.drop(model, ThinTower(at=0.0)), pytest.raises(fv.UnsupportedError, match="is compiled"), torch.no_grad():
        model(**batch("llava", ["tit"]))


# -- costs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pick", ["maxmin", "auto"])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "qwen3_vl", "internvl", "gemma3", "idefics3"])
def test_the_cost_is_what_torch_counts(family, pick):
    """Of the whole tower, picks and parents apart; SDPA's products are not counted on the CPU, eager's are."""
    model, inputs = strong(family, "eager"), batch(family, ["tit"])
    tower, _, _ = tower_of(model, "image")
    thin = ThinTower(keep=0.4, at=0.5, pick=pick)
    of = given(model, inputs)
    with fv.drop(model, thin) as trace, torch.no_grad():
        model(**inputs)
        counter = FlopCounterMode(display=False)
        with counter:
            model.model.get_image_features(**of)
    counts = counter.get_flop_counts()
    counted = next(sum(value.values()) for name, value in counts.items() if name.split(".")[-1] == type(tower).__name__)
    (tokens,) = trace.vision_tokens
    grids = None
    if "image_grid_thw" in of:
        grids = [[tuple(side // 2 for side in grid[1:])] for grid in of["image_grid_thw"].tolist()]
    costs = fv.cost(model, text_tokens=7, vision_tokens=tokens, method=thin, grids=grids)
    plain = fv.cost(model, text_tokens=7, vision_tokens=tokens, grids=grids)
    inside = costs.tower_flops + (grids is not None) * costs.projector_flops  # a Qwen's merger
    pictures = {"internvl": 3, "idefics3": 3}.get(family, 1)  # its tiles, without padding
    assert counted - inside == picking_flops(trace, tower, pick) // pictures
    assert costs.tower_flops < plain.tower_flops
    assert costs.tokens == plain.tokens
    assert (costs.tower_rows[0], costs.tower_rows[-1]) == (*trace.stages[0].before, *trace.stages[0].after)
    assert plain.tower_rows == ()


def picking_flops(trace, tower, pick):
    """Products of all rows with those that stay, and with one another if picked by these, as of one picture."""
    width = getattr(tower.config, "embed_dim", None) or tower.config.hidden_size
    pairs = 0
    for rows, left in zip(trace.stages[0].before, trace.stages[0].after, strict=True):
        pairs += rows * left + (pick == "maxmin") * rows**2
    return 2 * pairs * width
