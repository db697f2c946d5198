import copy
import gzip
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, strategies as st
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.engine import rooms
from foveate.engine.cache import PrunedLayer, WindowedLayer, pruned_layer
from foveate.engine.copies import compact, copy_of
from foveate.engine.lives.chosen import Chosen
from foveate.engine.lives.limited import LimitedLayer
from foveate.engine.lives.shared import SharedLayer
from foveate.methods.dycoke import DyCoke
from foveate.methods.read import Read
from tests.models import batch, tiny

WIDTH = 2


def states(columns):
    """Keys (and values) that say which column they are of: (samples, 1 head, slots, WIDTH)."""
    return columns.float()[:, None, :, None].expand(-1, 1, -1, WIDTH).contiguous()


def padded(rows, start=0):
    """Columns of rows, counted on from `start`: pads stand in front of shorter ones."""
    longest = max(map(len, rows))
    return torch.tensor([[-1] * (longest - len(row)) + [start + column for column in row] for row in rows])


def decode(layer, column):
    """One more token of every sample."""
    new = torch.full((layer.keys.shape[0], 1), column)
    layer.announce(None, 1)
    return layer.update(states(new), states(new))


def fill(layer, columns, span):
    """Let a layer get columns (samples, slots; −1 pads) of a prompt of `span`."""
    layer.announce(columns, span, ragged=bool((columns < 0).any()))
    layer.update(states(columns), states(columns))
    return layer


def filled(columns, span, tail=0, made=None, window=None, record=False):
    """A pruned layer that got these of a prompt, then `tail` decoded tokens; where it has a `window`, a sliding one.

    Layers of one cache share what they have `made`."""
    if window is None:
        layer = PrunedLayer(DynamicLayer(), made)
    else:
        layer = WindowedLayer(DynamicSlidingWindowLayer(sliding_window=window), made)
    if record:
        layer.activate_past_recording()
    fill(layer, columns, span)
    for step in range(tail):
        decode(layer, span + step)
    return layer


def slots(layer):
    """For each sample the columns it holds, by what is stored and by what the layer says of it: they must agree."""
    said = layer.columns(torch.empty(layer.keys.shape[0], 0, dtype=torch.long), layer.keys.shape[0], layer.keys.device)
    stored = layer.keys[:, 0, :, 0].long()
    assert said.shape == stored.shape
    assert (stored[said >= 0] == said[said >= 0]).all()
    return [row[row >= 0].tolist() for row in said]


ROWS = st.sets(st.integers(0, 7), min_size=1).map(sorted)
SAMPLES = st.lists(ROWS, min_size=1, max_size=3)
"""Columns that samples of eight have kept."""
COLUMNS = torch.tensor([[-1, -1, 0, 5], [0, 2, 3, 5], [-1, 1, 2, 5]])


def test_it_speaks_in_unpruned_columns():
    layer = filled(COLUMNS, span=6, tail=2)
    assert layer.get_seq_length() == 8
    assert layer.get_mask_sizes(3) == (11, 0)
    assert slots(layer) == [[0, 5, 6, 7], [0, 2, 3, 5, 6, 7], [1, 2, 5, 6, 7]]
    assert layer.valid_slots()() == [4, 6, 5]
    assert layer.columns(2, 3, layer.keys.device)[0].tolist() == [-1, -1, 0, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 1, 1]])
def test_beams_reorder_columns_with_keys(order):
    layer, before = filled(COLUMNS, 6, tail=1), slots(filled(COLUMNS, 6, tail=1))
    layer.reorder_cache(torch.tensor(order))
    assert slots(layer) == [before[index] for index in order]


def test_repeat_and_select():
    layer = filled(COLUMNS, 6, tail=1)
    layer.batch_repeat_interleave(2)
    assert slots(layer) == [[0, 5, 6]] * 2 + [[0, 2, 3, 5, 6]] * 2 + [[1, 2, 5, 6]] * 2
    layer.batch_select_indices(torch.tensor([5, 2]))
    assert slots(layer) == [[1, 2, 5, 6], [0, 2, 3, 5, 6]]


@given(kept=SAMPLES, tail=st.integers(0, 3), data=st.data())
def test_crop_takes_columns_off_the_end(kept, tail, data):
    span = 8
    remove = data.draw(st.integers(0, span + tail))
    layer = filled(padded(kept), span, tail)
    layer.crop(-remove)
    end = span + tail - remove
    assert layer.get_seq_length() == end
    assert slots(layer) == [[c for c in [*row, *range(span, span + tail)] if c < end] for row in kept]
    decode(layer, end)
    assert [row[-1] for row in slots(layer)] == [end] * len(kept)


def test_crop_refuses_a_length():
    with pytest.raises(ValueError, match="minus the number"):
        filled(COLUMNS, 6).crop(3)


def test_a_second_prompt_follows_the_first():
    layer = filled(torch.tensor([[0, 3], [1, 3]]), 4, tail=1)
    fill(layer, torch.tensor([[-1, 7], [5, 8]]), 4)
    assert layer.get_seq_length() == 9
    assert layer.ragged
    assert slots(layer) == [[0, 3, 4, 7], [1, 3, 4, 5, 8]]


def test_a_layer_that_had_whole_turns_before():
    whole = DynamicLayer()
    old = torch.arange(3)[None]
    whole.update(states(old), states(old))
    cache = DynamicCache()
    cache.layers.append(whole)
    layer = pruned_layer(cache, 0)
    assert cache.layers[0] is layer
    assert pruned_layer(cache, 0) is layer
    fill(layer, torch.tensor([[4, 6]]), 4)
    assert slots(layer) == [[0, 1, 2, 4, 6]]


def test_unannounced_rows_are_refused_until_a_reset():
    layer = filled(COLUMNS, 6)
    with pytest.raises(fv.SessionError, match="outside its context"):
        layer.update(states(COLUMNS), states(COLUMNS))
    layer.reset()
    assert layer.get_seq_length() == 0
    layer.update(states(torch.arange(3)[None]), states(torch.arange(3)[None]))
    assert layer.get_seq_length() == 3


def after_a_turn(data, samples):
    """A pruned layer that may hold an earlier turn, and what it got of a prompt of eight behind it."""
    layer, start = PrunedLayer(DynamicLayer()), 0
    if data.draw(st.booleans()):
        first = [[0, 2, 3], [-1, 1, 3], [-1, -1, 3]]
        layer, start = filled(torch.tensor(first[:samples]), 4, tail=data.draw(st.integers(0, 2))), 4
        start = layer.get_seq_length()
    got = [data.draw(ROWS) for _ in range(samples)]
    columns = padded(got, start)
    return fill(layer, columns, 8), columns


@given(data=st.data())
def test_of_the_last_rows_some_stay_and_everything_before_them(data):
    samples = data.draw(st.integers(1, 3))
    layer, columns = after_a_turn(data, samples)
    before = slots(layer)
    stays = [[column for column in row if column >= 0 and data.draw(st.booleans())] for row in columns.tolist()]
    wanted = torch.tensor([[c in row for c in all_] for row, all_ in zip(stays, columns.tolist(), strict=True)])
    layer.keep(wanted, [len(row) for row in stays])
    new = {column for row in columns.tolist() for column in row if column >= 0}
    assert slots(layer) == [[c for c in old if c not in new] + row for old, row in zip(before, stays, strict=True)]
    assert layer.valid_slots()() == [len(row) for row in slots(layer)]
    assert layer.ragged or not (layer.base < 0).any()
    if layer.get_seq_length() == 8:  # of the first turn it is known
        assert layer.ragged == bool((layer.base < 0).any())
        assert layer.keys.shape[2] == max(map(len, stays))


@given(data=st.data(), got=SAMPLES, window=st.integers(2, 9))
def test_of_what_a_window_has_left_some_stays(data, got, window):
    columns = padded(got)
    layer = filled(columns, 8, window=window)
    held = slots(layer)
    stays = [[column for column in row if data.draw(st.booleans())] for row in got]
    wanted = torch.tensor([[c in row for c in all_] for row, all_ in zip(stays, columns.tolist(), strict=True)])
    layer.keep(wanted, [len(row) for row in stays])
    assert slots(layer) == [[c for c in old if c in row] for old, row in zip(held, stays, strict=True)]
    assert layer.ragged or not (layer.base < 0).any()
    decode(layer, 8)
    sees = [[c for c in row if c > 8 + 1 - window] for row in stays]
    assert [[c for c in row if c > 8 + 1 - window and c < 8] for row in slots(layer)] == sees


@given(kept=SAMPLES, window=st.integers(2, 9), tail=st.integers(0, 12))
def test_a_window_lets_go_of_what_no_later_row_sees(kept, window, tail):
    span, longest = 8, max(map(len, kept))
    layer = filled(padded(kept), span, tail, window=window)
    whole = [[*row, *range(span, span + tail)] for row in kept]
    assert layer.get_seq_length() == span + tail
    assert layer.keys.shape[-2] == min(longest + tail, window - 1)
    for held, row in zip(slots(layer), whole, strict=True):
        assert held == row[len(row) - len(held) :]
        first = span + tail - window + 1
        assert [column for column in row if column >= first] == [column for column in held if column >= first]
    assert layer.valid_slots()() == [len(row) for row in slots(layer)]


def test_rows_still_see_what_leaves_behind_them():
    layer = filled(torch.tensor([[0, 2, 3, 5]]), 6, window=4)
    layer.announce(None, 1)
    new = torch.tensor([[6]])
    assert layer.columns(1, 1, new.device).tolist() == [[2, 3, 5, 6]]
    assert layer.update(states(new), states(new))[0][0, 0, :, 0].tolist() == [2, 3, 5, 6]
    assert slots(layer) == [[3, 5, 6]]


@pytest.mark.parametrize("turn", [3, 9])
def test_a_window_after_whole_turns(turn):
    """A turn without pictures, which may have evicted already, and then one with tokens that leave."""
    plain, old = DynamicSlidingWindowLayer(sliding_window=6), torch.arange(turn)[None]
    plain.update(states(old), states(old))
    cache = DynamicCache()
    cache.layers.append(plain)
    layer = pruned_layer(cache, 0)
    held = list(range(max(0, turn - 5), turn))
    assert slots(layer) == [held]
    columns = torch.tensor([[turn, turn + 2]])
    layer.announce(columns, 4)
    assert layer.update(states(columns), states(columns))[0][0, 0, :, 0].tolist() == [*held, turn, turn + 2]
    assert slots(layer) == [[*held, turn, turn + 2][-5:]]
    assert layer.get_seq_length() == turn + 4


@pytest.mark.parametrize("remove", range(4))
def test_a_window_takes_tokens_back_where_the_past_is_recorded(remove):
    layer = filled(torch.tensor([[0, 2, 3, 5, 6]]), 8, window=5, record=True)
    layer.crop(0)
    assert slots(layer) == [[2, 3, 5, 6]]
    new = torch.tensor([[8, 9, 10]])
    layer.announce(None, 3)
    assert layer.update(states(new), states(new))[0].shape[-2] == 7
    layer.crop(-remove)
    assert layer.get_seq_length() == 11 - remove
    assert slots(layer) == [[2, 3, 5, 6, 8, 9, 10][3 - remove : 7 - remove]]


def test_a_window_that_has_let_go_takes_nothing_back():
    layer = filled(COLUMNS, 6, tail=1, window=4)
    layer.crop(0)
    with pytest.raises(fv.UnsupportedError, match="discarded"):
        layer.crop(-1)


@pytest.mark.parametrize("record", [False, True])
def test_after_a_reset_a_window_is_a_plain_one(record):
    plain, layer = DynamicSlidingWindowLayer(sliding_window=5), filled(COLUMNS, 6, tail=3, window=5)
    layer.reset()
    if record:
        plain.activate_past_recording()
        layer.activate_past_recording()
    for step, new in enumerate(torch.arange(12).split([2, 1, 4, 1, 1, 3])):
        assert layer.get_mask_sizes(len(new)) == plain.get_mask_sizes(len(new))
        assert torch.equal(*(one.update(states(new[None]), states(new[None]))[0] for one in (layer, plain)))
        if record and step % 2:  # some calls go by without one
            layer.crop(-1)
            plain.crop(-1)
        assert torch.equal(layer.values, plain.values)
        assert layer.get_seq_length() == plain.get_seq_length()


def test_a_window_that_has_not_evicted_still_slides_for_the_mask_builder():
    layer = DynamicSlidingWindowLayer(sliding_window=40)
    cache = DynamicCache()
    cache.layers.append(layer)
    assert pruned_layer(cache, 0).is_sliding


# -- room for decoded rows ---------------------------------------------------------------------------------------------


@pytest.fixture
def long(monkeypatch):
    """A few slots are many."""
    monkeypatch.setattr(rooms, "LONG", 4)


@torch.no_grad()
def test_a_step_writes_its_row_and_copies_nothing(long):
    layer = filled(COLUMNS, 6, tail=2)
    place, rows = layer.keys.data_ptr(), []
    for column in range(8, 40):
        keys, values = decode(layer, column)
        rows.append(keys[:, 0, -1, 0].tolist())
        assert layer.keys.data_ptr() == keys.data_ptr() == place
        assert values.shape == keys.shape
    assert rows == [[column] * 3 for column in range(8, 40)]
    assert slots(layer)[0] == [0, 5, *range(6, 40)]


@torch.no_grad()
def test_a_full_room_is_followed_by_a_larger_one(long):
    layer = filled(COLUMNS, 6, tail=1)
    places = {decode(layer, column)[0].data_ptr() for column in range(7, 200)}
    assert 1 < len(places) < 5
    assert slots(layer)[1] == [0, 2, 3, 5, *range(6, 200)]


COPIES = {"copy": copy.copy, "deep": copy.deepcopy, "sent": lambda layer: pickle.loads(pickle.dumps(layer))}


@torch.no_grad()
@pytest.mark.parametrize("made", COPIES)
def test_copies_go_on_apart(long, made):
    """From one room: each writes rows of its own, also after the other was cropped to where they parted."""
    layer = filled(COLUMNS, 6, tail=3)
    other = COPIES[made](layer)
    decode(layer, 9)
    layer.crop(-2)
    for one, columns in ((layer, (8, 9)), (other, (9, 10, 11))):
        for column in columns:
            decode(one, column)
    assert slots(layer)[0] == [0, 5, *range(6, 10)]
    assert slots(other)[0] == [0, 5, *range(6, 12)]


@torch.no_grad()
@pytest.mark.parametrize("change", ["reorder", "repeat", "keep", "crop", "settle"])
def test_what_changes_the_rows_ends_the_room(long, change):
    """Nothing is written where somebody may still look, and no memory is held that nobody reads."""
    layer = filled(COLUMNS, 6, tail=2)
    before, cache = layer.keys, DynamicCache()
    kept = before.clone()
    cache.layers.append(layer)
    match change:
        case "reorder":
            layer.reorder_cache(torch.tensor([2, 0, 1]))
        case "repeat":
            layer.batch_repeat_interleave(2)
        case "keep":
            layer.keep(torch.tensor([[False, True]]).expand(3, -1), (1, 1, 1))
        case "crop":
            layer.crop(-1)
        case "settle":
            compact(cache)
    assert change == "crop" or layer._room is None
    decode(layer, layer.seen)
    assert torch.equal(before, kept)


SOURCES = st.permutations(range(2, 10)).flatmap(lambda order: st.integers(1, 8).map(lambda count: order[:count]))
"""Columns of a picture's tokens that its rows stand for, in the order in which they are stored."""


@given(first=SOURCES, second=SOURCES, window=st.integers(2, 14), tail=st.integers(0, 16))
def test_a_window_lets_go_of_no_row_that_it_reaches_by_the_columns_it_counts(first, second, window, tail):
    """Two turns of text, a picture and text, whose rows are packed into the picture's first columns."""
    layer, counts = WindowedLayer(DynamicSlidingWindowLayer(sliding_window=window)), []
    for turn, sources in enumerate((first, second)):
        homes = torch.tensor([[0, 1, *range(2, 2 + len(sources)), 10, 11]]) + 12 * turn
        counted = torch.tensor([[0, 1, *sources, 10, 11]]) + 12 * turn
        layer.announce(homes, 12, window_columns=counted, disorder=True)
        layer.update(states(counted), states(counted))
        counts += counted[0].tolist()
    for step in range(tail):
        decode(layer, 24 + step)
    held, end = layer.keys[0, 0, :, 0].long().tolist(), 24 + tail
    assert layer.window_slots() is None or layer.window_slots()[0].tolist() == held
    assert {column for column in [*counts, *range(24, end)] if end - column < window} <= set(held)
    assert len(held) == min(len(counts) + tail, window - 1)


CPU = torch.device("cpu")


def turn(layer, start, samples=2):
    """Four columns more, of which the third was dropped; what is beside a row is one more than its column."""
    columns = torch.tensor([[0, 1, 3]]).expand(samples, -1) + start
    layer.announce(columns, 4, beside={"mine": columns.float() + 1})
    layer.update(states(columns), states(columns))


def read_even(layer):
    columns = layer.columns(0, 2, CPU)
    return LimitedLayer(layer, Chosen.exactly(columns, columns % 2 == 0, (2, 2)))


CHANGES = {
    "a turn": lambda layer: turn(layer, layer.seen),
    "beams": lambda layer: layer.reorder_cache(torch.tensor([1, 0])),
    "more samples": lambda layer: layer.batch_repeat_interleave(2),
    "keep": lambda layer: layer.keep(torch.arange(layer.slots).expand(2, -1) % 3 > 0, (2, 2)),
    "crop": lambda layer: layer.crop(-3),
    "forget": lambda layer: layer.forget(1, 2, 1, None),
    "read": read_even,
}


@pytest.mark.parametrize(
    ("change", "window"), [*[(change, None) for change in CHANGES], *[(change, 4) for change in [*CHANGES][:3]]]
)
def test_what_stands_beside_a_slot_goes_where_it_goes(change, window):
    layer = PrunedLayer(DynamicLayer()) if window is None else WindowedLayer(DynamicSlidingWindowLayer(window))
    turn(layer, 0, samples=1 + (change != "forget"))
    decode(layer, 4)
    layer = (CHANGES[change](layer) or layer).attended
    keys = layer.states[0][:, 0, :, 0]  # the column that each row had at first
    assert torch.equal(layer.values_of("mine"), torch.where(keys == 4, 0, keys + 1))
    assert layer.slots == keys.shape[1] > 0


@pytest.mark.parametrize("name", ["v2drop", "tome"])
def test_what_0_4_0_pickled_goes_on_as_what_is_made_now(name):
    """made-by-0.4.0.pkl.gz has what a4b65401 left of a prompt: the cache, and the trace's stages."""
    method = {"v2drop": fv.V2Drop(layers=(1, 3), keep=(0.6, 0.4)), "tome": fv.ToMe(retention=0.5)}[name]
    model, inputs = tiny("llava"), batch("llava", ["titt", "tit"])
    old = pickle.loads(gzip.decompress(Path(__file__).with_name("made-by-0.4.0.pkl.gz").read_bytes()))[name]
    text = torch.tensor([[7, 8], [9, 10]])
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 2), value=1)
    with fv.drop(model, method) as trace, torch.no_grad():
        now = cache_in(model(**inputs, use_cache=True))
        stages = trace.stages
        caches = [now, pickle.loads(old["cache"])]
        logits = [
            model(input_ids=text, attention_mask=mask, **with_cache(cache), use_cache=True).logits for cache in caches
        ]
    torch.testing.assert_close(*logits)
    assert [stage.to_dict() for stage in pickle.loads(old["trace"])] == [stage.to_dict() for stage in stages]


OLD = {
    "limited": (Read(keep=0.3), "titt", LimitedLayer),
    "choosing": (DyCoke(p=0.5, layer=3), "titt", LimitedLayer),
    "shared": (fv.V2Drop(layers=(1, 3), keep=(0.6, 0.4)), "tit", SharedLayer),
}


def pickled_by_0_4_0():
    """lives-made-by-0.4.0.pkl.gz has what a4b65401 left of a prompt and a step, by life: one cache each."""
    return pickle.loads(gzip.decompress(Path(__file__).with_name("lives-made-by-0.4.0.pkl.gz").read_bytes()))


@pytest.mark.parametrize("name", OLD)
def test_a_life_that_0_4_0_pickled_goes_on_as_one_that_begins_now(name):
    method, words, life = OLD[name]
    model, inputs = tiny("llava"), batch("llava", [words])
    samples, logits = 1 + (name == "shared"), []
    with fv.drop(model, method), torch.no_grad():
        now = copy_of(cache_in(model(**inputs, use_cache=True)), samples)
        model(input_ids=torch.full((samples, 1), 7), **with_cache(now))
        old = pickle.loads(pickled_by_0_4_0()[name])
        for cache in (now, old):
            assert type(cache.layers[-1]) is life
            for token in (8, 9):
                logits.append(model(input_ids=torch.full((samples, 1), token), **with_cache(cache)).logits)
            turn = torch.full((samples, 3), 10)
            logits.append(model(input_ids=turn, **with_cache(cache)).logits)
            assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 6
    torch.testing.assert_close(logits[:3], logits[3:])


def test_a_window_that_0_4_0_pickled_is_refused():
    with pytest.raises(fv.SessionError, match="older foveate"):
        pickle.loads(pickled_by_0_4_0()["window"])
