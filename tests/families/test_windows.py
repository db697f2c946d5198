"""What sliding windows count, on every kind of decoder that has them: the columns of tokens, or their new numbers.

With positions kept, the reference is the untouched model with hidden columns; with new numbers, a prompt of no more
tokens than those that stay, which the model's own code makes its masks for.
"""

import pickle
from contextlib import contextmanager
from functools import cache

import pytest
import torch
import transformers

import foveate as fv
from foveate._transformers import Reach, cache_in, with_cache
from foveate.core.patching import Patcher
from foveate.engine.cache import WindowedLayer
from foveate.families import base
from foveate.methods.mustdrop import MustDrop
from foveate.registry import family_for
from tests import models, tiny_derived
from tests.derived.test_derived import CLOSE, Longest, Neighbours, apart, check_hidden, generate
from tests.families import llavas, qwens, test_gemma3, test_gemma4, test_paligemma
from tests.invariants.references import check_recomputed
from tests.models import IMAGE, TEXT

WINDOW, STEPS = 6, 7
"""A window narrower than a picture, and steps until it has left the prompt."""
KINDS = ["sliding_attention", "full_attention"] * 3
MIXED = {"layer_types": KINDS, "sliding_window": WINDOW}
GEMMA = {"head_dim": 12, "query_pre_attn_scalar": 9}
DERIVED = (
    "aya_vision", "cohere2_vision", "cohere_compass", "dots3_note", "exaone4_5", "gemma4_unified",
    "gemma4_unified_shared", "lfm3_vl", "llama4", "muse_glimmer", "muse_spark", "shieldgemma2", "step3p7",
)  # fmt: skip


def narrow(config):
    """A config with this window."""
    config.get_text_config().sliding_window = WINDOW
    return config


def qwen(config):
    text = config.get_text_config()
    text.use_sliding_window, text.sliding_window, text.layer_types = True, WINDOW, list(KINDS)
    return config


def of_qwen2():
    text = transformers.Qwen2Config(**TEXT, **MIXED, use_sliding_window=True)
    return llavas.clip("LlavaConfig", image_token_index=IMAGE, text_config=text)


OWN = {
    "gemma3": lambda: narrow(test_gemma3.config()),
    "gemma4": lambda: narrow(test_gemma4.config()),
    "llava": of_qwen2,
    "llava_next": lambda: llavas.next_(transformers.MistralConfig(**TEXT, sliding_window=WINDOW)),
    "paligemma": lambda: test_paligemma.config(transformers.Gemma2Config(**TEXT, **GEMMA, **MIXED)),
    "qwen2_vl": lambda: qwen(qwens.qwen2_vl()),
}
"""Families with hand-written parts, whose decoders may have a window."""
REINDEX = fv.DivPrune(keep=0.4, positions="reindex")
NAMES = [*OWN, *(name for name in DERIVED if tiny_derived.known(name))]


@cache
def tiny(name, attention="sdpa"):
    """A model, and what makes a batch of words for it."""
    if name in OWN:
        config = OWN[name]()
        config._attn_implementation = attention
        return models.made_of(name, config), lambda words: models.batch(name, words)
    model, case = tiny_derived.make(name, attention, WINDOW)
    return model, lambda words: case.batch(model, words)


def kernel_of(name, shift=0):
    """One of the two in turns; SDPA cannot cap logits as Gemma 2 does."""
    return "eager" if name == "paligemma" else ("sdpa", "eager")[(NAMES.index(name) + shift) % 2]


def pick(rows, stays):
    """Rows of a batch, (samples, columns), at the columns that stay, padded on the left."""
    parts = [row[own] for row, own in zip(rows, stays, strict=True)]
    longest = max(map(len, parts))
    return torch.stack([torch.cat((part.new_zeros(longest - len(part)), part)) for part in parts])


@contextmanager
def shortened(model, inputs, kept):
    """The inputs without the vision tokens of each sample that are not kept; the model encodes no others."""
    ids, core = inputs["input_ids"], tiny_derived.core(model)
    stays, vision, tokens, start = (ids != IMAGE) & (inputs["attention_mask"] != 0), ids == IMAGE, [], 0
    for own, row, places in zip(kept, stays, vision, strict=True):
        row[places.nonzero()[own, 0]] = True
        tokens.append(own + start)
        start += int(places.sum())

    def encode(original, *args, **kwargs):
        output = original(*args, **kwargs)
        pieces, whole = output.pooler_output, isinstance(output.pooler_output, torch.Tensor)
        every = torch.cat([piece.flatten(0, -2) for piece in ([pieces] if whole else pieces)])
        left = every.unflatten(0, (-1, start))[:, torch.cat(tokens)].flatten(0, 1)  # of each beam
        output.pooler_output = left[None] if whole else [left]
        return output

    is_row = {name: isinstance(value, torch.Tensor) and value.shape == ids.shape for name, value in inputs.items()}
    with Patcher() as patches:
        patches.wrap(core, "get_image_features", encode)
        yield {name: pick(value, stays) if is_row[name] else value for name, value in inputs.items()}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "paligemma"])  # recomputed in test_masks.py
def test_with_kept_positions_windows_count_columns_of_the_whole_prompt(name):
    model, batch = tiny(name, kernel_of(name))
    method = (Longest(), Neighbours())[NAMES.index(name) // 2 % 2]
    check_hidden(model, batch(["tit"]), method, STEPS)
    words = ["tit", "ttit"]
    with fv.drop(model, method):
        together = generate(model, batch(words)).logits
        alone = [generate(model, batch([word])).logits for word in words]
    for rows, *singles in zip(together, *alone, strict=True):
        assert apart(rows, torch.cat(singles)) < CLOSE


@pytest.mark.parametrize("words", [["tit"], ["tit", "ttit"]], ids=" ".join)
@pytest.mark.parametrize("name", NAMES)
def test_with_new_numbers_windows_count_as_in_a_shorter_prompt(name, words):
    model, batch = tiny(name, kernel_of(name, len(words)))
    if not family_for(model).renumbers:
        pytest.skip("it keeps positions")
    inputs = batch(words)
    with fv.drop(model, REINDEX) as trace:
        got = generate(model, inputs, STEPS)
    with shortened(model, inputs, trace.stages[0].kept) as short:
        assert short["input_ids"].shape[1] < inputs["input_ids"].shape[1]
        wanted = generate(model, short, STEPS)
    assert apart(torch.cat(got.logits), torch.cat(wanted.logits)) < CLOSE


def beside_short(run, words):
    """What `run(model, inputs)` returns under a method that numbers anew, and for a prompt that is that short."""
    model, batch = tiny("gemma3")
    inputs = batch(words)
    with fv.drop(model, REINDEX) as trace:
        answer = run(model, inputs)
    with shortened(model, inputs, trace.stages[0].kept[: len(words)]) as short:
        return answer, run(model, short)


@torch.no_grad()
def turns(model, inputs):
    """Logits of a later turn of text, and of other text in the place of its end."""
    text = torch.tensor([[7, 11, 13, 17], [19, 23, 29, 31]])
    live = torch.cat((inputs["attention_mask"], torch.ones_like(text)), dim=1)
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    cache.activate_past_recording()
    model(**inputs, **with_cache(cache), use_cache=True)
    turn = model(input_ids=text, attention_mask=live, **with_cache(cache)).logits
    cache.crop(-2)
    again = model(input_ids=text[:, :2], attention_mask=live, **with_cache(cache)).logits
    return torch.cat((turn, again), dim=1)


def test_later_turns_and_a_crop_count_the_new_numbers():
    dropped, short = beside_short(turns, ["tit", "ttit"])
    assert apart(dropped, short) < CLOSE


@pytest.mark.parametrize("way", [{"num_beams": 2}, {"prompt_lookup_num_tokens": 3}], ids=str)
def test_beams_and_looked_up_tokens_count_the_new_numbers(way):
    def run(model, inputs):
        inputs["input_ids"][:, -6:] = torch.tensor([5, 6, 7, 5, 6, 7])
        return generate(model, inputs, 2 * STEPS, **way).sequences[:, inputs["input_ids"].shape[1] :]

    dropped, short = beside_short(run, ["titttt"])
    assert torch.equal(dropped, short)


def test_a_cache_goes_on_after_pickling_and_an_older_one_is_refused():
    model, batch = tiny("gemma3")
    inputs = batch(["tit"])
    with fv.drop(model, REINDEX), torch.no_grad():
        cache = cache_in(model(**inputs, use_cache=True))
        ids, live = torch.tensor([[7]]), torch.ones(1, inputs["input_ids"].shape[1] + 1)
        copied = pickle.loads(pickle.dumps(cache))
        after = [model(input_ids=ids, attention_mask=live, **with_cache(one)).logits for one in (cache, copied)]
    assert torch.equal(*after)
    layer = next(layer for layer in cache.layers if isinstance(layer, WindowedLayer) and layer.base is not None)
    state = {name: value for name, value in layer.__getstate__().items() if name != "notes"}
    with pytest.raises(fv.SessionError, match="older"):
        WindowedLayer.__new__(WindowedLayer).__setstate__(state)


def test_new_numbers_in_chunks_are_refused(monkeypatch):
    monkeypatch.setattr(base, "reach_of", lambda *_: Reach(WINDOW, in_chunks=True))
    model, batch = tiny("gemma3")
    with pytest.raises(fv.UnsupportedError, match="chunks"), fv.drop(model, REINDEX), torch.no_grad():
        model(**batch(["tit"]))


@torch.no_grad()
def test_a_turn_behind_a_cut_cache_that_counts_anew_is_its_tokens_one_by_one():
    (model, batch), text = tiny("gemma3"), torch.tensor([[7, 11, 13, 17, 19]])
    inputs = batch(["titt"])
    live = torch.cat((inputs["attention_mask"], torch.ones_like(text)), dim=1)
    method = MustDrop(global_thr=0.2, individual_thr=0.2, pruning_layers=(2, 4), positions="reindex")
    with fv.drop(model, method):
        caches = [with_cache(cache_in(model(**inputs, use_cache=True))) for _ in range(2)]
        together = model(input_ids=text, attention_mask=live, **caches[0]).logits[0]
        ends = range(live.shape[1] - text.shape[1] + 1, live.shape[1] + 1)
        steps = zip(text[0], ends, strict=True)
        alone = [
            model(input_ids=one[None, None], attention_mask=live[:, :end], **caches[1]).logits[0] for one, end in steps
        ]
    assert apart(together, torch.cat(alone)) < CLOSE


@pytest.mark.parametrize("positions", ["keep", "reindex"])
def test_a_window_of_merged_rows_and_a_cut_cache_is_the_recompute(positions):
    """Rows are packed by the tower, and the cache of a local layer is cut behind the prompt."""
    method = MustDrop(
        global_thr=0.2, individual_thr=0.2, pruning_layers=(2, 4), merge_threshold=-1.0, merge_window=2,
        positions=positions,
    )  # fmt: skip
    model, inputs = models.tiny("gemma3"), models.batch("gemma3", ["tit"])
    check_recomputed(model, "gemma3", method, inputs, test_gemma3.WINDOW + 2, atol=5e-5)
