"""Invariant 8, for IVC-Prune: what the released code's selection keeps, and what that gives inside a model."""

import pytest
import torch

import foveate as fv
from foveate.contract import Arriving, LayerView, Shape
from foveate.engine.reading import _means_of_turns
from foveate.methods.ivcprune import IVCPrune
from tests.golden import TOLERANCE, Case, cases, every_case

ALONE = [case for case in cases("ivcprune") if "values" in case.tensors]
FORMS = {"qwen": {}, "llama": {"among": "all", "foreground": 0.2, "coordinates": 0.05}}


def likeness(case: Case, seeds: int) -> tuple[torch.Tensor, torch.Tensor]:
    """s1 and s2 of the image's rows, and s1's order: both forms, from the values of all rows."""
    facts = case.facts["settings"]
    start, stop = facts["image_start"], facts["image_start"] + facts["image_length"]
    values = case.tensors["values"].float().transpose(0, 1)  # (heads, rows, size)

    def paid(rows: list[int]) -> torch.Tensor:
        products = values[:, rows] @ values.mT / values.shape[-1] ** 0.5
        if facts["form"] == "qwen":
            return products[..., start:stop].softmax(dim=-1).mean(dim=0)
        return products.softmax(dim=-1)[..., start:stop].mean(dim=0)

    of_text = paid(list(range(stop + 2, values.shape[1])))
    first = of_text.mean(dim=0)
    order = first.sort(descending=True, stable=True).indices[:seeds]
    return torch.stack((first, torch.cat((of_text, paid((order + start).tolist()))).mean(dim=0)), dim=1), order


def turned(case: Case) -> torch.Tensor:
    """C and S of the image's rows, from their positions."""
    facts, ids = case.facts["settings"], case.tensors["position_ids"].long()
    start, stop, size = facts["image_start"], facts["image_start"] + facts["image_length"], facts["head_size"]
    frequencies = facts["rope_theta"] ** (-torch.arange(0, size, 2).double() / size)
    axes = ids if ids.dim() == 2 else ids[None]
    return _means_of_turns(axes[:, None, start:stop], frequencies)[0]


@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.name)
def test_the_picks_are_the_codes(case):
    method = IVCPrune(**FORMS[case.facts["settings"]["form"]])
    (signal, place), count = method.reads, case.facts["settings"]["image_length"]
    scores, seeds = likeness(case, signal.seed_count(count))
    assert seeds.tolist() == case.tensors["seeds_by_falling_score"].tolist()
    stage, _ = method.stages(Shape(28))
    signals = {signal: scores, place: turned(case)}
    cut = stage.cut(LayerView(signals=signals, arriving=Arriving.all_of(count)))
    kept, wanted = (
        cut.source.tolist() if cut.stays is None else cut.stays.nonzero()[:, 0].tolist(),
        case.tensors["kept"].tolist(),
    )
    if case.facts["stable"]:
        assert kept == wanted
        return
    # A square picture: of cells (r, c) and (c, r), which tie, the code takes one by rounding, here the first is taken.
    side = int(count**0.5)
    assert len(kept) == len(wanted)
    mirrored = {cell % side * side + cell // side for cell in set(wanted) - set(kept)}
    assert mirrored & (set(kept) - set(wanted))
    assert len(set(kept) - set(wanted)) <= 2


@every_case("ivcprune")
def test_inside_a_model(case, attention):
    if "values" in case.tensors:
        return
    facts, tensors = case.facts["settings"], case.tensors
    form = FORMS[facts["form"]]
    method = IVCPrune(layer=facts["layer"], kv=None, **form)
    with case.attending(attention) as model, fv.drop(model, method) as trace, torch.no_grad():
        logits = model(**case.inputs).logits[0, -1]
    assert trace.stages[0].kept[0].tolist() == tensors["kept"].tolist()
    torch.testing.assert_close(logits, tensors["logits"], atol=TOLERANCE, rtol=0)
