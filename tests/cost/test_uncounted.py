"""A method of another package whose FLOPs nobody has counted: never 0, and said wherever they would stand."""

import pytest
from transformers import LlavaConfig

import foveate as fv
from foveate.contract import Cuts, Hidden, LayerStage, Method, Shape

SIZES = {"text_tokens": 40, "vision_tokens": 576}


def norms(view):
    return view.hidden.float().norm(dim=-1)


def count_norms(arriving, width):
    return 2 * width * arriving.tokens


class Norm(Method):
    """As somebody writes one who has not read of flops=."""

    name = "norm_of_mine"
    keep: float = 0.4
    says: bool = False

    def stages(self, shape):
        flops = count_norms if self.says else None
        return (LayerStage(2, reads=(Hidden(),), keep=self.keep, score=norms, flops=flops),)


class Scored(Cuts):
    name = "scored_of_mine"

    reads = (Hidden(),)

    def score(self, view, layer):
        return norms(view)


class Ours(fv.FastV):
    """Another name for a method of foveate: nothing of its own is left uncounted."""

    name = "fastv_of_mine"


def test_what_nobody_counted_is_null_and_printed():
    costs = fv.cost(LlavaConfig(), method=Norm(), **SIZES)
    assert costs.to_dict()["scoring_flops"] is None is costs.to_dict()["total_flops"]
    assert "total not counted" in repr(costs)
    assert costs._repr_html_().count("not counted") == 2
    assert fv.cost(LlavaConfig(), method=Scored(retention=0.5), **SIZES).total_flops is None
    told = fv.cost(LlavaConfig(), method=Norm(says=True), **SIZES)
    assert told.scoring_flops == 2 * 4096 * 576
    assert told.total_flops == told.model_flops + told.scoring_flops == costs.model_flops + told.scoring_flops


@pytest.mark.parametrize("name", sorted(fv.methods()))
def test_methods_of_foveate_are_counted(name):
    if name == "pixelprune":
        return
    stages = fv.methods()[name]().stages(Shape(32, cls=True))
    assert all(stage.is_counted for stage in stages)
    assert (
        fv.cost(LlavaConfig(), method=Ours(), **SIZES).scoring_flops
        == fv.cost(LlavaConfig(), method=fv.FastV(), **SIZES).scoring_flops
    )
