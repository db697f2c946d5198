import pytest
import torch
from hypothesis import given, strategies as st

import foveate as fv
from foveate.contract import Arriving, Cut, ImageView, LayerView, PatchView, Place, Shape, follow
from foveate.core.merge import window_similarity
from foveate.methods.mustdrop import PEAK, SHARE, MustDrop
from tests import golden
from tests.contract.test_cuts import Config
from tests.models import batch, tiny
from tests.probes import OneLeft

CUTS = {"pruning_layers": (1, 3), "merge_window": 2}
EXAMPLES = [
    MustDrop(**CUTS, global_thr=0.2, individual_thr=0.2, merge_threshold=0.3),
    MustDrop(**CUTS, global_thr=0.2, individual_thr=0.2, merge_windows=False, positions="keep"),
    MustDrop(**CUTS, retention=0.58, merge_windows=False, kv=False),
    MustDrop(**CUTS, global_thr=0.2, individual_thr=0.2, merge_threshold=0.3, positions="keep"),
    MustDrop(**CUTS, retention=0.6, merge_threshold=0.3),
]
KEEP_ALL = MustDrop(**CUTS, global_thr=0.0, individual_thr=0.0, merge_windows=False)
SMALLEST = OneLeft(**CUTS, retention=0.5, key_rate=0.0, merge_windows=False)


# -- the filter ----------------------------------------------------------------------------------------------


def looked_at(attention, keys=(), entered=None):
    """A view before the layer behind a filtering one, its signals taken from attention rows (rows, tokens)."""
    rows, tokens = attention.shape
    column = attention.sum(dim=0)
    is_key = torch.zeros(tokens, dtype=torch.bool)
    is_key[list(keys)] = True
    return LayerView(
        count=tokens,
        signals={SHARE: column / column.sum() if rows else column, PEAK: attention.amax(dim=0) if rows else column},
        notes={"key": is_key},
        arriving=Arriving(tokens, entered or tokens, tokens),
        text_behind=rows > 0,
    )


def filtered(method, view):
    """What the cut before layer 7 makes of an image."""
    (stage,) = [stage for stage in follow.layer_stages(method.stages(Shape(depth=32))) if stage.layer == 7]
    return stage.cut(view)


def attention_of(rows, tokens, seed):
    rng = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(rows, tokens, generator=rng)).softmax(dim=-1) * torch.rand(rows, 1, generator=rng)


def staying(cut):
    """Thresholds answer with who stays, since how many is known to the device alone."""
    assert cut.stays is not None
    return cut.stays.nonzero()[:, 0].tolist()


def test_the_filter_by_hand():
    attention = torch.tensor([[0.0, 0.125, 0.0625, 0.0], [0.5, 0.125, 0.0625, 0.125]])
    view = looked_at(attention)
    assert view[SHARE].tolist() == [0.5, 0.25, 0.125, 0.125]
    assert view[PEAK].tolist() == [0.5, 0.125, 0.0625, 0.125]

    def left(gamma, alpha, keys=()):
        view = looked_at(attention, keys)
        return staying(filtered(MustDrop(global_thr=gamma, individual_thr=alpha), view))

    assert left(0.2, 0.2) == [0, 1]
    assert left(0.2, 0.1) == [0, 1, 3]  # one text token looks at it
    assert left(0.5, 0.6) == [0]  # a share of exactly the threshold stays
    assert left(0.6, 0.5) == [0]  # so does an attention of exactly it
    assert left(0.6, 0.6) == []
    assert left(0.6, 0.6, keys=[2]) == [2]


def test_thresholds_off_keep_all_and_thresholds_above_any_attention_keep_the_key_tokens():
    attention = attention_of(5, 40, seed=1)
    assert staying(filtered(MustDrop(global_thr=0), looked_at(attention))) == list(range(40))
    cut = filtered(MustDrop(global_thr=2, individual_thr=2), looked_at(attention, keys=[3, 17, 18]))
    assert staying(cut) == [3, 17, 18]


@given(seed=st.integers(0, 2**16), share=st.floats(0.3, 1), keys=st.lists(st.integers(0, 29), max_size=6, unique=True))
def test_a_budget_keeps_the_key_tokens_and_then_the_highest_scores(seed, share, keys):
    attention = attention_of(4, 30, seed)
    rate = max(0, len(keys) - 0.5) / 30  # as many keys as the tower marks
    method = MustDrop(tokens=30 * share, key_rate=rate)
    cut = filtered(method, looked_at(attention, keys))
    kept = list(range(30)) if cut is None else cut.source.tolist()
    assert len(kept) == counts_of(30, method, 30)[1]
    assert set(keys) <= set(kept)
    score = torch.maximum(attention.sum(dim=0) / attention.sum(), attention.max(dim=0).values)
    others = [score[j].item() for j in kept if j not in keys]
    gone = [score[j].item() for j in range(30) if j not in kept]
    assert not others or not gone or min(others) >= max(gone) - 1e-6


def test_a_budget_may_lie_below_the_key_share_of_the_unmerged_image():
    # 440 of 576 came out of the tower with 36 key tokens: forty stay where forty were asked for, not 47.
    view = looked_at(attention_of(4, 440, seed=3), keys=range(36), entered=576)
    assert filtered(MustDrop(tokens=86.5), view).count == 40


# -- the tower -----------------------------------------------------------------------------------------------


def stage_at(method, place, **known):
    (stage,) = follow.at(method.stages(Shape(depth=32, cls=True, **known)), place)
    return stage


def merged(method, rows, grid):
    """What the tower stage makes of an image's patches, as the host has it once it knows the count."""
    cut = stage_at(method, Place.TOWER).cut(PatchView(rows, grid))
    return None if cut is None else cut.first(int(cut.count))


def marked(method, base, scores, **known):
    """Both stages in front of the decoder in one: patches merged, and the rows that are left marked."""
    view = ImageView(base.rows, attention=scores, tokens=base.source, merged=True)
    return base.then(stage_at(method, Place.BEFORE_PROJECTOR, **known).cut(view))


@pytest.mark.parametrize(("tokens", "keys"), [(576, 47), (448, 36), (440, 36), (336, 27), (1, 1)])
def test_how_many_key_tokens_there_are(tokens, keys):
    scores = torch.rand(tokens, generator=torch.Generator().manual_seed(0))
    stage = stage_at(MustDrop(), Place.BEFORE_PROJECTOR)
    key = stage.cut(ImageView(torch.zeros(tokens, 2), attention=scores)).notes["key"]
    assert int(key.sum()) == keys
    assert scores[key].min() >= (scores[~key].max() if keys < tokens else 0)


def test_near_identical_windows_merge_and_a_threshold_nobody_reaches_changes_nothing():
    grid = torch.randn(6, 6, 8, generator=torch.Generator().manual_seed(3))
    grid[:3, :3] = 1
    rows = grid.reshape(36, 8)
    cut = merged(MustDrop(), rows, (6, 6))
    assert cut.count == 28
    assert cut.source[0] == 7
    assert merged(MustDrop(merge_threshold=1.01), rows, (6, 6)) is None  # nobody reaches it
    assert merged(MustDrop(), rows[:10], (2, 5)) is None  # no window fits


def test_merged_tokens_come_first_or_where_ids_are_kept_at_their_windows_centre():
    scores = torch.arange(20.0)
    grid = torch.randn(6, 6, 8, generator=torch.Generator().manual_seed(3))
    grid[:3, :3], grid[3:, 3:] = 1, 2
    base = merged(MustDrop(merge_threshold=0.99), grid.reshape(36, 8), (6, 6))
    assert base.count == 20
    base = Cut.merge(base.source, torch.arange(20.0)[:, None], base.parent)
    new = marked(MustDrop(key_rate=0.05), base, scores)
    kept = marked(MustDrop(key_rate=0.05, positions="keep"), base, scores)
    forced = marked(MustDrop(key_rate=0.05), base, scores, renumbers=False)
    assert new.source[:2].tolist() == [7, 28]
    assert kept.source.tolist() == sorted(new.source.tolist()) == forced.source.tolist()
    for cut in (new, kept):  # the same rows, members and key tokens, in another order
        assert cut.rows[cut.source.tolist().index(7)] == 0
        members = (cut.parent == cut.source.tolist().index(28)).nonzero()[:, 0].tolist()
        assert members == [21, 22, 23, 27, 28, 29, 33, 34, 35]
        assert cut.source[cut.notes["key"]].tolist() == [new.source[19].item()]


# -- schedules, settings -------------------------------------------------------------------------------------


def layers_of(method, depth=32):
    """Decoder layers before which it cuts."""
    return follow.cut_layers(method.stages(Shape(depth)))


def cached(method):
    return list(follow.cached_layers(method.stages(Shape(depth=32))))


def counts_of(start, method, full, depth=32):
    """Tokens left at each cut, of an image of `full` tokens that entered the decoder with `start`."""
    return method.solution(depth, Arriving(start, full, start))


def mean(start, method, depth, full=None):
    """Vision tokens a layer processes on average, layer by layer."""
    left = dict(zip(layers_of(method, depth), counts_of(start, method, full or start, depth), strict=True))
    counts, now = [], start
    for layer in range(depth):
        now = left.get(layer, now)
        counts.append(now)
    return sum(counts) / depth


@pytest.mark.parametrize("started", [440, 336, 250])
def test_every_image_meets_the_budget_with_what_its_merging_leaves(started):
    method = MustDrop.for_budget(Config(32), tokens=192)
    assert mean(started, method, 32, full=576) == pytest.approx(192, abs=0.5)


def test_an_image_that_merging_leaves_less_of_than_the_budget_keeps_all_it_has():
    assert counts_of(120, MustDrop.for_budget(Config(32), tokens=192), 576) == (120,) * 4


@given(depth=st.integers(4, 80), share=st.floats(0.02, 0.999), tokens=st.integers(16, 3000))
def test_a_budget_is_met_or_refused_with_its_floor(depth, share, tokens):
    first = round(2 * depth / 32) + 1
    floor = (first * tokens + depth - first) / depth
    if share * tokens < floor:
        with pytest.raises(fv.BudgetError, match=f"floor is .*%, {floor:.1f} tokens"):
            MustDrop.for_budget(Config(depth), retention=share, vision_tokens=tokens)
    else:
        method = MustDrop.for_budget(Config(depth), retention=share, vision_tokens=tokens)
        assert mean(tokens, method, depth) == pytest.approx(share * tokens, abs=0.5)
        counts = list(counts_of(tokens, method, tokens, depth))
        assert counts == sorted(counts, reverse=True)
        assert method._keys(depth, tokens, tokens) <= counts[-1]


def test_each_stage_can_be_switched_off():
    whole = MustDrop()
    assert layers_of(whole) == (3, 7, 11, 15)
    assert cached(whole) == list(range(2, 15))
    assert whole.plan(32, (576,)) is None
    no_filter = MustDrop(filter=False)
    assert (layers_of(no_filter), cached(no_filter)) == ((), [])
    assert [stage.place for stage in no_filter.stages(Shape(32))] == [Place.TOWER, Place.BEFORE_PROJECTOR]
    assert cached(MustDrop(kv=False)) == []
    nothing = MustDrop(filter=False, merge_windows=False)
    assert nothing.plan(32, (576, 10)) == (586,) * 32
    assert nothing.stages(Shape(32)) == ()


# -- in a model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("positions", "decoding"), [("reindex", [255] * 2 + [155] * 30), ("keep", [631] * 32)])
def test_the_table_of_the_spec(positions, decoding):
    """35 + 200 + 20 tokens, 100 of the 200 kept at layer 2 and nothing later."""
    case = golden.cases("mustdrop")[0]
    similarity = merged_similarity(case)
    threshold = similarity.sort(descending=True).values[46].item()  # 47 windows merge: 576 − 8 · 47 = 200
    method = MustDrop(tokens=109.375, merge_threshold=threshold, key_rate=0.5, positions=positions)  # key tokens alone
    with fv.drop(case.model, method) as trace, golden.positions_seen(case.model) as seen:
        golden.generate(case.model, case.inputs)
    assert (trace.stages[0].where, trace.stages[0].after) == ("tower", (200,))
    assert [len(calls[0]) for calls in seen] == [255] * 3 + [155] * 29
    assert [layer[0] for layer in trace.kv_lengths] == [255] * 2 + [155] * 30
    for step in range(7):
        assert [calls[1 + step] for calls in seen] == [[first + step] for first in decoding]
    assert trace.tokens == [109.375]
    counts = [count for (count,) in trace.latest.per_layer]
    assert sum([*counts[1:], counts[-1]]) / 32 == 106.25  # the authors' number: a layer counts with what is behind it


def merged_similarity(case):
    groups = []

    class Watching(MustDrop):
        def _merge(self, view, _):
            groups.append(window_similarity(view.patches, *view.grid, 3))

    with fv.drop(case.model, Watching(filter=False)), torch.no_grad():
        case.model(**case.inputs)
    return groups[0]


@pytest.mark.parametrize("thresholds", [(0.001, 0.001), (2.0, 2.0)])
def test_without_text_after_the_image_nothing_leaves_whatever_the_thresholds(thresholds):
    gamma, alpha = thresholds
    method = MustDrop(**CUTS, global_thr=gamma, individual_thr=alpha, key_rate=0, merge_windows=False)
    with fv.drop(tiny("llava"), method) as trace, torch.no_grad():
        tiny("llava")(**batch("llava", ["ti"]))
    assert {stage.after for stage in trace.stages if stage.where == "layer"} == {(25,)}
