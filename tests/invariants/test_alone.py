"""What is left of each sample of a batch: what it would have come to alone."""

import pytest
import torch

import foveate as fv
from foveate.contract import Hidden, follow
from tests.invariants.alone import check_alone, left
from tests.invariants.settings import EXAMPLES, FIRST, STAGES, part, with_kernels
from tests.models import batch, tiny

ALIKE = ("tit", "titttt", "tttit", "itt")
"""One image each: so much text before it and behind it, or none."""
DECODER = [(name, family) for name, family in FIRST if follow.cut_layers(STAGES[name])]


@pytest.mark.parametrize(("name", "family", "attention"), with_kernels(part(DECODER, 0, of=3)))
def test_samples_of_a_batch_come_to_what_each_does_alone(name, family, attention):
    words = [word for word in ALIKE if word[0] == "t" or "mustdrop" not in name]
    check_alone(tiny(family, attention), family, EXAMPLES[name], words)


def test_a_method_may_read_values():
    class Counting(fv.Uniform):
        reads = (Hidden(),)

        def pick(self, view, count):
            return torch.tensor(sorted(view.hidden.norm(dim=-1).topk(count).indices.tolist()))

    check_alone(tiny("llava"), "llava", Counting(layers=(2,), keep=(0.5,)), ["tit", "titt"])


def test_thresholds_that_part_samples_keep_apart_what_is_each_ones():
    method = fv.MustDrop(global_thr=0.02, individual_thr=0.5, pruning_layers=(1, 3), merge_windows=False)
    words = ["tit", "titt", "titttt", "ttit"]
    check_alone(tiny("llava"), "llava", method, words)
    with fv.drop(tiny("llava"), method) as trace, torch.no_grad():
        tiny("llava")(**batch("llava", words))
    assert len(set(trace.stages[-1].after)) > 1


@pytest.mark.parametrize(
    ("name", "where"),  # padding in between is numbered too where rows are numbered anew, as mustdrop-2 has them
    [(name, "right") for name in ("visiondrop-1", "mustdrop-1", "mustdrop-2")]
    + [(name, "between") for name in ("visiondrop-1", "mustdrop-1")],
)
def test_attention_is_read_at_the_right_rows_whatever_the_padding(name, where):
    """Masked columns right of the prompt, or in its text: a layer has them in it until somebody leaves."""
    model, words = tiny("llava"), ("tit", "titttt")
    alone = [batch("llava", [word]) for word in words]
    span = 4 + max(one["input_ids"].shape[1] for one in alone)
    ids, mask = torch.zeros(2, span, dtype=torch.int64), torch.zeros(2, span, dtype=torch.int64)
    for row, one in enumerate(alone):
        length = one["input_ids"].shape[1]
        places = torch.arange(length) + (span - length) * (torch.arange(length) >= length - 2) * (where == "between")
        ids[row, places], mask[row, places] = one["input_ids"][0], 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    pixels = torch.cat([one["pixel_values"] for one in alone])
    with fv.drop(model, EXAMPLES[name]) as together, torch.no_grad():
        model(input_ids=ids, attention_mask=mask, position_ids=positions, pixel_values=pixels)
    for row, one in enumerate(alone):
        with fv.drop(model, EXAMPLES[name]) as trace, torch.no_grad():
            model(**one)
        assert left(together, row) == left(trace, 0) != {}
