import torch

from foveate.methods.fastvid import FastVID

EXAMPLES = [FastVID(keep=0.4), FastVID(retention=0.5, rule="qwen")]


def test_salient_tokens_and_centres_of_a_scene():
    """Six frames of five tokens, 40 % of two kept: no centre with ⌊0.8⌋, one with ⌊0.5 · 2⌋ = 1 a frame: six for the
    scene, which the last frame and the fourth before it share."""
    alike = [1.0] * 5
    shares = FastVID(centres=0.5)._shares((0, 6), alike, 5, 2)
    assert shares == [(1, 0), (1, 3), (1, 0), (1, 0), (1, 0), (1, 3)]
    assert FastVID()._shares((0, 6), alike, 5, 2) == [(2, 0)] * 6


def test_of_frames_that_are_alike_the_last_keeps_the_tokens_of_all():
    """Of eight frames, like each other but for a step behind the third: these are two runs. Of 8 · 2 rows 6 are
    centres, of the last frame, which has room for ⌊5 / 2⌋; the salient ones are shared by both ends."""
    alike = [1.0, 1.0, 0.9, 1.0, 1.0, 1.0, 1.0]
    shares = FastVID(rule="qwen")._shares((0, 8), alike, 5, 2)
    assert shares == [(0, 0), (0, 0), (5, 0), (0, 0), (0, 0), (0, 0), (0, 0), (3, 2)]


def test_what_is_not_salient_joins_the_centre_most_like_it():
    """One frame: the first token is salient, the second a centre of the three that are alike, so that it weighs 0.6
    ("qwen", of the two that join) and they 0.4."""
    features = torch.tensor([[[9.0, 0.0], [0.0, 3.0], [0.0, 3.5], [0.0, 2.5]]])
    attention = torch.tensor([[0.9, 0.1, 0.1, 0.1]])
    cut = FastVID(keep=0.5, centres=0.5, rule="qwen").merge(features, attention, None)
    assert cut.source.tolist() == [0, 1]
    torch.testing.assert_close(cut.rows, torch.tensor([[9.0, 0.0], [0.0, 0.6 * 3 + 0.4 * 3]]))
    assert cut.parent.tolist() == [0, 1, 1, 1]
