import itertools

import pytest
import torch

import foveate as fv
from foveate.contract import Arriving, Attention, Cls, ImageView, LayerView, Place, Shape, follow
from foveate.methods.visiondrop import VisionDrop
from tests.contract.test_cuts import Config, mean
from tests.models import IMAGE, batch, tiny

COUNTS = {"dominant": 14, "contextual": 3, "image_token_list": ((9, 2), (5, 1)), "layer_list": (2, 4), "reference": 25}
EXAMPLES = [
    VisionDrop(**COUNTS),
    VisionDrop(**COUNTS, positions="keep", merge="average"),
    VisionDrop(**{**COUNTS, "dominant": 0, "contextual": 0}, bidirectional=True),
    VisionDrop(dominant=9, contextual=2, layer_list=(), image_token_list=(), reference=25),
    VisionDrop(**COUNTS, queries=4),
]
KEEP_ALL = VisionDrop(
    dominant=10_000, contextual=0, layer_list=(2,), image_token_list=((10_000, 0),), positions="keep", reference=25
)
SMALLEST = VisionDrop(dominant=2, contextual=1, layer_list=(2,), image_token_list=((1, 0),), reference=10_000)


# -- the reductions ------------------------------------------------------------------------------------------


def tower_stages(method, **known):
    """The stages in front of the decoder, on a model whose tower has a CLS."""
    shape = Shape(depth=32, **{"cls": True, **known})
    return follow.at(method.stages(shape), Place.BEFORE_PROJECTOR)


def tower(tokens, seed=0, cls=None):
    rng = torch.Generator().manual_seed(seed)
    features, keys = torch.randn(tokens, 8, generator=rng), torch.randn(tokens, 4, generator=rng)
    return ImageView(features, attention=torch.rand(tokens, generator=rng), keys=keys, cls=cls)


def reduced(method, view, **known):
    """What the tower stage makes of an image."""
    (stage,) = tower_stages(method, **known)
    return stage.cut(view)


@pytest.mark.parametrize(
    ("settings", "known"),
    [({"include_cls": False}, {}), ({"positions": "keep"}, {}), ({}, {"renumbers": False}), ({}, {"cls": False})],
    ids=["not asked for", "ids are kept", "ids are always kept", "there is none"],
)
def test_without_a_cls_one_more_patch_stays(settings, known):
    (stage,) = tower_stages(VisionDrop(**settings), **known)
    assert stage.ownerless == (Cls() in stage.reads) == (not known.get("cls", True))
    view = tower(576)
    cut = stage.cut(view)
    assert cut.count == 48
    assert (cut.source >= 0).all()
    top42 = view.attention.sort(descending=True).indices[:42].sort().values
    assert cut.source[:42].tolist() == top42.tolist()


def test_an_image_of_another_size_gets_its_share():
    assert [reduced(VisionDrop(), tower(tokens)).count for tokens in (288, 1152, 5)] == [24, 96, 1]


def test_a_tower_that_keeps_all_is_left_alone():
    assert reduced(VisionDrop(dominant=576, contextual=0), tower(576)) is None
    assert tower_stages(VisionDrop(dominant=0, contextual=0)) == ()


def before_layer(attention, hidden, keys, method=None, entered=576):
    """What the cut before layer 8 makes of an image, whose own rows paid this attention, (rows, tokens)."""
    count = len(hidden)
    (stage, *_) = follow.layer_stages((method or VisionDrop()).stages(Shape(depth=32)))
    (signal,) = [signal for signal in stage.reads if isinstance(signal, Attention)]
    rows = attention / attention.sum(dim=1, keepdim=True) if signal.renormalise else attention
    view = LayerView(hidden, attention=rows.mean(dim=0), keys=keys, arriving=Arriving(count, entered, count))
    return stage.cut(view)


def rows_of(count, seed):
    rng = torch.Generator().manual_seed(seed)
    attention = torch.rand(count, count, generator=rng).tril() / count
    return attention, torch.randn(count, 6, generator=rng), torch.randn(count, 4, generator=rng)


def test_averaging_and_renormalising_make_a_difference():
    attention, hidden, keys = rows_of(48, seed=2)
    attention[40:] = 1e-4  # rows that look elsewhere: token 47 gets little in all, yet most of what they give
    attention[40:, 47] = 2e-3
    cuts = [
        before_layer(attention, hidden, keys, VisionDrop(**settings))
        for settings in ({}, {"merge": "average"}, {"renorm": True})
    ]
    assert torch.equal(cuts[0].source, cuts[1].source)
    assert not torch.equal(cuts[0].rows, cuts[1].rows)
    assert not torch.equal(cuts[0].source, cuts[2].source)
    row = 32
    members = (cuts[1].parent == row).nonzero()[:, 0]
    torch.testing.assert_close(cuts[1].rows[row], hidden[members].mean(dim=0))


def test_each_image_has_its_own_counts():
    attention, hidden, keys = rows_of(40, seed=3)
    first = before_layer(attention[:15, :15], hidden[:15], keys[:15], entered=96)
    second = before_layer(attention[15:, 15:], hidden[15:], keys[15:], entered=288)
    assert (first.count, second.count) == (6, 18)  # (5 + 1) and (15 + 3): a sixth and a half of 30 + 5, each rounded
    assert {stage.unit for stage in VisionDrop().stages(Shape(depth=32))} == {"image"}


def test_an_image_with_fewer_rows_than_a_cut_keeps_stays_whole():
    attention, hidden, keys = rows_of(44, seed=4)
    assert before_layer(attention[:4, :4], hidden[:4], keys[:4]) is None
    assert before_layer(attention[4:, 4:], hidden[4:], keys[4:]).count == 35


# -- schedules, settings -------------------------------------------------------------------------------------


def test_the_ratio_between_stages():
    sizes = VisionDrop(tokens=1e6).plan(32, (10**8,))[::8]
    assert sizes[0] == 1.5e6
    assert [after / before for before, after in itertools.pairwise(sizes)] == pytest.approx([0.73362] * 3, abs=5e-6)


def test_uneven_cuts_are_weighed_by_their_spans():
    method = VisionDrop.for_budget(Config(32), tokens=100, layer_list=(2, 5, 30))
    plan = method.plan(32, (576,))
    assert sum(plan) / 32 == pytest.approx(100, abs=0.51)
    assert plan[0] == 150


def test_a_budget_near_the_whole_lowers_the_entry():
    method = VisionDrop.for_budget(Config(32), tokens=500)
    assert method.plan(32, (576,))[0] == 576
    assert mean(method, 32, 576) == pytest.approx(500, abs=0.5)


def test_less_than_a_token_at_the_end_is_refused_with_the_floor():
    with pytest.raises(fv.BudgetError, match=r"0\.17%"):
        VisionDrop.for_budget(Config(32), tokens=0.9, vision_tokens=576)
    assert mean(VisionDrop.for_budget(Config(32), tokens=1), 32, 576) == pytest.approx(1, abs=0.5)


# -- in a model ----------------------------------------------------------------------------------------------


def test_the_first_vision_row_of_a_tower_with_cls_is_its_projection():
    model, inputs = tiny("llava"), batch("llava", ["titt"])
    entered = []
    handle = model.model.language_model.layers[0].register_forward_pre_hook(lambda _, args: entered.append(args[0][0]))
    with fv.drop(model, EXAMPLES[3]) as trace, torch.no_grad():
        model(**inputs)
        handle.remove()
        tower = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
        cls = model.model.multi_modal_projector(tower.hidden_states[-2][:, :1])[0, 0]
    assert trace.stages[0].origin[0][0] == -1
    first = int((inputs["input_ids"][0] == IMAGE).nonzero()[0, 0])
    torch.testing.assert_close(entered[0][first], cls)


@pytest.mark.parametrize(("dominant", "contextual"), [(1, 0), (2, 0), (24, 6), (25, 1), (26, 0), (2, 30)])
def test_a_cls_takes_the_place_of_a_token(dominant, contextual):
    """Also where it is the only one, or where the counts exceed the image."""
    method = VisionDrop(dominant=dominant, contextual=contextual, reference=25, layer_list=(), image_token_list=())
    with fv.drop(tiny("llava"), method) as trace, torch.no_grad():
        tiny("llava")(**batch("llava", ["tit"]))
    if trace.stages:
        assert trace.stages[0].after[0] == min(25, dominant + contextual)
        assert trace.stages[0].origin[0][0] == -1


def test_counts_larger_than_what_arrives_still_order_it():
    """d + c >= n: c shrinks to what is left, and the rows become dominant, then contextual."""
    hidden = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([0.1, 0.6, 0.2, 0.5, 0.3, 0.4])
    method = VisionDrop(layer_list=(8,), image_token_list=((4, 9),), reference=6)
    cut = before_layer(scores.expand(6, 6), hidden, hidden, method, entered=6)
    assert cut.source.tolist() == [1, 3, 4, 5, 0, 2]
    assert torch.equal(cut.rows, hidden[cut.source])


# -- a sample of queries -------------------------------------------------------------------------------------


def test_all_rows_score_unless_a_sample_is_asked_for():
    for method, sample in ((VisionDrop(), None), (VisionDrop(queries=64), 64), (VisionDrop(tokens=99, queries=7), 7)):
        for stage in follow.layer_stages(method.stages(Shape(depth=32))):
            assert Attention(rows="vision", layer="next", over="mean", sample=sample) in stage.reads
