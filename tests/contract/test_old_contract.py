"""Methods that were written for stages which ran on many samples at once."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import foveate as fv
from foveate.contract import ImageStage, LayerStage
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


def test_a_file_of_the_last_version_does_what_it_did():
    """`method_of_0_3.json` is what `kept` gave with foveate 0.3."""
    with pytest.warns(DeprecationWarning, match="host"):
        now = kept()
    assert now == json.loads((HERE / "method_of_0_3.json").read_text())


@pytest.mark.parametrize("kind", [partial(LayerStage, 1), ImageStage])
@pytest.mark.parametrize("host", [True, False])
def test_host_is_named_where_a_stage_is_made_and_never_again(kind, host, recwarn):
    stage = kind(choose=lambda view, count: None, host=host)
    (warning,) = recwarn
    assert warning.category is DeprecationWarning
    assert "host" in str(warning.message)
    assert warning.filename == __file__
    replace(stage, owner=(1,))
    assert len(recwarn) == 1
