"""Stock vLLM answers reduced embeddings as transformers answers the method that made them."""

import pytest

import foveate as fv
from examples.embeddings import reduced_embeddings
from foveate import embedded
from foveate.contract import Attention, LayerStage
from foveate.contract.method import Method
from foveate.errors import BudgetError, UnsupportedError
from tests import engines
from tests.engines import Renumbered, engine

pytest.importorskip("vllm")

QUESTION = "What does the text say?"


class Asked(Method):
    """Keeps the tokens to which the question pays most attention, before the decoder."""

    name = "asked"

    def stages(self, shape):
        signal = Attention(rows="last", layer="next")
        return (LayerStage(0, keep=0.2, reads=(signal,), score=lambda view: view[signal], unit="image"),)


@pytest.fixture(scope="module")
def vlm():
    return fv.load(dtype="float32")


@pytest.fixture(scope="module")
def stock(embedded_folder):
    with engine(embedded_folder, enable_mm_embeds=True) as llm:
        yield llm


def _asked(vlm, method):
    """Requests with reduced embeddings in the place of two pictures, and what the method answers on transformers."""
    requests, expected = [], []
    for image in (engines.demo(), engines.picture(5, 336, 336)):
        prompt = vlm.prepare(image, QUESTION)
        rows = reduced_embeddings(vlm, image, QUESTION, method)
        assert len(rows) < prompt.vision_tokens
        ids = prompt.inputs["input_ids"][0].tolist()
        place = ids.index(vlm.model.config.image_token_id)
        short = [*ids[: place + 1], *ids[place + prompt.vision_tokens :]]
        requests.append({"prompt_token_ids": short, "multi_modal_data": {"image": [rows]}})
        with fv.drop(vlm.model, Renumbered(inner=method)):
            answer = vlm.model.generate(**prompt.inputs, max_new_tokens=8, do_sample=False)
        expected.append(answer[0, len(ids) :].tolist())
    return requests, expected


@pytest.mark.parametrize(
    "method",
    [fv.PruMerge(), Asked(), fv.VisionZip(tokens=64)],
    ids=["chooses its count", "reads the question", "fixed"],
)
def test_stock_vllm_answers_as_the_method_on_transformers(vlm, stock, method):
    requests, expected = _asked(vlm, method)
    # One behind the other: stock vLLM takes embeddings of one count in a step.
    assert [engines.answers(stock, [request])[0] for request in requests] == expected


def test_the_plug_in_takes_embeddings_of_several_counts_beside_pictures(vlm, embedded_folder):
    requests, expected = _asked(vlm, fv.PruMerge())
    rows = [prompt["multi_modal_data"]["image"][0] for prompt in requests]
    assert len(rows[0]) != len(rows[1])
    shown = engines.request([engines.demo()])
    setting = {"method": "visionzip", "tokens": 64}
    with engine(embedded_folder, setting, enable_mm_embeds=True) as llm:
        together = engines.answers(llm, [*requests, shown])
    reference = engines.Reference(embedded_folder)
    assert together == [*expected, reference.answer(shown, fv.VisionZip(tokens=64))]


def test_a_question_decides_the_rows(vlm):
    rows = [reduced_embeddings(vlm, embedded.picture(), question, Asked()) for question in (QUESTION, "Is it red?")]
    assert not rows[0].equal(rows[1])


def test_a_method_that_keeps_everything_gives_every_token(vlm):
    assert reduced_embeddings(vlm, embedded.picture(), QUESTION, "visionzip", retention=1).shape == (576, 128)


@pytest.mark.parametrize("method", ["v2drop", "visionzip+v2drop", "visionzip+finalkv", "divprune+fastv+finalkv"])
def test_a_method_that_drops_later_too_is_refused(vlm, method):
    with pytest.raises(UnsupportedError, match="embeddings end before it"):
        reduced_embeddings(vlm, embedded.picture(), QUESTION, method)


def test_a_budget_that_cannot_be_met_is_refused(vlm):
    with pytest.raises(BudgetError):
        reduced_embeddings(vlm, embedded.picture(), QUESTION, "visionzip", tokens=0.2)


def test_the_model_is_as_it_was_behind_it(vlm):
    before = vlm.ask(embedded.picture(), QUESTION).text
    reduced_embeddings(vlm, embedded.picture(), QUESTION, "visionzip", tokens=16)
    assert vlm.ask(embedded.picture(), QUESTION).text == before == embedded.ANSWER
