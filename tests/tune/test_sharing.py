import pytest
import torch

import foveate as fv
from foveate.tune.forcing import greedy, outcomes, predictions, targets
from foveate.tune.samples import grouped
from foveate.tune.sharing import Shared
from tests.models import batch, tiny

METHODS = {
    "v2drop": fv.V2Drop(layers=(2, 3), keep=(0.4, 0.5)),
    "path": fv.V2Drop(layers=(3,), keep=(0.4,), over="path"),
    "fastv": fv.FastV(layers=(3,), keep=(0.3,)),
    "early": fv.Random(layers=(0, 2), keep=(0.5, 0.5)),
    "tower": fv.VisionZip(retention=0.4),
    "caches": fv.FinalKV(inner=fv.V2Drop(layers=(1, 3), keep=(0.5, 0.3))),
}


def pictures_of(model, family):
    return grouped(model, [batch(family, [word], seed) for seed in range(2) for word in ("titt", "tit")])


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen2_vl"])
def test_shared_runs_give_what_runs_of_their_own_give(family):
    model = tiny(family)
    shared = Shared(model)
    for _ in range(2):  # first kept, then looked up
        for method in METHODS.values():
            if family == "qwen2_vl" and method.name == "visionzip":
                continue
            for about in pictures_of(model, family):
                answers = [(3, 4, 5)] * len(about.samples)
                alone = predictions(model, about.samples, answers, method)
                with shared.on(method, about.key):
                    found = predictions(model, about.samples, answers, method)
                for one, other in zip(found, alone, strict=True):
                    assert torch.equal(one, other), method


def test_what_was_kept_is_not_run_again(monkeypatch):
    model = tiny("llava")
    (about, *_) = pictures_of(model, "llava")
    wanted = targets(model, about, greedy(model, about.samples, 3))
    shared = Shared(model)
    ran = []
    layers = model.model.language_model.layers
    hooks = [layer.self_attn.register_forward_hook(lambda *_, at=at: ran.append(at)) for at, layer in enumerate(layers)]
    tower = model.model.vision_tower.register_forward_hook(lambda *_: ran.append("tower"))
    try:
        with shared.on(METHODS["v2drop"], about.key):
            outcomes(model, about, wanted, METHODS["v2drop"])
        assert {0, 1, "tower"} <= set(ran)
        ran.clear()
        with shared.on(METHODS["path"], about.key):
            outcomes(model, about, wanted, METHODS["path"])
        assert not {0, 1, "tower"} & set(ran)
        assert {2, 3} <= set(ran)  # the first time that layer 2 stands before the first cut
    finally:
        for hook in (*hooks, tower):
            hook.remove()


def test_leaving_restores_the_model_also_after_an_exception():
    model = tiny("llava")
    before = [vars(layer).get("forward") for layer in model.model.language_model.layers]
    with pytest.raises(RuntimeError, match="stop"), Shared(model).on(METHODS["v2drop"], "a picture"):
        raise RuntimeError("stop")
    assert [vars(layer).get("forward") for layer in model.model.language_model.layers] == before
    assert "get_image_features" not in vars(model.model)
