"""Between the layers vLLM drops the tokens that foveate drops in transformers: same tokens, same log-probabilities."""

import pytest
import transformers

from tests import checkpoints, checkpoints_qwen
from tests.between.models import DEMO, METHODS, NEAR, SIX, Reference, answers, engine, misses, use

EMBEDDED = ("v2drop:layers=3,17,22;keep=0.19,0.84,0.0", "fastv:layers=2;keep=0.2;scope=image")
"""Where they cut, scores lie apart by 0.4 % or more: at half of the tokens, rounding swapped two on another CPU."""


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl", "qwen3_vl"])
def folder(request, tmp_path_factory, llava_folder):
    if request.param == "llava":
        return llava_folder
    return checkpoints_qwen.qwen_checkpoint(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def reference(folder):
    return Reference(folder)


@pytest.fixture(scope="module")
def two_slots(folder):
    """An engine that runs two requests at once."""
    with engine(folder, METHODS[0]) as llm:
        yield llm


@pytest.mark.parametrize("method", METHODS)
def test_six_requests_over_two_slots_answer_as_on_transformers(two_slots, reference, method):
    use(two_slots, method)
    wanted = [reference.answer(ask, method) for ask in SIX]
    for got, answer in zip(answers(two_slots, SIX), wanted, strict=True):
        assert misses(got, answer) < NEAR
    for place in (0, 2):  # alone: one image, and two
        (got,) = answers(two_slots, [SIX[place]])
        assert misses(got, wanted[place]) < NEAR


def test_another_set_of_tokens_would_be_noticed(two_slots, reference):
    use(two_slots, METHODS[0])
    (got,) = answers(two_slots, SIX[:1])
    for other in (None, "v2drop:layers=1,3;keep=0.5,0.3;reverse=true", "v2drop:layers=1,3;keep=0.5,0.8"):
        assert misses(got, reference.answer(SIX[0], other)) > 20 * NEAR


def test_the_embedded_model_answers_as_on_transformers(embedded_folder):
    reference = Reference(embedded_folder)
    with engine(embedded_folder, EMBEDDED[0], max_model_len=2048) as llm:
        for method in EMBEDDED:
            use(llm, method)
            for ask, got in zip(DEMO, answers(llm, DEMO), strict=True):
                assert misses(got, reference.answer(ask, method)) < NEAR
        use(llm, EMBEDDED[0])
        (got, *_) = answers(llm, DEMO[:1])
        assert llm.get_tokenizer().decode(got.tokens).startswith("36KUM")


def test_members_before_and_behind_the_decoders_entrance_work_together(llava_folder):
    """Rows of the first member are numbered anew, since the prompt is shorter; those behind keep their numbers."""
    method = "divprune:keep=0.5+pyramiddrop:positions=keep;retention=0.3;layer_list=1,2,4"
    reference = Reference(llava_folder)
    with engine(llava_folder, method) as llm:
        for ask, got in zip(SIX, answers(llm, SIX), strict=True):
            assert misses(got, reference.answer(ask, method)) < NEAR


def test_a_model_whose_sliding_window_is_switched_off_answers_as_on_transformers(tmp_path):
    checkpoints.llava_checkpoint(tmp_path, text=transformers.MistralConfig, sliding_window=300)
    reference = Reference(tmp_path)
    with engine(tmp_path, METHODS[0], disable_sliding_window=True, max_model_len=None) as llm:
        assert llm.model_config.max_model_len == 300
        for ask, got in zip(SIX, answers(llm, SIX), strict=True):
            assert misses(got, reference.answer(ask, METHODS[0])) < NEAR
