"""What every test inside vLLM needs: `make test-vllm` runs them, in an environment of their own."""

import importlib.util
import os

import pytest

from tests import checkpoints, checkpoints_qwen

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TORCHDYNAMO_DISABLE": "1",  # compiling takes longer than what is compiled
}

ALL = os.environ.get("FOVEATE_TESTS", "")
"""Empty: what fits into five minutes on two cores. "long": all under V1, PAIRS under V2. "all": all under both."""
LATER = (
    "test_answers.py::test_six_requests_over_two_slots_answer_as_on_transformers[qwen2_5_vl",
    "test_answers.py::test_six_requests_over_two_slots_answer_as_on_transformers[qwen3_vl",
    "test_another_set_of_tokens_would_be_noticed[qwen",
    "test_running.py::test_a_request_that_was_preempted_is_computed_again_with_the_same_tokens[fastv",
    "test_a_compiled_decoder_answers_as_on_transformers[fastv",
    "test_generic.py::test_a_model_of_the_generic_way_answers_as_on_transformers[i",
    "test_generic.py::test_a_model_of_the_generic_way_answers_as_on_transformers[llava",
    "test_generic.py::test_a_model_of_the_generic_way_answers_as_on_transformers[smolvlm",
    "test_llava.py::test_a_method_answers_as_on_transformers[averagepool:",
    "test_llava.py::test_a_method_answers_as_on_transformers[h",
    "test_llava.py::test_a_method_answers_as_on_transformers[prumerge",
    "test_llava.py::test_a_method_answers_as_on_transformers[scope",
    "test_llava.py::test_a_method_answers_as_on_transformers[uniform",
    "test_llava.py::test_a_method_answers_as_on_transformers[vispruner",
    "test_llava.py::test_a_method_answers_as_on_transformers[visionzip:merge",
    "test_llava_next.py::test_a_method_answers_as_on_transformers[averagepool",
    "test_llava_next.py::test_a_method_answers_as_on_transformers[divprune",
    "test_llava_next.py::test_a_method_answers_as_on_transformers[prumerge",
    "test_llava_next.py::test_a_method_answers_as_on_transformers[visionzip]",
    "test_llava_next.py::test_a_method_answers_as_on_transformers[vispruner",
    "test_parallel.py",
    "test_qwen.py::test_a_picture_seen_before_comes_from_the_prefix_cache[chunks",
    "test_qwen.py::test_rates_of_one_picture_are_never_mixed[chunks",
    "test_qwen_films.py::test_a_method_keeps_of_films_what_it_keeps_in_transformers[divprune",
    "test_qwen_films.py::test_a_method_keeps_of_films_what_it_keeps_in_transformers[holov",
    "test_qwen.py::test_a_picture_seen_before_comes_from_the_prefix_cache[whole-qwen3_vl",
    "test_qwen_members.py",
    "test_qwen_parallel.py",
)
"""Parts of the names of tests that are left out then; and those of Qwen3-VL, whose way Qwen2.5-VL goes too."""
FEW = (
    "test_triton_attn.py",
    "test_six_requests_over_two_slots_answer_as_on_transformers[llava-v2drop:layers=1,3",
    "test_text_is_read_from_the_prefix_cache_and_pictures_never",
    "test_a_request_that_was_preempted_is_computed_again_with_the_same_tokens[v2drop",
    "test_llava.py::test_a_method_answers_as_on_transformers[divprune",
)
"""What runs under runner V2 too, in Triton's interpreter: each way, and each way to be scheduled."""
PAIRS = (
    *FEW,
    "test_prompts_without_images_are_cut_into_chunks_and_those_with_images_wait[fastv",
    "test_rates_of_requests_are_met_in_a_batch_that_is_larger_than_the_engine_holds[chunks-qwen2_5_vl",
    "test_six_requests_over_two_slots_answer_as_on_transformers[qwen2_5_vl-fastv:layers=2;keep=0.5+v2drop",
    "test_six_requests_over_two_slots_answer_as_on_transformers[qwen3_vl-pyramiddrop",
    "test_another_set_of_tokens_would_be_noticed[llava",
    "test_members_before_and_behind_the_decoders_entrance_work_together",
    "test_plain_decode_steps_build_no_metadata_of_their_own",
    "test_before_the_decoder_a_request_has_its_rate",
    "test_the_plug_in_takes_embeddings_of_several_counts_beside_pictures",
    "test_llava.py::test_one_image_at_two_rates_is_never_mixed",
    "test_llava.py::test_images_cut_by_chunks_answer_alike",
    "test_llava_next.py::test_a_method_answers_as_on_transformers[visionzip:retention=0.5+divprune",
    "test_a_picture_seen_before_comes_from_the_prefix_cache[whole-qwen3_vl",
    "test_rates_of_one_picture_are_never_mixed[chunks-qwen3_vl",
    "test_requests_that_were_preempted_go_on_as_they_began[qwen2_5_vl",
    "test_videos_and_embeddings_stay_as_vllm_has_them[qwen3_vl",
    "test_generic.py::test_a_model_of_the_generic_way_answers_as_on_transformers[mistral3",
)
"""The same where there is time."""


def pytest_collection_modifyitems(config, items):
    """Leave out what there is no time for, and under runner V2 what no runner can change."""
    if ALL == "all":
        return
    if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1":
        wanted = PAIRS if ALL else FEW
        chosen = [item for item in items if any(part in item.nodeid for part in wanted)]
        missing = [part for part in wanted if not any(part in item.nodeid for item in chosen)]
        if missing and len(items) > len(PAIRS):
            raise pytest.UsageError(f"No such test for runner V2: {', '.join(missing)}")
    elif ALL:
        return
    else:
        chosen = [item for item in items if not _is_long(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def _is_long(item):
    known = any(part in item.nodeid for part in LATER) or item.get_closest_marker("long") is not None
    return known or ("test_qwen" in item.nodeid and "qwen3_vl" in item.nodeid)


if importlib.util.find_spec("vllm") is None:
    collect_ignore_glob = ["*"]
else:  # not for the other tests, which are collected where there is no vLLM
    os.environ |= ENVIRONMENT


@pytest.fixture(scope="session")
def embedded_folder(tmp_path_factory):
    """The embedded model as vLLM loads it."""
    return checkpoints.embedded_checkpoint(tmp_path_factory.mktemp("embedded"))


@pytest.fixture(scope="session")
def next_folder(tmp_path_factory):
    """A tiny random LLaVA-NeXT."""
    return checkpoints.next_checkpoint(tmp_path_factory.mktemp("next"))


@pytest.fixture(scope="session")
def llava_folder(tmp_path_factory):
    """A tiny random LLaVA-1.5."""
    return checkpoints.llava_checkpoint(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module", params=checkpoints_qwen.NAMES)
def name(request):
    """Each Qwen family."""
    return request.param


@pytest.fixture(scope="module")
def folder(name, tmp_path_factory):
    """A tiny random model of this Qwen family."""
    return checkpoints_qwen.qwen_checkpoint(name, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="module")
def reference(folder):
    """This model in transformers."""
    from tests.qwen_models import Reference  # after the environment is set

    return Reference(folder)
