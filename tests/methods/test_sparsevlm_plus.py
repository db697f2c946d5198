import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate as fv
from foveate.contract import Arriving, Attention, LayerView, Shape
from foveate.methods.sparsevlm import SparseVLM
from foveate.methods.sparsevlm_plus import SparseVLMPlus
from tests.contract.test_scheduled import Config, mean
from tests.models import batch, is_vision, tiny

EXAMPLES = [
    SparseVLMPlus(pruning_layers=(1, 3), targets=(12, 5), reference=25),
    SparseVLMPlus(pruning_layers=(2,), targets=(9,), reference=25, positions="reindex"),
    SparseVLMPlus(pruning_layers=(1, 2, 3), retention=0.6),
]
SMALLEST = SparseVLMPlus(pruning_layers=(1, 2), targets=(2, 0), reference=25)
HEAD, BASE = 8, 1e4  # numbers of a head and RoPE's base in the tiny LLaVA


def cut_of(method, scores, **view):
    (stage,) = method.stages(Shape(depth=32))
    arriving, signals = Arriving.all_of(len(scores)), {SparseVLMPlus.rated: torch.tensor(scores)}
    return stage.cut(LayerView(count=len(scores), arriving=arriving, signals=signals, **view))


# -- worked out token by token on a tiny LLaVA ------------------------------------------------------------------------


def nearness(distance):
    """What RoPE makes of two vectors of ones so far apart, over what it makes of them at one place: a mean of
    cosines."""
    angles = [distance * BASE ** (-2 * pair / HEAD) for pair in range(HEAD // 2)]
    return max(0.05, sum(map(math.cos, angles)) / len(angles))


def resembling(embeddings, image, words):
    """The words that get more than the mean share of the image's tokens, each of which shares 1 out by its products."""
    shares = dict.fromkeys(words, 0.0)
    for token in image:
        weights = {word: math.exp(float(embeddings[token].double() @ embeddings[word].double())) for word in words}
        for word in words:
            shares[word] += weights[word] / sum(weights.values())
    return [word for word in words if shares[word] > sum(shares.values()) / len(words)]


def best(attention, numbers, image, raters, count):
    """Of the rows `image` the `count` that the busier half of the heads attends to most, distance left out.

    Args:
        attention: (heads, rows, rows).
        numbers: The position of each row.
    """
    heads = []
    for matrix in attention.tolist():
        scores = dict.fromkeys(image, 0.0)
        for rater in raters:
            for row in image:
                scores[row] += matrix[rater][row] / nearness(numbers[rater] - numbers[row])
        heads.append(scores)
    heads.sort(key=lambda scores: sum(scores.values()), reverse=True)
    half = heads[: len(heads) // 2]
    ranked = sorted(image, key=lambda row: -sum(scores[row] for scores in half))
    return sorted(ranked[:count])


@torch.no_grad()
def attended(layer, rows, rotary):
    """A layer's attention, (heads, rows, rows), and its output, on rows one sample has."""
    mask = torch.full((len(rows), len(rows)), -1e30).triu(1)[None, None]
    _, weights = layer.self_attn(layer.input_layernorm(rows[None]), position_embeddings=rotary, attention_mask=mask)
    output = layer(rows[None], position_embeddings=rotary, attention_mask=mask, past_key_values=None)
    return weights[0], (output[0] if isinstance(output, tuple) else output)[0]


@pytest.mark.parametrize("positions", ["keep", "reindex"])
@pytest.mark.parametrize("word", ["titt", "titttt"])
def test_two_cuts_token_by_token(word, positions):
    inputs, entered = batch("llava", [word]), []
    decoder = tiny("llava", "eager").get_decoder()
    handle = decoder.layers[0].register_forward_pre_hook(lambda _, args: entered.append(args[0][0]))
    with torch.no_grad():
        tiny("llava", "eager")(**inputs)
    handle.remove()
    rows = embeddings = entered[0]
    vision = is_vision(inputs["input_ids"][0])
    image = vision.nonzero()[:, 0].tolist()
    raters = resembling(embeddings, image, range(image[-1] + 1, len(rows)))
    assert 0 < len(raters) < len(rows) - image[-1] - 1
    places, wanted = list(range(len(rows))), []
    for index, layer in enumerate(decoder.layers[:4]):
        numbers = places if positions == "keep" else list(range(len(places)))
        rotary = decoder.rotary_emb(rows[None], torch.tensor([numbers]))
        attention, rows = attended(layer, rows, rotary)
        if index not in (1, 3):
            continue
        here = [places.index(place) for place in image]
        stay = best(attention, numbers, here, [places.index(rater) for rater in raters], 12 if index == 1 else 5)
        image = [places[row] for row in stay]
        wanted.append([place - 4 for place in image])  # four tokens of text stand before the image
        left = [row for row, place in enumerate(places) if not vision[place] or place in image]
        rows, places = rows[left], [places[row] for row in left]
    setting = {"pruning_layers": (1, 3), "targets": (12, 5), "reference": 25, "positions": positions}
    plus, plain = SparseVLMPlus(**setting), SparseVLM(recycle=False, **setting)
    assert kept(plus, inputs) == wanted
    assert kept(plain, inputs)[0] != wanted[0]


def kept(method, inputs):
    """The tokens left after each cut."""
    with fv.drop(tiny("llava"), method) as trace, torch.no_grad():
        tiny("llava")(**inputs)
    return [stage.kept[0].tolist() for stage in trace.stages]


def test_the_published_settings_ask_fourteen_heads_and_others_half():
    presets = [preset for name, preset in fv.presets().items() if name.startswith("sparsevlm_plus/llava-1.5")]
    assert len(presets) == 4
    for preset in presets:
        assert {stage.reads[0].busiest for stage in preset.method.stages(Shape(32))} == {14}
    (stage,) = SparseVLMPlus(pruning_layers=(1,), targets=(9,), heads=3).stages(Shape(32))
    assert stage.reads[0].busiest == 3
    assert SparseVLMPlus().stages(Shape(32))[0].reads[0].busiest is None  # half


# -- counts -----------------------------------------------------------------------------------------------------------


def test_it_reads_the_raters_of_the_layer_that_ran():
    rated = Attention(rows="raters", layer="ran", heads="busiest", over="mean", without_distance=True)
    stages = SparseVLMPlus().stages(Shape(depth=32))
    assert [stage.layer for stage in stages] == [3, 7, 16]
    for stage in stages:
        assert (stage.reads, stage.positions, stage.unit) == ((rated,), "keep", "image")
    for stage in SparseVLMPlus(positions="reindex").stages(Shape(depth=32)):
        assert stage.positions == "reindex"


@pytest.mark.parametrize(
    ("preset", "rows", "average"),
    [
        ("192", (300, 200, 118), 206.75),
        ("128", (238, 108, 60), 144.125),
        ("96", (246, 54, 28), 113.9375),
        ("64", (66, 34, 20), 81.8125),
    ],
)
def test_presets_spend_what_the_page_says(preset, rows, average):
    plan = fv.presets()[f"sparsevlm_plus/llava-1.5-7b/{preset}"].method.plan(32, (576,))
    assert plan == (576,) * 3 + (rows[0],) * 4 + (rows[1],) * 9 + (rows[2],) * 16
    assert sum(plan) / 32 == average


def test_the_best_stay_and_ties_go_to_the_lower_index():
    method = SparseVLMPlus(pruning_layers=(2,), targets=(3,), reference=6)
    cut = cut_of(method, [0.2, 0.1, 0.9, 0.2, 0.2, 0.0])
    assert cut.source.tolist() == [0, 2, 3]
    assert cut.parent.tolist() == [0, -1, 1, 2, -1, -1]  # nothing is recycled


@pytest.mark.parametrize("tokens", [3, 2, 1])
def test_all_stay_where_no_more_arrive_than_the_target(tokens):
    method = SparseVLMPlus(pruning_layers=(2,), targets=(3,), reference=tokens)
    assert cut_of(method, [0.1] * tokens) is None
    assert method.plan(32, (tokens,)) == (tokens,) * 32


def test_targets_are_scaled_for_images_of_another_size():
    method = SparseVLMPlus(pruning_layers=(0,), targets=(300,))
    assert method.plan(2, (1152, 576)) == (1728, 900)
    assert method.plan(2, (7,)) == (7, 4)
    assert method.plan(2, (1,)) == (1, 1)
    assert SparseVLMPlus(pruning_layers=(0,), targets=(0,)).plan(2, (576, 7)) == (583, 0)


def test_without_text_behind_tokens_at_even_steps_stay():
    method = SparseVLMPlus(pruning_layers=(2,), targets=(3,), reference=9)
    assert cut_of(method, [0.0] * 9, text_behind=False).source.tolist() == [1, 4, 7]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": (2, 6)}, "must have the same length"),
        ({"targets": (9, 6, 3), "tokens": 9}, "either targets or a budget"),
        ({"recycle": True}, "recycle"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises((fv.SettingError, TypeError), match=message):
        SparseVLMPlus(**settings)


@given(depth=st.integers(6, 80), share=st.floats(0.01, 1.0), tokens=st.integers(16, 4000))
def test_a_budget_is_met_or_refused_with_its_floor(depth, share, tokens):
    first = SparseVLMPlus(retention=0.5).stages(Shape(depth))[0].layer
    floor = (first + (depth - first) / tokens) / depth
    if share < floor:
        with pytest.raises(fv.BudgetError, match=r"SparseVLMPlus cannot average .* its floor is"):
            SparseVLMPlus.for_budget(Config(depth), retention=share, vision_tokens=tokens)
    else:
        method = SparseVLMPlus.for_budget(Config(depth), retention=share, vision_tokens=tokens)
        assert mean(method, depth, tokens) == pytest.approx(share * tokens, abs=0.51)


def test_a_budget_shares_out_in_the_ratio_of_its_own_targets():
    plan = SparseVLMPlus.for_budget(Config(32), tokens=206.75).plan(32, (576,))
    assert plan == SparseVLMPlus().plan(32, (576,))
