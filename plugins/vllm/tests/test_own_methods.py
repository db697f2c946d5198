"""A method of one's own inside vLLM: numbers that cannot be ranked are refused by its name, also on a GPU."""

import pytest

import foveate as fv
from foveate.contract import Features, Hidden, ImageStage, LayerStage, Method
from foveate.core.author import Author
from tests.engines import answers, engine, picture, request


def nan(view):
    return view.features[:, 0] * float("nan")


class Between(Method):
    """Scores NaN between the layers."""

    name = "own_between"

    def stages(self, shape):
        return (LayerStage(2, reads=(Hidden(),), keep=0.5, score=lambda view: view.hidden[:, 0] * float("nan")),)


class Before(Method):
    """Scores NaN behind the tower."""

    name = "own_before"

    def stages(self, shape):
        return (ImageStage(reads=(Features(),), keep=0.5, score=nan),)


for kind in Between, Before:
    fv.register_method(kind)


def on_a_gpu(self, what, numbers, inputs=()):
    """As `Author.check_finite` there: the host does not wait."""
    self.doubts[f"{self.method}: {what}"] = numbers.isnan().any()


@pytest.mark.parametrize("kind", [Between, Before])
def test_numbers_on_a_device_are_read_where_the_step_ends(llava_folder, kind, monkeypatch):
    with engine(llava_folder, {"method": kind.name}, enable_prefix_caching=False) as llm:
        assert len(answers(llm, [request()], 2)) == 1
        monkeypatch.setattr(Author, "check_finite", on_a_gpu)
        with pytest.raises(fv.MethodError, match=kind.name):
            answers(llm, [request([picture(0)])], 2)
