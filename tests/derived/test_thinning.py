"""Blocks of a tower that is told from its structure, on some rows: as copies in untouched blocks of all rows."""

import pytest
import torch

import foveate as fv
from foveate.families.feeding import blocks_of
from foveate.registry import family_for
from tests.derived.test_derived import NAMES, one_in_seven
from tests.tiny_derived import make

KEEP = 0.4
THIN = [
    "glm_ocr", "glmga", "qwen3_omni_moe_thinker", "cosmos3_omni", "cosmos3_edge", "cohere_compass", "ernie4_5_vl_moe",
    "hunyuan_vl", "kimi_k25", "muse_glimmer", "muse_spark", "paddleocr_vl", "video_llama_3", "aya_vision",
    "cohere2_vision", "deepseek_vl", "janus", "deepseek_vl_hybrid", "qianfan_ocr", "ovis2", "shieldgemma2",
    "lighton_ocr", "minicpm_ocr", "granite_docling", "mistral4", "molmo2", "dots3_note", "mistral_large4", "hy_v4_vl",
]  # fmt: skip
"""Types whose towers run on some rows."""


def at_rows(value, places, rows):
    """An argument of a block where each row has what the row that it goes with has."""
    if isinstance(value, tuple):
        return tuple(at_rows(part, places, rows) for part in value)
    is_table = (
        torch.is_tensor(value) and value.is_floating_point() and value.dim() in (2, 3) and value.shape[-2] == rows
    )
    return value[..., places[0], :] if is_table else value


def of_copies(model, method, inputs):
    """The features that reach the decoder, where rows that left are copies in the blocks of all rows."""
    family = family_for(model)
    with fv.drop(model, method) as trace, torch.no_grad():
        model(**inputs)
    (stage,) = trace.stages
    goes_with = stage.kept[0][stage.assign[0]]
    lists = blocks_of(family.core, family.layers)
    ran, handles = [], []
    for blocks in lists:
        for block, _ in blocks:
            handles.append(block.register_forward_pre_hook(lambda block, *_: ran.append(block), with_kwargs=True))
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    tower = next([block for block, _ in blocks] for blocks in lists if [b for b, _ in blocks if b in ran])
    state, handles = {}, []

    def enter(block, args, kwargs):
        name = None if args else next(iter(kwargs))
        hidden = args[0] if args else kwargs[name]
        rows = hidden.shape[-2]
        if block is tower[0]:
            pictures = hidden.shape[0] if hidden.dim() == 3 else 1
            each = len(goes_with) // pictures  # of a batch, or all of packed ones
            places = torch.arange(rows).repeat(pictures, 1)
            starts = each * torch.arange(pictures)[:, None]
            places[:, rows - each :] = goes_with.view(pictures, each) - starts + rows - each
            state.update(before=hidden, places=places)
            state["stream"] = moved(hidden)
        arguments = [at_rows(value, state["places"], rows) for value in args[1:]]
        named = {name: at_rows(value, state["places"], rows) for name, value in kwargs.items()}
        if args:
            return (state["stream"], *arguments), named
        return (), {**named, name: state["stream"]}

    def moved(rows):
        if rows.dim() == 2:
            return rows[state["places"][0]]
        return torch.stack([one[places] for one, places in zip(rows, state["places"], strict=True)])

    def leave(block, args, output):
        state["stream"] = output
        return state["before"] + moved(output) - moved(state["before"])

    for block in tower:
        handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(block.register_forward_hook(leave, prepend=True))
    try:
        return entered(model, inputs)
    finally:
        for handle in handles:
            handle.remove()


def entered(model, inputs):
    """What goes into the decoder's first layer, and its logits."""
    family, seen = family_for(model), []
    handle = family.layers[0].register_forward_pre_hook(
        lambda layer, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    try:
        with torch.no_grad():
            logits = model(**inputs).logits
    finally:
        handle.remove()
    return seen[0], logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", one_in_seven(NAMES))
def test_towers_told_from_their_structure(name):
    model, case = make(name)
    inputs = case.batch(model, ["tit"])
    method = fv.ThinTower(keep=KEEP, at=0.0)
    if name not in THIN:
        with pytest.raises(fv.UnsupportedError), fv.drop(model, method), torch.no_grad():
            model(**inputs)
        return
    plain = entered(model, inputs)
    wanted = of_copies(model, method, inputs)
    with fv.drop(model, method):
        got = entered(model, inputs)
    scale = wanted[0].abs().max()
    torch.testing.assert_close(got[0], wanted[0], atol=float(2e-5 * scale), rtol=1e-4)
    if name != "molmo2":  # whose blocks change little
        assert (got[0] - plain[0]).abs().max() > 1e-3 * scale
    again = entered(model, inputs)
    assert torch.equal(again[0], plain[0])
