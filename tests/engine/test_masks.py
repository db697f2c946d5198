"""Every backend's mask says the same: a row sees a slot iff its column is no pad, no later, and the model lets it."""

import warnings

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers.masking_utils import eager_mask, flash_attention_mask, sdpa_mask

import foveate as fv
from foveate.engine.masks import Remap, visibility
from tests.engine.test_rows import laid_out

PAST, SPAN = 5, 6
LIVE = torch.tensor([[1] * 11, [0] * 2 + [1] * 9, [1] * 4 + [0] + [1] * 6])  # padding left, and in between
STORED = torch.tensor([[0, 1, 2, 3, 4], [-1, -1, 2, 3, 4], [-1, 0, 1, 2, 3]])
LAYOUT = laid_out([[0, 1, 3, 5], [2, 5], [0, 4, 5]], 6)


def remap(ragged=True):
    keys = torch.cat((STORED, LAYOUT.unpruned(PAST)), dim=1)
    return Remap(LAYOUT.read, keys, PAST, PAST + SPAN, ragged)


def expected(window=None):
    """By hand, (samples, rows, slots), for rows that are no pads."""
    keys = torch.cat((STORED, LAYOUT.unpruned(PAST)), dim=1)
    samples, rows = LAYOUT.read.shape
    slots = keys.shape[1]
    seen = torch.zeros(samples, rows, slots, dtype=torch.bool)
    for sample in range(samples):
        for row in range(rows):
            column = int(LAYOUT.read[sample, row]) + PAST
            for slot in range(slots):
                key = int(keys[sample, slot])
                near = window is None or key > column - window
                if LAYOUT.valid[sample, row]:
                    seen[sample, row, slot] = key >= 0 and key <= column and near and bool(LIVE[sample, key])
    return seen


def real(mask):
    """Rows that are no pads."""
    return mask[LAYOUT.valid]


SIZES = {"batch_size": 3, "q_length": SPAN, "kv_length": PAST + SPAN, "q_offset": PAST}


@pytest.mark.parametrize(("backend", "form"), [("sdpa", sdpa_mask), ("eager", eager_mask)])
def test_sdpa_and_eager(backend, form):
    mask = form(**SIZES, attention_mask=LIVE.bool(), dtype=torch.float32)
    got = remap()(mask, backend)[:, 0]
    if backend == "eager":
        assert ((got == 0) | (got == torch.finfo(torch.float32).min)).all()
        got = got == 0
    assert torch.equal(real(got), real(expected()))
    assert got.any(-1).all()  # no row without a key: its softmax would not be finite


def test_flash_takes_validity_of_slots():
    mask = flash_attention_mask(**SIZES, attention_mask=LIVE.bool())
    got = remap()(mask, "flash_attention_2")
    keys = torch.cat((STORED, LAYOUT.unpruned(PAST)), dim=1)
    wanted = [[key >= 0 and bool(LIVE[sample, key]) for key in row] for sample, row in enumerate(keys.tolist())]
    assert got.tolist() == wanted


def test_flex():
    def causal(sample, head, row, slot):
        return (slot <= row + PAST) & LIVE[sample, slot].bool()

    block = create_block_mask(causal, 3, None, SPAN, PAST + SPAN, device="cpu")
    got = remap()(block, "flex_attention")
    rows, slots = LAYOUT.read.shape[1], STORED.shape[1] + LAYOUT.read.shape[1]
    rng = torch.Generator().manual_seed(0)
    query = torch.randn(3, 2, rows, 16, generator=rng)
    key, value = torch.randn(2, 3, 2, slots, 16, generator=rng)
    # Without compilation flex materialises the scores, and says so once a process.
    with warnings.catch_warnings(action="ignore"):
        flexed = flex_attention(query, key, value, block_mask=got)
    dense = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=expected()[:, None])
    picked = LAYOUT.valid[:, None].expand(-1, 2, -1)
    torch.testing.assert_close(flexed[picked], dense[picked])
    assert torch.isfinite(flexed).all()


def test_a_ragged_batch_where_the_model_gave_no_mask():
    layout = laid_out([[0, 1, 3, 5], [2, 5]], 6)
    remap = Remap(layout.read, layout.unpruned(0), 0, SPAN, True)
    assert remap(None, "flash_attention_3").tolist() == [[True] * 4, [False, False, True, True]]
    assert torch.equal(remap(None, "sdpa"), remap(None, "eager"))
    got = remap(None, "sdpa")[:, 0]
    assert got[0].tolist() == torch.ones(4, 4).tril().bool().tolist()
    assert got[1, 2:].tolist() == [[False, False, True, False], [False, False, True, True]]
    assert got.any(-1).all()


def test_a_backend_whose_masks_are_unknown_is_refused_where_one_is_needed():
    assert remap(ragged=False)(None, "my_kernel") is None
    with pytest.raises(fv.UnsupportedError, match="my_kernel"):
        remap()(None, "my_kernel")


def test_a_window_reaches_no_column_its_mask_does_not_cover():
    """Sliding layers get a mask of the last columns alone; earlier slots are nobody's keys."""
    window = 4
    full = expected(window)
    columns = torch.arange(PAST + SPAN)
    rows = torch.arange(SPAN)[:, None] + PAST
    model = ((columns <= rows) & (columns > rows - window))[None, None] & LIVE.bool()[:, None, None, :]
    reach = window - 1 + SPAN  # the last columns, as a sliding cache that has evicted hands them over
    got = remap()(model[..., -reach:], "sdpa")[:, 0]
    assert torch.equal(real(got), real(full))


@pytest.mark.parametrize("form", ["sdpa", "eager", "flex"])
@pytest.mark.parametrize("reach", [PAST + SPAN, 8])
def test_what_a_sample_sees_is_read_off_any_form(form, reach):
    """Both ways inside an image, in a window, with padding; masks may cover the last columns alone."""
    rows, columns = torch.arange(SPAN)[:, None] + PAST, torch.arange(PAST + SPAN)
    image = (rows >= 7) & (rows < 10) & (columns >= 7) & (columns < 10)
    seen = ((columns <= rows) | image) & (columns > rows - 5)
    seen = (seen[None] & LIVE.bool()[:, None])[..., -reach:]
    mask = seen[:, None]
    if form == "eager":
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    if form == "flex":
        table = seen
        mask = create_block_mask(lambda b, h, q, k: table[b, q, k], 3, None, SPAN, reach, device="cpu")
    keys = torch.tensor([[0, 3, 5, 7, 8, 9, 10], [-1, 3, 5, 7, 8, 9, 10], [-1, -1, 1, 2, 8, 9, 10]])
    asked = torch.tensor([[1, 3, 5], [0, 1, 2], [3, 4, 5]])
    for samples in ([0, 1, 2], [2, 0]):
        got = visibility(mask, torch.tensor(samples), keys[samples], PAST, PAST + SPAN)(asked[samples])
        wanted = [
            [
                [
                    column >= max(0, PAST + SPAN - reach) and bool(seen[sample, row, column - (PAST + SPAN - reach)])
                    for column in keys[sample].tolist()
                ]
                for row in asked[sample].tolist()
            ]
            for sample in samples
        ]
        assert got[:, 0].tolist() == wanted
    if form != "flex":
        first = visibility(mask, torch.tensor([0]), keys[:1], PAST, PAST + SPAN)(asked[:1])
        assert visibility(mask[:1], torch.tensor([2]), keys[:1], PAST, PAST + SPAN)(asked[:1]).equal(first)


@pytest.mark.parametrize("mask", [None, torch.ones(3, PAST + SPAN)])
def test_causality_alone_is_nothing_to_read_but_pads_are(mask):
    sample, keys, rows = torch.tensor([0]), torch.tensor([[-1, 1, PAST + 1, PAST + 3]]), torch.tensor([[1, 3]])
    assert visibility(mask, sample, keys, PAST, PAST + SPAN) is None
    padded = visibility(mask, sample, keys, PAST, PAST + SPAN, ragged=True)
    assert padded(rows).tolist() == [[[[False, True, True, False], [False, True, True, True]]]]
    both_ways = visibility(mask, sample, keys, PAST, PAST + SPAN, causal=False)
    assert both_ways(rows).tolist() == [[[[False, True, True, True]] * 2]]


def test_a_kernel_that_looks_both_ways_without_a_mask_goes_on_to():
    queries, keys = torch.tensor([[0, 1], [0, 0]]), torch.tensor([[0, 1, 2], [-1, 0, 2]])
    got = Remap(queries, keys, past=0, total=3, ragged=True, causal=False)(None, "sdpa")
    assert got[:, 0].tolist() == [[[True] * 3] * 2, [[False, True, True]] * 2]
