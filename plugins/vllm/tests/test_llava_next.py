"""LLaVA-NeXT in vLLM: tiles and newlines are dropped as foveate does on transformers."""

import pytest

from foveate.naming import parse
from tests.engines import Reference, answers, engine, picture, request

pytest.importorskip("vllm")

# Tall, wide and square pictures: other tiles, and other rows of the map that are padding.
SIZES = ((84, 84), (60, 150), (160, 70), (168, 100))
METHODS = ("visionzip", "divprune", "vispruner", "prumerge", "averagepool", "visionzip:retention=0.5+divprune")


@pytest.fixture(scope="module")
def reference(next_folder):
    return Reference(next_folder)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_answers_as_on_transformers(next_folder, reference, method):
    images = [picture(index, width, height) for index, (width, height) in enumerate(SIZES)]
    requests = [request([image]) for image in images]
    requests.append(request(images[1:3]))
    requests.append(request())
    rates = [0.25] * len(requests)
    requests.append(request(images[:1], foveate_retention=0.5))
    rates.append(0.5)
    with engine(next_folder, {"method": method, "retention": 0.25}) as llm:
        said = answers(llm, requests)
    pairs = zip(requests, rates, strict=True)
    assert said == [reference.answer(one, parse(method).with_budget(retention=rate)) for one, rate in pairs]


def test_whole_images_answer_as_the_untouched_model(next_folder, reference):
    requests = [request([picture(1, 60, 150)]), request([picture(2, 168, 168)])]
    with engine(next_folder, {"method": "visionzip", "retention": 1.0}) as llm:
        assert answers(llm, requests) == [reference.answer(one) for one in requests]
