"""Invariant 8, for methods that read the question before the decoder: what the authors' own functions pick."""

import pytest
import torch

from foveate.contract import Arriving, ImageView, LayerView, Resource, Shape, TowerAttention
from foveate.core.picks import cover
from foveate.methods.cdpruner import CDPruner
from foveate.methods.mfpruner import MFPruner
from foveate.methods.mmtok import MMTok, coverage
from tests.golden import cases


def crops(case, name):
    return case.tensors[name].float()


def picked(case):
    """What CDPruner keeps of each crop, by its own stages; and the relevance of all."""
    projected, patches, text = (crops(case, name) for name in ("projected", "image_embeds", "text_embeds"))
    features, words = Resource("clip"), Resource("clip", of="text")
    mean = torch.nn.functional.normalize(text, dim=-1).mean(dim=0)
    method = CDPruner(tokens=case.facts["settings"]["k"])
    encode, rate, pick = method.stages(Shape(32, cls=True, resources=frozenset(["clip"])))
    notes = encode.cut(ImageView(projected.flatten(0, 1), signals={features: patches.flatten(0, 1)})).notes
    count = projected.shape[0] * projected.shape[1]
    relevance = rate.cut(LayerView(count=count, notes=notes, signals={words: mean})).notes["relevance"]
    relevance = relevance.view(projected.shape[:2])
    cuts = [
        pick.cut(LayerView(hidden, notes={"relevance": own})) for hidden, own in zip(projected, relevance, strict=True)
    ]
    return [cut.source.tolist() for cut in cuts], relevance


@pytest.mark.parametrize("case", cases("cdpruner"), ids=lambda case: case.name)
def test_cdpruner(case):
    kept, relevance = picked(case)
    torch.testing.assert_close(relevance, case.tensors["relevance"], atol=2e-6, rtol=0)
    if case.facts["stable"]:
        assert kept == case.tensors["kept"].tolist()
        return
    # Behind the kernel's rank the code picks by rounding, some tokens twice; up to there it decides.
    (own,), (order,) = kept, case.tensors["picks_in_order"].tolist()
    sure = order[: case.facts["first_pick_that_is_not_stable"] - 1]
    assert set(sure) <= set(own)
    assert len(set(own)) == case.facts["settings"]["k"]
    highest = relevance[0].sort(descending=True, stable=True).indices.tolist()
    assert set(own) - set(sure) == set([token for token in highest if token not in sure][: len(own) - len(sure)])


@pytest.mark.parametrize("case", cases("mmtok"), ids=lambda case: case.name)
def test_mmtok(case):
    words, projected, tower = (crops(case, name) for name in ("text", "projected", "tower"))
    facts, kept = case.facts["settings"], case.tensors["kept"].tolist()
    if "padding" not in case.tensors:
        method = MMTok(
            tokens=facts["k"], alpha=facts["alpha"], tau_text=facts["tau_text"], tau_vision=facts["tau_vision"]
        )
        _, pick = method.stages(Shape(32))
        view = LayerView(projected, text=words, notes={"features": tower})
        assert pick.cut(view).source.tolist() == kept
        return
    # Patches that pad the picture are covered too, and cannot be picked.
    targets = coverage(words, projected, tower, facts["tau_text"], facts["tau_vision"], facts["alpha"])
    free = torch.ones(len(projected), dtype=torch.bool)
    free[case.tensors["padding"].long()] = False
    assert free.nonzero()[:, 0][cover(targets[free], facts["k"])].tolist() == kept


def on_llava(case):
    """What MFPruner keeps of one picture with CLIP: the code scales the heads' mean, the tower shows their sum."""
    attention, projected, patches, text = (
        crops(case, name) for name in ("attention", "projected", "image_embeds", "text_embeds")
    )
    mean = torch.nn.functional.normalize(text, dim=-1).mean(dim=0)
    shape = Shape(32, cls=True, resources=frozenset(["clip"]))
    look, rate, pick = MFPruner(tokens=case.facts["settings"]["visual_token_num"]).stages(shape)
    signals = {TowerAttention(): attention.mean(dim=0), Resource("clip"): patches}
    notes = dict(look.cut(ImageView(projected, signals=signals)).notes)
    notes |= rate.cut(LayerView(projected, notes=notes, signals={Resource("clip", of="text"): mean})).notes
    return pick.cut(LayerView(projected, notes=notes)).source.tolist()


def on_qwen(case):
    """What MFPruner keeps of all images together, as the code counts and asks: every row that is no image asks."""
    facts, embeds, ids = case.facts["settings"], crops(case, "embeds"), case.tensors["input_ids"]
    is_image = ids == facts["image_token"]
    rows, received = embeds[is_image], crops(case, "received")
    look, rate, pick = MFPruner(tokens=int(len(rows) * (1 - facts["prune_ratio"]))).stages(Shape(28))
    notes = dict(look.cut(ImageView(rows, attention=received)).notes)
    notes |= rate.cut(LayerView(rows, text=embeds[~is_image])).notes
    return pick.cut(LayerView(rows, notes=notes, arriving=Arriving.all_of(len(rows)))).source.tolist()


@pytest.mark.parametrize("case", cases("mfpruner"), ids=lambda case: case.name)
def test_mfpruner(case):
    kept = (on_llava if case.facts["settings"]["form"] == "llava" else on_qwen)(case)
    if case.facts["stable"]:
        assert kept == case.tensors["kept"].tolist()
        return
    # 83 are elected for 64 places: the code takes those that its set lists first, here votes and then the sum decide.
    elected = set(case.tensors["three_votes"].tolist()) | set(case.tensors["two_votes"].tolist())
    assert set(case.tensors["three_votes"].tolist()) <= set(kept) <= elected
    assert len(kept) == len(case.tensors["kept"])
