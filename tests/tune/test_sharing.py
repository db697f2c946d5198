import pytest
import torch

import foveate as fv
from foveate.tune import forcing
from foveate.tune.forcing import greedy, outcomes, predictions, targets
from foveate.tune.sharing import Shared
from tests.models import tiny
from tests.tune.pictures import pictures_of

METHODS = {
    "v2drop": fv.V2Drop(layers=(2, 3), keep=(0.4, 0.5)),
    "path": fv.V2Drop(layers=(3,), keep=(0.4,), over="path"),
    "fastv": fv.FastV(layers=(3,), keep=(0.3,)),
    "early": fv.Random(layers=(0, 2), keep=(0.5, 0.5)),
    "tower": fv.VisionZip(retention=0.4),
    "caches": fv.FinalKV(inner=fv.V2Drop(layers=(1, 3), keep=(0.5, 0.3))),
}


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen2_vl"])
def test_shared_runs_give_what_runs_of_their_own_give(family):
    model = tiny(family)
    shared = Shared(model)
    for _ in range(2):  # first kept, then looked up
        for method in METHODS.values():
            if family == "qwen2_vl" and method.name == "visionzip":
                continue
            for about in pictures_of(family):
                answers = [[(3, 4, 5)] * len(about.samples)]
                alone = predictions(model, [about], answers, method)
                with shared.on(method, about.key):
                    found = predictions(model, [about], answers, method)
                for one, other in zip(*found, *alone, strict=True):
                    assert torch.equal(one, other), method


def test_what_was_kept_is_not_run_again(monkeypatch):
    model = tiny("llava")
    (about, *_) = pictures_of("llava")
    wanted = targets(model, about, greedy(model, about.samples, 3))
    shared = Shared(model)
    ran = []
    layers = model.model.language_model.layers
    hooks = [layer.self_attn.register_forward_hook(lambda *_, at=at: ran.append(at)) for at, layer in enumerate(layers)]
    tower = model.model.vision_tower.register_forward_hook(lambda *_: ran.append("tower"))
    try:
        with shared.on(METHODS["v2drop"], about.key):
            outcomes(model, [about], [wanted], METHODS["v2drop"])
        assert [ran.count(name) for name in ("tower", 0, 1, 2)] == [1, 2, 2, 2]  # the picture, then the questions
        ran.clear()
        with shared.on(METHODS["path"], about.key):
            outcomes(model, [about], [wanted], METHODS["path"])
        assert [ran.count(name) for name in ("tower", 0, 1)] == [0, 1, 1]
        assert [ran.count(name) for name in (2, 3)] == [2, 2]  # the first time that layer 2 is before the first cut
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


def test_like_questions_and_answers_about_other_pictures_are_run(monkeypatch):
    """What enters the first layer is the same for a question about any picture; what it sees there is not."""
    model, pictures = tiny("llava"), pictures_of("llava")
    monkeypatch.setattr(forcing, "ROOM", 1)  # every question goes on by itself
    answers = [[(3, 4, 5), (3, 4, 5)]] * len(pictures)
    with Shared(model).on(METHODS["v2drop"], "all of them"):
        together = predictions(model, pictures, answers, METHODS["v2drop"])
    for about, found in zip(pictures, together, strict=True):
        (alone,) = predictions(model, [about], answers[:1], METHODS["v2drop"])
        for one, other in zip(found, alone, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_pictures_of_one_size_are_not_taken_for_one_another():
    model, (one, two, _) = tiny("llava"), pictures_of("llava")
    answers = [[(3, 4, 5)] * 2]
    with Shared(model).on(METHODS["v2drop"], "both"):
        found = [predictions(model, [about], answers, METHODS["v2drop"]) for about in (one, two)]
    for about, shared in zip((one, two), found, strict=True):
        for first, second in zip(*shared, *predictions(model, [about], answers, METHODS["v2drop"]), strict=True):
            assert torch.equal(first, second)
