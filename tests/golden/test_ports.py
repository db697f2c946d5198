"""The authors' released code once more: decisions of whole runs, and of single functions on the tensors they got."""

import math
import re
from contextlib import nullcontext

import pytest
import torch

import foveate as fv
from foveate.contract import Arriving, ImageView, LayerView, ReadView, Shape, TowerAttention, follow
from foveate.core.attention import mean_of_busiest, nearness
from foveate.methods import vidcom2, vscan
from foveate.methods.clse import CLSE
from foveate.methods.dycoke import DyCoke
from foveate.methods.evs import EVS
from foveate.methods.priortr import PriorTR, gain
from foveate.methods.prumerge import PruMerge
from foveate.methods.prumerge_plus import PruMergePlus
from foveate.methods.sparsevlm_plus import SparseVLMPlus
from foveate.methods.vscan import VScan
from tests.golden import TOLERANCE, cases, generate, positions_seen
from tests.golden.test_golden import called


def named(method):
    return pytest.mark.parametrize("case", cases(method), ids=lambda case: case.name)


def ran(case, method):
    """The trace of a whole run whose tokens, logits, lengths and positions are the code's."""
    model, facts, tensors = case.model, case.facts, case.tensors
    positions = tensors.get("decode.position_ids")
    watch = nullcontext() if positions is None else positions_seen(model)
    with fv.drop(model, method) as trace, watch as seen:
        tokens, logits, cache = generate(model, case.inputs)
    assert tokens.tolist() == tensors["tokens"].tolist()
    torch.testing.assert_close(logits, tensors["logits"], atol=TOLERANCE, rtol=0)
    assert [layer.keys.shape[-2] for layer in cache.layers] == facts["kv_len_after_8_tokens"]
    if positions is not None:
        assert [len(calls[0]) for calls in seen] == facts["seq_len_per_layer"]
        for step, wanted in enumerate(positions.tolist()):
            assert [calls[1 + step] for calls in seen] == [[position] for position in wanted], step
    return trace


def settings(case):
    """The keyword arguments that a case's `foveate` names."""
    return eval(re.sub(r"^\w+", "dict", case.facts["foveate"]))


# -- whole runs -------------------------------------------------------------------------------------------------------


@named("vscan")
def test_vscan(case, monkeypatch):
    tensors = case.tensors
    picked, merged = (called(vscan, monkeypatch, name) for name in ("top_in_groups", "merge_others"))
    merging, last = ran(case, VScan(**settings(case))).stages[-2:]
    assert picked[0][1].tolist() == tensors["local_patches"].sort().values.tolist()
    assert merging.origin[0].tolist() == tensors["entering_patches"].tolist()
    torch.testing.assert_close(merged[0][1].rows, tensors["merged_rows"], atol=TOLERANCE, rtol=0)
    assert (last.layer, last.kept[0].tolist()) == (case.facts["layer"], tensors["stage1.kept_patches"].tolist())


@named("priortr")
def test_priortr(case, monkeypatch):
    scored = called(PriorTR, monkeypatch, "pick")
    stage, _ = ran(case, PriorTR(**settings(case))).stages
    assert stage.kept[0].tolist() == case.tensors["kept_patches"].tolist()
    method, view, _ = scored[0][0]
    scores = gain(view[method.reads[1]], view[method.reads[0]])
    torch.testing.assert_close(scores, case.tensors["scores"], atol=1e-5, rtol=1e-3)


@named("clse")
def test_clse(case):
    facts = case.facts
    method = facts["foveate"].removeprefix("preset ")
    if "shares" in facts:
        shares = tuple(count / facts["n_image"] for count in facts["counts"])
        method = CLSE(layers=facts["layers"], keep=shares, kv=False)
    stages = [stage for stage in ran(case, method).stages if stage.where == "layer"]
    for index, (stage, count) in enumerate(zip(stages, facts["counts"], strict=True)):
        assert (stage.layer, stage.after) == (facts["layers"][index], (count,))
        assert stage.kept[0].tolist() == case.tensors[f"stage{index}.kept_patches"].tolist()


def test_clses_presets_for_qwen_count_as_the_code_does():
    shared = [case for case in cases("clse") if "shares" in case.facts]
    assert shared
    for case in shared:
        facts = case.facts
        (preset,) = [
            preset
            for name, preset in fv.presets().items()
            if name.startswith("clse/qwen2-vl") and preset.method.keep == tuple(facts["shares"])
        ]
        plan = preset.method.plan(28, (facts["n_image"],))
        assert list(dict.fromkeys(plan)) == [facts["n_image"], *facts["counts"]]
        assert [stage.layer for stage in preset.method.stages(Shape(28))] == facts["layers"]


@named("prumerge_plus")
def test_prumerge_plus(case, monkeypatch):
    tensors = case.tensors
    seen = called(PruMerge, monkeypatch, "_choose")
    with fv.drop(case.model, PruMergePlus()) as trace, torch.no_grad():
        case.model(**case.inputs)
    (tower,) = trace.stages
    assert tower.origin[0][:-1].tolist() == tensors["vision.kept_patches_in_order"].tolist()
    (((_, _, view, _), cut),) = seen
    torch.testing.assert_close(view.attention, tensors["vision.cls_attention"], atol=1e-5, rtol=1e-3)
    rows = cut.rows[: case.facts["n_after"]]
    torch.testing.assert_close(rows, tensors["vision.features"], atol=TOLERANCE, rtol=0)


# -- single functions -------------------------------------------------------------------------------------------------


def entering(method, case):
    """How many tokens enter by a method, and which VScan picks of a case's scores."""
    grid = tuple(case.facts["merged_grid"])
    tensors, near, far = case.tensors, TowerAttention(by="patches", block=5, of=24), TowerAttention(by="patches")
    look, behind, layer = method.stages(Shape(depth=28, renumbers=False))
    signals = {near: tensors["local_scores"], far: tensors["global_scores"]}
    count = len(tensors["local_scores"])
    picked = look.look(ImageView(torch.zeros(count, 1), grids=(grid,), signals=signals))["picked"]
    return behind.left(Arriving.all_of(count)), picked.nonzero()[:, 0].tolist(), layer


@named("vscan_qwen2_5_vl")
def test_vscan_on_qwen2_5_vl(case, monkeypatch):
    facts, tensors = case.facts, case.tensors
    local = called(vscan, monkeypatch, "top_in_groups")
    enter, tokens = facts["tokens_that_enter"], math.prod(facts["merged_grid"])
    count, kept, _ = entering(VScan(retention=enter / tokens / 1.5, window=facts["window"]), case)
    assert (count, kept) == (enter, tensors["kept"].tolist())
    assert local[0][1].tolist() == tensors["local_kept"].sort().values.tolist()


@named("vscan_qwen2_5_vl")
def test_the_preset_for_qwen2_5_vl_takes_and_leaves_as_many_as_the_code(case):
    tokens, enter = math.prod(case.facts["merged_grid"]), case.facts["tokens_that_enter"]
    count, kept, layer = entering(fv.preset("vscan/qwen2.5-vl-7b/11.1%"), case)
    assert (count, kept) == (enter, case.tensors["kept"].tolist())
    assert layer.left(Arriving(enter, tokens, enter)) == int(0.333 * enter)


@named("sparsevlm_plus")
def test_sparsevlm_plus(case):
    """One cut. The code divides by the product of two turned vectors of ones over √size, `nearness` by that over size:
    at one position √size and 1. So all our scores are √size times the code's."""
    facts, tensors = case.facts, case.tensors
    size = facts["head_dim"]
    speed = facts["rope_theta"] ** (-torch.arange(0, size, 2) / size)

    def turned(positions):
        angles = positions[:, None].float() * speed
        return torch.cat((angles.cos() - angles.sin(), angles.cos() + angles.sin()), dim=1)

    divisor = nearness(turned(tensors["rater_positions"]), turned(tensors["vision_positions"])) * math.sqrt(size)
    paid = (tensors["attention"] / divisor).mean(dim=1)
    raters = len(tensors["rater_positions"])
    torch.testing.assert_close(paid.sum(dim=1) * raters, tensors["divided_sum_per_head"], atol=1e-4, rtol=1e-4)
    method = SparseVLMPlus(pruning_layers=(facts["layer"],), targets=(facts["target"],), heads=facts["heads_kept"])
    (stage,) = method.stages(Shape(32))
    (signal,) = stage.reads
    scores = mean_of_busiest(paid, signal.busiest)
    torch.testing.assert_close(scores, tensors["scores"], atol=1e-6, rtol=1e-4)
    cut = stage.cut(LayerView(signals={signal: scores}, arriving=Arriving(len(scores), 576, 576)))
    assert cut.source.tolist() == tensors["kept_slots"].tolist()


def film(features, method):
    """Which of a film's tokens a stage behind the projector leaves."""
    frames, tokens, width = features.shape
    (stage,) = method.stages(Shape(depth=28))
    arriving = Arriving(frames * tokens, frames * tokens, frames * tokens, grids=((1, tokens),) * frames, video=True)
    cut = stage.cut(ImageView(features.reshape(-1, width), grids=arriving.grids, arriving=arriving))
    return cut.source[: int(cut.count)].tolist()


@named("evs")
def test_evs(case):
    tensors = case.tensors
    for q in case.facts["counts"]:
        assert film(tensors["features"], EVS(q=float(q))) == tensors[f"kept_q{q}"].tolist()


@named("vidcom2")
def test_vidcom2(case):
    tensors = case.tensors
    like_video, like_frame = vidcom2.redundancy(tensors["features"])
    torch.testing.assert_close(like_video, tensors["like_video"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(like_frame, tensors["like_frame"], atol=1e-4, rtol=1e-4)
    for rate in case.facts["kept_per_frame"]:
        assert film(tensors["features"], vidcom2.VidCom2(keep=float(rate))) == tensors[f"kept_R{rate}"].tolist()


STAGES_OF_DYCOKE = [
    [case for case in cases("dycoke") if ("features" in case.tensors) == first] for first in (True, False)
]


@pytest.mark.parametrize("case", STAGES_OF_DYCOKE[0], ids=lambda case: case.name)
def test_dycoke(case):
    """As sets, and without the frames that the page names: the code's rows stand in the order of their cosines."""
    facts, tensors = case.facts, case.tensors
    rows = {name: rows.tolist() for name, rows in tensors.items() if name.startswith("rows_in_order_k")}
    assert rows
    for name, wanted in rows.items():
        kept = film(tensors["features"], DyCoke(k=float(name.removeprefix("rows_in_order_k"))))
        size, differ = facts["tokens_per_frame"], facts["frames_that_differ"]
        assert [token for token in kept if token // size not in differ] == sorted(
            token for token in wanted if token // size not in differ
        )


@pytest.mark.parametrize("above", ["all", "reuse"])
@pytest.mark.parametrize("case", STAGES_OF_DYCOKE[1], ids=lambda case: case.name)
def test_what_dycoke_reads_in_each_step(case, above):
    """The code reads all where a step is like the one before (and then lists nothing), the paper what was read before.
    Two samples at once, the second backwards."""
    facts, tensors = case.facts, case.tensors
    first, count = facts["image_start"], facts["image_token_length_as_the_code_counts"]
    stage = follow.reading(DyCoke(p=facts["P"], above=above).stages(Shape(8)))
    paid = tensors["attention"].mean(dim=1)[:, first : first + count]
    before, read = torch.zeros(2, count), torch.zeros(2, count, dtype=torch.bool)
    for step, likeness in enumerate(facts["cosine_with_previous"]):
        attention = torch.stack((paid[step], paid[step].flip(0)))
        assert torch.cosine_similarity(attention[0], before[0], dim=0).item() == pytest.approx(likeness, abs=1e-5)
        now = reads_of(stage, attention, before, read)
        slots = tensors[f"step{step}.read_slots"].long() - first
        wanted = torch.zeros(count, dtype=torch.bool)
        if not facts["reads_everything"][step]:
            wanted[slots[(slots >= 0) & (slots < count)]] = True
        else:
            wanted = torch.ones(count, dtype=torch.bool) if above == "all" else read[0]
        assert torch.equal(now[0], wanted)
        assert torch.equal(now[1], wanted.flip(0))
        before, read = attention, now


def reads_of(stage, attention, before, read):
    """Which tokens two samples read."""

    def one(attention, before, read):
        cut = stage.cut(ReadView(attention, before, read))
        source = torch.arange(len(attention)) if cut is None else cut.source
        return torch.zeros_like(attention).scatter(0, source, torch.ones_like(attention)) > 0

    return torch.stack([one(*sample) for sample in zip(attention, before, read, strict=True)])


def test_what_the_code_shortens_before_the_prompt_is_numbered_anew():
    """VidCom2's, DyCoke's and HoliTom's code for OneVision."""
    for name, preset in fv.presets().items():
        if name.startswith(("vidcom2/llava-one", "dycoke/llava-one", "holitom/llava-one")):
            assert preset.method.positions == "reindex", name
