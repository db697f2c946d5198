import pytest
import torch
from hypothesis import given, strategies as st

from foveate.contract import ImageView, LayerView, Shape, TowerAttention
from foveate.core.picks import unlike_others
from foveate.methods.mfpruner import MFPruner, scale
from tests.methods import stays
from tests.methods.test_cdpruner import FEATURES, TEXT, WITH_CLIP

EXAMPLES = [MFPruner(keep=0.4), MFPruner(tokens=6, positions="reindex")]
SMALLEST = MFPruner(keep=0.001)


def kept(attention, rows, words, count):
    look, rate, pick = MFPruner(tokens=count).stages(Shape(depth=32))
    notes = dict(look.cut(ImageView(rows, attention=attention)).notes)
    notes |= rate.cut(LayerView(rows, text=words)).notes
    return stays(pick, LayerView(rows, notes=notes))


def kept_with_clip(attention, rows, patches, text, count):
    look, rate, pick = MFPruner(tokens=count).stages(WITH_CLIP)
    signals = {TowerAttention(): attention, FEATURES: patches}
    notes = dict(look.cut(ImageView(rows, signals=signals)).notes)
    notes |= rate.cut(LayerView(rows, notes=notes, signals={TEXT: text})).notes
    return pick.cut(LayerView(rows, notes=notes)).source.tolist()


ROWS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [1.0, 0.1]])
NONE = torch.zeros(0, 2)


ATTENTION = torch.tensor([0.9, 0.1, 0.8, 0.2, 0.3, 0.0])


def test_without_text_the_sum_of_both_cues_fills_up():
    """a + d: 0.33 + 1.50 of the fifth is more than 0.89 + 0.83 of the third."""
    assert kept(ATTENTION, ROWS, NONE, 2) == [0, 4]


def test_three_votes_come_before_two_and_one_vote_is_none():
    """Of three, attention votes for 0 2 4, d for 4 0 2, CLIP (least like the text first) for 4 5 1: token 4 has three
    votes, 0 and 2 have two, and the larger sum is 0's. Of one, 0 and 4 have a vote or two: 4 has two."""
    patches = torch.tensor([[1.0, 0.2], [-1.0, 0.9], [1.0, 0.3], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.5]])
    east = torch.tensor([1.0, 0.0])
    assert kept_with_clip(ATTENTION, ROWS, patches, east, 1) == [4]
    assert kept_with_clip(ATTENTION, ROWS, patches, east, 3) == [0, 2, 4]
    assert scale(ATTENTION).tolist() == pytest.approx([1, 1 / 9, 8 / 9, 2 / 9, 3 / 9, 0], abs=1e-5)


@given(seed=st.integers(0, 2**16), tokens=st.integers(3, 40), data=st.data())
def test_who_is_voted_for_twice_stays(seed, tokens, data):
    rng = torch.Generator().manual_seed(seed)
    rows, words = torch.randn(tokens, 8, generator=rng), torch.randn(3, 8, generator=rng)
    attention, count = torch.rand(tokens, generator=rng), data.draw(st.integers(1, tokens - 1))
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    unlike = 1 - ((unit @ unit.T).sum(dim=1) - 1) / tokens
    by_cue = [set(cue.sort(descending=True, stable=True).indices[:count].tolist()) for cue in (attention, unlike)]
    twice, picks = by_cue[0] & by_cue[1], kept(attention, rows, words, count)
    likeness = torch.cosine_similarity(rows.double(), words.double().mean(dim=0, keepdim=True))
    others = [token for token in likeness.sort(descending=True).indices.tolist() if token not in twice]
    assert picks == sorted([*twice, *others[: count - len(twice)]])


@given(seed=st.integers(0, 99))
def test_rounding_decides_nothing_between_tokens_that_tie(seed):
    rows = torch.randn(12, 16, generator=torch.Generator().manual_seed(seed)).repeat(3, 1)
    assert max(kept(torch.ones(36), rows, rows[:2], 12)) < 36
    assert unlike_others(rows)[:12].tolist() == unlike_others(rows)[12:24].tolist()
