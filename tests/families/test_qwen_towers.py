"""Towers of patches: what methods are shown of a token is the attention its own patches receive, and their keys."""

import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import foveate as fv
from foveate.families.tower import block_of
from foveate.registry import family_for
from tests.families.shown import KEYS, PAID, Shown
from tests.models import QWENS, batch, given, tiny, with_video


def entering(visual, block, run):
    """What a block of the tower is given: hidden states, normed, and (cos, sin)."""
    seen = []
    hook = block.attn.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    try:
        run()
    finally:
        hook.remove()
    ((normed,), kwargs) = seen[0]
    return normed, kwargs["position_embeddings"]


@pytest.mark.parametrize("modality", ["image", "video"])
@pytest.mark.parametrize("family", QWENS)
def test_scores_and_keys_are_those_of_a_tokens_patches(family, modality):
    model, visual, known = tiny(family), tiny(family).model.visual, family_for(tiny(family))
    inputs = given(model, batch(family, ["titit" if modality == "image" else with_video(family)]), modality)
    call, reducer = getattr(model.model, f"get_{modality}_features"), Shown()
    with torch.no_grad():
        known.encode(lambda **changed: call(**{**inputs, **changed}), modality, inputs, reducer)
        tower = known.tower_parts(modality, call, inputs)
        block = tower.blocks[block_of(PAID, max(tower.read), len(tower.blocks), tower.seeing)]
        attention = block.attn
        normed, rotary = entering(visual, block, lambda: call(**inputs))
        q, k, _ = attention.qkv(normed).view(len(normed), 3, attention.num_heads, -1).unbind(1)
        keys = k.mean(1)
        q, k = sys.modules[type(attention).__module__].apply_rotary_pos_emb_vision(q, k, *rotary)
    grids, received = inputs[f"{modality}_grid_thw"], []
    sizes = [h * w for t, h, w in grids.tolist() for _ in range(t)]
    for queries, states in zip(q.split(sizes), k.split(sizes), strict=True):
        logits = torch.einsum("qhd,khd->hqk", queries, states) * attention.scaling
        received.append(logits.softmax(-1).mean(dim=(0, 1)))  # from the patches of its own frame
    order = known.token_order(grids)
    scores = torch.cat(received).view(-1, 4).mean(1)[order]
    keys = keys.view(-1, 4, keys.shape[-1]).mean(1)[order]
    counts = [t * h * w // 4 for t, h, w in grids.tolist()]
    assert [len(view) for view in reducer.views] == counts
    assert [view.grids for view in reducer.views] == [((h // 2, w // 2),) * t for t, h, w in grids.tolist()]
    for view, mine, own in zip(reducer.views, scores.split(counts), keys.split(counts), strict=True):
        torch.testing.assert_close(view.read(PAID)[:, 0], mine, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(view.read(KEYS), own, atol=1e-6, rtol=1e-4)
        assert mine.std() > 1e-6


@pytest.mark.parametrize("family", QWENS)
def test_a_method_that_keeps_all_in_the_tower_changes_no_feature(family):
    model = tiny(family)
    inputs = given(model, batch(family, ["titit"]))
    with torch.no_grad():
        plain = model.model.get_image_features(**inputs).pooler_output
        with fv.drop(model, fv.VisionDrop(dominant=9999, contextual=0, layer_list=(), image_token_list=())):
            same = model.model.get_image_features(**inputs).pooler_output
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))


KEEP_ALL = fv.Uniform(layers=(1,), keep=(1.0,))


class Counted(TorchDispatchMode):
    """Counts calls of an operator."""

    def __init__(self, name):
        super().__init__()
        self.name, self.calls = name, 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.calls += operator.overloadpacket._qualified_op_name.endswith(self.name)
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("modality", ["image", "video"])
@pytest.mark.parametrize("family", QWENS)
def test_a_tower_in_a_context_makes_the_bits_it_makes_untouched(family, modality, kernel, monkeypatch):
    """Pictures and windows of several lengths, and frames of one: those of a length attend in one call under SDPA."""
    model = tiny(family)
    monkeypatch.setattr(model.model.visual.config, "_attn_implementation", kernel)
    words = "titit" if modality == "image" else with_video(family)
    inputs = given(model, batch(family, [words, words]), modality)
    call, calls = getattr(model.model, f"get_{modality}_features"), {}

    def features(name):
        with Counted("_scaled_dot_product_flash_attention_for_cpu") as counted:
            output = call(**inputs)
        calls[name] = counted.calls
        features = output.pooler_output, *getattr(output, "deepstack_features", ())
        return [output.last_hidden_state, *(torch.cat(tuple(images)) for images in features)]

    with torch.no_grad():
        plain = features("untouched")
        with fv.drop(model, KEEP_ALL):
            ours = features("in a context")
    assert all(torch.equal(*pair) for pair in zip(plain, ours, strict=True))
    if kernel == "sdpa":
        assert calls["in a context"] < calls["untouched"]


def test_a_user_who_hands_the_tower_its_arguments_is_left_alone():
    model = tiny("qwen2_vl")
    inputs = given(model, batch("qwen2_vl", ["titit"]))
    ends = torch.nn.functional.pad(inputs["image_grid_thw"].prod(-1).cumsum(0), (1, 0)).int()
    with torch.no_grad():
        plain = model.model.get_image_features(**inputs).pooler_output
        with fv.drop(model, KEEP_ALL):
            ours = model.model.get_image_features(**inputs, image_cu_seqlens=ends).pooler_output
    assert all(torch.equal(*pair) for pair in zip(plain, ours, strict=True))
