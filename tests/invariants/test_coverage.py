"""One prefill of every method on every family: tokens leave, or it is refused, as derived."""

import re

import pytest
import torch

import foveate as fv
from foveate.contract import (
    Attention,
    CachedAttention,
    Cls,
    DecodeStage,
    Hidden,
    ImageStage,
    LayerStage,
    PatchStage,
    PixelStage,
    ThinStage,
    TowerAttention,
    TowerKeys,
    TowerStage,
)
from foveate.contract.method import Method
from foveate.families.support import reach
from foveate.registry import support
from tests.invariants import facts, settings
from tests.invariants.settings import EVERYTHING, EXAMPLES, FILMS, MODALITIES, NOTHING, in_turn, reach_of
from tests.models import FAMILIES, TINY, batch, config_of, tiny, with_video
from tests.probes import PROBES

CASES = [
    (name, family, modality)
    for place, family in enumerate(FAMILIES)
    for at, name in enumerate(in_turn(place))
    for turn, modality in enumerate(MODALITIES if TINY[family].videos else MODALITIES[:1])
    if EVERYTHING
    or name in {*PROBES, *FILMS}
    or ((at + place) % 2 == 0 and (not TINY[family].videos or (at + place) // 2 % 2 == turn))
]
"""Every probe with pictures and with films on every family; every method on every other one, with one of both and the
next of its examples in turns, but those that compare frames on each with both."""


def test_every_method_has_examples():
    settings.complain()


@pytest.mark.parametrize(("name", "family", "modality"), CASES)
def test_tokens_leave_where_it_is_derived(name, family, modality):
    told, model = reach_of(name, family, modality), tiny(family)
    inputs = batch(family, ["titit" if modality == "image" else with_video(family)])
    if isinstance(told, str):
        with pytest.raises(fv.UnsupportedError) as refused, fv.drop(model, EXAMPLES[name]), torch.no_grad():
            model(**inputs)
        assert str(refused.value) == told
        return
    if not facts.attends_in(EXAMPLES[name]).isdisjoint(TINY[family].recurrent):
        with (
            pytest.raises(fv.UnsupportedError, match="has no attention to rank by"),
            fv.drop(model, EXAMPLES[name]),
            torch.no_grad(),
        ):
            model(**inputs)
        return
    with fv.drop(model, EXAMPLES[name]) as trace, torch.no_grad():
        model(**inputs)
    left = {stage.where for stage in trace.stages if stage.after != stage.before}
    assert left <= {*told}
    if name in NOTHING:
        assert bool(left) == (f"{family} {modality}" not in NOTHING[name])
    else:
        assert left, "nothing left: EXAMPLES are settings that drop on images of some 25 tokens"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_says_whether_it_knows_videos(family):
    assert fv.families()[family].videos == bool(TINY[family].videos)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_holds_without_a_config_holds_with_one(family):
    kind = fv.families()[family]
    for method in EXAMPLES.values():
        without, with_one = reach(method, kind), reach(method, kind, config_of(family))
        assert isinstance(with_one, str) or {*with_one} <= {*without}


def test_a_signal_that_towers_of_a_family_lack_is_refused_without_a_config():
    class OfTheCls(Method):
        name = "of_the_cls"

        def stages(self, shape):
            return (ImageStage(reads=(TowerAttention("cls"),), keep=0.5, score=len),)

    assert reach(OfTheCls(), fv.families()["llava"]) == ["tower"]
    assert "has no CLS" in reach(OfTheCls(), fv.families()["qwen2_vl"])


def test_the_table_is_of_every_family_and_method():
    table = support()
    assert set(FAMILIES) <= set(table)
    for modalities in table.values():
        for methods in modalities.values():
            assert set(methods) == set(fv.methods())


def halved(arriving):
    return tuple((rows // 2, columns) for rows, columns in arriving.grids)


def stays(view, count=None):
    return None


def notes(view):
    return {}


PATCHES = {"choose": stays}
UNRUN = {
    "has 2 TowerStages": (TowerStage(1, **PATCHES), TowerStage(1, **PATCHES)),
    "cuts in the tower before block 0": (TowerStage(0, **PATCHES),),
    "has 2 PixelStages": (PixelStage(coarsen=halved), PixelStage(coarsen=halved)),
    "or leave all but one out": (TowerStage(1, **PATCHES), ThinStage(keep=0.5, score=len)),
    "has 2 DecodeStages": (DecodeStage(0, keep=0.5, score=len), DecodeStage(2, keep=0.5, score=len)),
    "drops before layer 4": (DecodeStage(3, when="step", keep=0.5, score=len), LayerStage(4, keep=0.5, score=len)),
    "DecodeStage cannot read it: use LayerStage": (DecodeStage(0, reads=(Attention(),), keep=0.5, score=len),),
    "LayerStage cannot read it: use DecodeStage": (LayerStage(2, reads=(CachedAttention(),), keep=0.5, score=len),),
    "LayerStage cannot read it: use ImageStage": (LayerStage(2, reads=(TowerKeys(),), keep=0.5, score=len),),
    "in a Cuts or a Once, override steps": (LayerStage(2, reads=(Cls(),), keep=0.5, score=len),),
    "TowerStage cannot read it: use ImageStage": (TowerStage(1, reads=(TowerAttention(),), **PATCHES),),
    "TowerStage cannot read it: use LayerStage": (TowerStage(1, reads=(Hidden(),), **PATCHES),),
    "ImageStage cannot read it: use LayerStage": (ImageStage(reads=(Attention(),), keep=0.5, score=len),),
    "PatchStage cannot read it: use ImageStage": (PatchStage(reads=(TowerKeys(),), keep=0.5, score=len),),
    "has a PixelStage with a choose": (PixelStage(coarsen=halved, choose=stays),),
    "has a PixelStage with a score": (PixelStage(coarsen=halved, keep=0.5, score=stays),),
    "has a PixelStage with a look": (PixelStage(coarsen=halved, look=notes),),
    "has a TowerStage with a look": (TowerStage(1, look=notes),),
}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("said", UNRUN)
def test_a_stage_that_would_not_run_is_refused(family, said):
    class Mine(Method):
        name = "mine"

        def stages(self, shape):
            return UNRUN[said]

    with pytest.raises(fv.UnsupportedError, match=re.escape(said)), fv.drop(tiny(family), Mine()):
        pass
    assert said in reach(Mine(), fv.families()[family])
