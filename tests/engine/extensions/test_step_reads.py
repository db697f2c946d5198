"""Reading some cached vision tokens while decoding, against a recompute of all rows without a cache."""

import copy
import functools
import io

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.ask.answer import kv_bytes
from foveate.contract import CachedAttention, Cut, DecodeStage, Method
from foveate.core.rank import top
from foveate.engine.copies import copy_of, nbytes
from foveate.engine.lives.chosen import Chosen
from foveate.engine.lives.limited import LimitedLayer, choice_on
from foveate.methods.dycoke import DyCoke
from foveate.methods.read import Read
from foveate.testing.contract import state_of_model
from tests import oracle
from tests.models import DEPTH, TINY, batch, generate, tiny

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
CUTS = fv.V2Drop(layers=(1, 3), keep=(0.7, 0.6))
TURN = torch.tensor([[11, 12, 13, 14]])


class Recompute:
    """What a sample's rows read, told from dense attention in a plain loop over the layers.

    Args:
        model: Tiny.
        method: `Read` or `DyCoke`.
        inputs: One unpadded prompt.
        after: Every token behind it that was fed: answers, and the texts of later turns.
        turns: Where the prompt of each turn begins and ends, columns of all.
        cuts: Tokens left before layers.
    """

    def __init__(self, model, method, inputs, after, turns, cuts=None):
        self.model, self.method, self.turns, self.cuts = model, method, turns, cuts or {}
        self.inputs, self.after = inputs, after
        self.reads = {}  # (column of a step's row, layer): columns of vision tokens
        self.paid = {}

    def logits(self):
        """Of the prompt's last row and of every row behind it."""
        length = self.inputs["input_ids"].shape[1]
        for _ in self.turns:  # what a turn reads depends on the rows of the turn before
            handles = [
                layer.register_forward_pre_hook(functools.partial(self.look, index), with_kwargs=True)
                for index, layer in enumerate(self.model.get_decoder().layers)
            ]
            try:
                with torch.no_grad():
                    logits, _ = oracle.forward(self.model, self.inputs, self.after, self.cuts, sees=self.sees)
            finally:
                for handle in handles:
                    handle.remove()
        with torch.no_grad():
            logits, _ = oracle.forward(self.model, self.inputs, self.after, self.cuts, sees=self.sees)
        assert len(logits) == length + len(self.after) - length + 1
        return logits

    def sees(self, index, places, picture, prompt, counts):
        self.places, self.vision = places, picture >= 0
        seen = torch.ones(len(places), len(places), dtype=torch.bool).tril()
        for row, place in enumerate(places.tolist()):
            read = self.reads.get((place, index))
            if read is not None:
                seen[row] &= ~self.vision | torch.isin(places, read)
        self.seen = seen
        return seen

    def look(self, index, layer, args, kwargs):
        pair = tuple(table[..., 0, :, :] for table in kwargs["position_embeddings"])
        weights = oracle.dense_attention(layer, args[0][0], pair, self.seen)
        vision = self.places[self.vision]
        if not len(vision):
            return
        for turn, (start, end) in enumerate(self.turns):
            until = self.turns[turn + 1][0] if turn + 1 < len(self.turns) else 10_000
            steps = [place for place in self.places.tolist() if end <= place < until]
            if isinstance(self.method, Read):
                self.of_turn(index, weights, vision, start, end, steps)
            elif index == self.method.layer - 1:
                self.of_steps(weights[:, self.vision], vision, steps)

    def of_turn(self, index, weights, vision, start, end, steps):
        shown = vision[(vision >= start) & (vision < end)]
        first = max(start, int(shown[-1]) + 1) if len(shown) else start
        asking = (self.places >= first) & (self.places < end)
        score = weights[asking][:, self.vision].sum(0)
        read = vision[best(score, max(1, int(len(vision) * self.method.keep)))]
        if index >= self.method.layer:
            self.reads |= {(place, index): read for place in steps}

    def of_steps(self, weights, vision, steps):
        before, read = None, None
        count = int(len(vision) * (1 - self.method.p))
        for place in steps:
            paid = weights[self.places == place][0]
            alike = before is not None and torch.cosine_similarity(paid, before, dim=0) >= 0.9
            if not alike:
                read = vision[best(paid, count)]
            elif self.method.above == "all":
                read = vision
            before = paid
            self.reads |= {(place, layer): read for layer in range(self.method.layer, DEPTH)}


def best(score, count):
    return sorted(sorted(range(len(score)), key=lambda i: (-score[i].item(), i))[:count])


def second_turn(family, inputs, first, turn=TURN, **more):
    """What `generate` gets of a text behind an answer."""
    turn = turn.expand(len(first.sequences), -1)
    ids = torch.cat((first.sequences, turn), dim=1)
    mask = torch.cat((inputs["attention_mask"], torch.ones(len(ids), ids.shape[1] - inputs["input_ids"].shape[1])), 1)
    arguments = {"input_ids": ids, "attention_mask": mask.long(), **with_cache(cache_in(first)), **more}
    arguments |= TINY[family].extra(ids)
    return arguments | {name: inputs[name] for name in inputs if name.endswith("grid_thw")}


def cuts_of(trace, sample):
    return {stage.layer: stage.kept[sample] for stage in trace.stages if stage.where == "layer"}


def chain(first, second):
    return second if first is None else first + second


READ, STEP = Read(keep=0.3), DyCoke(k=0.0, p=0.7, layer=3)
CASES = [
    ("llava", "sdpa", READ, None, ["titt"]),
    ("llava", "eager", READ, CUTS, ["titit", "tit", "titt", "ttt"]),
    ("qwen2_vl", "sdpa", Read(keep=0.4, layer=2), CUTS, ["titit", "tit", "ttt"]),
    ("qwen2_vl", "eager", READ, None, ["tit"]),
    ("llava", "sdpa", STEP, None, ["titit", "tit", "titt", "ttt"]),
    ("llava", "eager", DyCoke(p=0.5, layer=4, above="all"), CUTS, ["titt", "ttt"]),
    ("qwen2_vl", "sdpa", DyCoke(p=1.0, layer=1), None, ["titit", "tit"]),
    ("qwen2_vl", "eager", STEP, None, ["titt"]),
    ("llava_onevision", "sdpa", READ, None, ["titit", "ttt"]),
]


@pytest.mark.parametrize(("family", "kernel", "method", "cuts", "words"), CASES)
def test_two_turns_are_a_recompute_without_a_cache(family, kernel, method, cuts, words):
    if isinstance(method, DyCoke) and cuts is not None:
        cuts = fv.V2Drop(layers=(1, 2), keep=(0.7, 0.6))
    model, inputs = tiny(family, kernel), batch(family, words)
    with fv.drop(model, chain(cuts, method)) as trace:
        first = generate(model, inputs, new_tokens=4)
        second = generate(model, second_turn(family, inputs, first), new_tokens=4)
    with fv.drop(model, chain(cuts, Read(keep=1.0))):
        whole = generate(model, inputs, new_tokens=4)
    assert torch.equal(whole.logits[0], first.logits[0])  # the prompt reads everything
    assert not torch.allclose(whole.logits[1], first.logits[1], **CLOSE)
    columns = inputs["input_ids"].shape[1]
    for sample, word in enumerate(words):
        one = batch(family, [word])
        length = one["input_ids"].shape[1]
        after = second.sequences[sample, columns:-1]
        turns = [(0, length), (length + 3, length + 4 + TURN.shape[1])]
        held = cuts_of(trace, sample) if cuts is not None else {}
        logits = Recompute(model, method, one, after, turns, held).logits()
        said = torch.cat([out.logits[step][sample][None] for out in (first, second) for step in range(4)])
        steps = [0, 1, 2, 3, *range(4 + TURN.shape[1], 8 + TURN.shape[1])]
        torch.testing.assert_close(said, logits[steps], **CLOSE)


@pytest.mark.parametrize("method", [READ, STEP])
def test_a_turn_with_a_new_picture_reads_of_both(method):
    """One prompt in two calls, a picture in each; then steps, by the text behind the second."""
    model, whole = tiny("llava"), batch("llava", ["titttitt"])
    pictures = (slice(0, 1), slice(1, 2))
    split, ids = 4 + 25 + 3, whole["input_ids"]
    cache = DynamicCache(config=model.config.get_text_config())
    said = []
    with fv.drop(model, method), torch.no_grad():
        for part, picture in zip((slice(0, split), slice(split, None)), pictures, strict=True):
            arguments = {"input_ids": ids[:, part], "pixel_values": whole["pixel_values"][picture]}
            out = model(**arguments, **with_cache(cache), use_cache=True)
        for token in (7, 8, 9):
            out = model(input_ids=torch.tensor([[token]]), **with_cache(cache), use_cache=True)
            said.append(out.logits[0, -1])
    after, length = torch.tensor([7, 8, 9]), ids.shape[1]
    turns = [(0, split), (split, length)]
    logits = Recompute(model, method, whole, after, turns).logits()
    torch.testing.assert_close(torch.stack(said), logits[1:], **CLOSE)


@pytest.mark.parametrize("method", [READ, STEP])
@pytest.mark.parametrize("words", [["titt"], ["titit", "tit", "ttt"]])
def test_beams_read_what_their_own_tokens_make_of_the_question(method, words):
    model, inputs = tiny("llava"), batch("llava", words)
    settings = {"num_beams": 3, "new_tokens": 5, "output_scores": True, "length_penalty": 0.0}
    with fv.drop(model, method):
        beams = generate(model, inputs, **settings)
    columns = inputs["input_ids"].shape[1]
    for sample, word in enumerate(words):
        one, tokens = batch("llava", [word]), beams.sequences[sample, columns:]
        turns = [(0, one["input_ids"].shape[1])]
        logits = Recompute(model, method, one, tokens[:-1], turns).logits()
        logs = logits.log_softmax(-1).gather(1, tokens[:, None]).sum()
        torch.testing.assert_close(beams.sequences_scores[sample], logs, **CLOSE)


def test_a_share_of_all_is_the_untouched_model_bit_for_bit():
    model, inputs = tiny("llava"), batch("llava", ["titit", "tit", "ttt"])
    plain = generate(model, inputs)
    for method in (Read(keep=1.0), DyCoke(p=0.0)):
        with fv.drop(model, method) as trace:
            whole = generate(model, inputs)
        assert torch.equal(torch.stack(whole.logits), torch.stack(plain.logits))
        assert trace.reads == {}
    assert type(cache_in(whole).layers[0]) is type(cache_in(plain).layers[0])


# -- what layers hold ----------------------------------------------------------------------------------------------


def prefilled(method, inputs):
    with fv.drop(tiny("llava"), method) as trace, torch.no_grad():
        out = tiny("llava")(**inputs, use_cache=True)
    return cache_in(out), trace


def stepped(method, cache, *tokens, mask=None):
    """Logits of tokens that go in one after the other."""
    said = []
    with fv.drop(tiny("llava"), method), torch.no_grad():
        for token in tokens:
            if mask is not None:
                mask = torch.cat((mask, torch.ones_like(mask[:, :1])), dim=1)
            ids = torch.full((len(cache.layers[0].keys), 1), token)
            out = tiny("llava")(input_ids=ids, **with_cache(cache), attention_mask=mask)
            said.append(out.logits[:, -1])
    return torch.stack(said)


def test_what_is_cached_is_not_touched_while_an_answer_grows_and_nobody_reads_it():
    inputs = batch("llava", ["titt"])
    with fv.drop(tiny("llava"), READ) as trace, torch.no_grad():
        cache = cache_in(tiny("llava")(**inputs, use_cache=True))
        before = [layer.keys.data_ptr() for layer in cache.layers]
        for layer in cache.layers:
            layer.values.fill_(float("nan"))  # of the store alone
        for token in (7, 8, 9):
            out = tiny("llava")(input_ids=torch.tensor([[token]]), **with_cache(cache))
    assert bool(out.logits.isfinite().all())
    assert [layer.keys.data_ptr() for layer in cache.layers] == before
    length = inputs["input_ids"].shape[1]
    assert cache.get_seq_length() == length + 3
    assert [layer.keys.shape[-2] for layer in cache.layers] == [length] * DEPTH
    assert [layer.part.keys.shape[-2] for layer in cache.layers] == [length - 25 + 7 + 3] * DEPTH
    assert trace.reads == dict.fromkeys(range(DEPTH), (7,))
    assert trace.kv_lengths == [[length]] * DEPTH
    rows = [[part.keys.nbytes + part.values.nbytes for part in (layer, layer.part)] for layer in cache.layers]
    held, whole = kv_bytes(cache)
    assert held == sum(map(sum, rows)) > whole
    assert nbytes(cache) >= held  # with masks and numbers beside the rows


def test_behind_an_answer_the_cache_is_one_that_never_read_less():
    inputs = batch("llava", ["titit", "tit"])
    method = Read(keep=0.3, layer=DEPTH - 1)
    cache, _ = prefilled(method, inputs)
    plain = cache_in(tiny("llava")(**inputs, use_cache=True))
    mask = inputs["attention_mask"]
    stepped(method, cache, 7, 8, mask=mask)
    with torch.no_grad():
        longer = torch.cat((mask, torch.ones_like(mask[:, :2])), dim=1)
        tiny("llava")(input_ids=torch.tensor([[7, 8]] * 2), **with_cache(plain), attention_mask=longer)
    copied = pickle_of(cache)
    assert nbytes(copied) == nbytes(cache)
    cache.layers[-1].settle()
    for layer, other in zip(cache.layers, plain.layers, strict=True):  # the rows came through the same layers
        torch.testing.assert_close(layer.keys, other.keys, **CLOSE)
        torch.testing.assert_close(layer.values, other.values, **CLOSE)


def pickle_of(cache):
    buffer = io.BytesIO()
    torch.save(cache, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("method", [READ, STEP])
def test_a_model_that_caches_nothing_answers_as_without_the_stage(method):
    model, inputs = tiny.__wrapped__("llava"), batch("llava", ["titt"])
    model.config.text_config.use_cache = False
    with torch.no_grad():
        plain = model(**inputs).logits
        with fv.drop(model, method):
            assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("method", [READ, STEP, CUTS + Read(keep=0.5)])
def test_copies_and_saved_caches_go_on_alike_and_apart(method):
    cache, _ = prefilled(method, batch("llava", ["titt"]))
    stepped(method, cache, 7)
    copies = [copy.copy(cache), copy.deepcopy(cache), pickle_of(cache), copy_of(cache), copy_of(cache, 3)]
    copies[0].layers = [copy.copy(layer) for layer in cache.layers]
    stepped(method, copies[1], 20, 21)
    for other in (copies[0], *copies[2:]):
        stepped(method, copy_of(other), 30)  # a copy of a copy leaves it alone
    expected = stepped(method, cache, 8, 9)
    for other in (copies[0], *copies[2:4]):
        assert torch.equal(stepped(method, other, 8, 9), expected)
    torch.testing.assert_close(stepped(method, copies[4], 8, 9), expected.expand(-1, 3, -1), **CLOSE)


@pytest.mark.parametrize("method", [READ, STEP])
def test_tokens_are_taken_back(method):
    inputs = batch("llava", ["titt"])
    cache, _ = prefilled(method, inputs)
    expected = stepped(method, copy_of(cache), 7, 9)
    stepped(method, cache, 7, 8)
    cache.crop(-1)
    if method is READ:  # what a step picks by the one before depends on the token that was taken back
        assert torch.equal(stepped(method, cache, 9)[0], expected[1])
        cache.crop(-1)
    cache.crop(-4)  # into the prompt: from now on all is read
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] - 3
    shorter = {**inputs, "input_ids": inputs["input_ids"][:, : cache.get_seq_length()]}
    shorter["attention_mask"] = inputs["attention_mask"][:, : cache.get_seq_length()]
    plain = cache_in(tiny("llava")(**shorter, use_cache=True))
    with torch.no_grad():
        wanted = tiny("llava")(input_ids=torch.tensor([[5]]), **with_cache(plain)).logits[:, -1]
    torch.testing.assert_close(stepped(method, cache, 5)[0], wanted, **CLOSE)


@pytest.mark.parametrize("method", [READ, STEP])
def test_outside_its_context_everything_is_read_again(method):
    inputs = batch("llava", ["titt"])
    cache, _ = prefilled(method, inputs)
    plain = cache_in(tiny("llava")(**inputs, use_cache=True))
    with torch.no_grad():
        ids = torch.tensor([[7]])
        expected = [tiny("llava")(input_ids=ids, **with_cache(plain)).logits for _ in range(2)]
        twice = [tiny("llava")(input_ids=ids, **with_cache(cache)).logits for _ in range(2)]
    torch.testing.assert_close(torch.stack(twice), torch.stack(expected), **CLOSE)


def test_a_second_question_reads_in_layers_that_read_all_for_the_first():
    cache, _ = prefilled(Read(keep=0.6, layer=2), batch("llava", ["titt"]))
    with fv.drop(tiny("llava"), READ), torch.no_grad():
        tiny("llava")(input_ids=TURN, **with_cache(cache))
    assert [layer.part.held for layer in cache.layers] == [(35 - 25 + 7 + 4,)] * DEPTH


def test_an_answer_that_is_gone_on_with_is_one_answer():
    """One new row is no new turn: it goes on reading what the question picked."""
    model, inputs = tiny("llava"), batch("llava", ["titt"])
    for method in (READ, STEP):
        with fv.drop(model, method):
            whole = generate(model, inputs, new_tokens=6)
            begun = generate(model, inputs, new_tokens=3)
            mask = torch.ones_like(begun.sequences)
            arguments = {"input_ids": begun.sequences, "attention_mask": mask, **with_cache(cache_in(begun))}
            rest = generate(model, arguments, new_tokens=3)
        assert torch.equal(torch.stack(whole.logits[3:]), torch.stack(rest.logits))


@pytest.mark.parametrize("size", [8, 34])
def test_a_prompt_in_chunks_is_one_prompt(size):
    model, inputs = tiny("llava"), batch("llava", ["titt"])
    assert inputs["input_ids"].shape[1] == 35
    for method in (READ, STEP):
        with fv.drop(model, method):
            whole = generate(model, inputs)
            chunked = generate(model, inputs, prefill_chunk_size=size)
        torch.testing.assert_close(torch.stack(chunked.logits), torch.stack(whole.logits), **CLOSE)


# -- beside cuts, windows and states -------------------------------------------------------------------------------


class Rising(Method):
    """In each layer another number of tokens, by the turns in which it is asked."""

    name = "rising"

    def stages(self, shape):
        return (DecodeStage(0, reads=(CachedAttention(),), choose=self.rising),)

    @staticmethod
    def rising(view, count):
        Rising.asked += 1
        return Cut.take(top(view.attention, 1 + Rising.asked % 4), len(view))


HIDING = [
    ("sdpa", CUTS + fv.FinalKV(first_layer=0) + Rising()),  # where all layers hold the same columns
    ("eager", CUTS + Rising()),
    (
        "eager",
        fv.VisionDrop(dominant=9, contextual=2, layer_list=(2,), image_token_list=((5, 1),), reference=25) + READ,
    ),
    ("sdpa", fv.MustDrop(pruning_layers=(1, 3), retention=0.6) + DyCoke(k=0.0, p=0.5, layer=5)),
]
"""The last two merge in the tower and number rows anew, so that tokens move up by other numbers in each layer."""


@pytest.mark.parametrize(("kernel", "method"), HIDING)
def test_reading_a_copy_of_some_rows_is_reading_all_with_the_others_hidden(kernel, method, monkeypatch):
    model, inputs, outputs = tiny("llava", kernel), batch("llava", ["titit", "tit", "ttt"]), []
    for _ in range(2):
        Rising.asked = 0
        with fv.drop(model, method) as trace:
            outputs.append(generate(model, inputs))
        monkeypatch.setattr(Chosen, "exactly", all_but_hidden)
    if "rising" in str(method).lower():
        assert [counts[1] for counts in trace.reads.values()] == [3, 1, 3, 1, 3, 1]
    copies, hidden = (torch.stack(out.logits) for out in outputs)
    torch.testing.assert_close(copies, hidden, **CLOSE)
    assert cache_in(outputs[0]).layers[-1].part.keys.shape < cache_in(outputs[1]).layers[-1].part.keys.shape


def all_but_hidden(columns, stays, counts):
    """Every slot in its place; those that are not read are pads."""
    order = torch.arange(columns.shape[1]).expand_as(columns)
    return Chosen(columns.masked_fill(~stays, -1), order, ragged=True)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5"])
def test_windows_and_states_are_left_alone(family):
    model, inputs = tiny(family), batch(family, ["titt"])
    plain = cache_in(generate(model, inputs))
    with fv.drop(model, READ) as trace:
        cache = cache_in(generate(model, inputs))
    full = [index for index, layer in enumerate(plain.layers) if type(layer) is DynamicLayer]
    assert 0 < len(full) < DEPTH
    assert list(trace.reads) == full
    for index in set(range(DEPTH)) - set(full):
        assert type(cache.layers[index]) is type(plain.layers[index])
    other = next(index for index in range(DEPTH - 1) if index not in full)
    with pytest.raises(fv.UnsupportedError, match=f"Layer {other} has"), fv.drop(model, DyCoke(p=0.5, layer=other + 1)):
        generate(model, inputs)


def test_after_an_error_the_model_and_the_cache_are_as_before():
    model, inputs = tiny("llava"), batch("llava", ["titt"])
    plain, before = generate(model, inputs), state_of_model(model)
    cache = DynamicCache(config=model.config.get_text_config())
    tired = tired_after(inputs["input_ids"].shape[1] + 2)
    with pytest.raises(ZeroDivisionError), fv.drop(model, STEP):
        generate(model, inputs, **with_cache(cache), logits_processor=[tired])
    assert state_of_model(model) == before
    assert torch.equal(torch.stack(generate(model, inputs).logits), torch.stack(plain.logits))
    assert cache.get_seq_length() == inputs["input_ids"].shape[1] + 2


def tired_after(length):
    def process(ids, scores):
        return scores if ids.shape[1] < length else 1 // 0

    return process


# -- DyCoke's second stage -----------------------------------------------------------------------------------------


def test_a_second_prompt_begins_anew():
    cache, _ = prefilled(STEP, batch("llava", ["titt"]))
    stepped(STEP, cache, 7, 8)
    assert bool(choice_on(cache.layers[2]).read.any())
    with fv.drop(tiny("llava"), STEP), torch.no_grad():
        tiny("llava")(input_ids=TURN, **with_cache(cache))
    assert not bool(choice_on(cache.layers[2]).read.any())
    assert not bool(choice_on(cache.layers[2]).attention.any())
    assert not isinstance(cache.layers[-1], LimitedLayer)
