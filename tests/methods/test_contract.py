"""What every stage of every method keeps to, on made-up tensors: no model runs here.

What `foveate.testing` asks of any author's method on bare tensors is asked of these too; what it asks on models, the
invariants ask on more models than it has.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st

import foveate as fv
from foveate.contract import (
    Attention,
    CacheStage,
    LayerStage,
    PixelStage,
    Place,
    Resource,
    Shape,
    ThinStage,
    TowerStage,
    follow,
)
from foveate.core.cut import Cut
from foveate.core.views import Arriving
from foveate.errors import SettingError
from foveate.testing import MethodContract, made_tensors, made_view
from tests.contract.test_counted import KINDS
from tests.invariants.settings import EXAMPLES
from tests.tiny import DEPTH

GRID, TOKENS = (5, 5), 25
SHAPES = {"cls": Shape(DEPTH, cls=True), "no cls": Shape(DEPTH), "m-rope": Shape(DEPTH, renumbers=False)}
SEEN = (Place.TOWER, Place.BEFORE_PROJECTOR, Place.BEHIND_PROJECTOR, Place.LAYER)

every_method = pytest.mark.parametrize("name", EXAMPLES)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def known(cut):
    """A cut whose count the host knows."""
    return cut if isinstance(cut.count, int) else cut.first(int(cut.count))


def walk(method, shape, seed=0, dtype=torch.float32, sees=lambda stage, view: view, entering=(TOKENS, GRID)):
    """Each stage that sees tokens, how many arrive at it and what it sees, on one image's way through a method."""
    (tokens, grid), notes = entering, {}
    entered = started = tokens
    for stage in follow.in_order(method.stages(shape)):
        if stage.place not in SEEN:
            continue
        if stage.place < Place.LAYER:
            started = tokens
        view = sees(stage, made_tensors(stage, tokens, seed=seed, dtype=dtype))
        options = {"grid": grid, "arriving": Arriving(tokens, entered, started), "notes": dict(notes)}
        yield stage, tokens, view, options
        cut = stage.cut(made_view(stage, tokens, tensors=view, **options))
        if cut is None or isinstance(stage, ThinStage):
            continue
        cut = known(cut)
        notes = {key: note[cut.source.clamp(min=0)] for key, note in notes.items()} | dict(cut.notes)
        if not cut.stays_whole:
            tokens, grid = cut.count, None
        if stage.place < Place.LAYER:
            started = tokens


def looked(method, shape, **options):
    """The same, and what the stage makes of it."""
    for stage, tokens, view, known_ in walk(method, shape, **options):
        yield stage, tokens, view, known_, stage.cut(made_view(stage, tokens, tensors=view, **known_))


@every_method
def test_what_is_counted_on_the_way_is_the_plan(name):
    method, shape = EXAMPLES[name], SHAPES["no cls"]
    plan = method.plan(DEPTH, (TOKENS,), [(GRID,)])
    stages = method.stages(shape)
    if plan is None or follow.at(stages, Place.PIXELS):
        return
    left = dict.fromkeys(range(-1, DEPTH), TOKENS)
    for stage, _, _, _, cut in looked(method, shape):
        if cut is not None and not isinstance(stage, ThinStage):
            first = getattr(stage, "layer", -1)
            left.update(dict.fromkeys(range(first, DEPTH), known(cut).count))
    assert plan == tuple(left[layer] for layer in range(DEPTH))


@every_shape
@every_method
def test_parent_and_source_agree(name, shape):
    for stage, tokens, _, _, cut in looked(EXAMPLES[name], shape):
        if cut is None:
            continue
        cut = known(cut)
        assert cut.arriving == tokens
        source, parent = cut.source.tolist(), cut.parent.tolist()
        assert len(source) == cut.count
        assert len(parent) == tokens
        assert set(parent) <= set(range(-1, cut.count))
        owned = [token for token in source if token >= 0]
        assert len(set(owned)) == len(owned)
        assert len(owned) == len(source) or stage.ownerless
        for row, token in enumerate(source):
            assert token < 0 or parent[token] == row
        if cut.rows is not None:
            assert cut.rows.shape[0] == cut.count
        assert all(len(note) == cut.count for note in cut.notes.values())


@every_method
def test_a_layer_that_takes_tokens_leaves_them_in_their_order(name):
    for stage, _, _, _, cut in looked(EXAMPLES[name], SHAPES["cls"]):
        if stage.place is Place.LAYER and cut is not None and cut.rows is None:
            source = known(cut).source
            assert torch.equal(source, source.sort().values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_method
def test_new_rows_have_the_dtype_of_those_that_arrived(name, dtype):
    for stage, _, _, _, cut in looked(EXAMPLES[name], SHAPES["cls"], dtype=dtype):
        if cut is not None and cut.rows is not None:
            assert cut.rows.dtype == dtype, stage
            assert torch.isfinite(cut.rows.float()).all()


def answer(cut, tokens):
    """All that a cut says, as tensors whose shapes do not depend on values."""
    if cut is None:
        return {"all": torch.ones(tokens)}
    said = {"source": cut.source, "parent": cut.parent, "count": torch.as_tensor(cut.count), **cut.notes}
    if cut.stays is None and not isinstance(cut.count, int):  # what stands behind the count means nothing
        behind = torch.arange(len(cut.source)) >= cut.count
        said["source"] = cut.source.masked_fill(behind, -1)
        return said | {"rows": cut.rows.masked_fill(behind[:, None], 0)}
    return said if cut.rows is None else said | {"rows": cut.rows}


def alike(stage, made):
    """Tensors in which no token differs from another."""
    return {key: tensor[:1].expand_as(tensor).clone() for key, tensor in made.items()}


@every_method
def test_of_equal_scores_the_lower_index_stays(name):
    for stage, tokens, _, _, cut in looked(EXAMPLES[name], SHAPES["cls"], sees=alike):
        if stage.score is not None and (stage.reads or name.startswith("v2drop")) and cut is not None:
            assert cut.source.tolist() == list(range(cut.count)), (stage, tokens)


@every_method
def test_it_keeps_the_contract_of_every_author(name):
    contract = MethodContract()
    contract.examples = (EXAMPLES[name],)
    contract.test_settings_survive_json()
    contract.test_stages_are_pure()
    contract.test_stages_count_right()


EXACT = [*KINDS, fv.HiPrune, fv.PruMerge, fv.PruMergePlus, fv.ToMe, fv.VisionZip]


@pytest.mark.parametrize("kind", EXACT)
@settings(max_examples=20)
@given(tokens=st.integers(1, 300), share=st.floats(0.005, 1.0))
def test_a_budget_is_met_exactly(kind, tokens, share):
    if share == 1:
        assert kind(retention=share).stages(SHAPES["cls"]) == ()
        return
    left = tokens
    for *_, cut in looked(kind(retention=share), SHAPES["cls"], entering=(tokens, (1, tokens))):
        left = known(cut).count if cut is not None and not cut.stays_whole else left
    halves = round(share * tokens), int(share * tokens + 0.5)  # of a half, papers differ in which way they round
    assert left in [max(1, count) for count in halves]


# -- the made-up view itself -----------------------------------------------------------------------------------


def test_a_made_view_has_what_is_declared_and_nothing_else():
    stage = LayerStage(2, reads=(Attention(),), keep=0.5, score=lambda view: view.attention)
    view = made_view(stage, 6)
    assert view.attention.shape == (6,)
    assert float(view.attention.sum()) == pytest.approx(1.0)
    with pytest.raises(SettingError, match="without declaring it"):
        view.hidden  # noqa: B018
    assert torch.equal(made_view(stage, 6).attention, view.attention)
    assert stage.cut(view).count == 3


def test_a_view_of_what_nobody_sees_or_can_make_is_refused():
    for stage in (PixelStage(coarsen=lambda arriving: arriving.grids), CacheStage()):
        with pytest.raises(SettingError, match="reads no tokens"):
            made_view(stage, 4)
    reads = (Resource("clip"),)
    stage = LayerStage(0, reads=reads, choose=lambda view, count: Cut.stay(len(view)))
    with pytest.raises(SettingError, match="clip"):
        made_view(stage, 4)
    wrong = made_tensors(replace(stage, reads=()), 4) | {reads[0]: torch.ones(2)}
    assert made_view(stage, 4, tensors=wrong)[reads[0]].tolist() == [1.0, 1.0]


def test_patches_always_stand_on_a_grid():
    stage = TowerStage(1, choose=lambda view, count: None)
    assert made_view(stage, 12).grid == (3, 4)
    assert made_view(stage, 7).grid == (1, 7)
    assert made_view(stage, 12, grid=(2, 6)).grid == (2, 6)


WAITING = {"fastvid", "flashvid", "mustdrop", "prumerge", "prumerge_plus", "tower merge"}
"""Methods in which the host waits for the device in each picture or film: a number of windows, patches or scenes."""


@every_method
def test_only_few_methods_read_values_of_tensors(name, recwarn):
    type("Contract", (MethodContract,), {"examples": (EXAMPLES[name],)})().test_stages_read_no_values()
    assert not recwarn or name.rsplit("-", 1)[0] in WAITING
