"""Every method that counts before it looks keeps in vLLM's Qwen towers what it keeps in transformers'."""

import pytest

from tests.qwen_models import Ask, differences, engine_of, picture, run, shut, use

NEAR = 1e-4
METHODS = (
    "averagepool", "divprune", "divprune:tokens=9", "hiprune", "hiprune:retention=0.3", "holov", "holov:tokens=10",
    "prumerge:tokens=8", "prumerge_plus:tokens=12", "scope", "tome", "vidcom2", "visionzip:dominant=300", "vispruner",
    "vispruner:tokens=14", "uniform:layers=0;keep=0.3;scope=image", "divprune:keep=0.4+visionzip:tokens=6",
)  # fmt: skip


@pytest.fixture(scope="module")
def engine(name, folder):
    """Nothing is cached: methods are no part of the keys."""
    llm = engine_of(name, folder, METHODS[0], enable_prefix_caching=False, mm_processor_cache_gb=0)
    yield llm
    shut(llm)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_keeps_what_it_keeps_in_transformers(engine, reference, method):
    seed = METHODS.index(method)
    asks = [
        Ask([picture(5, 8, seed)]),
        Ask([picture(8, 4, 100 + seed), picture(5, 8, 200 + seed)], "Which is larger?"),
        Ask(
            [picture(4, 6, 300 + seed)], "How many?", {} if "=" in method and "tokens" not in method else {"tokens": 10}
        ),
    ]
    use(engine, method)
    for ask, output in zip(asks, run(engine, asks), strict=True):
        assert differences(output, reference.answer(ask, method)) < NEAR, ask
