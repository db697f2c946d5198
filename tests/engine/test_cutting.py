"""What stages before a layer decide about a sample: units cut and put together, signals of each, notes let go."""

import numpy as np
import torch

import foveate as fv
from foveate.contract import LayerStage, Method
from foveate.core.cut import Cut
from foveate.core.signals import Keys
from foveate.engine.attending import put_together
from foveate.engine.cutting import SampleRows, decide
from foveate.engine.program import Program, ran_note
from foveate.engine.prompt_samples import Sample, image_units
from foveate.engine.rows import Rows
from foveate.registry import family_for
from tests.models import tiny


def program(method, family="llava"):
    return Program.on(method, family_for(tiny(family)))


class Listener:
    """Attention rows (rows, tokens) of a whole sample, read by its images: the rows "after" ask of every image."""

    def __init__(self, attention, keys=None):
        self.attention_rows = attention
        self.made_keys = keys

    def read(self, signal, unit):
        return self.made_keys if isinstance(signal, Keys) else signal.read(self, unit)

    def attention(self, signal, unit):
        own = self.attention_rows[unit.rows] if signal.rows == "vision" else self.attention_rows
        blocks = [own[None, :, unit.rows]] if len(own) and unit.text_after != (False,) else []
        values = put_together([signal], blocks)
        return values[signal][0] if values else torch.zeros(len(unit))


def sample_of(sizes, text=True):
    """As the host knows a sample whose images have so many tokens, with text behind each or behind none."""
    tokens = sum(sizes)
    images = [FakeMedia(size) for size in sizes]
    none = torch.zeros(tokens, dtype=torch.int64)
    return Sample(
        tokens, none, torch.arange(tokens), none, images, tuple(sizes), (text,) * len(sizes), (1,) * len(sizes)
    )


class FakeMedia:
    def __init__(self, size):
        self.free = self.started = size


def shown(hidden, layer, sizes=None, entered=None, reader=None, notes=None, text=True):
    """What stages see of a sample before a layer."""
    sizes = sizes or (len(hidden),)
    sample = sample_of(entered or sizes, text)
    table = Rows.entering([sample], max(len(hidden), len(sample.vision)), hidden.device)
    table.columns = table.tokens = (torch.arange(len(hidden)),)
    table.sizes = (sizes,)
    for name, values in (notes or {}).items():
        table.put_note(0, name, values)
    return SampleRows(layer, table, 0, hidden, lambda _: reader)


def cut(method, rows):
    return decide(rows, program(method).before(rows.layer))


# -- units -----------------------------------------------------------------------------------------------------


def rows_of(count, seed):
    rng = torch.Generator().manual_seed(seed)
    attention = torch.rand(count, count, generator=rng).tril() / count
    return attention, torch.randn(count, 6, generator=rng), torch.randn(count, 4, generator=rng)


VISIONDROP = fv.VisionDrop(layer_list=(3,), image_token_list=((30, 5),))


def decided(attention, hidden, keys, sizes, entered):
    return cut(VISIONDROP, shown(hidden, 3, sizes, entered, Listener(attention, keys)))


def test_each_image_is_scored_by_its_own_rows():
    attention, hidden, keys = rows_of(40, seed=3)
    both = decided(attention, hidden, keys, (15, 25), (96, 288))
    assert both.sizes == (6, 18)  # (5 + 1) and (15 + 3): a sixth and a half of 30 + 5, each rounded
    first = decided(attention[:15, :15], hidden[:15], keys[:15], (15,), (96,)).cut
    assert both.cut.source[:6].tolist() == first.source.tolist()
    assert torch.equal(both.cut.rows[:6], first.rows)
    assert both.cut.parent[:15].tolist() == first.parent.tolist()
    assert both.cut.source[6:].min() >= 15


def test_an_image_with_fewer_rows_than_a_cut_keeps_stays_whole_beside_another():
    attention, hidden, keys = rows_of(44, seed=4)
    both = decided(attention, hidden, keys, (4, 40), (576, 576))
    assert both.sizes == (4, 35)
    assert torch.equal(both.cut.rows[:4], hidden[:4])
    assert decided(attention[:4, :4], hidden[:4], keys[:4], (4,), (576,)) is None


def listened(method, layer, hidden, reader, **others):
    """What stages see before a layer that has been listened to while the one before it ran."""
    run, rows = program(method), shown(hidden, layer, reader=reader, **others)
    for signal in run.signals_while(layer - 1):
        assert signal.by_image
        paid = [reader.attention(signal, unit) for unit in image_units(rows.sample, rows.sizes)]
        rows.leave({ran_note(signal, layer - 1): torch.cat(paid)})
    return run, rows


def test_each_image_has_its_own_text_and_its_own_shares():
    attention = torch.tensor([[0.2, 0.1, 0.0, 0.05, 0.05, 0.0], [0.2, 0.1, 0.0, 0.05, 0.05, 0.0]])
    method = fv.MustDrop(global_thr=0.4, individual_thr=1, pruning_layers=(2,), merge_windows=False, key_rate=0)
    run, rows = listened(method, 3, torch.zeros(6, 2), Listener(attention), sizes=(3, 3))
    stays = decide(rows, run.before(3)).cut.stays
    assert stays.nonzero()[:, 0].tolist() == [0, 3, 4]  # shares 2/3, 1/3, 0 and 1/2, 1/2, 0
    assert set(run.done_with(3)) == set(rows.table.notes[0])  # they are not read again


SHARED = Cut.take(torch.tensor([2, 0]), 3, {"size": torch.tensor([7, 8])})


class Shared(Method):
    """Answers with one and the same cut for every sample."""

    name = "shared"

    def stages(self, shape):
        return (LayerStage(2, choose=lambda view, count: SHARED),)


def test_a_cut_that_samples_share_keeps_its_notes_apart():
    method = Shared()
    cuts = [cut(method, shown(torch.zeros(3, 2), 2)) for _ in range(2)]
    assert [*cuts[0].cut.notes] == [*cuts[1].cut.notes]
    assert cuts[0].cut.notes.keys() == {f"{program(method).before(2)[0].owner} size"}
    assert [*SHARED.notes] == ["size"]


def test_text_that_is_not_there_pays_nothing():
    method = fv.MustDrop(global_thr=0.5, individual_thr=0.5, pruning_layers=(2,), merge_windows=False)
    run, rows = listened(method, 3, torch.zeros(12, 2), Listener(torch.zeros(0, 12)), text=False)
    assert all(note.values.tolist() == [0.0] * 12 for note in rows.table.notes[0].values())
    assert decide(rows, run.before(3)) is None


def test_what_is_remembered_is_let_go_at_its_cut():
    run = program(fv.V2Drop(layers=(3, 5), keep=(0.5, 0.5)))
    assert list(run.done_with(3)) == ["hidden 2"]
    assert list(run.done_with(5)) == ["hidden 4"]


def test_a_note_from_before_two_cuts_is_read_at_the_rows_that_the_first_left():
    rows = shown(torch.zeros(4, 2), 3, notes={"mine": torch.arange(4)})
    rows.cut = Cut.take(torch.tensor([1, 3]), 4)
    assert rows.note("mine").tolist() == [1, 3]


def test_a_chain_of_three_cuts_before_one_layer_follows_each_in_turn():
    halves = fv.Uniform(layers=(3,), keep=(0.5,)) + fv.Uniform(layers=(3,), keep=(0.5,))
    decision = cut(halves + fv.Uniform(layers=(3,), keep=(0.5,)), shown(torch.zeros(16, 2), 3))
    once = np.arange(16)
    for left in (8, 4, 2):
        once = once[((2 * np.arange(left) + 1) * len(once)) // (2 * left)]
    assert decision.cut.source.tolist() == once.tolist()
