"""Laws of every life of a cache layer: after any changes in any order it holds what plain lists of its rows hold.

Each row that comes has a token of its own, which its key and its value hold: a wrong gather is seen. These are refused:

- `crop`, once a window that does not record has discarded rows; and into the beginning that samples share
- `update` outside the context, once a column may be missing
"""

import copy
import pickle
from dataclasses import dataclass, fields, is_dataclass, replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.engine import rooms
from foveate.engine.cache import PrunedLayer, WindowedLayer
from foveate.engine.copies import compact, copy_of
from foveate.engine.extensions.replays import shared_rooms
from foveate.engine.lives.chosen import Chosen
from foveate.engine.lives.lending import LENDING, lend, lent_by, note_alive
from foveate.engine.lives.limited import CHOICE, KINDS, Choice, Kinds, LimitedLayer, choice_on, kinds_of
from foveate.engine.lives.shared import SharedLayer
from foveate.engine.lives.tenant import TenantLayer
from tests.models import batch, generate, tiny

CPU = torch.device("cpu")
SPAN = 5
"""Columns of a turn."""
MOST = 12
"""Attributes of a bare layer."""
COPIES = {
    "copy": copy.copy,
    "deep copy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "with other tensors": lambda layer: layer.with_tensors(torch.clone, layer.memo),
}


@dataclass(frozen=True)
class Row:
    """A slot.

    Attributes:
        column: Its unpruned column.
        token: What its value holds, and its key before it was turned.
        mine: What is beside it.
        counted: The column in which a window counts it.
        turned: By how many positions its key was turned.
    """

    column: int
    token: int
    mine: int
    counted: int
    turned: int = 0


@dataclass
class Plain:
    """What a layer should hold.

    Attributes:
        samples: The rows of each sample.
        window, records: See `WindowedLayer`.
        seen: The unpruned length.
        read: The rows of each sample that steps read; None: all.
        limit: If steps read less, the unpruned length when that began.
        chosen: If the layer remembers what a step read, the unpruned length when it did first; else None.
        kinds: The kind of each column of each sample.
        alive: Which columns of each sample are seen by borrowers.
        shift: See `PrunedLayer`.
        counts: Whether a window counts other columns.
        is_pruned: Whether any column may be missing.
        last: How many slots the last turn has brought; 0: other changes came since.
    """

    samples: list[list[Row]]
    window: int | None = None
    records: bool = False
    seen: int = 0
    read: list[list[Row]] | None = None
    limit: int = 0
    chosen: int | None = None
    kinds: list[list[int]] | None = None
    alive: list[list[bool]] | None = None
    shift: list[int] | None = None
    counts: bool = False
    is_pruned: bool = False
    last: int = 0

    def of_samples(self, order):
        for name in ("samples", "read", "kinds", "alive", "shift"):
            if getattr(self, name) is not None:
                setattr(self, name, [getattr(self, name)[index] for index in order])

    def without(self, start, end):
        """Take these columns from what is known of columns."""
        for name in ("kinds", "alive"):
            if getattr(self, name) is not None:
                setattr(self, name, [values[:start] + values[end:] for values in getattr(self, name)])
        if self.chosen is not None and start < self.chosen:
            self.chosen = None

    def settle(self):
        self.read = self.chosen = None

    def attended(self):
        return self.samples if self.read is None else self.read


class Game:
    """A layer in a cache, and what it should hold.

    Attributes:
        left: Layers of which copies were made, and what each should hold.
    """

    def __init__(self, layer, plain, draw):
        self.cache, self.plain, self.draw, self.left = DynamicCache(), plain, draw, []
        self.cache.layers.append(layer)
        self.rooms, self.token = shared_rooms.Rooms(CPU), 0

    @property
    def layer(self):
        return self.cache.layers[0]

    @property
    def count(self):
        return len(self.plain.samples)

    def flags(self, *sizes):
        """Draw bools of a shape."""
        seed = self.draw(st.integers(0, 2**32))
        return torch.rand(*sizes, generator=torch.Generator().manual_seed(seed)) < 0.6

    # -- rows that come ------------------------------------------------------------------------------------------------

    def tokens(self, rows):
        self.token += self.count * rows
        return (self.token - torch.arange(self.count * rows)).view(self.count, rows)

    def add(self, tokens, rows, span):
        """Let the layer get tokens, (samples, rows), and the plain lists the rows. Compare what the layer returns."""
        plain, before = self.plain, self.plain.attended()
        keys = tokens.float()[:, None, :, None].expand(-1, 2, -1, 2).contiguous()
        states = self.layer.update(keys, keys + 0.5)
        plain.seen += span
        plain.samples = [old + new for old, new in zip(plain.samples, rows, strict=True)]
        if plain.read is not None:
            plain.read = [old + new for old, new in zip(plain.read, rows, strict=True)]
        lending = self.layer.notes.get(LENDING)
        if lending is not None:
            after = [old + new for old, new in zip(before, rows, strict=True)]
            compare(states, lending.returned, after)
        if plain.window is None:
            compare(states, self.layer.attended.columns(0, self.count, CPU), plain.attended())
        elif not plain.records:
            self.evict()

    def evict(self):
        """A window has let go of slots that no later row sees. Pads decide which of the others stay."""
        plain = self.plain
        stored = (self.layer.columns(0, self.count, CPU) >= 0).sum(dim=1).tolist()
        for sample, rows in enumerate(plain.samples):
            last = rows[len(rows) - stored[sample] :]
            sees = [row for row in rows if row.column > plain.seen - plain.window]
            assert sees == last[len(last) - len(sees) :]
            plain.samples[sample] = last
        assert self.layer.slots <= plain.window - 1

    def next_rows(self, tokens):
        """The row that follows in each sample."""
        shift = self.plain.shift or [0] * self.count
        pairs = zip(tokens[:, 0].tolist(), shift, strict=True)
        return [[Row(self.plain.seen, token, 0, self.plain.seen - less)] for token, less in pairs]

    def step(self):
        """A decoded row comes."""
        tokens = self.tokens(1)
        self.layer.attended.announce(None, 1)
        self.add(tokens, self.next_rows(tokens), 1)

    def turn(self):
        """A prompt comes, of which each sample has dropped rows. A stage may have renumbered them."""
        plain = self.plain
        self.layer.settle()
        plain.settle()
        kept = [sorted(self.draw(st.sets(st.integers(0, SPAN - 1), min_size=1))) for _ in range(self.count)]
        most = max(map(len, kept))
        tokens, columns = self.tokens(most), torch.full((self.count, most), -1)
        for sample, own in enumerate(kept):
            columns[sample, most - len(own) :] = torch.tensor(own) + plain.seen
        real = columns >= 0
        counted, window = columns, None
        if plain.window is None and (plain.counts or self.draw(st.booleans())):
            plain.counts, counted = True, columns * 7 % 31
            window = counted.masked_fill(~real, 77)
        mine = tokens * 3
        rows = []
        for sample, own in enumerate(real):
            parts = [part[sample][own].tolist() for part in (columns, tokens, mine, counted)]
            rows.append([Row(*row) for row in zip(*parts, strict=True)])
        self.layer.announce(columns, SPAN, not bool(real.all()), window, beside={"mine": mine.masked_fill(~real, 5)})
        plain.is_pruned = True
        self.add(tokens, rows, SPAN)
        plain.last = most
        if LENDING in self.layer.notes:
            self.borrow(columns.masked_fill(self.flags(*columns.shape), -1))

    def borrow(self, columns):
        """Borrowers see these columns of the turn."""
        plain, past = self.plain, self.plain.seen - SPAN
        note_alive(self.layer, columns, past)
        alive = []
        for sample, own in enumerate(columns.tolist()):
            before = [] if plain.alive is None else plain.alive[sample]
            before = before + [True] * (past - len(before))
            alive.append(before + [column in own for column in range(past, plain.seen)])
        plain.alive = alive

    def outside(self):
        """A row comes that nobody announced."""
        plain, tokens = self.plain, self.tokens(1)
        plain.settle()
        if plain.is_pruned:
            with pytest.raises(fv.SessionError, match="outside its context"):
                self.layer.update(tokens[:, None, :, None].float(), tokens[:, None, :, None].float())
        else:
            self.add(tokens, self.next_rows(tokens), 1)

    # -- rows that go --------------------------------------------------------------------------------------------------

    def crop(self):
        plain = self.plain
        remove = self.draw(st.integers(0, min(plain.seen, 7)))
        end, refused = plain.seen - remove, None
        if plain.read is not None and end < plain.limit:
            self.layer.settle()
            plain.settle()
        if plain.window is not None and remove and not plain.records and plain.seen >= plain.window:
            refused = "discarded"
        if isinstance(self.layer, SharedLayer) and remove > self.layer.keys.shape[-2]:
            refused = "shared beginning"
        if refused is not None:
            with pytest.raises(fv.UnsupportedError, match=refused):
                self.layer.crop(-remove)
            return
        self.layer.crop(-remove)
        plain.samples = [[row for row in rows if row.column < end] for rows in plain.samples]
        if plain.read is not None:
            plain.read = [[row for row in rows if row.column < end] for rows in plain.read]
        plain.without(end, plain.seen)
        plain.seen, plain.last = end, 0
        if plain.window is not None:
            self.evict()

    def forget(self):
        """One sample forgets some columns."""
        plain = self.plain
        if self.count > 1 or not plain.seen or not self.layer.is_initialized:
            return
        start = self.draw(st.integers(0, plain.seen - 1))
        end = self.draw(st.integers(start + 1, plain.seen))
        self.layer.forget(start, end, 9, lambda keys, positions: keys + 1000 * positions)
        plain.read = None
        size, turned, counted = end - start, 9, end - start
        gone = sum(start <= row.column < end for row in plain.samples[0])
        if plain.shift is not None:
            turned = counted = gone
            plain.shift = [plain.shift[0] - size + gone]
        before = [row for row in plain.samples[0] if row.column < start]
        later = [row for row in plain.samples[0] if row.column >= end]
        moved = [
            Row(row.column - size, row.token, row.mine, row.counted - counted, row.turned + turned) for row in later
        ]
        plain.samples = [before + moved]
        plain.without(start, end)
        plain.seen, plain.last = plain.seen - size, 0

    def keep(self):
        """Some rows of the last turn stay. They may be renumbered."""
        plain, most = self.plain, self.plain.last
        if not most:
            return
        columns = self.layer.columns(0, self.count, CPU)
        earlier = max(0, columns.shape[1] - most)
        columns = columns[:, earlier:]
        most = columns.shape[1]  # a window has evicted the others
        stays = self.flags(self.count, plain.last)
        stays[:, plain.last - most :] &= columns >= 0
        shift = None
        if plain.window is None and self.draw(st.booleans()):
            shift, plain.counts = torch.arange(self.count) + 2, True
        if plain.read is not None:
            plain.settle()
        self.layer.keep(stays, stays.sum(dim=1).tolist())
        if shift is not None:
            self.layer.count_anew(self.layer.slots - earlier, shift)
        for sample, rows in enumerate(plain.samples):
            came, there = columns[sample].tolist(), stays[sample, plain.last - most :]
            left = columns[sample][there].tolist()
            first = [row for row in rows if row.column not in came]
            rest = [row for row in rows if row.column in left]
            if shift is not None:
                number = plain.seen - int(shift[sample]) - len(rest)
                rest = [replace(row, counted=number + place) for place, row in enumerate(rest)]
            plain.samples[sample] = first + rest
        plain.is_pruned, plain.last = True, 0
        if shift is not None:
            self.layer.shift, plain.shift = shift, shift.tolist()

    def reset(self):
        self.layer.reset()
        plain = self.plain
        self.plain = Plain([[] for _ in range(self.count)], plain.window, plain.records)

    # -- samples, and copies -------------------------------------------------------------------------------------------

    def reorder(self):
        order = [self.draw(st.integers(0, self.count - 1)) for _ in range(self.count)]
        self.layer.reorder_cache(torch.tensor(order))
        self.plain.of_samples(order)

    def repeat(self):
        if self.count < 3:
            self.layer.batch_repeat_interleave(2)
            self.plain.of_samples([sample for sample in range(self.count) for _ in range(2)])

    def select(self):
        order = self.draw(st.lists(st.integers(0, self.count - 1), min_size=1, max_size=3))
        self.layer.batch_select_indices(torch.tensor(order))
        self.plain.of_samples(order)

    def copy(self):
        """Go on with a copy. The original stays as it is."""
        self.left.append((self.layer, copy.deepcopy(self.plain)))
        self.cache = copy.copy(self.cache)
        self.cache.layers = [COPIES[self.draw(st.sampled_from([*COPIES]))](self.layer)]

    def share(self):
        """Several samples continue from one. The original stays as it is."""
        if self.count > 1:
            return
        samples = self.draw(st.integers(1, 3))
        self.left.append((self.layer, copy.deepcopy(self.plain)))
        self.cache = copy_of(self.cache, samples)
        self.plain.of_samples([0] * samples)

    def go_back(self):
        """Go on with a layer of which a copy was made. The copy stays as it is."""
        if self.left:
            layer, plain = self.left.pop(self.draw(st.integers(0, len(self.left) - 1)))
            self.left.append((self.layer, self.plain))
            self.cache = copy.copy(self.cache)
            self.cache.layers, self.plain = [layer], plain

    # -- lives ---------------------------------------------------------------------------------------------------------

    def limit(self):
        """Steps read some slots, or others than before."""
        plain = self.plain
        if plain.window is not None or not plain.seen or LENDING in self.layer.notes:  # nor in the engine
            return
        whole = self.layer.whole if plain.read is not None else self.layer
        columns = whole.columns(0, self.count, CPU)[:, : whole.slots]
        reads = self.flags(*columns.shape) & (columns >= 0)
        chosen = Chosen.exactly(columns, reads, reads.sum(dim=1).tolist())
        if plain.read is None:
            plain.limit, plain.kinds = plain.seen, self.flags(self.count, plain.seen).long().tolist()
            self.layer.notes = {**self.layer.notes, KINDS: Kinds(torch.tensor(plain.kinds))}
            self.cache.layers[0] = LimitedLayer(self.layer, chosen)
        else:
            self.layer.read(chosen)
        plain.read = []
        for rows, own, there in zip(plain.samples, columns, reads, strict=True):
            shown = own[there].tolist()
            plain.read.append([row for row in rows if row.column in shown or row.column >= plain.limit])

    def choose(self):
        """The layer remembers what a step read."""
        if self.plain.read is None and self.plain.seen:
            slots = torch.arange(self.count)[:, None]
            choice = Choice(
                slots, slots, slots, slots > 0, self.plain.seen, [(sample, 0) for sample in range(self.count)]
            )
            self.layer.notes = {**self.layer.notes, CHOICE: choice}
            self.plain.chosen = self.plain.seen

    def compact(self):
        compact(self.cache)
        if self.layer.is_initialized:
            self.plain.settle()

    def move_in(self):
        """The rows move into the memory of recorded steps. Others that were there move out."""
        plain = self.plain
        if plain.window is not None or plain.read is not None or not plain.seen:
            return
        by_layer = self.rooms.plan(self.cache, self.rooms.are_let_to(self.cache), 1, 3)
        self.rooms.lend(self.cache, by_layer)
        assert type(self.layer) is TenantLayer
        if self.draw(st.booleans()):  # a replay writes a row
            tokens = self.tokens(1)
            keys = tokens.float()[:, None, :, None].expand(-1, 2, -1, 2)
            self.layer._room.put_at(by_layer[0].place, keys, keys + 0.5)
            self.rooms.grow(self.cache, 1)
            plain.samples = [old + new for old, new in zip(plain.samples, self.next_rows(tokens), strict=True)]
            plain.seen, plain.last = plain.seen + 1, 0


CHANGES = [
    *(Game.step, Game.step, Game.turn, Game.outside, Game.crop, Game.forget, Game.keep, Game.reset),
    *(Game.reorder, Game.repeat, Game.select, Game.copy, Game.go_back, Game.go_back, Game.share),
    *(Game.limit, Game.choose, Game.compact, Game.move_in),
]


def compare(states, columns, samples):
    """Compare keys and values, (samples, heads, slots, head size), and their columns with plain rows."""
    keys, values = (part[:, 1, :, 1] for part in states)
    assert keys.shape == values.shape == columns.shape
    for sample, rows in enumerate(samples):
        real = columns[sample] >= 0
        assert columns[sample][real].tolist() == [row.column for row in rows]
        assert keys[sample][real].tolist() == [row.token + 1000 * row.turned for row in rows]
        assert values[sample][real].tolist() == [row.token + 0.5 for row in rows]


def check(layer, plain):
    """Compare a layer with what it should hold."""
    assert layer.get_seq_length() == layer.attended.seen == plain.seen
    assert isinstance(layer, LimitedLayer) == (plain.read is not None)
    assert layer.is_pruned or not plain.is_pruned
    alive = lent_by(layer).alive if LENDING in layer.notes else None
    for note, expected in ((kinds_of(layer), plain.kinds), (alive, plain.alive), (layer.attended.shift, plain.shift)):
        assert (None if note is None else note.tolist()) == expected
    choice = choice_on(layer)
    assert (choice is None) == (plain.chosen is None)
    assert choice is None or choice.counts is None or len(choice.counts) == len(plain.samples) == len(choice.kinds)
    if not layer.is_initialized:
        assert not plain.seen
        return
    if plain.read is not None:
        whole = [[row for row in rows if row.column < plain.limit] for rows in plain.samples]
        columns = layer.whole.columns(0, len(whole), CPU)
        compare(layer.whole.states, columns[:, : layer.whole.slots], whole)
    view, samples = layer.attended, plain.attended()
    columns = view.columns(0, len(samples), CPU)
    assert view.is_whole
    assert view.ragged or not bool((columns < 0).any())
    assert view.valid_slots()() == [len(rows) for rows in samples]
    compare(view.states, columns, samples)
    mine, counted = view.values_of("mine"), view.window_slots()
    for sample, rows in enumerate(samples):
        real = columns[sample] >= 0
        assert [row.mine for row in rows] == ([0] * len(rows) if mine is None else mine[sample][real].tolist())
        assert [row.counted for row in rows] == (columns if counted is None else counted)[sample][real].tolist()


KINDS_OF_LIFE = {
    "bare": (),
    "window": (),
    "recording window": (),
    "lender": (),
    "lending window": (),
    "limited": (Game.limit,),
    "choosing": (Game.choose,),
    "shared": (Game.select, Game.share),
    "limited and shared": (Game.select, Game.share, Game.limit),
    "tenant": (Game.move_in, Game.copy, Game.go_back),
    "long": (Game.step, Game.step, Game.copy, Game.go_back),
    "renumbered": (Game.select, Game.turn, Game.keep),
}
"""By what changes each begins."""


@settings(max_examples=150)
@pytest.mark.parametrize("kind", KINDS_OF_LIFE)
@given(data=st.data())
@torch.no_grad()
def test_any_changes_in_any_order_leave_what_plain_lists_hold(kind, data):
    draw, window, layer = data.draw, None, PrunedLayer(DynamicLayer())
    if "window" in kind:
        window = draw(st.integers(2, 9))
        layer = WindowedLayer(DynamicSlidingWindowLayer(sliding_window=window))
    records = kind == "recording window"
    if records:
        layer.activate_past_recording()
    if kind.startswith("lend"):
        lend(layer)
    game = Game(layer, Plain([[] for _ in range(draw(st.integers(1, 3)))], window, records), draw)
    changes = data.draw(st.lists(st.sampled_from(CHANGES), max_size=12))
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(rooms, "LONG", 4)  # a few slots are many
        patches.setattr(rooms, "MOST_STEP", 1)
        patches.setattr(shared_rooms, "MORE", 4)
        first = [Game.turn, Game.step] if draw(st.booleans()) else [Game.step]
        for change in [*first, *KINDS_OF_LIFE[kind], *changes]:
            change(game)
            check(game.layer, game.plain)
    for layer, plain in game.left:
        check(layer, plain)


# -- what a layer has --------------------------------------------------------------------------------------------------


def attributes(layer):
    """Names of a layer's attributes. Of a dataclass or dict its entries stand for it."""
    names = []
    for name, value in vars(layer).items():
        if is_dataclass(value):
            names += [f"{name}.{field.name}" for field in fields(value)]
        elif isinstance(value, dict):
            names += [f"{name}.{key}" for key in value]
        else:
            names.append(name)
    return names


@pytest.mark.parametrize("long", [False, True])
def test_a_bare_layer_has_few_attributes(long, monkeypatch):
    if long:
        monkeypatch.setattr(rooms, "LONG", 4)
    model, inputs, seen = tiny("llava"), batch("llava", ["titt", "tit"]), []

    def watch(ids, scores):
        seen.append(
            {index: attributes(layer) for index, layer in enumerate(cache.layers) if type(layer) is PrunedLayer}
        )
        return scores

    cache = DynamicCache(config=model.config.get_text_config())
    with fv.drop(model, fv.V2Drop(layers=(1, 3), keep=(0.6, 0.4))):
        out = generate(model, inputs, 4, **with_cache(cache), logits_processor=[watch])
    assert cache_in(out) is cache
    assert len(seen) == 4
    most = max((names for step in seen for names in step.values()), key=len)
    most = [name for name in most if name != "dtype"]  # which older transformers set
    print(len(most), *most)
    assert 8 < len(most) <= MOST
