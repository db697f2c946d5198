import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import foveate as fv
from foveate.contract import Attention, CacheStage, LayerView, Shape
from foveate.methods.priortr import PriorTR, gained
from tests.contract.test_scheduled import Config, mean
from tests.models import batch, generate, slots, tiny

EXAMPLES = [PriorTR(layer=3, keep=0.4), PriorTR(layer=2, retention=0.6, question="last", heads="max", kv=False)]
EXAMPLES.append(PriorTR(layer=1, keep=0.5, question="but_last", heads="max"))
SMALLEST = PriorTR(layer=2, target=1)
NULL, AFTER = Attention(rows="null"), Attention(rows="after")


def kept(question, null, target, **view):
    stage, _ = PriorTR(target=target).stages(Shape(depth=32))
    signals = {NULL: torch.tensor(null), AFTER: torch.tensor(question)}
    cut = stage.cut(LayerView(count=len(null), signals=signals, **view))
    return list(range(len(null))) if cut is None else cut.source.tolist()


def test_six_tokens_by_hand():
    """Rows of attention over six image tokens; a row's other attention goes to text, so rows sum to less than 1."""
    null = [0.20, 0.02, 0.00, 0.06, 0.10, 0.02]  # of all it pays, 0.4, shares .5 .05 0 .15 .25 .05
    words = [[0.10, 0.10, 0.0, 0.05, 0.05, 0.10], [0.02, 0.10, 0.0, 0.10, 0.01, 0.20]]
    question = [sum(row) / 3 for row in zip(null, *words, strict=True)]  # the null token is one of its rows
    p = [value / sum(question) for value in question]
    q = [value / sum(null) for value in null]
    gain = [a * math.log((a + 1e-10) / (b + 1e-10)) for a, b in zip(p, q, strict=True)]
    torch.testing.assert_close(gained(torch.tensor(question), torch.tensor(null)), torch.tensor(gain))
    # Tokens 5 and 1 gain, 3 a little; nobody looks at 2; 4 and 0 lose.
    assert sorted(range(6), key=lambda token: -gain[token]) == [5, 1, 3, 2, 4, 0]
    assert [kept(question, null, count) for count in (1, 2, 3, 4)] == [[5], [1, 5], [1, 3, 5], [1, 2, 3, 5]]


def test_what_lost_attention_goes_before_what_nobody_looks_at():
    assert kept([0.5, 0.0, 0.5], [0.1, 0.0, 0.9], 2) == [0, 1]


def test_it_reads_two_rows_of_layer_two_and_cuts_all_caches():
    stage, cache = PriorTR().stages(Shape(depth=32))
    assert (stage.layer, stage.positions, stage.unit) == (3, "keep", "image")
    assert stage.reads == (
        Attention(rows="null", layer="ran", heads="mean", over="mean"),
        Attention(rows="after", layer="ran", heads="mean", over="mean"),
    )
    assert isinstance(cache, CacheStage)
    assert cache.first_layer == 0
    for name, preset in fv.presets().items():
        if name.startswith("priortr/qwen3-vl"):  # the ports leave the prompt's last row out
            assert preset.method.question == "but_last"
    (stage,) = PriorTR(question="last", heads="max", kv=False).stages(Shape(depth=32))
    assert stage.reads == (Attention(rows="null", heads="max"), Attention(rows="last", heads="max"))


def test_one_short_length_serves_all_layers():
    model = tiny("llava")
    with fv.drop(model, PriorTR(layer=3, keep=0.4)) as trace:
        cache = generate(model, batch("llava", ["titt"])).past_key_values
    left = trace.stages[0].after[0]
    assert trace.stages[0].before[0] > left
    assert len({layer[0] for layer in trace.kv_lengths}) == 1
    assert len(set(slots(cache))) == 1


def test_where_the_question_precedes_the_image_nothing_is_gained_and_the_first_stay():
    row = [0.1, 0.3, 0.2, 0.2]
    assert gained(torch.tensor(row), torch.tensor(row)).tolist() == [0.0] * 4
    assert kept(row, row, 2) == [0, 1]


def test_without_text_behind_tokens_at_even_steps_stay():
    assert kept([0.0] * 9, [0.0] * 9, 3, text_behind=False) == [1, 4, 7]


def test_attention_that_vanishes_gains_nothing():
    assert gained(torch.zeros(3), torch.zeros(3)).tolist() == [0.0] * 3
    assert gained(torch.tensor([0.2, 0.0]), torch.zeros(2)).isfinite().all()


@given(st.lists(st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)), min_size=1, max_size=30), st.floats(0.01, 50))
def test_the_sum_is_a_divergence_and_scale_does_not_matter(pairs, scale):
    question, null = torch.tensor(pairs).T
    scores = gained(question, null)
    assert scores.sum() >= -1e-5
    torch.testing.assert_close(gained(question * scale, null), scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "tokens", "count"),
    [({"target": 192}, 576, 192), ({"target": 192}, 100, 100), ({"keep": 0.1111}, 1000, 111), ({"keep": 0.0}, 7, 1)],
)
def test_counts(settings, tokens, count):
    assert PriorTR(**settings).plan(5, (tokens,)) == (tokens,) * 3 + (count,) * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 0}, "layer should be greater than or equal to 1"),
        ({"question": "first"}, "question should be"),
        ({"target": 100, "tokens": 100}, "either target or a budget"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(fv.SettingError, match=message):
        PriorTR(**settings)


@pytest.mark.parametrize(
    ("preset", "tokens", "left", "average"),
    [
        ("llava-1.5-7b/192", 576, 192, 228),
        ("llava-1.5-7b/128", 576, 128, 170),
        ("llava-1.5-7b/64", 576, 64, 112),
        ("llava-next-7b/320", 2880, 320, 560),
        ("qwen3-vl-8b/11.1%", 1000, 111, 185.083),
    ],
)
def test_presets_spend_what_the_page_says(preset, tokens, left, average):
    found = fv.presets()[f"priortr/{preset}"]
    plan = found.method.plan(found.depth, (tokens,))
    assert plan == (tokens,) * 3 + (left,) * (found.depth - 3)
    assert sum(plan) / found.depth == pytest.approx(average, abs=5e-4)


@pytest.mark.parametrize(("budget", "left"), [(192, 152), (128, 82), (64, 11)])
def test_one_cut_meets_a_mean_over_layers_as_nearly_as_can_be(budget, left):
    assert PriorTR.for_budget(Config(32), tokens=budget).plan(32, (576,))[-1] == left


@given(depth=st.integers(4, 80), share=st.floats(0.01, 1.0), tokens=st.integers(16, 4000))
def test_a_budget_is_met_or_refused_with_its_floor(depth, share, tokens):
    floor = (3 + (depth - 3) / tokens) / depth
    if share < floor:
        with pytest.raises(fv.BudgetError, match="floor is"):
            PriorTR.for_budget(Config(depth), retention=share, vision_tokens=tokens)
    else:
        method = PriorTR.for_budget(Config(depth), retention=share, vision_tokens=tokens)
        assert mean(method, depth, tokens) == pytest.approx(share * tokens, abs=0.51)
