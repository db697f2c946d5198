import pytest
import torch
from hypothesis import given, strategies as st

import foveate as fv
from foveate.contract import ReadView, Shape
from foveate.methods.read import Read
from foveate.naming import parse
from tests.models import batch, generate, tiny

EXAMPLES = [Read(keep=0.3), fv.V2Drop(layers=(1, 3), keep=(0.6, 0.5)) + Read(keep=0.4, layer=2)]
KEEP_ALL = Read(keep=1.0)


def test_the_tokens_that_the_question_attends_to_are_read():
    (stage,) = Read(keep=0.5).stages(Shape(depth=6))
    cut = stage.cut(ReadView(torch.tensor([0.2, 0.1, 0.4, 0.2])))
    assert cut.source.tolist() == [0, 2]  # of equal ones the first


@given(scores=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), keep=st.floats(0, 0.99))
def test_nobody_unread_gets_more_than_one_that_is_read(scores, keep):
    (stage,) = Read(keep=keep).stages(Shape(depth=6))
    cut = stage.cut(ReadView(torch.tensor(scores)))
    read = set(range(len(scores))) if cut is None else set(cut.source.tolist())
    assert len(read) == max(1, int(len(scores) * keep))
    assert all(scores[a] >= scores[b] for a in read for b in set(range(len(scores))) - read)


def test_it_takes_a_share_and_no_budget():
    assert parse("visionzip+read:keep=0.3") == fv.methods()["visionzip"]() + Read(keep=0.3)
    with pytest.raises(fv.SettingError, match="takes no budget"), fv.drop(tiny("llava"), "read", retention=0.5):
        pass
    with pytest.raises(fv.SettingError, match="layers"), fv.drop(tiny("llava"), Read(layer=6)):
        pass


@pytest.mark.parametrize(
    "name", ["visionzip:dominant=9;contextual=2;reference=25", "fastv", "v2drop:layers=1,3;keep=0.6,0.5"]
)
def test_behind_others_it_reads_a_share_of_what_they_leave_in_each_layer(name):
    model, inputs, other = tiny("llava"), batch("llava", ["titit", "tit", "ttt"]), parse(name)
    with fv.drop(model, other):
        plain = generate(model, inputs)
    with fv.drop(model, other + KEEP_ALL):
        assert torch.equal(torch.stack(generate(model, inputs).logits), torch.stack(plain.logits))
    with fv.drop(model, other + Read(keep=0.5)) as trace:
        less = generate(model, inputs)
    assert torch.equal(less.logits[0], plain.logits[0])
    assert not torch.allclose(less.logits[1], plain.logits[1])
    cached = [[length - text for length, text in zip(layer, (10, 7, 10), strict=True)] for layer in trace.kv_lengths]
    assert trace.reads == {layer: tuple(count // 2 for count in counts) for layer, counts in enumerate(cached)}
    told = fv.cost(model.config, text_tokens=7, vision_tokens=25, method=other + Read(keep=0.5))
    assert [counts[1] for counts in trace.reads.values()] == list(told.read)
    assert list(told.cached) == [counts[1] for counts in cached]
    assert told.decode_flops < fv.cost(model.config, text_tokens=7, vision_tokens=25, method=other).decode_flops
    assert "decoding reads" in repr(trace.latest)
    assert trace.to_dict()["reads"]["2"] == list(trace.reads[2])
