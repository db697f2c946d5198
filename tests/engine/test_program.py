"""What the adapter between stages and the engine does: units cut and put together, signals reduced and let go."""

import pytest
import torch

import foveate as fv
from foveate.core.tower import TowerView
from foveate.engine.forms import EngineView
from foveate.engine.program import Program
from foveate.methods.stages import Attention, LayerStage
from foveate.registry import family_for
from tests.models import tiny


def program(method, family="llava"):
    return Program(method, family_for(tiny(family)))


def shown(hidden, layer, sizes=None, entered=None, **known):
    """What the engine shows of a sample before a layer."""
    sizes = sizes or (len(hidden),)
    entered = entered or sizes
    known = {"entered_sizes": entered, "started_sizes": sizes, "text_after": (True,) * len(sizes), **known}
    return EngineView(layer, torch.arange(len(hidden)), lambda: hidden, sum(entered), sizes=sizes, **known)


def attending(attention, rows="vision", block=5):
    """Attention rows (rows, tokens), in blocks, as the engine gives them."""

    def attend(queries, start, stop, both_ways, heads):
        assert queries == rows
        own = attention[start:stop] if rows == "vision" else attention
        if len(own):
            yield from own[:, start:stop].split(block)

    return attend


# -- units -----------------------------------------------------------------------------------------------------


def test_ranking_each_image_keeps_its_share_of_each():
    view = shown(torch.zeros(30, 2), 3, (10, 20))
    per_image = program(fv.Random(layers=(3,), keep=(0.5,), scope="image")).cut(view)
    assert per_image.sizes == (5, 10)
    assert (per_image.kept < 10).sum() == 5
    together = program(fv.Random(layers=(3,), keep=(0.5,))).cut(view)
    assert together.sizes is None
    assert len(together.kept) == 15


def rows_of(count, seed):
    rng = torch.Generator().manual_seed(seed)
    attention = torch.rand(count, count, generator=rng).tril() / count
    return attention, torch.randn(count, 6, generator=rng), torch.randn(count, 4, generator=rng)


VISIONDROP = fv.VisionDrop(layer_list=(3,), image_token_list=((30, 5),))


def decided(attention, hidden, keys, sizes, entered):
    view = shown(hidden, 3, sizes, entered, attend=attending(attention), keys_of=lambda: keys)
    return program(VISIONDROP).cut(view)


def test_each_image_is_scored_by_its_own_rows():
    attention, hidden, keys = rows_of(40, seed=3)
    both = decided(attention, hidden, keys, (15, 25), (96, 288))
    assert both.sizes == (6, 18)  # (5 + 1) and (15 + 3): a sixth and a half of 30 + 5, each rounded
    first = decided(attention[:15, :15], hidden[:15], keys[:15], (15,), (96,))
    assert both.kept[:6].tolist() == first.kept.tolist()
    assert torch.equal(both.rows[:6], first.rows)
    assert both.assign[:15].tolist() == first.assign.tolist()
    assert both.kept[6:].min() >= 15


def test_an_image_with_fewer_rows_than_a_cut_keeps_stays_whole_beside_another():
    attention, hidden, keys = rows_of(44, seed=4)
    both = decided(attention, hidden, keys, (4, 40), (576, 576))
    assert both.sizes == (4, 35)
    assert torch.equal(both.rows[:4], hidden[:4])
    assert decided(attention[:4, :4], hidden[:4], keys[:4], (4,), (576,)) is None


def test_each_image_has_its_own_text_and_its_own_shares():
    attention = torch.tensor([[0.2, 0.1, 0.0, 0.05, 0.05, 0.0], [0.2, 0.1, 0.0, 0.05, 0.05, 0.0]])
    method = fv.MustDrop(global_thr=0.4, individual_thr=1, pruning_layers=(2,), merge_windows=False, key_rate=0)
    run, view = program(method), shown(torch.zeros(6, 2), 2, (3, 3), attend=attending(attention, "after", 1))
    run.listen(view)
    view.layer = 3
    cut = run.cut(view)
    assert cut.kept.dtype == torch.bool
    assert cut.kept.nonzero()[:, 0].tolist() == [0, 3, 4]  # shares 2/3, 1/3, 0 and 1/2, 1/2, 0
    assert view.notes == {}  # nobody reads them again


# -- signals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", ["after", "vision"])
@pytest.mark.parametrize("block", [1, 3, 7])
def test_blocks_of_attention_rows_reduce_to_what_all_of_them_do(rows, block):
    attention = torch.rand(7, 7, generator=torch.Generator().manual_seed(0))
    total = attention.sum(dim=0)
    wanted = {"mean": total / 7, "sum": total, "max": attention.amax(dim=0), "share": total / total.sum()}
    signals = {over: Attention(rows=rows, layer="next", over=over) for over in wanted}
    seen = {}

    class Probe(fv.Method):
        name = "probe"

        def stages(self, shape):
            return (LayerStage(2, reads=tuple(signals.values()), choose=self._choose),)

        def _choose(self, view, count):
            seen.update({over: view[signal] for over, signal in signals.items()})

    assert program(Probe()).cut(shown(torch.zeros(7, 2), 2, attend=attending(attention, rows, block))) is None
    torch.testing.assert_close(seen, wanted)


def test_text_that_is_not_there_pays_nothing():
    method = fv.MustDrop(global_thr=0.5, individual_thr=0.5, pruning_layers=(2,), merge_windows=False)
    run = program(method)
    view = shown(torch.zeros(12, 2), 2, attend=attending(torch.zeros(0, 12), "after"), text_after=(False,))
    run.listen(view)
    assert all(note.tolist() == [0.0] * 12 for note in view.notes.values())
    view.layer = 3
    assert run.cut(view) is None


@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_what_is_remembered_is_let_go_at_its_cut(keep):
    notes = {"hidden 1": torch.rand(4, 8), "hidden 3": torch.rand(4, 8)}
    view = shown(torch.rand(4, 8), 3, notes=notes)
    program(fv.V2Drop(layers=(3, 5), keep=(keep, 0.5), window=2)).cut(view)
    assert list(view.notes) == ["hidden 3"]


# -- the tower -------------------------------------------------------------------------------------------------


def test_where_the_tower_cannot_lose_tokens_the_projected_grid_is_merged():
    grid = torch.randn(6, 6, 8, generator=torch.Generator().manual_seed(3))
    grid[:3, :3] = torch.ones(8)
    scores = torch.zeros(36)
    scores[[0, 1, 2]] = 9.0  # averaged over the window they are its three ninths
    scores[35] = 4.0
    view = TowerView(grid.reshape(36, 8), (6, 6), None, lambda layer: scores if layer == 1 else None, None, entered=36)
    asking = program(fv.MustDrop(key_rate=0.03, pruning_layers=(2,))).reduce(view)
    count = next(asking)
    with pytest.raises(StopIteration) as done:
        asking.send(int(count))
    cut = done.value.value
    assert cut.count == 28
    assert torch.equal(cut.rows[0], torch.ones(8))
    (key,) = cut.notes.values()
    assert cut.source[key].tolist() == [35]
