import math
import statistics

import torch
from hypothesis import given, strategies as st

from foveate.contract import ImageView, LayerView, Shape
from foveate.core.views import Arriving
from foveate.methods.holov import HoloV
from tests.methods import stays

EXAMPLES = [
    HoloV(keep=0.4),
    HoloV(keep=0.4, rule="paper"),
    HoloV(tokens=6, rule="paper", crops=4, tau=0.5, positions="keep"),
]
SMALLEST = HoloV(keep=0.001)


def notes_of(attention, grids, rule="paper", **settings):
    look, _ = HoloV(rule=rule, **settings).stages(Shape(depth=32, cls=True))
    return dict(look.cut(ImageView(torch.zeros(len(attention), 1), attention=attention, grids=grids)).notes)


def kept(rows, attention, grids=(), newlines=(), rule="paper", **settings):
    """The tokens that enter the decoder; `newlines` are places where one is put in, as the engine notes it: by ones."""
    settings["rule"] = rule
    notes = notes_of(attention, grids, **settings)
    for place in newlines:
        for name, note in notes.items():
            notes[name] = torch.cat((note[:place], note.new_ones(1), note[place:]))
        rows = torch.cat((rows[:place], torch.full((1, rows.shape[1]), 0.3), rows[place:]))
    _, pick = HoloV(**settings).stages(Shape(depth=32, cls=True))
    return stays(pick, LayerView(hidden=rows, notes=notes, arriving=Arriving(len(rows), len(rows), len(rows))))


def by_hand(rows, attention, crops, count, tau=1.0, rule="paper"):
    """The spec in plain Python, in double precision. `crops` lists the tokens of each crop."""
    rows, attention = rows.double().tolist(), attention.double().tolist()
    rows = [[value / max(math.hypot(*row), 1e-12) for value in row] for row in rows]
    variance = [0.0] * len(rows)
    for crop in crops:
        for token in crop:
            cosines = [
                sum(a * b for a, b in zip(rows[token], rows[other], strict=True)) for other in crop if other != token
            ]
            variance[token] = statistics.pvariance(cosines) if cosines else 0.0
    gamma = statistics.mean(attention) / max(statistics.mean(variance), 1e-12)
    if rule == "released":
        gamma = 0.0
    score = [paid + gamma * varied for paid, varied in zip(attention, variance, strict=True)]
    weights = [statistics.mean(score[token] for token in crop) ** tau for crop in crops]
    got = [0] * len(crops)
    claims = weights
    while sum(got) < count:
        left = count - sum(got)
        add = [int(left * claim / sum(claims) + 1e-9) for claim in claims]
        heaviest = sorted(range(len(crops)), key=lambda crop: (-claims[crop], crop))
        for crop in heaviest[: left - sum(add)]:
            add[crop] += 1
        got = [min(have + more, len(crop)) for have, more, crop in zip(got, add, crops, strict=True)]
        claims = [weight * (len(crop) - have) for weight, crop, have in zip(weights, crops, got, strict=True)]
    quotas = []
    for crop, quota in zip(crops, got, strict=True):
        quotas += sorted(crop, key=lambda token: (-score[token], token))[:quota]
    return sorted(quotas)


def test_crops_are_windows_of_the_grid_and_not_runs_of_the_raster():
    crop = -1 - notes_of(torch.rand(576), ((24, 24),))["crop"]
    wanted = [4 * (row // 6) + column // 6 for row in range(24) for column in range(24)]
    assert crop.tolist() == wanted
    views = -1 - notes_of(torch.rand(576 + 2304), ((24, 24), (48, 48)))["crop"]
    assert views.unique().tolist() == list(range(32))
    assert views[576:].bincount(minlength=32)[16:].tolist() == [144] * 16
    runs = -1 - notes_of(torch.rand(10), (), crops=4)["crop"]  # on no known grid
    assert runs.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    assert (-1 - notes_of(torch.rand(3), (), crops=4)["crop"]).tolist() == [0, 1, 2]


@given(
    rows=st.integers(1, 8),
    columns=st.integers(1, 8),
    seed=st.integers(0, 2**16),
    tau=st.sampled_from([0.5, 1.0, 3.0]),
    rule=st.sampled_from(["released", "paper"]),
    data=st.data(),
)
def test_the_kept_set_is_the_specs(rows, columns, seed, tau, rule, data):
    tokens = rows * columns
    count = data.draw(st.integers(1, tokens))
    rng = torch.Generator().manual_seed(seed)
    features, attention = torch.randn(tokens, 6, generator=rng), torch.rand(tokens, generator=rng)
    crop = (-1 - notes_of(attention, ((rows, columns),), rule, crops=4)["crop"]).tolist()
    crops = [[token for token in range(tokens) if crop[token] == number] for number in range(max(crop) + 1)]
    picks = kept(features, attention, ((rows, columns),), rule=rule, tokens=count, crops=4, tau=tau)
    assert picks == by_hand(features, attention, crops, count, tau, rule)


@given(count=st.integers(1, 30), seed=st.integers(0, 2**16), tau=st.sampled_from([0.0, 1.0]))
def test_newlines_change_nothing_and_leave_first(count, seed, tau):
    rng = torch.Generator().manual_seed(seed)
    features, attention = torch.randn(25, 6, generator=rng), torch.rand(25, generator=rng)
    without = kept(features, attention, ((5, 5),), tokens=min(count, 25), crops=4, tau=tau)
    places = (5, 11, 17, 23, 29)  # behind each row, as they are put in one after the other
    picks = kept(features, attention, ((5, 5),), places, tokens=count, crops=4, tau=tau)
    patches = [token for token in range(30) if token not in places]
    stay = [place for place in picks if place not in places]
    assert stay == [patches[token] for token in without]
    assert len(picks) == count


def test_equal_tokens_and_no_attention_at_all():
    assert kept(torch.ones(16, 4), torch.full((16,), 0.1), ((4, 4),), tokens=4, crops=4) == [0, 2, 8, 10]
    assert kept(torch.zeros(16, 4), torch.zeros(16), ((4, 4),), tokens=4, crops=4) == [0, 2, 8, 10]
    assert len(kept(torch.randn(16, 4), torch.zeros(16), ((4, 4),), tokens=5, crops=4)) == 5
    assert kept(torch.randn(1, 4), torch.ones(1), ((1, 1),), tokens=1) == [0]


def test_a_sharp_tau_prefers_the_heaviest_crop_also_where_attention_is_small():
    """Of 2,000 patches one gets some 0.0005 of the attention. To the 16th power that is below the least float32."""
    features = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    attention = torch.full((64,), 0.0005)
    attention[36:40] = 0.005  # in the third of four crops of 8 x 8
    picks = kept(features, attention, ((8, 8),), tokens=16, crops=4, tau=30.0)
    crop = (-1 - notes_of(attention, ((8, 8),), crops=4)["crop"])[picks]
    assert len(crop.unique()) == 1
