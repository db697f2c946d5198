"""Invariant 8, for methods that pick tokens once: what the authors' own functions pick, vector by vector."""

import pytest
import torch

import foveate as fv
from foveate.contract import ImageView, Shape
from foveate.methods import dart
from tests.golden import TOLERANCE, cases, every_case, generate

ONCE = {
    "divprune": lambda facts: fv.DivPrune(keep=facts["ratio"]),
    "hiprune": lambda facts: fv.HiPrune(
        tokens=facts["kept"], alpha=facts["alpha"], object_layer=facts["object_layer_1_based"] - 1
    ),
    "holov": lambda facts: fv.HoloV(tokens=facts["kept"], crops=facts["crops"]),
    "scope": lambda facts: fv.Scope(tokens=facts["kept"], alpha=facts["alpha"]),
    "vispruner": lambda facts: fv.VisPruner(
        tokens=facts["kept"], important_ratio=facts["important_ratio"], per_round=facts["per_round"]
    ),
}


def kept_on_the_model(case, method, attention):
    """What a case's model keeps of its picture; the decoder's rows are counted."""
    with case.attending(attention) as model, fv.drop(model, method) as trace, torch.no_grad():
        model(**case.inputs)
    *_, stage = trace.stages
    rows = case.facts["n_system"] + case.facts["kept"] + case.facts["n_question"]
    assert [lengths[0] for lengths in trace.kv_lengths] == [rows] * len(trace.kv_lengths)
    return stage.origin[0].tolist()


@every_case(*ONCE)
def test_tokens_kept_once(case, attention):
    method = ONCE[case.facts["method"]](case.facts)
    kept, wanted = kept_on_the_model(case, method, attention), case.tensors["kept_patches"].tolist()
    if case.name == "hiprune/case3":  # two anchors at an edge: the code takes patches of other rows, see docs
        assert {566, 382, 527, 174} <= set(kept)
        assert kept == case.facts["kept_by_foveate"]
        assert len(set(kept) - set(wanted)) == 2
    else:
        assert kept == wanted
    if "quota" in case.tensors:
        assert torch.bincount(torch.tensor(kept) // 36, minlength=16).tolist() == case.tensors["quota"].tolist()


@pytest.mark.parametrize("case", cases("tome"), ids=lambda case: case.name)
def test_tome_merges_what_the_code_merges(case):
    """Groups and rows are the code's; rows stand in another order, by their first tokens."""
    keys, features = case.tensors["keys"], case.tensors["features"]
    (stage,) = fv.ToMe(tokens=case.facts["rows"]).stages(Shape(depth=32, cls=True))
    cut = stage.cut(ImageView(features, keys=keys))
    their_row = case.tensors["row_of_each_token"].long()
    order = their_row[cut.source.long()]  # of each of our rows, which one of theirs
    assert torch.equal(order[cut.parent], their_row)
    torch.testing.assert_close(cut.rows, case.tensors["merged_rows"][order], atol=1e-4, rtol=0)
    assert cut.source.tolist() == sorted(cut.source.tolist())


@every_case("dart")
def test_dart(case, attention, monkeypatch):
    """A whole run, in the order in which the code visits its pivots."""
    facts, tensors, visited = case.facts, case.tensors, []
    original = dart.visiting_order

    def noting(columns):
        order = original(columns)
        visited.append(columns[order].tolist())
        return order

    monkeypatch.setattr(dart, "visiting_order", noting)
    method = fv.DART(
        layer=facts["K"],
        target=facts["target"],
        pivots=facts["pivot_image_token"],
        text_pivots=facts["pivot_text_token"],
    )
    with case.attending(attention) as model, fv.drop(model, method) as trace:
        tokens, logits, _ = generate(model, case.inputs)
    (stage,) = trace.stages
    assert visited == [facts["visit_order_columns"]]
    assert stage.kept[0].tolist() == tensors["kept_patches"].tolist()
    assert tokens.tolist() == facts["tokens"]
    torch.testing.assert_close(logits, tensors["logits"], atol=TOLERANCE, rtol=0)
    assert [lengths[0] for lengths in trace.kv_lengths] == facts["kv_len_after_prefill"]
