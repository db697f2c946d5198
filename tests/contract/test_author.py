"""A method of one's own that fails, or returns what cannot be used: refused by its name, before there is an answer."""

import pytest
import torch

import foveate as fv
from foveate.contract import Cut, Cuts, Frames, Hidden, ImageStage, LayerStage, Method, Once, OwnSignal
from foveate.core.author import Author
from foveate.testing import tiny_model

NAN, INF = float("nan"), float("inf")


def ones(view):
    return torch.ones(len(view))


def with_score(score, stage=LayerStage, **options):
    """A method with one stage of this score."""
    place = {LayerStage: (2,), ImageStage: ()}[stage]

    class Mine(Method):
        name = "my_method"

        def stages(self, shape):
            return (stage(*place, **({"keep": 0.5, "score": score} | options)),)

    return Mine()


def with_signal(make):
    return with_score(lambda view: view.own.flatten(), reads=(OwnSignal(make),))


def looking(look):
    """A method that cuts behind a stage that only looks."""
    stages = (LayerStage(1, look=look), LayerStage(2, keep=0.5, score=ones))
    return type("Looking", (Method,), {"name": "my_method", "stages": lambda self, shape: stages})()


class Mine(Cuts):
    name = "my_method"
    usual_layers, usual_keep = (8,), (0.5,)
    reads = (Hidden(),)


class Before(Once):
    name = "my_method"
    usual = 0.5


class Film(Frames):
    name = "my_method"
    usual = 0.5


def made(base, **functions):
    return type(base.__name__, (base,), functions)()


def shifted(view, count):
    return Cut.merge(torch.arange(count), torch.full((count, 32), NAN), torch.zeros(len(view), dtype=torch.int64))


WRONG = {
    "complex scores": (with_score(lambda view: ones(view).to(torch.complex64)), "complex64"),
    "a column of scores": (with_score(lambda view: ones(view)[:, None]), r"\(25, 1\)"),
    "a score for all": (with_score(lambda view: torch.tensor(1.0)), r"\(25,\)"),
    "too few scores": (with_score(lambda view: ones(view)[1:]), r"\(24,\)"),
    "a list of scores": (with_score(lambda view: [1.0] * len(view)), r"\[1.0"),
    "no scores": (with_score(lambda view: None), "None"),
    "a name that is not there": (with_score(lambda view: nothing * 2), "test_author.py, line .*NameError"),  # noqa: F821
    "a signal that is not read": (with_score(lambda view: view.hidden), "hidden"),
    "NaN scores": (with_score(lambda view: ones(view) * NAN), "NaN"),
    "one NaN score": (with_score(lambda view: torch.cat((ones(view)[1:], torch.tensor([NAN])))), "NaN"),
    "infinite scores": (with_score(lambda view: ones(view) * -INF), "infinities"),
    "NaN scores of an image": (with_score(lambda view: ones(view) * NAN, ImageStage), "NaN"),
    "scores of an image of a wrong shape": (with_score(lambda view: view.features, ImageStage), r"\(25, 32|16\)"),
    "NaN of a signal": (with_signal(lambda values: values[0, :, 0] * NAN), "NaN"),
    "a complex signal": (with_signal(lambda values: values[0, :, 0].to(torch.complex64)), "complex64"),
    "a signal of a wrong length": (with_signal(lambda values: values[0, 1:, 0]), r"\(24,\)"),
    "a signal that fails": (with_signal(lambda values: values.no_such_thing), "AttributeError"),
    "a signal that takes nothing": (with_signal(lambda: 3), "TypeError"),
    "a pick of a list": (made(Mine, pick=lambda self, view, count: list(range(count))), r"\[0, 1"),
    "a pick of floats": (made(Mine, pick=lambda self, view, count: torch.arange(count).float()), "float32"),
    "a pick of too few": (made(Mine, pick=lambda self, view, count: torch.arange(count - 1)), "count"),
    "a merge into NaN": (made(Mine, pick=lambda self, view, count: shifted(view, count)), "NaN"),
    "a score of Cuts": (made(Mine, score=lambda self, view, layer: view.hidden), r"\(25, 32\)"),
    "a score without its argument": (made(Mine, score=lambda self, view: view.hidden), "TypeError"),
    "a score of Once": (made(Before, score=lambda self, view, layer: [1]), r"\[1\]"),
    "a selection": (made(Film, select=lambda self, features, count: [0]), r"\[0\]"),
    "a merge of frames": (made(Film, merge=lambda self, *_: nothing), "NameError"),  # noqa: F821
    "a choice": (with_score(None, keep=None, choose=lambda view, count: [1]), r"\[1\]"),
    "a look": (looking(lambda view: 3), "3"),
    "a note of a wrong length": (looking(lambda view: {"of": ones(view)[1:]}), "25 rows"),
    "a count": (with_score(ones, keep=None, count=lambda arriving: 2.5), "2.5"),
    "a count that fails": (with_score(ones, keep=None, count=lambda arriving: arriving.tokans), "tokans"),
    "one stage": (made(Mine, stages=lambda self, shape: LayerStage(2, keep=0.5, score=ones)), "stages"),
    "stages that fail": (made(Mine, stages=lambda self, shape: shape.dept), "dept"),
    "a stage too early": (with_score(ones, reads=(Hidden(back=3),)), "cannot read 3 layers back"),
}


@pytest.mark.parametrize("words", [("tit",), ("tit", "tit")], ids=["alone", "batch"])
@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_used_is_refused_by_the_methods_name(name, words):
    method, word = WRONG[name]
    tiny = tiny_model()
    with pytest.raises(fv.MethodError, match=f"(?s)my_method: .*{word}"), fv.drop(tiny.model, method):
        tiny.model(**tiny.inputs(*words))


@pytest.mark.parametrize(
    "score",
    [
        lambda view: torch.where(view.tokens < 5, -INF, 1.0),
        lambda view: torch.where(view.tokens < 5, INF, 1.0),
        lambda view: view.tokens,
        lambda view: view.tokens % 2 == 0,
        lambda view: view.tokens.half(),
    ],
)
def test_what_can_be_ranked_is_taken(score):
    tiny = tiny_model()
    with fv.drop(tiny.model, with_score(score)) as trace, torch.no_grad():
        tiny.model(**tiny.inputs("tit", "tit"))
    assert trace.stages[0].after == (12, 12)


def test_a_member_of_a_chain_is_named():
    tiny = tiny_model()
    chain = fv.DivPrune(keep=0.9) + with_score(lambda view: ones(view) * NAN)
    with pytest.raises(fv.MethodError, match="my_method"), fv.drop(tiny.model, chain):
        tiny.model(**tiny.inputs("tit"))


def test_a_tower_that_gives_nan_is_not_the_methods_fault():
    tiny = tiny_model()
    inputs = tiny.inputs("tit")
    inputs["pixel_values"] = inputs["pixel_values"] * NAN
    read = with_score(lambda view: view.hidden[:, 0], reads=(Hidden(),))
    with fv.drop(tiny.model, read) as trace, torch.no_grad():
        tiny.model(**inputs)
    assert trace.stages[0].after == (12,)


def test_numbers_on_a_device_are_read_where_the_answer_ends(monkeypatch):
    """No host sync in a forward: doubts are read at the end of `generate` or the context, or at the next prompt."""
    tiny, method = tiny_model(), with_score(lambda view: ones(view) * NAN)

    def check(self, what, numbers, inputs=()):  # as on a GPU
        self.doubts[f"{self.method}: {what}"] = numbers.isnan().any()

    monkeypatch.setattr(Author, "check_finite", check)
    with pytest.raises(fv.MethodError, match="my_method"), fv.drop(tiny.model, method):
        tiny.generate(tiny.inputs("tit"), 1)
    with pytest.raises(fv.MethodError, match="my_method"), fv.drop(tiny.model, method), torch.no_grad():
        tiny.model(**tiny.inputs("tit"))
    fv.apply(tiny.model, method)
    tiny.model(**tiny.inputs("tit"))
    with pytest.raises(fv.MethodError, match="my_method"):
        tiny.model(**tiny.inputs("tit"))
    fv.remove(tiny.model)
