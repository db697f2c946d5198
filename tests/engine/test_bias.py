"""What a stage adds to the logits of keys: proportional attention, in one file by a method's author."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import foveate as fv
from foveate._transformers import cache_in, with_cache
from foveate.contract import Attention, DecodeStage, Hidden, LayerStage, Method, Signal
from foveate.core.cut import Cut
from foveate.engine.forward import Forward
from tests import oracle
from tests.invariants.alone import check_alone
from tests.invariants.references import BANNED
from tests.models import batch, generate, tiny


class Pairs(Method):
    """Neighbours merge before layer 2, and each pair weighs as two in attention. Later every third row leaves."""

    name = "pairs"

    def stages(self, shape):
        merge = LayerStage(2, reads=(Hidden(),), choose=self.merge, unit="image", bias="log size")
        return merge, LayerStage(4, keep=2 / 3, score=self.every_third, unit="image")

    def merge(self, view, count):
        tokens = len(view)
        parent = torch.arange(tokens) // 2
        sizes = parent.bincount()
        sums = torch.zeros(len(sizes), view.hidden.shape[-1]).index_add(0, parent, view.hidden.float())
        source = torch.arange(0, tokens, 2)
        return Cut.merge(source, sums / sizes[:, None], parent, {"log size": sizes.log()})

    def every_third(self, view):
        return -(torch.arange(len(view)) % 3 == 1).float()


def merge(layer, x, mine, rotary, entered, sees):
    parent = torch.arange(len(mine)) // 2
    sizes = parent.bincount()
    sums = torch.zeros(len(sizes), x.shape[1]).index_add(0, parent, x[mine])
    return torch.arange(0, len(mine), 2), sums / sizes[:, None], sizes.float()


def every_third(layer, x, mine, rotary, entered, sees):
    stays = (torch.arange(len(mine)) % 3 != 1).nonzero()[:, 0]
    count = int(len(mine) * (2 / 3))
    return torch.cat((stays, (torch.arange(len(mine)) % 3 == 1).nonzero()[:, 0]))[:count].sort().values, None


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_pairs_weigh_as_two_in_every_later_layer_and_step(family, kernel):
    model, inputs = tiny(family, kernel), batch(family, ["titt"])
    with fv.drop(model, Pairs()) as trace:
        out = generate(model, inputs, 3)
    logits, kept = oracle.recomputed(model, inputs, out, banned=BANNED, cuts={2: merge, 4: every_third})
    torch.testing.assert_close(torch.cat(out.logits), logits, atol=1e-5, rtol=1e-5)
    assert kept == {stage.layer: stage.origin[0].tolist() for stage in trace.stages}
    light = lambda *args: merge(*args)[:2]  # noqa: E731
    with torch.no_grad():
        without, _ = oracle.forward(model, inputs, torch.tensor([]).long(), {2: light, 4: every_third})
    assert (without[0] - logits[0]).abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_a_ragged_batch_comes_to_what_each_does_alone(family):
    check_alone(tiny(family), family, Pairs(), ["tit", "titttt", "ttit"])


@pytest.mark.parametrize("family", ["llava", "gemma3"])
def test_beams_have_the_weights_of_theirs(family):
    model, inputs = tiny(family), batch(family, ["titt", "tit"])
    with fv.drop(model, Pairs()):
        cached = model.generate(**inputs, num_beams=3, max_new_tokens=4, do_sample=False)
        plain = model.generate(**inputs, num_beams=3, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_second_turn_and_tokens_taken_back_go_on_from_the_weights(family):
    model, whole = tiny(family), batch(family, ["titt"])
    later = whole["input_ids"][:, -2:]
    first = {name: one[:, :-2] if one.shape[:2] == whole["input_ids"].shape else one for name, one in whole.items()}
    with fv.drop(model, Pairs()), torch.no_grad():
        expected = model(**whole).logits[:, -2:]
        cache = cache_in(model(**first, use_cache=True))
        for _ in range(2):
            logits = model(input_ids=later, **with_cache(cache), use_cache=True).logits
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
            cache.crop(-2)


def test_what_cannot_take_a_sum_is_refused_by_its_name(monkeypatch):
    model, inputs = tiny("llava"), batch("llava", ["tit"])
    for kernel in ("flash_attention_2", "flex_attention"):
        monkeypatch.setattr(Forward, "backend", kernel)
        with fv.drop(model, Pairs()), pytest.raises(fv.UnsupportedError, match=kernel):
            model(**inputs)


class Watched(Pairs):
    name = "watched"

    def stages(self, shape):
        return *super().stages(shape)[:1], self.later

    @property
    def later(self):
        return LayerStage(4, reads=(Attention(rows="last", layer="ran"),), keep=0.5, score=lambda view: view.attention)


class Reading(Watched):
    name = "reading"
    later = DecodeStage(4, keep=0.5, score=lambda view: view.attention)


@dataclass(frozen=True)
class Own(Signal):
    """A signal of one's own, which may read attention."""

    kind: ClassVar[str] = "own_attention"
    of_ran: ClassVar[bool] = True

    def read(self, reader, unit):
        return reader.attention(Attention(rows="last"), unit)


class WatchedByOwn(Watched):
    name = "watched_by_own"
    later = LayerStage(4, reads=(Own(),), keep=0.5, score=lambda view: view.own_attention)


@pytest.mark.parametrize("method", [Watched(), WatchedByOwn(), Reading()])
def test_attention_that_would_be_without_the_sum_is_refused(method):
    with pytest.raises(fv.UnsupportedError, match="logits of keys"), fv.drop(tiny("llava"), method):
        pass


def test_a_cut_without_the_note_is_refused():
    class Forgetful(Pairs):
        def merge(self, view, count):
            return super().merge(view, count).with_notes({})

    with fv.drop(tiny("llava"), Forgetful()), pytest.raises(fv.FoveateError, match="log size"):
        tiny("llava")(**batch("llava", ["tit"]))


def test_layers_that_have_no_keys_are_refused():
    with pytest.raises(fv.UnsupportedError, match="keys"), fv.drop(tiny("qwen3_5"), Pairs()):
        pass
