"""Invariant 8: the authors' own code, vector by vector."""

import pytest
import torch

import foveate as fv
from foveate.core.merge import sum_of_nearest
from foveate.engine import cutting
from foveate.engine.extensions.encoding.reducer import TowerReducer
from foveate.methods import fastv, mustdrop, prumerge, prumerge_plus, pyramiddrop, sparsevlm, visiondrop, visionzip
from tests.golden import TOLERANCE, cases, every_case, generate, layer_inputs, positions_seen


@pytest.mark.parametrize("case", cases("full"), ids=lambda case: case.name)
def test_the_untouched_model(case):
    tokens, logits, _ = generate(case.model, case.inputs)
    assert tokens.tolist() == case.tensors["tokens"].tolist()
    torch.testing.assert_close(logits, case.tensors["logits"], atol=TOLERANCE, rtol=0)


@every_case("v2drop")
def test_v2drop(case, attention):
    model, facts, tensors = case.model, case.facts, case.tensors
    text = model.model.language_model
    seen, positions = {}, []

    def note_input(index, args):
        seen.setdefault(index, args[0][0])

    def note_positions(_, args, kwargs):
        positions.append(kwargs["position_ids"] if "position_ids" in kwargs else args[1])

    hooks = [
        layer.register_forward_pre_hook(lambda _, args, index=index: note_input(index, args))
        for index, layer in enumerate(text.layers)
    ]
    hooks.append(text.rotary_emb.register_forward_pre_hook(note_positions, with_kwargs=True))
    method = fv.V2Drop(layers=facts["layers"], keep=facts["keep_ratios"])
    try:
        with case.attending(attention), fv.drop(model, method) as trace:
            tokens, logits, cache = generate(model, case.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    assert tokens.tolist() == tensors["tokens"].tolist()
    torch.testing.assert_close(logits, tensors["logits"], atol=TOLERANCE, rtol=0)
    for index, (stage, fact) in enumerate(zip(trace.stages, facts["stages"], strict=True)):
        assert (stage.layer, stage.before, stage.after) == (fact["layer"], (fact["n_before"],), (fact["n_kept"],))
        assert stage.kept[0].tolist() == tensors[f"stage{index}.kept_patches"].tolist()
    last = torch.stack([seen[index][-1] for index in range(len(text.layers))])
    torch.testing.assert_close(last, tensors["prefill.layer_last_token"], atol=TOLERANCE, rtol=0)
    assert [layer[0] for layer in trace.kv_lengths] == facts["kv_len_after_prefill"]
    assert [layer.keys.shape[-2] for layer in cache.layers] == facts["kv_len_after_8_tokens"]
    # One rotary call serves all layers of a step: every layer decodes at the recorded position.
    recorded = tensors["decode.position_ids"]
    for step, ids in enumerate(positions[1:]):
        wanted = recorded[step].reshape(len(text.layers), -1).long()
        assert (ids.reshape(-1) == wanted).all(), step


def as_the_authors_ran(case, method, attention):
    """Run a case and compare what both methods' cases record: tokens, logits, stream, positions, cache lengths."""
    model, facts, tensors = case.model, case.facts, case.tensors
    model.set_attn_implementation(attention)
    try:
        with fv.drop(model, method) as trace, positions_seen(model) as seen, layer_inputs(model) as entered:
            tokens, logits, cache = generate(model, case.inputs)
    finally:
        model.set_attn_implementation("sdpa")
    assert tokens.tolist() == tensors["tokens"].tolist()
    torch.testing.assert_close(logits, tensors["logits"], atol=TOLERANCE, rtol=0)
    last = torch.stack([entered[layer][-1] for layer in range(len(seen))])
    torch.testing.assert_close(last, tensors["prefill.layer_last_token"], atol=TOLERANCE, rtol=0)
    assert [len(calls[0]) for calls in seen] == facts["seq_len_per_layer"]
    assert [layer[0] for layer in trace.kv_lengths] == facts["kv_len_after_prefill"]
    assert [layer.keys.shape[-2] for layer in cache.layers] == facts["kv_len_after_8_tokens"]
    for step, wanted in enumerate(tensors["decode.position_ids"].tolist()):
        assert [calls[1 + step] for calls in seen] == [[position] for position in wanted], step
    cuts = [stage.get("applies_from_layer", stage["layer"]) for stage in facts["stages"] if "layer" in stage]
    for index, layer in enumerate(cuts):
        assert seen[layer][0] == tensors[f"stage{index}.position_ids"].tolist()
    return trace


def called(kind, monkeypatch, name):
    """What `kind`'s function `name` is called with during a test, and what it answers, in order."""
    calls, original = [], getattr(kind, name)

    def noting(*args, **kwargs):
        answer = original(*args, **kwargs)
        calls.append((args, answer))
        return answer

    monkeypatch.setattr(kind, name, noting)
    return calls


@every_case("visiondrop")
def test_visiondrop(case, attention, monkeypatch):
    facts, tensors = case.facts, case.tensors
    cuts, reduced = (called(visiondrop.VisionDrop, monkeypatch, name) for name in ("_in_decoder", "_in_tower"))
    settings = {name: facts[name] for name in ("dominant", "contextual", "layer_list", "image_token_list")}
    trace = as_the_authors_ran(case, visiondrop.VisionDrop(**settings), attention)
    tower, *stages = trace.stages
    assert (tower.where, tower.before, tower.after) == ("tower", (576,), (facts["stages"][0]["n_after"],))
    assert tower.origin[0].tolist() == tensors["vision.origin_patch"].tolist()
    assert tower.assign[0].tolist() == tensors["vision.assign"][1:].tolist()
    torch.testing.assert_close(reduced[0][1].rows, tensors["vision.features"], atol=TOLERANCE, rtol=0)
    whole = tower.assign[0]
    for index, (stage, fact) in enumerate(zip(stages, facts["stages"][1:], strict=True)):
        assert (stage.layer, stage.before, stage.after) == (fact["layer"], (fact["n_before"],), (fact["n_after"],))
        assert stage.origin[0].tolist() == tensors[f"stage{index}.origin_patch"].tolist()
        step = tensors[f"stage{index}.assign"].long()
        (*_, view, _), cut = cuts[index]
        assert cut.parent.tolist() == step.tolist()
        whole = step[whole]
        assert stage.assign[0].tolist() == whole.tolist()
        torch.testing.assert_close(view.attention, tensors[f"stage{index}.scores"], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(cut.rows, tensors[f"stage{index}.image_states"], atol=TOLERANCE, rtol=0)


def check_stages(trace, case):
    """Which patches each cut before a layer kept, and how many."""
    for index, (stage, fact) in enumerate(zip(trace.stages, case.facts["stages"], strict=True)):
        assert (stage.layer, stage.before, stage.after) == (fact["layer"], (fact["n_before"],), (fact["n_kept"],))
        assert stage.kept[0].tolist() == case.tensors[f"stage{index}.kept_patches"].tolist()


@every_case("fastv")
def test_fastv(case, attention, monkeypatch):
    scored = called(fastv.FastV, monkeypatch, "score")
    method = fastv.FastV(layers=(case.facts["fastv_k"],), keep=(1 - case.facts["fastv_r"],))
    check_stages(as_the_authors_ran(case, method, attention), case)
    (((_, view), _),) = scored
    torch.testing.assert_close(view.attention, case.tensors["stage0.scores"], atol=1e-5, rtol=1e-3)


@every_case("pyramiddrop")
def test_pyramiddrop(case, attention, monkeypatch):
    scored = called(pyramiddrop.PyramidDrop, monkeypatch, "score")
    settings = {name: case.facts[name] for name in ("layer_list", "image_token_ratio_list")}
    check_stages(as_the_authors_ran(case, pyramiddrop.PyramidDrop(**settings), attention), case)
    for index, (_, scores) in enumerate(scored):
        torch.testing.assert_close(scores, case.tensors[f"stage{index}.scores"], atol=1e-5, rtol=1e-3)


@every_case("sparsevlm")
def test_sparsevlm(case, attention, monkeypatch):
    facts, tensors = case.facts, case.tensors
    rated = called(cutting, monkeypatch, "raters_of")
    chosen = called(sparsevlm.SparseVLM, monkeypatch, "_pick")
    clustered = called(sparsevlm, monkeypatch, "density_peaks")
    method = sparsevlm.SparseVLM(pruning_layers=(2, 6, 15), targets=tuple(facts["token_list"]))
    trace = as_the_authors_ran(case, method, attention)
    raters = rated[0][1][0].nonzero()[:, 0] - facts["n_system"] - 576
    assert raters.tolist() == tensors["text_raters"].tolist()
    for index, (stage, fact) in enumerate(zip(trace.stages, facts["stages"], strict=True)):
        assert (stage.layer, stage.before) == (fact["layer"] + 1, (fact["n_before"],))
        (*_, view, _), cut = chosen[index]
        torch.testing.assert_close(view.attention, tensors[f"stage{index}.scores"], atol=1e-5, rtol=1e-3)
        kept, sources = tensors[f"stage{index}.kept_slots"], tensors[f"stage{index}.merge_source_slots"].long()
        assert cut.source[: len(kept)].tolist() == kept.tolist()
        (rows, _), (centres, cluster) = clustered[index]
        assert torch.equal(rows, view.hidden[sources])
        assert cluster.tolist() == tensors[f"stage{index}.cluster_assign"].tolist()
        assert len(centres) == 1 or sources[centres].tolist() == tensors[f"stage{index}.cluster_centres"].tolist()
        merged = cut.rows[len(kept) :]
        torch.testing.assert_close(merged, tensors[f"stage{index}.merged_states"], atol=TOLERANCE, rtol=0)


@every_case("mustdrop")
def test_mustdrop(case, attention, monkeypatch):
    facts, tensors = case.facts, case.tensors
    similarity = called(mustdrop, monkeypatch, "window_similarity")
    filtered = called(mustdrop.MustDrop, monkeypatch, "_filter")
    answered = called(TowerReducer, monkeypatch, "reduce")
    settings = {name: facts[name] for name in ("global_thr", "individual_thr", "pruning_layers", "merge_threshold")}
    trace = as_the_authors_ran(case, mustdrop.MustDrop(**settings, merge_window=facts["merge_window"][0]), attention)
    tower, *filters, cache = trace.stages
    torch.testing.assert_close(similarity[0][1], tensors["merge.window_similarity"], atol=1e-5, rtol=0)
    assert (tower.where, tower.before, tower.after) == ("tower", (576,), (facts["n_visual_after_merge"],))
    assert tower.assign[0].tolist() == tensors["merge.assign"].tolist()
    assert [len(went) for went in tower.merged[0]] == tensors["merge.size"].tolist()
    ((_, (reduced,)),) = answered
    torch.testing.assert_close(reduced.rows, tensors["vision.features"], atol=TOLERANCE, rtol=0)
    (key,) = reduced.notes.values()
    assert key.nonzero()[:, 0].tolist() == tensors["vision.key_slots"].tolist()
    for index, (stage, fact) in enumerate(zip(filters, facts["stages"], strict=True)):
        counts = (fact["applies_from_layer"], (fact["n_before"],), (fact["n_kept"],))
        assert (stage.layer, stage.before, stage.after) == counts
        left = tower.origin[0][tensors[f"stage{index}.kept_slots"].long()]
        assert stage.origin[0].tolist() == left.tolist()
        (_, view, _), _ = filtered[index]
        share, peak = view[mustdrop.SHARE], view[mustdrop.PEAK]
        torch.testing.assert_close(share, tensors[f"stage{index}.share"], atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(peak, tensors[f"stage{index}.max"], atol=1e-5, rtol=1e-3)
    assert (cache.where, cache.layer, cache.origin[0].tolist()) == ("kv", None, left.tolist())


@every_case("visionzip")
def test_visionzip(case, attention, monkeypatch):
    facts, tensors = case.facts, case.tensors
    reduced = called(visionzip.VisionZip, monkeypatch, "_pick")
    method = visionzip.VisionZip(dominant=facts["dominant"], contextual=facts["contextual"])
    (tower,) = as_the_authors_ran(case, method, attention).stages
    assert (tower.where, tower.before, tower.after) == ("tower", (576,), (facts["stages"][0]["n_after"],))
    assert tower.origin[0].tolist() == tensors["vision.origin_patch"].tolist()
    assert tower.assign[0].tolist() == tensors["vision.assign"][1:].tolist()
    (((_, view, _), cut),) = reduced
    torch.testing.assert_close(view.attention, tensors["vision.cls_attention"], atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(cut.rows, tensors["vision.features"], atol=TOLERANCE, rtol=0)


@every_case("prumerge")
def test_prumerge(case, attention, monkeypatch):
    facts, tensors = case.facts, case.tensors
    kind = {"prumerge": prumerge.PruMerge, "prumerge_plus": prumerge_plus.PruMergePlus}[facts["method"]]
    seen = called(prumerge.PruMerge, monkeypatch, "_choose")
    (tower,) = as_the_authors_ran(case, kind(), attention).stages
    assert (tower.where, tower.before, tower.after) == ("tower", (576,), (facts["n_after"],))
    assert tower.origin[0][:-1].tolist() == tensors["vision.kept_patches_in_order"].tolist()
    (((_, _, view, _), cut),) = seen
    torch.testing.assert_close(view.attention, tensors["vision.cls_attention"], atol=1e-5, rtol=1e-3)
    rows = cut.rows[: facts["n_after"]]
    torch.testing.assert_close(rows, tensors["vision.features"], atol=TOLERANCE, rtol=0)
    # Which neighbours: those of a one-hot of each patch.
    one_hot = torch.eye(576)
    near = sum_of_nearest(one_hot, view.keys, tensors["vision.kept_patches_in_order"].long(), 32)
    columns = [row.nonzero()[:, 0].tolist() for row in near]
    assert columns == tensors["vision.neighbours_sorted"].tolist()
