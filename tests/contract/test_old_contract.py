"""Methods that were written for stages which ran on many samples at once."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from transformers import LlavaConfig

import foveate as fv
from foveate.contract import Cuts, Frames, ImageStage, LayerStage, Once
from foveate.naming import method_of
from foveate.testing import tiny_model

HERE = Path(__file__).parent
WORDS = ("titit", "tit", "ttt")


def kept():
    """The tokens that stay of each sample behind each stage, and the greedy tokens."""
    tiny, method = tiny_model("llava"), method_of(str(HERE / "method_of_0_3.py"))
    with fv.drop(tiny.model, method) as trace:
        ids = tiny.generate(tiny.inputs(*WORDS), 3).sequences[:, -3:].tolist()
    return {"kept": [[one.tolist() for one in stage.kept] for stage in trace.stages], "ids": ids}


def test_a_file_of_an_older_version_does_what_it_did():
    """`method_of_0_3.json` is what `kept` gave with foveate 0.3."""
    with pytest.warns(DeprecationWarning, match="flops"):
        now = kept()
    assert now == json.loads((HERE / "method_of_0_3.json").read_text())


@pytest.mark.parametrize("kind", [partial(LayerStage, 1), ImageStage])
def test_what_a_stage_ignores_is_named_where_it_is_made_and_never_again(kind, recwarn):
    stage = kind(choose=lambda view, count: None, flops=lambda arriving, width: 0)
    (warning,) = recwarn
    assert warning.category is DeprecationWarning
    assert "flops" in str(warning.message)
    assert stage.flops is None
    assert warning.filename == __file__
    replace(stage, owner=(1,))
    assert len(recwarn) == 1


@pytest.mark.parametrize("base", [Cuts, Once, Frames, fv.FastV])
def test_a_method_that_counts_its_own_flops_is_named_where_it_is_written(base, recwarn):
    class Counts(base):
        name = "counts_of_mine"

        def flops(self, arriving, width):
            raise AssertionError

    (warning,) = recwarn
    assert warning.category is DeprecationWarning
    assert "Counts.flops" in str(warning.message)
    assert warning.filename == __file__
    if base is fv.FastV:
        assert fv.cost(LlavaConfig(), text_tokens=40, vision_tokens=576, method=Counts()) == fv.cost(
            LlavaConfig(), text_tokens=40, vision_tokens=576, method=fv.FastV()
        )
    assert len(recwarn) == 1
