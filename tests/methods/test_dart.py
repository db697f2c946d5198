import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate as fv
from foveate.contract import Arriving, Columns, KeyNorms, LayerView, Normed, Pivots, Shape
from foveate.methods.dart import DART, visiting_order
from tests.contract.test_scheduled import Config, mean
from tests.models import batch, tiny

EXAMPLES = [DART(layer=2, keep=0.6, pivots=2, text_pivots=2), DART(layer=3, retention=0.7, text_pivots=0)]
SMALLEST = DART(layer=1, target=0, pivots=1)


def kept(method, norms, features, text=None, columns=None, **view):
    """Without columns all stand in the same one: vision is visited by falling norm, then text."""
    (stage,) = method.stages(Shape(depth=32))
    columns = torch.tensor(columns or [0] * (len(norms) + method.text_pivots))
    told = {"key_norms": torch.tensor(norms), "normed": torch.tensor(features), "columns": columns, **view}
    if text is not None:
        told["pivots"] = torch.tensor(text)
    cut = stage.cut(LayerView(count=len(norms), **told))
    return list(range(len(norms))) if cut is None else cut.source.tolist()


def at(*degrees):
    """Features on a circle: their cosines are those of the angles between."""
    return [[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in degrees]


def test_ten_tokens_one_pivot_of_each_kind_by_hand():
    """B = 4: m = 2, so 2 · 2 + 1 of ten stay. The pivots look at 0° (token 3, the largest norm) and 90° (text)."""
    norms = [1.0, 2.0, 3.0, 9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    angles = (10, 180, 170, 0, 200, 250, 90, 265, 280, 30)
    # Token 3 takes what is least like 0°: tokens 1 (180°) and 2 (170°). The text takes what is least like 90° of the
    # rest: 7 (265°, 175° away) and 8 (280°, 170°); 5 is 160° away, 4 only 110°.
    method = DART(target=4, pivots=1, text_pivots=1)
    assert kept(method, norms, at(*angles), at(90)) == [1, 2, 3, 7, 8]
    # A text that looks at 0° too takes the next of what is least like 0°: 4 (160° away) and 5 (110°).
    assert kept(method, norms, at(*angles), at(0)) == [1, 2, 3, 4, 5]


def test_pivots_are_visited_by_their_column_mod_32():
    """The pivots look at 0° (token 3) and 3° (text). Both find token 0 (181°) least alike, and the first takes it; then
    token 3 takes token 1 (175°), or the text token 2 (186°)."""
    norms, angles = [1.0, 1.0, 1.0, 9.0], (181, 175, 186, 0)
    method = DART(target=2, pivots=1, text_pivots=1)
    # Token 3 is in column 67, which is 3 mod 32; the text's remainders are 4, 0 and 3.
    for text, wanted in ((68, [0, 2, 3]), (96, [0, 1, 3]), (99, [0, 2, 3])):
        assert kept(method, norms, at(*angles), at(3), [64, 65, 66, 67, text]) == wanted
    assert visiting_order(torch.tensor([432, 392, 384, 385, 613, 624, 618, 620])).tolist() == [2, 3, 4, 1, 6, 7, 0, 5]


def test_equal_columns_are_visited_by_falling_norm_and_pivots_never_leave():
    # Pivots 2 and 0. Both find token 3 least alike: pivot 2 comes first and takes it, pivot 0 takes the next.
    norms, angles = [5.0, 1.0, 7.0, 1.0, 1.0], (0, 90, 20, 190, 170)
    assert kept(DART(target=2, pivots=2, text_pivots=0), norms, at(*angles)) == [0, 2, 3, 4]
    # Alike as they are, pivots are no candidates: no token is taken twice.
    assert kept(DART(target=2, pivots=2, text_pivots=0), norms, at(*[0] * 5)) == [0, 1, 2, 3]


def test_it_reads_norms_normed_states_and_text_pivots():
    (stage,) = DART().stages(Shape(depth=32))
    assert (stage.layer, stage.positions, stage.unit) == (2, "keep", "image")
    assert stage.reads == (KeyNorms(), Normed(), Columns(4), Pivots(4))
    assert stage.reads_text
    (stage,) = DART(text_pivots=0).stages(Shape(depth=32))
    assert stage.reads == (KeyNorms(), Normed(), Columns())
    assert not stage.reads_text


@pytest.mark.parametrize(
    ("settings", "tokens", "count"),
    [
        ({"target": 192}, 576, 196),
        ({"target": 128}, 576, 132),
        ({"target": 64}, 576, 68),
        ({"keep": 1 - 0.667}, 576, 188),
        ({"keep": 1 - 0.778}, 576, 124),
        ({"keep": 1 - 0.889}, 576, 60),
        ({"target": 7}, 100, 4),  # less than a token for each pivot
        ({"target": 320}, 300, 300),
        ({"target": 320}, 322, 316),  # B is 322 − 4 at most
        ({"target": 320}, 327, 324),
        ({"target": 128}, 3, 3),
        ({"keep": 0.0}, 1, 1),
    ],
)
def test_true_counts_are_those_of_the_spec(settings, tokens, count):
    assert DART(**settings).plan(4, (tokens,)) == (tokens,) * 2 + (count,) * 2


def test_without_text_behind_the_vision_pivots_share_the_budget():
    norms, angles = [9.0, 1.0, 1.0, 1.0, 1.0, 1.0], (0, 180, 170, 160, 10, 20)
    method = DART(target=4, pivots=1, text_pivots=1)
    assert kept(method, norms, at(*angles), at(90), text_behind=False) == [0, 1, 2, 3, 5]


def test_ties_and_zero_rows_go_to_the_lower_index():
    method = DART(target=2, pivots=2, text_pivots=0)
    assert kept(method, [1.0] * 5, at(*[40] * 5)) == [0, 1, 2, 3]
    assert kept(method, [0.0] * 5, [[0.0, 0.0]] * 5) == [0, 1, 2, 3]


def slowly(norms, features, text, columns, pivots, count):
    """The same, token by token."""
    order = sorted(range(len(norms)), key=lambda token: (-norms[token], token))
    stay = order[: min(pivots, count)]
    places = columns[stay].tolist() + columns[len(norms) :].tolist()
    visited = [features[token] for token in stay] + list(text)
    visited = [visited[turn] for turn in sorted(range(len(visited)), key=lambda turn: (places[turn] % 32, turn))]
    total = count - len(stay)
    for place, pivot in enumerate(visited):
        share = total // len(visited) + (place < total % len(visited))
        pool = [token for token in range(len(norms)) if token not in stay]
        pool.sort(key=lambda token: (float(torch.cosine_similarity(features[token], pivot, dim=0)), token))
        stay += pool[:share]
    return sorted(stay)


@given(
    tokens=st.integers(2, 40),
    count=st.integers(1, 40),
    pivots=st.integers(1, 5),
    words=st.integers(0, 4),
    seed=st.integers(0, 999),
)
def test_it_is_the_loop_over_pivots_and_tokens(tokens, count, pivots, words, seed):
    rng = torch.Generator().manual_seed(seed)
    count = min(count, tokens - 1)
    norms, features = torch.rand(tokens, generator=rng), torch.randn(tokens, 6, generator=rng).double()
    text, columns = torch.randn(words, 6, generator=rng).double(), torch.randperm(tokens + words, generator=rng)
    method = DART(pivots=pivots, text_pivots=words, tokens=float(count), layer=1)
    told = {"key_norms": norms, "normed": features, "pivots": text, "columns": columns}
    view = LayerView(count=tokens, arriving=Arriving.all_of(tokens), **told)
    got = method._pick(view, count).tolist()
    assert got == slowly(norms.tolist(), features, text, columns, pivots, count)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 0}, "layer should be greater than or equal to 1"),
        ({"pivots": 0}, "pivots should be greater than or equal to 1"),
        ({"target": 100, "retention": 0.3}, "either target or a budget"),
        ({"tokens": 100, "retention": 0.3}, "one of tokens= and retention="),
        ({"scope": "sample"}, "scope should be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(fv.SettingError, match=message):
        DART(**settings)


@pytest.mark.parametrize(
    ("preset", "tokens", "left", "average"),
    [
        ("llava-1.5-7b/192", 576, 196, 219.75),
        ("llava-1.5-7b/128", 576, 132, 159.75),
        ("llava-1.5-7b/64", 576, 68, 99.75),
        ("llava-next-7b/320", 2880, 324, 483.75),
    ],
)
def test_presets_spend_what_the_page_says(preset, tokens, left, average):
    plan = fv.presets()[f"dart/{preset}"].method.plan(32, (tokens,))
    assert plan == (tokens,) * 2 + (left,) * 30
    assert sum(plan) / 32 == average


@pytest.mark.parametrize("model", ["qwen2-vl-7b", "qwen2.5-vl-7b"])
@pytest.mark.parametrize(
    ("share", "left", "average"), [("33.3%", 340, 38.0), ("22.2%", 228, 27.8), ("11.1%", 116, 17.7)]
)
def test_presets_of_the_qwens_keep_multiples_of_the_pivots(model, share, left, average):
    preset = fv.presets()[f"dart/{model}/{share}"]
    assert preset.depth == 28
    plan = preset.method.plan(28, (1024,))
    assert plan == (1024,) * 2 + (left,) * 26
    assert sum(plan) / 28 / 1024 == pytest.approx(average / 100, abs=5e-4)


@given(depth=st.integers(3, 80), share=st.floats(0.01, 1.0), tokens=st.integers(16, 4000))
def test_a_budget_is_met_or_refused_with_its_floor(depth, share, tokens):
    floor = (2 + (depth - 2) / tokens) / depth
    if share < floor:
        with pytest.raises(fv.BudgetError, match="floor is"):
            DART.for_budget(Config(depth), retention=share, vision_tokens=tokens)
    else:
        method = DART.for_budget(Config(depth), retention=share, vision_tokens=tokens)
        assert mean(method, depth, tokens) == pytest.approx(share * tokens, abs=0.51)


def test_a_layer_that_carries_a_state_has_no_keys_but_may_be_cut_before():
    model, inputs = tiny("qwen3_5"), batch("qwen3_5", ["titt"])  # its layers 0 and 5 carry a state
    with (
        pytest.raises(fv.UnsupportedError, match="Layer 0 has no attention to rank by"),
        fv.drop(model, DART(layer=1)),
        torch.no_grad(),
    ):
        model(**inputs)
    with fv.drop(model, DART(layer=5, keep=0.6)) as trace, torch.no_grad():
        model(**inputs)
    assert trace.stages[0].after[0] < trace.stages[0].before[0]
