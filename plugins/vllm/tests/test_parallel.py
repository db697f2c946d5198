"""Two ranks answer as one process does on transformers: both must take the same cut."""

import pytest

from foveate.naming import parse
from tests import engines
from tests.engines import Reference, answers, engine, picture

pytest.importorskip("vllm")


@pytest.fixture(scope="module", autouse=True)
def spawned():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        patch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
        yield


@pytest.fixture
def fixtures(request):
    return request


@pytest.mark.parametrize("folder", ["llava_folder", "embedded_folder"])
def test_two_ranks_answer_as_transformers(folder, fixtures):
    folder = fixtures.getfixturevalue(folder)
    images = [engines.demo(), picture(1), picture(2)]
    requests = [
        engines.request(images[:1]),
        engines.request(images[1:]),
        engines.request(images[:1], foveate_retention=0.5),
        engines.request(),
    ]
    setting = {"method": "visionzip", "retention": 0.25}
    with engine(folder, setting, tensor_parallel_size=2, distributed_executor_backend="mp") as llm:
        said = answers(llm, requests)
    reference = Reference(folder)
    quarter, half = parse("visionzip").with_budget(retention=0.25), parse("visionzip").with_budget(retention=0.5)
    methods = (quarter, quarter, half, None)
    pairs = zip(requests, methods, strict=True)
    assert said == [reference.answer(asked, method) for asked, method in pairs]
