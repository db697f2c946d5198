"""Scores come from rows: no attention matrix is ever made, and the peak is never above the untouched model's."""

import itertools
from functools import cache

import pytest

import foveate as fv
from foveate.core.attention import BLOCK_NUMBERS
from tests.memory import AFTER, BEFORE, CONTROLS, METHODS, llava, onevision, watched


@cache
def untouched(build, **sizes):
    """A model, its inputs and what a prefill of them takes."""
    model, inputs = build(**sizes)
    return model, inputs, watched(model, inputs, None)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("build", [llava, onevision])
def test_no_attention_matrix_is_made_while_scoring(build, name):
    model, inputs, whole = untouched(build, side=672)
    rows = inputs["input_ids"].shape[1]
    vision = rows - BEFORE - AFTER
    assert max(whole.largest, BLOCK_NUMBERS) < vision**2  # so that a matrix would be seen even of one head
    peaks = watched(model, inputs, METHODS[name])
    blocks = 4 * AFTER * rows if name == "mustdrop" and build is llava else BLOCK_NUMBERS  # rows of text, of a CLS
    assert peaks.largest <= max(whole.largest, blocks), peaks.where


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("width", "tower", "most"),
    [
        pytest.param(512, 128, 1.01, id="in the decoder"),
        pytest.param(32, 768, 1.06, id="in the tower"),  # where the mean of two heads' keys stays
    ],
)
def test_the_peak_is_never_above_the_untouched_models(name, width, tower, most):
    model, inputs, whole = untouched(llava, side=336, width=width, tower=tower)
    peaks = watched(model, inputs, METHODS[name])
    assert peaks.peak <= most * whole.peak, f"{peaks.peak / whole.peak:.3f}"


@pytest.mark.parametrize("name", ["v2drop", "visiondrop", "mustdrop", "averagepool"])
def test_memory_grows_in_step_with_vision_tokens(name):
    """A token more costs at 2,000 what it costs at 700. Up to 16,384: benchmarks/memory."""
    sides = (336, 448, 672)
    built = [llava(side=side, width=64) for side in sides]
    peaks = [watched(model, inputs, {**METHODS, **CONTROLS}[name]).peak for model, inputs in built]
    sizes = [(side // 14) ** 2 for side in sides]
    first, second = (
        (b - a) / (n - m) for (a, b), (m, n) in zip(itertools.pairwise(peaks), itertools.pairwise(sizes), strict=True)
    )
    assert second <= 1.05 * first, f"{first:.0f} bytes a token, then {second:.0f}"


@pytest.mark.parametrize("method", [fv.DivPrune(tokens=32), fv.CDPruner(tokens=32), fv.FlashVID(tokens=32)], ids=str)
def test_methods_that_stream_hold_no_matrix_of_all_pairs(method):
    """Beyond a block, a token more costs the same; a matrix of 2,304 tokens has 5,308,416 numbers."""
    model, inputs = llava(side=672, layers=2)
    peaks = watched(model, inputs, method)
    whole = watched(model, inputs, None)
    assert peaks.largest <= max(whole.largest, BLOCK_NUMBERS), peaks.where
